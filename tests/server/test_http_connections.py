"""Limits of the side port: no client keeps a connection for long, and the newest ones are served."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from authsvc.config import Address, ServeSettings
from authsvc.server import app, http_server
from authsvc.server.http_connections import HttpLimits
from tests.support import PATIENT_LIMITS, WITNESS, FakeClock, make_settings

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
JWKS = b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: x\r\n\r\n"
LONG = "x" * 20_000_000
"""More than the kernel keeps for a client that does not read."""
SHORT = HttpLimits(connection_seconds=0.2)
PATIENT = HttpLimits(connection_seconds=3600.0)


@pytest.fixture
def settings(tmp_path: Path, signing_keys: Path) -> ServeSettings:
    return make_settings(signing_keys, f"sqlite:{tmp_path / 'authsvc.db'}", http_listen=Address("127.0.0.1", 0))


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def side_port(
    settings: ServeSettings, clock: FakeClock, limits: HttpLimits
) -> AsyncIterator[Callable[[bytes], "asyncio.Future[Connection]"]]:
    """Run a service; yield what connects to its side port and sends something."""
    async with app.run_app(settings, clock, limits=replace(PATIENT_LIMITS, http=limits)) as service:
        address = service.http_address
        assert address is not None
        opened = []

        async def connect(data: bytes) -> Connection:
            reader, writer = await asyncio.open_connection(address.host, address.port, limit=2**30)
            opened.append(writer)
            writer.write(data)
            return reader, writer

        yield lambda data: asyncio.ensure_future(connect(data))
        for writer in opened:
            writer.transport.abort()


async def rest(connection: Connection) -> bytes:
    """Return what a connection sends until the server closes it."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while more := await connection[0].read(2**16):
            data += more
    return bytes(data)


async def flood(connection: Connection, data: bytes) -> None:
    """Send the same until the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        while True:
            connection[1].write(data)
            await connection[1].drain()


def closings(position: int) -> list[tuple[str, int]]:
    """Return reason and number of the closed connections that were logged since a position."""
    lines = map(json.loads, WITNESS.lines.getvalue()[position:].splitlines())
    return [(line["reason"], line["connections"]) for line in lines if line["event"] == "http_connections_closed"]


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET ", GET, GET + b"X: ", GET.replace(b"GET", b"POST") + b"Content-Length: 9\r\n\r\nhalf"],
    ids=["nothing", "half a line", "half a head", "half a header", "half a body"],
)
async def test_what_does_not_come_to_its_end_is_closed(settings: ServeSettings, clock: FakeClock, sent: bytes) -> None:
    position = len(WITNESS.lines.getvalue())
    async with side_port(settings, clock, SHORT) as connect:
        await rest(await connect(sent))
    assert closings(position) == [("too_slow", 1)]


async def test_a_client_that_does_not_read_is_closed(settings: ServeSettings) -> None:
    position = len(WITNESS.lines.getvalue())
    async with http_server.serve_http(settings, lambda: LONG, REGISTRY, SHORT) as address:
        assert address is not None
        with socket.create_connection((address.host, address.port)) as client:
            client.sendall(JWKS)
            while not closings(position):  # noqa: ASYNC110 - a log sets no event
                await asyncio.sleep(0.01)
    assert closings(position) == [("too_slow", 1)]


async def test_a_client_that_reads_late_gets_all(settings: ServeSettings) -> None:
    async with http_server.serve_http(settings, lambda: LONG, REGISTRY, PATIENT) as address:
        assert address is not None
        connection = await asyncio.open_connection(address.host, address.port)
        connection[1].write(JWKS)
        assert (await rest(connection)).endswith(LONG[-1000:].encode())
    connection[1].transport.abort()


async def test_a_client_that_does_not_read_holds_up_no_end(settings: ServeSettings) -> None:
    async with http_server.serve_http(settings, lambda: LONG, REGISTRY, replace(PATIENT, stop_seconds=0.01)) as address:
        assert address is not None
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(JWKS)
        assert await reader.read(1)
    writer.transport.abort()


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ",
        b"GET /" + b"x" * 9000,
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
    ],
    ids=["header", "request line", "body", "chunks"],
)
async def test_what_has_no_end_is_closed(settings: ServeSettings, clock: FakeClock, begin: bytes) -> None:
    async with side_port(settings, clock, PATIENT) as connect:
        connection = await connect(begin)
        await asyncio.gather(flood(connection, b"x" * 1000), rest(connection))
        assert (await rest(await connect(METRICS))).startswith(b"HTTP/1.1 200 ")


async def test_a_malformed_request_is_answered_and_its_bytes_are_not_logged(settings: ServeSettings) -> None:
    """They may be anything, for instance a password that was sent to the wrong port."""
    position = len(WITNESS.lines.getvalue())
    async with side_port(settings, FakeClock(), PATIENT) as connect:
        assert b" 400 " in await rest(await connect(b"GET / HTTP/1.1\r\nX: " + b"secret" * 2000 + b"\r\n\r\n"))
    assert "secret" not in WITNESS.lines.getvalue()[position:]


async def test_requests_without_end_on_one_connection_are_closed(settings: ServeSettings, clock: FakeClock) -> None:
    async with side_port(settings, clock, PATIENT) as connect:
        connection = await connect(b"")
        _, received = await asyncio.gather(flood(connection, METRICS), rest(connection))
    assert received.count(b"HTTP/1.1 ") <= 1


async def test_a_connection_serves_one_request(settings: ServeSettings, clock: FakeClock) -> None:
    async with side_port(settings, clock, PATIENT) as connect:
        answer = await rest(await connect(METRICS))
        old = await rest(await connect(b"GET /metrics HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert old.startswith(b"HTTP/1.0 200 ")
    for head in (answer, old):
        assert b"\r\nConnection: close\r\n" in head


async def test_one_connection_too_many_closes_the_oldest(settings: ServeSettings, clock: FakeClock) -> None:
    position = len(WITNESS.lines.getvalue())
    async with side_port(settings, clock, replace(PATIENT, max_connections=3)) as connect:
        idle = [await connect(b"GET ") for _ in range(20)]
        for connection in idle[:17]:
            assert await rest(connection) == b""
        assert b"authsvc_serving" in await rest(await connect(METRICS))
        idle[-1][1].write(METRICS.removeprefix(b"GET "))
        assert b"authsvc_serving" in await rest(idle[-1]), "the newest ones live on"
    assert closings(position) == [("too_many", 1)], "one line in ten seconds"
