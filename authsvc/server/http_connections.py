"""Limits of the side port's connections, so that idle or slow clients cannot take what the gRPC port needs."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import structlog

from authsvc.config import DEFAULT_HTTP_LISTEN

LOG_SECONDS = 10.0
"""Between two log lines about closed connections."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What the clients of the side port may take of the process. Tests pass their own.

    Args:
        max_connections: Open at once; one more closes the oldest, so that probes get through.
        connection_seconds: From a connection's start to the end of its only response.
        request_bytes: All that a client may send on a connection.
        stop_seconds: Responses that are not finished have this long when the service stops.
        optional_address: Where another program has this one, the service starts without a side port.
    """

    max_connections: int = 64
    connection_seconds: float = 10.0
    request_bytes: int = 64 * 1024
    stop_seconds: float = 1.0
    optional_address: str = DEFAULT_HTTP_LISTEN


class Connections:
    """The open connections, oldest first.

    Args:
        make_handler: Returns the protocol that parses and answers the requests of one connection.
        limits: Beyond them connections are closed.
    """

    def __init__(self, make_handler: Callable[[], asyncio.Protocol], limits: HttpLimits) -> None:
        self.limits = limits
        self._make_handler = make_handler
        self._open: dict[_Connection, None] = {}
        self._closed = 0
        self._next_line_time = 0.0

    def accept(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return _Connection(self._make_handler(), self)

    def add(self, connection: "_Connection") -> None:
        """Add an open connection; close the oldest one where there are too many."""
        if len(self._open) >= self.limits.max_connections:
            self.close(next(iter(self._open)), "too_many")
        self._open[connection] = None

    def remove(self, connection: "_Connection") -> None:
        """Remove a connection that is closed."""
        self._open.pop(connection, None)

    def close(self, connection: "_Connection", reason: str) -> None:
        """Close a connection that exceeds a limit, and log it: one line for many."""
        self.remove(connection)
        connection.transport.abort()
        self._closed += 1
        now = asyncio.get_running_loop().time()
        if now >= self._next_line_time:
            _log.warning("http_connections_closed", reason=reason, connections=self._closed)
            self._closed, self._next_line_time = 0, now + LOG_SECONDS


class _Connection(asyncio.Protocol):
    """A connection that passes everything on to its handler, within the limits."""

    transport: asyncio.Transport

    def __init__(self, handler: asyncio.Protocol, connections: Connections) -> None:
        self._handler = handler
        self._connections = connections
        self._allowed_bytes = connections.limits.request_bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are of no class of asyncio
        self._connections.add(self)
        self._timer = asyncio.get_running_loop().call_later(
            self._connections.limits.connection_seconds, self._connections.close, self, "too_slow"
        )
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._allowed_bytes -= len(data)
        if self._allowed_bytes < 0:
            self._connections.close(self, "too_large")
        else:
            self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._connections.remove(self)
        self._handler.connection_lost(exc)
