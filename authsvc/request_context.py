"""What is known of the request being served: its deadline, its trace, its caller, the outcome of its validation.

Context variables, not parameters: every layer needs them, and no signature should carry them.
"""

import asyncio
import re
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Metadata = Collection[tuple[str, str | bytes]]

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

validation_outcome: ContextVar[str] = ContextVar("validation_outcome", default="")
"""What the request's validation found, for its span: ACTIVE, or why the token is inactive; empty: it was none."""


_TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.DOTALL
)
"""W3C Trace Context §3.2; a later version than 00 may append fields."""
_ODD_DIGITS = "13579bdf"


class Parent(str):
    """The span in which the caller made its call: a valid `traceparent`.

    Its parts are cut out when they are needed: most calls need the flag alone, if that.
    """

    __slots__ = ()

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self[3:35]

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits."""
        return self[36:52]

    @property
    def flags(self) -> str:
        """2 hexadecimal digits."""
        return self[53:55]

    @property
    def is_sampled(self) -> bool:
        """Whether the caller records its span."""
        return self[54] in _ODD_DIGITS


class Trace:
    """The identifiers of a request. They are read or drawn at first use, for most requests never need them.

    Every client can choose the trace id and the parent: they correlate, and nothing may trust them.

    Args:
        read_metadata: Returns the metadata of the call; None: there is none.
    """

    __slots__ = ("_is_parsed", "_metadata", "_parent", "_read_metadata", "_span_id", "_trace_id")

    def __init__(self, read_metadata: Callable[[], Metadata | None] | None = None) -> None:
        self._read_metadata = read_metadata
        self._metadata: Metadata | None = None
        self._is_parsed = False
        self._parent: Parent | None = None
        self._trace_id = ""
        self._span_id = ""

    @property
    def metadata(self) -> Metadata:
        """The metadata of the call. gRPC makes a new copy whenever it is asked for them."""
        if self._metadata is None:
            self._metadata = (self._read_metadata and self._read_metadata()) or ()
        return self._metadata

    @property
    def parent(self) -> Parent | None:
        """The caller's span; None without exactly one `traceparent` that is valid."""
        if not self._is_parsed:
            self._parent, self._is_parsed = _parent(self._metadata or self.metadata), True
        return self._parent

    @property
    def trace_id(self) -> str:
        """The caller's trace id, else one of our own: 32 hexadecimal digits."""
        if not self._trace_id:
            parent = self.parent
            self._trace_id = secrets.token_hex(16) if parent is None else parent.trace_id
        return self._trace_id

    @property
    def span_id(self) -> str:
        """The identifier of this request alone: 16 hexadecimal digits."""
        self._span_id = self._span_id or secrets.token_hex(8)
        return self._span_id


def _parent(metadata: Metadata) -> Parent | None:
    # Newer versions of gRPC's C core pass on the last of several alone.
    found = None
    for key, value in metadata:
        if key == "traceparent":
            if found is not None:
                return None
            found = value
    return Parent(found) if isinstance(found, str) and _TRACEPARENT.fullmatch(found) else None


trace: ContextVar[Trace] = ContextVar("trace")
"""Its identifiers are in the request's log lines, and its trace id in the error that its client gets."""


def start_trace(read_metadata: Callable[[], Metadata | None] | None = None) -> Trace:
    """Give the request its identifiers, and return them; the argument is that of Trace."""
    started = Trace(read_metadata)
    trace.set(started)
    return started


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
