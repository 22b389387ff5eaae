"""The two clocks of the client: one for ages, one for the time of day."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Clock:
    """Returns the time; a test passes its own.

    Args:
        monotonic: Seconds for ages of answers; never runs backwards.
        wall: Seconds since 1970 in UTC, which `expire_time` is compared with.
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


MAX_SECONDS = 100 * 365 * 86_400.0
"""A longer span is cut: neither the API nor gRPC can hold every one."""


def to_seconds(name: str, span: timedelta | float) -> float:
    """Return a span of time in seconds.

    Args:
        name: Of the argument, for the error.
        span: A timedelta, or a number of seconds; `timedelta.max` and infinity mean for ever.

    Raises:
        ValueError: It is negative or not a number.
    """
    seconds = span.total_seconds() if isinstance(span, timedelta) else float(span)
    if not seconds >= 0:
        raise ValueError(f"{name} must be zero or more")
    return min(seconds, MAX_SECONDS)
