"""Limits per client: each test exceeds one over a real socket, and another client is still served."""

import random
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from authsvc.config import ServeSettings
from authsvc.rpc.callers import api_key_digest, new_api_key
from authsvc.server import app, grpc_server
from authsvc.server.app import Limits
from authsvc.server.grpc_server import ConnectionLimits
from authsvc.stores.opening import open_store
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.e2e.certificates import Authority
from tests.http2 import (
    ACK,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    REFUSED_STREAM,
    Frame,
    Kind,
    RawConnection,
    frame,
    header_block,
    message,
    raw,
    request_headers,
    setting,
)
from tests.support import PATIENT_LIMITS, WITNESS, Client, FakeClock, connected, served

VALIDATE = "/authsvc.v1.AuthService/ValidateToken"
GET_JWKS = "/authsvc.v1.AuthService/GetJwks"
REQUEST = auth_pb2.ValidateTokenRequest(token="garbage").SerializeToString()
INACTIVE = auth_pb2.TOKEN_STATE_INACTIVE


def limits_of(**changes: int) -> Limits:
    return replace(PATIENT_LIMITS, connections=ConnectionLimits(**changes))


@pytest.fixture(autouse=True)
async def _others_are_served(client: Client) -> AsyncIterator[None]:
    """Check after each test that an existing connection and a new one are served."""
    yield
    assert (await client.validate("garbage")).state == INACTIVE
    async with connected(client.service) as another:
        assert (await another.validate("garbage")).state == INACTIVE


def call(stream: int, *headers: tuple[bytes, bytes], path: str = VALIDATE) -> bytes:
    """Return the frames of one request."""
    return frame(Kind.HEADERS, END_HEADERS, stream, request_headers(path, *headers)) + frame(
        Kind.DATA, END_STREAM, stream, message(REQUEST)
    )


async def answer(connection: RawConnection, stream: int) -> list[Frame]:
    """Return the frames of the response to a call."""
    frames = []
    while (received := await connection.frame()) is not None:
        if received.stream == stream:
            frames.append(received)
            if received.kind == Kind.RST_STREAM or received.flags & END_STREAM:
                break
    return frames


def grpc_status(frames: list[Frame]) -> str:
    """Return the status of a call. Servers write the header's name and length uncompressed."""
    _, _, rest = frames[-1].payload.partition(b"grpc-status")
    number = int(rest[1 : 1 + rest[0]])
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


# Size


async def test_a_message_has_at_most_4_mib(client: Client) -> None:
    """F19."""
    stub: Any = auth_grpc.AuthServiceStub(client.channel)
    largest = auth_pb2.ValidateTokenRequest(token="x" * (grpc_server.MAX_MESSAGE_BYTES - 5))
    assert largest.ByteSize() == grpc_server.MAX_MESSAGE_BYTES
    assert (await stub.ValidateToken(largest)).state == INACTIVE
    largest.token += "x"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ValidateToken(largest)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("size", [grpc_server.MAX_METADATA_BYTES + 1, 100 * 1024, 1024 * 1024])
async def test_metadata_has_at_most_16_kib(client: Client, size: int) -> None:
    """B6: larger metadata is refused every time, 15 KiB never."""
    stub: Any = auth_grpc.AuthServiceStub(client.channel)
    request = auth_pb2.ValidateTokenRequest(token="garbage")
    for _ in range(3):
        assert (await stub.ValidateToken(request, metadata=(("x", "y" * 15 * 1024),))).state == INACTIVE
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ValidateToken(request, metadata=(("x", "y" * size),))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_headers_that_never_end_stay_at_their_sender(client: Client) -> None:
    """B5: a flood of CONTINUATION frames; the server keeps none beyond the limit."""
    block = header_block([(b"x", b"y" * 1000)])
    async with raw(client.address) as connection:
        await connection.hello()
        await connection.send(frame(Kind.HEADERS, 0, 1, request_headers(VALIDATE)))
        for _ in range(20):
            await connection.send(*[frame(Kind.CONTINUATION, 0, 1, block)] * 100)
            assert (await client.validate("garbage")).state == INACTIVE


# Form


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ((b"x-bin", b"!!!"), "INTERNAL"),
        ((b"x-bin", b"A"), "INTERNAL"),
        ((b"x-bin", b"AAEC"), "OK"),
        ((b"x", b"\xff\xfe"), "OK"),
        ((b"x", b"\x00"), "OK"),
        ((b"x", b"a\r\nb"), "OK"),
        ((b"", b""), "INTERNAL"),
    ],
    ids=str,
)
async def test_metadata_of_any_form_ends_in_a_status(client: Client, header: tuple[bytes, bytes], status: str) -> None:
    """B6."""
    async with raw(client.address) as connection:
        await connection.hello()
        await connection.send(call(1, header))
        assert grpc_status(await answer(connection, 1)) == status


