"""The pace at which refused logins are answered, so that a flood of them leaves the event loop to everybody else.

Whoever asks again as soon as there is an answer asks no faster than answers come.
"""

import asyncio
import random
from contextlib import suppress

from authsvc import request_context

GAP_SECONDS = 0.006
"""Between two answers."""
DRAWN = 8
"""The newest of so many is next: of 40 clients without a pause most wait less than 50 ms, a fifth half a second."""
MAX_WAIT_SECONDS = 1.0
"""Nobody waits longer: a connection has only so many calls at once."""
_lot = random.SystemRandom()


class RefusalPacer:
    """Lets one pass after another, with a gap between them: the newest of some that are drawn by lot."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []  # the newest last
        self._next_time = 0.0
        self._is_timed = False

    async def turn(self) -> None:
        """Wait for one's turn, but not beyond the request's deadline."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self._waiting and now >= self._next_time:
            self._next_time = now + GAP_SECONDS
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        self._see_to_next()
        # Who came together must not give up together.
        patience = _lot.uniform(MAX_WAIT_SECONDS / 2, MAX_WAIT_SECONDS)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(now + patience, request_context.deadline())):
                    await turn
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def _see_to_next(self) -> None:
        if self._waiting and not self._is_timed:
            self._is_timed = True
            asyncio.get_running_loop().call_at(self._next_time, self._let_one_pass)

    def _let_one_pass(self) -> None:
        self._is_timed = False
        while self._waiting:
            turn = self._drawn()
            if not turn.done():  # else its client has just gone away
                turn.set_result(None)
                self._next_time = asyncio.get_running_loop().time() + GAP_SECONDS
                break
        self._see_to_next()

    def _drawn(self) -> "asyncio.Future[None]":
        number = len(self._waiting)
        return self._waiting.pop(max(_lot.randrange(number) for _ in range(DRAWN)))
