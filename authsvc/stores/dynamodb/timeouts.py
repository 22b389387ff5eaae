"""DynamoDB's time-outs and retries: botocore's own are off, these are the only ones."""

import asyncio
import random
from dataclasses import dataclass

_jitter = random.SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoDBTimeouts:
    """How long one attempt may take, and how often a call is attempted within its request's deadline.

    Args:
        connect_seconds: Until a connection is open.
        read_seconds: Between two packets of a response.
        batch_seconds: One batched read as a whole: a response that trickles in must not hold its slot.
        max_attempts: Attempts of one call.
        backoff_seconds: Upper bound of the pause after the first attempt; doubled after each further one (full jitter).
    """

    connect_seconds: float = 0.3
    read_seconds: float = 0.5
    batch_seconds: float = 1.0
    max_attempts: int = 6
    backoff_seconds: float = 0.025

    async def pause(self, attempts: int, deadline: float, level: int | None = None) -> bool:
        """Pause before the next attempt, with full jitter below a bound that doubles; return False where there is none.

        Args:
            attempts: Made so far.
            deadline: Of the call, by the running loop's clock; no pause goes beyond it.
            level: How often the bound is doubled, plus one; None: as often as attempts were made.
        """
        seconds = _jitter.uniform(0, self.backoff_seconds * 2 ** ((attempts if level is None else level) - 1))
        if attempts >= self.max_attempts or asyncio.get_running_loop().time() + seconds >= deadline:
            return False
        await asyncio.sleep(seconds)
        return True