async def test_a_damaged_key_is_refused_and_not_logged(
    settings: ServeSettings, clock: FakeClock, tmp_path: Path
) -> None:
    """B6, ASVS-16.2.5: gRPC's own error would show the key."""
    key = new_api_key()
    WITNESS.hide(key)
    file = tmp_path / "callers.toml"
    file.write_text(f'[callers.a]\napi_key_sha256 = ["{api_key_digest(key)}"]\npermissions = ["validate"]\n')
    changed = replace(settings, store=f"sqlite:{tmp_path / 'other.db'}", callers=file)
    async with open_store(changed) as store:
        await store.create_tables()
    async with app.run_app(changed, clock, limits=PATIENT_LIMITS) as service, raw(service.address) as connection:
        await connection.hello()
        for stream, credential in ((1, key.encode()), (3, key.encode() + b"\xff"), (5, b"ask_\x00"), (7, b"\xff")):
            await connection.send(call(stream, (b"authorization", b"Bearer " + credential)))
            assert grpc_status(await answer(connection, stream)) == ("OK" if stream == 1 else "UNAUTHENTICATED")
    assert key not in WITNESS.lines.getvalue()


def bytes_at_random(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311 - the same in every run, not a secret


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes_at_random(160),
        bytes_at_random(10_000),
        PREFACE[:-4] + b"XX\r\n",
        PREFACE + bytes_at_random(10_000),
        PREFACE + frame(Kind.SETTINGS) + bytes_at_random(10_000),
        PREFACE + frame(Kind.HEADERS, END_HEADERS, 1, request_headers(VALIDATE)),
        PREFACE + frame(Kind.SETTINGS) + frame(Kind.HEADERS, END_HEADERS, 1, b"\xff" * 100),
        PREFACE + frame(Kind.SETTINGS) + frame(Kind.PING, payload=b"x"),
        PREFACE + frame(Kind.SETTINGS) + frame(Kind.WINDOW_UPDATE, payload=struct.pack(">I", 0)),
        PREFACE + frame(Kind.SETTINGS) + frame(Kind.CONTINUATION, END_HEADERS, 1, request_headers(VALIDATE)),
        PREFACE + setting(INITIAL_WINDOW_SIZE, 0xFFFFFFFF),
        PREFACE + frame(Kind.SETTINGS) + b"\xff\xff\xff" + frame(Kind.DATA)[3:] + bytes(100_000),
    ],
    ids=range(14),
)
async def test_what_is_no_http2_ends_the_connection(client: Client, data: bytes) -> None:
    """B5: HTTP/1, a TLS hello, a wrong preface, and invalid frames."""
    async with raw(client.address) as connection:
        await connection.send(data)
        await connection.frames()


@pytest.mark.parametrize(
    "mistake",
    [
        frame(Kind.HEADERS, END_HEADERS, 1, request_headers(VALIDATE))
        + frame(Kind.DATA, END_STREAM, 1, b"\x09" + message(REQUEST)),
        frame(Kind.HEADERS, END_HEADERS, 0, request_headers(VALIDATE)),
        frame(Kind.HEADERS, END_HEADERS, 2, request_headers(VALIDATE)),
        frame(Kind.RST_STREAM, 0, 1, struct.pack(">I", 8)),
    ],
    ids=range(4),
)
async def test_a_mistake_in_one_call_ends_no_other_of_its_connection(client: Client, mistake: bytes) -> None:
    async with raw(client.address) as connection:
        await connection.hello()
        await connection.send(mistake, call(3))
        assert grpc_status(await answer(connection, 3)) == "OK"


# Number

