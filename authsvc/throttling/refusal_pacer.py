"""The rate at which refused logins are answered, so that a flood of them leaves the event loop to validations.

A client that retries as soon as it is answered retries no faster than answers come.
"""

import asyncio
import random
from contextlib import suppress

from authsvc import request_context

INTERVAL_SECONDS = 0.006
"""Between two answers."""
DRAWN = 8
"""The next answer goes to the newest of this many drawn at random: of 40 clients most wait less than 50 ms."""
MAX_WAIT_SECONDS = 1.0
"""Longest wait: a connection has a limited number of concurrent calls."""
_random = random.SystemRandom()


class RefusalPacer:
    """Releases waiting refusals one by one, at an interval."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []  # the newest last
        self._next_time = 0.0
        self._is_timer_set = False

    async def wait(self) -> None:
        """Wait until a refusal may be answered, but not beyond the request's deadline."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self._waiting and now >= self._next_time:
            self._next_time = now + INTERVAL_SECONDS
            return
        release = loop.create_future()
        self._waiting.append(release)
        self._set_timer()
        # Refusals that arrived together must not all time out together.
        max_wait = _random.uniform(MAX_WAIT_SECONDS / 2, MAX_WAIT_SECONDS)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(now + max_wait, request_context.deadline())):
                    await release
        finally:
            if release in self._waiting:
                self._waiting.remove(release)

    def _set_timer(self) -> None:
        if self._waiting and not self._is_timer_set:
            self._is_timer_set = True
            asyncio.get_running_loop().call_at(self._next_time, self._release_one)

    def _release_one(self) -> None:
        self._is_timer_set = False
        while self._waiting:
            release = self._draw()
            if not release.done():  # else its client has disconnected
                release.set_result(None)
                self._next_time = asyncio.get_running_loop().time() + INTERVAL_SECONDS
                break
        self._set_timer()

    def _draw(self) -> "asyncio.Future[None]":
        number = len(self._waiting)
        return self._waiting.pop(max(_random.randrange(number) for _ in range(DRAWN)))
