"""The pace at which refused logins are answered, so that a flood of them leaves the event loop to everybody else.

Whoever asks again as soon as there is an answer asks no faster than answers come.
"""

import asyncio

from authsvc import deadline

GAP_SECONDS = 0.00125
"""Between two answers: 40 clients without a pause wait less than 50 ms each, and take less than half of a core."""
MAX_WAIT_SECONDS = 1.0


class Pace:
    """Lets one pass after another, with a gap between them."""

    def __init__(self) -> None:
        self._last_time = 0.0

    async def turn(self) -> None:
        """Wait for one's turn, but not beyond the request's deadline."""
        now = asyncio.get_running_loop().time()
        self._last_time = min(max(now, self._last_time + GAP_SECONDS), now + MAX_WAIT_SECONDS)
        await asyncio.sleep(min(self._last_time - now, deadline.remaining_seconds()))
