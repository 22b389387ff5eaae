"""A TCP port in front of a service that refuses, hangs, delays or leads elsewhere, as a test says."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.tcp import TcpServer


class Switch:
    """A port that leads to a service until a test changes it. Each change ends the open connections.

    Args:
        upstream: HOST:PORT of the service.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.connections = 0
        self._delay = 0.0
        self._hangs = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: TcpServer | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def lead_to(self, upstream: str, delay_seconds: float = 0.0) -> None:
        """Forward to a service, with a delay of each piece of data on its way back."""
        await self.refuse()
        self.upstream, self._delay, self._hangs = upstream, delay_seconds, False
        await self._listen()

    async def hang(self) -> None:
        """Accept connections and never answer."""
        await self.refuse()
        self._hangs = True
        await self._listen()

    def freeze(self) -> None:
        """Keep the connections and forward nothing more, as a process that is stopped does."""
        self._flows.clear()

    def thaw(self) -> None:
        """Forward again."""
        self._flows.set()

    async def refuse(self) -> None:
        """Listen no more."""
        if self._server is not None:
            await self._server.__aexit__()
            self._server = None

    async def _listen(self) -> None:
        self._server = await TcpServer(self._serve, self.port).__aenter__()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._hangs:
            await asyncio.Event().wait()
        host, _, port = self.upstream.rpartition(":")
        there_reader, there = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(self._copy(reader, there, 0.0), self._copy(there_reader, writer, self._delay))
        finally:
            there.transport.abort()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, delay: float) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                await asyncio.sleep(delay)
                await self._flows.wait()
                target.write(data)
                await target.drain()


@asynccontextmanager
async def switch_to(upstream: str) -> AsyncIterator[Switch]:
    """Run a switch that leads to a service."""
    switch = Switch(upstream)
    await switch.lead_to(upstream)
    try:
        yield switch
    finally:
        await switch.refuse()