FLOODS: dict[str, Callable[[int], bytes]] = {
    "SETTINGS": lambda _: frame(Kind.SETTINGS),
    "PING": lambda _: frame(Kind.PING, payload=b"authsvc!"),
    "ACK": lambda _: frame(Kind.PING, ACK, payload=b"authsvc!"),
    "WINDOW_UPDATE": lambda _: frame(Kind.WINDOW_UPDATE, payload=struct.pack(">I", 1)),
    "unknown": lambda _: frame(99, payload=b"x" * 100),
    "rapid reset": lambda n: (
        frame(Kind.HEADERS, END_HEADERS, 2 * n + 1, request_headers(VALIDATE))
        + frame(Kind.RST_STREAM, 0, 2 * n + 1, struct.pack(">I", 8))
    ),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_storm_of_frames_keeps_nobody_else_from_being_served(
    client: Client, flood: Callable[[int], bytes]
) -> None:
    """B5."""
    async with raw(client.address) as connection:
        await connection.hello()
        for batch in range(20):
            await connection.send(*(flood(batch * 500 + n) for n in range(500)))
            assert (await client.validate("garbage")).state == INACTIVE


async def test_a_client_that_pings_too_often_is_sent_away(client: Client) -> None:
    """B5: keepalive abuse."""
    async with raw(client.address) as connection:
        await connection.hello()
        pings = 0
        while True:
            await connection.send(frame(Kind.PING, payload=b"authsvc!"))
            pings += 1
            received = await connection.until(Kind.PING, Kind.GOAWAY)
            if received.kind == Kind.GOAWAY:
                break
    assert struct.unpack(">I", received.payload[4:8]) == (ENHANCE_YOUR_CALM,)
    assert received.payload[8:] == b"too_many_pings"
    assert pings <= 10


async def test_a_client_that_pings_as_often_as_it_may_stays(
    settings: ServeSettings, clock: FakeClock, tmp_path: Path
) -> None:
    async with (
        served(
            replace(settings, store=f"sqlite:{tmp_path / 'other.db'}"), clock, limits_of(min_ping_seconds=0)
        ) as lenient,
        raw(lenient.address) as connection,
    ):
        await connection.hello()
        for _ in range(20):
            await connection.send(frame(Kind.PING, payload=b"authsvc!"))
            assert (await connection.until(Kind.PING, Kind.GOAWAY)).kind == Kind.PING


async def test_a_connection_has_at_most_1000_calls_at_once(client: Client) -> None:
    async with raw(client.address) as connection:
        await connection.hello()
        await connection.send(
            *(
                frame(Kind.HEADERS, END_HEADERS, 2 * n + 1, request_headers(VALIDATE))
                for n in range(ConnectionLimits().max_concurrent_calls + 1)
            )
        )
        refused = await connection.until(Kind.RST_STREAM)
        assert (refused.stream, refused.payload) == (
            2 * ConnectionLimits().max_concurrent_calls + 1,
            struct.pack(">I", REFUSED_STREAM),
        )


async def test_a_client_that_takes_no_answers_keeps_them_to_itself(client: Client) -> None:
    """B5: a flow-control window of 0."""
    async with raw(client.address) as connection:
        await connection.send(PREFACE, setting(INITIAL_WINDOW_SIZE, 0))
        await connection.until(Kind.SETTINGS)
        await connection.send(frame(Kind.SETTINGS, ACK), *(call(2 * n + 1, path=GET_JWKS) for n in range(500)))
        assert (await client.validate("garbage")).state == INACTIVE


async def test_there_are_at_most_so_many_connections(settings: ServeSettings, clock: FakeClock, tmp_path: Path) -> None:
    """F18: existing connections go on, and a closed one makes room for a new one."""
    async with served(
        replace(settings, store=f"sqlite:{tmp_path / 'other.db'}"), clock, limits_of(max_connections=20)
    ) as few:
        async with AsyncExitStack() as stack:
            for _ in range(19):
                await (await stack.enter_async_context(raw(few.address))).hello()
            for _ in range(30):
                async with raw(few.address) as refused:
                    assert await refused.frames() == []
            assert (await few.validate("garbage")).state == INACTIVE
        async with connected(few.service) as another:
            request = auth_pb2.ValidateTokenRequest(token="garbage")
            assert (await another.auth.ValidateToken(request, wait_for_ready=True)).state == INACTIVE


# Slowness


@pytest.fixture
async def impatient(
    settings: ServeSettings, clock: FakeClock, tmp_path: Path, authority: Authority
) -> AsyncIterator[tuple[str, str]]:
    """Addresses of two services with a handshake timeout of one second, in plain text and with TLS."""
    pair = authority.issue("server")
    async with AsyncExitStack() as stack:
        addresses = []
        plain = replace(settings, store=f"sqlite:{tmp_path / 'impatient.db'}")
        for changed in (plain, replace(plain, tls_cert=pair.certificate, tls_key=pair.key)):
            async with open_store(changed) as store:
                await store.create_tables()
            addresses.append(
                (
                    await stack.enter_async_context(app.run_app(changed, clock, limits=limits_of(handshake_seconds=1)))
                ).address
            )
        yield addresses[0], addresses[1]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


# Without the limit, gRPC would close these connections after two minutes.
within_a_minute = pytest.mark.timeout(60)


@within_a_minute
@pytest.mark.parametrize("data", [b"", PREFACE[:10], PREFACE, PREFACE + frame(Kind.SETTINGS)[:5]], ids=range(4))
async def test_a_connection_that_does_not_begin_is_ended(impatient: tuple[str, str], data: bytes) -> None:
    """B5: half-open connections, a slow preface."""
    async with raw(impatient[0]) as connection:
        await connection.send(data)
        await connection.frames()


@within_a_minute
@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01", b"\x16\x03\x01\x40\x00" + bytes(100)], ids=range(3))
async def test_a_tls_handshake_that_does_not_end_is_ended(impatient: tuple[str, str], data: bytes) -> None:
    """ASVS-12.3.1, B5."""
    async with raw(impatient[1]) as connection:
        await connection.send(data)
        await connection.frames()


@within_a_minute
async def test_http2_that_does_not_begin_after_tls_is_ended(impatient: tuple[str, str], authority: Authority) -> None:
    context = ssl.create_default_context(cafile=authority.certificate)
    context.set_alpn_protocols(["h2"])
    async with raw(impatient[1], context) as connection:
        await connection.frames()
