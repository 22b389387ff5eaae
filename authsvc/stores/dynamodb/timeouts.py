"""DynamoDB's time-outs and retries: botocore's own are off, these are the only ones."""

from dataclasses import dataclass


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
