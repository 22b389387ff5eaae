"""A TCP proxy whose answers come later: what stands between a service and DynamoDB is a network.

    python -m bench.proxy PORT SECONDS

Every chunk of an answer is sent on by a timer of its own, so that any number of them are under way at once.
"""

import asyncio
import signal
import sys
from typing import Any

import uvloop


class _Side(asyncio.Protocol):
    """One of two joined connections: what it receives, the other one sends after a delay."""

    other: "_Side"

    def __init__(self, delay_seconds: float) -> None:
        self._delay_seconds = delay_seconds
        self._waiting: list[bytes] = []
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what has come before."""
        self._transport = transport
        self._transport.writelines(self._waiting)

    def data_received(self, data: bytes) -> None:
        """Let the other side send it, in time."""
        if self._delay_seconds:
            asyncio.get_running_loop().call_later(self._delay_seconds, self.other.send, data)
        else:
            self.other.send(data)

    def send(self, data: bytes) -> None:
        """Send now, or once there is a connection."""
        if self._transport is None:
            self._waiting.append(data)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        """Hang up on the other side too."""
        self.other.close()


class _Client(_Side):
    """The side of the service: connects to the engine as soon as the service has connected."""

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
        self._connecting = loop.create_task(connecting)  # kept, or it could be collected half done


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
