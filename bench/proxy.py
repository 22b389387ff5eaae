"""A TCP proxy that delays what the engine answers, as DynamoDB and its network do.

    python -m bench.proxy PORT SECONDS

Each chunk of a response has a timer of its own, so that any number of them can be in flight.
"""

import asyncio
import signal
import sys
from typing import Any

import uvloop


class _Side(asyncio.Protocol):
    """One of two joined connections: the other one sends what this one receives, after a delay."""

    other: "_Side"

    def __init__(self, delay_seconds: float) -> None:
        self._delay_seconds = delay_seconds
        self._waiting: list[bytes] = []
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what was received before."""
        self._transport = transport
        self._transport.writelines(self._waiting)

    def data_received(self, data: bytes) -> None:
        """Schedule the data on the other side, after the delay."""
        if self._delay_seconds:
            asyncio.get_running_loop().call_later(self._delay_seconds, self.other.send, data)
        else:
            self.other.send(data)

    def send(self, data: bytes) -> None:
        """Send now, or as soon as the connection is there."""
        if self._transport is None:
            self._waiting.append(data)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        """Close the other side as well."""
        self.other.close()


class _Client(_Side):
    """The service's side: connects to the engine when the service connects."""

    def __init__(self, engine_port: int, delay_seconds: float) -> None:
        super().__init__(0.0)
        self.other = _Side(delay_seconds)
        self.other.other = self
        self._engine_port = engine_port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to the engine as well."""
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        connecting = loop.create_connection(lambda: self.other, "127.0.0.1", self._engine_port)
        self._connecting = loop.create_task(connecting)  # a reference: a task without one can be collected


async def main(engine_port: int, delay_seconds: float) -> None:
    """Listen until SIGTERM; the first line of stdout is the address."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(lambda: _Client(engine_port, delay_seconds), "127.0.0.1", 0)
    sys.stdout.write(f"127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await stop.wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
