"""HTTP/2 by hand (RFC 9113), for what no client library would send."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Kind(IntEnum):
    """Types of frames (RFC 9113 §6)."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


END_STREAM = 1
ACK = 1
END_HEADERS = 4
REFUSED_STREAM = 7
ENHANCE_YOUR_CALM = 11
INITIAL_WINDOW_SIZE = 4


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def setting(identifier: int, value: int) -> bytes:
    return frame(Kind.SETTINGS, payload=struct.pack(">HI", identifier, value))


def _length(length: int, prefix_bits: int = 7) -> bytes:
    """Return an integer as HPACK writes it (RFC 7541 §5.1)."""
    most = (1 << prefix_bits) - 1
    if length < most:
        return bytes([length])
    rest, encoded = length - most, bytearray([most])
    while rest >= 0x80:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*encoded, rest])


def header_block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers as HPACK's literals that no index takes up (RFC 7541 §6.2.2)."""
    return b"".join(b"\0" + _length(len(name)) + name + _length(len(value)) + value for name, value in headers)


def request_headers(path: str, *more: tuple[bytes, bytes]) -> bytes:
    """Return the header block of a gRPC call."""
    return header_block(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            *more,
        ]
    )


def message(data: bytes) -> bytes:
    """Return a gRPC message with its prefix."""
    return struct.pack(">BI", 0, len(data)) + data


class RawConnection:
    """A connection on which any bytes may be sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *data: bytes) -> None:
        """Send what the server takes; it may have hung up already."""
        with suppress(ConnectionError, ssl.SSLError):
            self._writer.write(b"".join(data))
            await self._writer.drain()

    async def frame(self) -> Frame | None:
        """Return the next frame, None at the connection's end."""
        try:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3]))
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return None
        return Frame(head[3], head[4], int.from_bytes(head[5:9]) & 0x7FFFFFFF, payload)

    async def frames(self) -> list[Frame]:
        """Return all frames until the connection ends."""
        frames = []
        while (received := await self.frame()) is not None:
            frames.append(received)
        return frames

    async def until(self, *kinds: int) -> Frame:
        """Return the next frame of one of some kinds."""
        while (received := await self.frame()) is not None:
            if received.kind in kinds:
                return received
        raise AssertionError(f"the connection ended before a frame of {kinds}")

    async def hello(self) -> None:
        """Begin as a good client does."""
        await self.send(PREFACE, frame(Kind.SETTINGS))
        await self.until(Kind.SETTINGS)
        await self.send(frame(Kind.SETTINGS, ACK))


@asynccontextmanager
async def raw(address: str, context: ssl.SSLContext | None = None) -> AsyncIterator[RawConnection]:
    """Connect to HOST:PORT."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()
        with suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
