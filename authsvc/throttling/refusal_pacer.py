"""The rate at which refused logins are answered, so that a flood of them leaves the event loop to validations.

A client that retries as soon as it is answered retries no faster than answers come.
"""

import asyncio
import random

from authsvc import request_context

INTERVAL_SECONDS = 0.04
"""Between two answers: less left a core that also hashes too little for validations."""
MAX_WAIT_SECONDS = 2.5
"""Longest wait: a connection has a limited number of concurrent calls."""
_random = random.SystemRandom()


class RefusalPacer:
    """A leaky bucket: each refusal is answered INTERVAL_SECONDS after the one before; a lone one at once.

    Where that is longer than a refusal may wait, its wait is drawn: clients that were refused together would otherwise
    be answered together, retry together, and so on.
    """

    def __init__(self) -> None:
        self._next_time = 0.0

    async def wait(self) -> None:
        """Wait until a refusal may be answered, at most half of the time that the request has."""
        now = asyncio.get_running_loop().time()
        self._next_time = min(max(now, self._next_time + INTERVAL_SECONDS), now + MAX_WAIT_SECONDS)
        seconds, max_seconds = self._next_time - now, min(MAX_WAIT_SECONDS, request_context.remaining_seconds() / 2)
        if seconds >= max_seconds:
            seconds = _random.uniform(max_seconds / 2, max_seconds)
        await asyncio.sleep(max(0.0, seconds))
