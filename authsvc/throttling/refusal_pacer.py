"""The rate at which refused logins are answered, so that a flood of them leaves the event loop to validations.

A client that retries as soon as it is answered retries no faster than answers come.
"""

import asyncio

from authsvc import request_context

INTERVAL_SECONDS = 0.025
"""Between two answers: less left a core that also hashes too little for validations."""
MAX_WAIT_SECONDS = 1.0
"""Longest wait: a connection has a limited number of concurrent calls."""


class RefusalPacer:
    """A leaky bucket: each refusal is answered INTERVAL_SECONDS after the one before; a lone one at once."""

    def __init__(self) -> None:
        self._next_time = 0.0

    async def wait(self) -> None:
        """Wait until a refusal may be answered, but not beyond the request's deadline."""
        now = asyncio.get_running_loop().time()
        self._next_time = min(max(now, self._next_time + INTERVAL_SECONDS), now + MAX_WAIT_SECONDS)
        await asyncio.sleep(max(0.0, min(self._next_time, request_context.deadline()) - now))
