"""What is known of the request being served: its deadline, its trace id, its caller.

Context variables, not parameters: every layer needs them, and no signature should carry them.
"""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

DEFAULT_DEADLINE_SECONDS = 2.5
"""Deadline of a request whose client set no earlier one."""

HASHING_DEADLINE_SECONDS = 10.0
"""The same for requests that hash a password: a hash of a high cost takes seconds, and logins may queue."""

STORE_DEADLINE_SECONDS = 2.5
"""Longest time of one store call, however far the request's deadline is."""

COMMAND_DEADLINE_SECONDS = 60.0
"""Deadline of a command: an operator waits, and a hash of the highest cost takes seconds."""

_ANSWER_SHARE = 0.1
"""Share of the client's remaining time that is kept for sending the answer."""

_deadline: ContextVar[float] = ContextVar("deadline")

caller: ContextVar[str] = ContextVar("caller")
"""The authenticated caller: in the request's log lines, and `client_id` in the tokens that it is given."""


class TraceId:
    """Identifier of a request, 32 hexadecimal digits; drawn at first use, for most requests never need it."""

    __slots__ = ("_text",)

    def __init__(self) -> None:
        self._text = ""

    def __str__(self) -> str:
        """Return the identifier."""
        self._text = self._text or secrets.token_hex(16)
        return self._text


trace_id: ContextVar[TraceId] = ContextVar("trace_id")
"""In the request's log lines, and in the error that its client gets."""


def new_trace_id() -> TraceId:
    """Give the request a trace id, and return it."""
    identifier = TraceId()
    trace_id.set(identifier)
    return identifier


def start_deadline(client_seconds: float | None, max_seconds: float | None = None) -> None:
    """Set the deadline of the rest of this task, which serves one request.

    Args:
        client_seconds: Seconds until the client gives up; None where it set no deadline.
        max_seconds: Longest deadline, in seconds; None: DEFAULT_DEADLINE_SECONDS.
    """
    seconds = DEFAULT_DEADLINE_SECONDS if max_seconds is None else max_seconds
    if client_seconds is not None:
        seconds = min(seconds, max(client_seconds, 0.0) * (1 - _ANSWER_SHARE))
    _deadline.set(asyncio.get_running_loop().time() + seconds)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Set the deadline of the body."""
    token = _deadline.set(asyncio.get_running_loop().time() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def deadline() -> float:
    """Return the deadline by the running loop's clock; DEFAULT_DEADLINE_SECONDS from now where none is set."""
    return _deadline.get(asyncio.get_running_loop().time() + DEFAULT_DEADLINE_SECONDS)


def store_deadline() -> float:
    """Return the deadline of a store call that begins now, by the running loop's clock."""
    return min(deadline(), asyncio.get_running_loop().time() + STORE_DEADLINE_SECONDS)


def remaining_seconds() -> float:
    """Return the seconds until the deadline, negative once it has passed."""
    return deadline() - asyncio.get_running_loop().time()
