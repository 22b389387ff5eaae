"""The moment by which the request being served must have its answer.

The guard sets it once per request; whoever waits for something (the store, the hashing queue) asks it. A context
variable, not a parameter, for it concerns every layer and none of their signatures.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

BUDGET_SECONDS = 2.5
"""Time that a request may take where its client named no earlier deadline."""

COMMAND_BUDGET_SECONDS = 60.0
"""Time that a command may take: a person waits, and the highest cost of a hash takes seconds."""

_MARGIN = 0.1
"""Share of the client's remaining time that is kept for sending the answer."""

_deadline: ContextVar[float] = ContextVar("deadline")


def begin(client_seconds: float | None) -> None:
    """Bound the rest of this task, which serves one request.

    Args:
        client_seconds: Seconds that the client still waits, or None where it set no deadline.
    """
    seconds = BUDGET_SECONDS
    if client_seconds is not None:
        seconds = min(seconds, max(client_seconds, 0.0) * (1 - _MARGIN))
    _deadline.set(asyncio.get_running_loop().time() + seconds)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Bound what runs inside."""
    token = _deadline.set(asyncio.get_running_loop().time() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def at() -> float:
    """Return the deadline as the running loop's clock tells time, a full budget from now where none is set."""
    return _deadline.get(asyncio.get_running_loop().time() + BUDGET_SECONDS)


def remaining_seconds() -> float:
    """Return the seconds left, negative once the deadline has passed."""
    return at() - asyncio.get_running_loop().time()
