"""A TCP server for tests that leaves no connection open, not even one that it accepts while it ends."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class TcpServer:
    """Serves connections to a port of 127.0.0.1 while the context is open.

    asyncio's own leaves open what it accepted: for good, and where it is closed in that moment.

    Args:
        serve: Serves one connection, which is aborted afterwards.
        port: Where to listen; a free one by default: read it from `port`.
    """

    def __init__(self, serve: Serve, port: int = 0) -> None:
        self._serve = serve
        self.port = port
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", self.port))
        self._socket.settimeout(0)
        self.port = self._socket.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._socket, self._accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    def _accept(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            connection, _ = self._socket.accept()
            handler = asyncio.get_running_loop().create_task(self._handle(connection))
            self._handlers.add(handler)
            handler.add_done_callback(self._handlers.discard)
            handler.add_done_callback(lambda _: connection.close())  # it may end before its first step

    async def _handle(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            await self._serve(reader, writer)
        finally:
            writer.transport.abort()
