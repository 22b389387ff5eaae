"""The pace at which refused logins are answered, so that a flood of them leaves the event loop to everybody else.

Whoever asks again as soon as there is an answer asks no faster than answers come.
"""

import asyncio
import secrets
from contextlib import suppress

from authsvc import deadline

GAP_SECONDS = 0.0016
"""Between two answers: most of 40 clients without a pause wait less than 50 ms each, and take a third of a core."""
MAX_WAIT_SECONDS = 1.0


class Pace:
    """Lets one pass after another, with a gap between them; who is next is drawn by lot.

    By lot, most wait less than the average, which in turn they would all wait: so the gap can be longer.
    """

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []
        self._next_time = 0.0

    async def turn(self) -> None:
        """Wait for one's turn, but not beyond the request's deadline."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self._waiting and now >= self._next_time:
            self._next_time = now + GAP_SECONDS
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            loop.call_at(self._next_time, self._let_one_pass)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(now + MAX_WAIT_SECONDS, deadline.at())):
                await turn

    def _let_one_pass(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            turn = self._drawn()
            if not turn.done():  # else it waited too long, or its client went away
                turn.set_result(None)
                break
        self._next_time = max(self._next_time + GAP_SECONDS, loop.time())
        if self._waiting:
            loop.call_at(self._next_time, self._let_one_pass)

    def _drawn(self) -> "asyncio.Future[None]":
        place = secrets.randbelow(len(self._waiting))
        self._waiting[place], self._waiting[-1] = self._waiting[-1], self._waiting[place]
        return self._waiting.pop()
