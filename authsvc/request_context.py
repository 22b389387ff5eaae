"""The moment by which the request being served must have its answer.

The guard sets it once per request; whoever waits for something (the store, the hashing queue) asks it. A context
variable, not a parameter, for it concerns every layer and none of their signatures.
"""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

DEFAULT_DEADLINE_SECONDS = 2.5
"""Time that a request may take where its client named no earlier deadline."""

COMMAND_DEADLINE_SECONDS = 60.0
"""Time that a command may take: a person waits, and the highest cost of a hash takes seconds."""

_MARGIN = 0.1
"""Share of the client's remaining time that is kept for sending the answer."""

_deadline: ContextVar[float] = ContextVar("deadline")


def start_deadline(client_seconds: float | None) -> None:
    """Bound the rest of this task, which serves one request.

    Args:
        client_seconds: Seconds that the client still waits, or None where it set no deadline.
    """
    seconds = DEFAULT_DEADLINE_SECONDS
    if client_seconds is not None:
        seconds = min(seconds, max(client_seconds, 0.0) * (1 - _MARGIN))
    _deadline.set(asyncio.get_running_loop().time() + seconds)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Bound what runs inside."""
    token = _deadline.set(asyncio.get_running_loop().time() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def deadline() -> float:
    """Return the deadline as the running loop's clock tells time, a full budget from now where none is set."""
    return _deadline.get(asyncio.get_running_loop().time() + DEFAULT_DEADLINE_SECONDS)


def remaining_seconds() -> float:
    """Return the seconds left, negative once the deadline has passed."""
    return deadline() - asyncio.get_running_loop().time()


class TraceId:
    """Identifier of a request, 32 hexadecimal digits, made when it is first needed: most requests need none."""

    __slots__ = ("_text",)

    def __init__(self) -> None:
        self._text = ""

    def __str__(self) -> str:
        """Return it."""
        self._text = self._text or secrets.token_hex(16)
        return self._text


trace_id: ContextVar[TraceId] = ContextVar("trace_id")
"""Of the request being served, in its log lines and in the error that its client gets."""
caller: ContextVar[str] = ContextVar("caller")
"""Who makes the request being served, where that is known: in its log lines, and in the tokens that it is given."""


def new_trace_id() -> TraceId:
    """Begin a request: return its identifier, and mark log lines with it from now on."""
    identifier = TraceId()
    trace_id.set(identifier)
    return identifier
