"""Outages of a real service: an outage is never a bad token, and an older answer stands in only within its budget."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from authsvc.client import AsyncClient, AuthsvcError, CallerRefusedError, Identity, InvalidTokenError, UnavailableError
from authsvc.config import ServeSettings
from authsvc.rpc.callers import api_key_digest
from authsvc.server import app
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.client.switch import Switch, switch_to
from tests.engines import Engine
from tests.faults import FaultyProxy, ServerError
from tests.support import SHORT_READS, Client, FakeClock, connected, make_settings, served, use_engine
from tests.tcp import TcpServer

KEY = "ask_" + "Ab1_-" * 8 + "Ab1"
Break = Callable[[Switch], Awaitable[None]]


@asynccontextmanager
async def impostor(answer: bytes | None) -> AsyncIterator[str]:
    """A gRPC server that is not the service: it knows no method, or answers every call with the same bytes."""

    async def handle(request: bytes, context: object) -> bytes:
        return answer or b""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: object) -> Any:
            return None if answer is None else grpc.unary_unary_rpc_method_handler(handle)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@asynccontextmanager
async def web_server() -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()
        await writer.wait_closed()

    async with TcpServer(answer) as server:
        yield f"127.0.0.1:{server.port}"


ACTIVE = auth_pb2.ValidateTokenResponse(state=auth_pb2.TOKEN_STATE_ACTIVE)
FAR = auth_pb2.ValidateTokenResponse(state=auth_pb2.TOKEN_STATE_ACTIVE, user_id="u")
FAR.expire_time.seconds = 2**62
IMPOSTORS = {
    "knows no method": lambda: impostor(None),
    "empty answers": lambda: impostor(b""),
    "an identity without a user": lambda: impostor(ACTIVE.SerializeToString()),
    "a time out of range": lambda: impostor(FAR.SerializeToString()),
    "bytes that do not decode": lambda: impostor(b"\xff"),
    "a web server": web_server,
}


@pytest.fixture
async def front(client: Client) -> AsyncIterator[Switch]:
    """A switch before a service on SQLite with the user alice."""
    await client.create_user()
    async with switch_to(client.address) as front:
        yield front


async def outcome(client: AsyncClient, token: str, **options: float) -> Identity | AuthsvcError:
    try:
        return await client.validate(token, timeout=1.5, **options)
    except AuthsvcError as error:
        return error


async def expect_outage(client: AsyncClient, token: str, other_token: str, identity: Identity) -> None:
    """Expect what each kind of caller gets while nobody answers, whatever the reason."""
    assert await outcome(client, token, stale_if_error=60) == replace(identity, degraded=True)
    assert await outcome(client, token, stale_if_error=60) == replace(identity, degraded=True)
    assert await outcome(client, token, max_staleness=60) is identity
    alone, first, second, unknown = await asyncio.gather(
        outcome(client, token),
        outcome(client, token),
        outcome(client, other_token, stale_if_error=60),
        outcome(client, "garbage"),
    )
    for found in (alone, first, second, unknown):
        assert type(found) is UnavailableError, found
        assert found.retry_delay.total_seconds() > 0


async def expect_recovery(client: AsyncClient, token: str) -> None:
    async with asyncio.timeout(20):
        while not isinstance(await outcome(client, token), Identity):
            await asyncio.sleep(0.05)
        while (await client.validate(token, stale_if_error=60)).degraded:
            await asyncio.sleep(0.05)
    assert isinstance(await outcome(client, "garbage"), InvalidTokenError)


async def run_outage(front: Switch, service: Client, break_it: Break) -> None:
    token, other_token = await service.access_token(), await service.access_token()
    async with AsyncClient(front.address) as client:
        identity = await client.validate(token)
        await break_it(front)
        await expect_outage(client, token, other_token, identity)
        await front.lead_to(service.address)
        await expect_recovery(client, token)


async def test_refuses(front: Switch, client: Client) -> None:
    await run_outage(front, client, Switch.refuse)


async def test_hangs(front: Switch, client: Client) -> None:
    await run_outage(front, client, Switch.hang)


async def test_answers_slowly(front: Switch, client: Client) -> None:
    token = await client.access_token()
    async with AsyncClient(front.address) as backend:
        identity = await backend.validate(token)
        await front.lead_to(client.address, delay_seconds=0.4)
        assert await outcome(backend, token, stale_if_error=60) == replace(identity, degraded=True)
        answer = await backend.validate(token, timeout=30)
        assert not answer.degraded
        await front.lead_to(client.address)
        await expect_recovery(backend, token)


@pytest.mark.parametrize("name", IMPOSTORS)
async def test_is_replaced_by_something_that_is_not_it(front: Switch, client: Client, name: str) -> None:
    async with IMPOSTORS[name]() as address:
        await run_outage(front, client, lambda front: front.lead_to(address))


async def test_one_of_two_hangs(front: Switch, client: Client, settings: ServeSettings, clock: FakeClock) -> None:
    """Half of the requests hang until their time is up; what the other service answers is not held up."""
    token = await client.access_token()
    async with (
        app.run_app(settings, clock) as other,
        AsyncClient(f"ipv4:{front.address},{other.address}", connections=1) as backend,
    ):
        while front.connections == 0 or backend.stats().misses < 10:
            await backend.validate(token)
        front.freeze()
        calls = []
        for _ in range(200):
            calls.append(asyncio.create_task(outcome(backend, token)))
            await asyncio.sleep(0.005)
        results = await asyncio.gather(*calls)
        front.thaw()
    answered = sum(isinstance(result, Identity) for result in results)
    assert answered >= 50, answered
    assert not any(isinstance(result, InvalidTokenError) for result in results)


@pytest.mark.limits(SHORT_READS)
async def test_the_store_is_down(
    dynoxide: Engine, signing_keys: Path, table_prefix: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage needs no store, so it is refused as ever."""
    async with FaultyProxy(dynoxide.endpoint_url) as proxy:
        use_engine(dynoxide, monkeypatch, proxy.endpoint_url)
        settings = make_settings(signing_keys, "dynamodb", table_prefix=table_prefix)
        async with served(settings, clock, SHORT_READS) as service, AsyncClient(service.address) as client:
            await service.create_user()
            token, other_token = await service.access_token(), await service.access_token()
            identity = await client.validate(token)
            with proxy.fault(ServerError(500)):
                answer = await outcome(client, token, stale_if_error=60)
                assert isinstance(answer, Identity)
                assert answer.degraded
                assert await outcome(client, token, max_staleness=60) is identity
                garbage, fresh, other = await asyncio.gather(
                    outcome(client, "garbage"), outcome(client, token), outcome(client, other_token)
                )
                assert isinstance(garbage, InvalidTokenError)
                assert {type(fresh), type(other)} == {UnavailableError}
            await expect_recovery(client, token)


@pytest.fixture
async def guarded(tmp_path: Path, settings: ServeSettings, clock: FakeClock) -> AsyncIterator[Client]:
    """A service with a callers file of one caller, who may only validate."""
    path = tmp_path / "callers.toml"
    path.write_text(f'[callers.shop]\napi_key_sha256 = ["{api_key_digest(KEY)}"]\npermissions = ["validate"]\n')
    async with (
        served(settings, clock),
        app.run_app(replace(settings, callers=path), clock) as service,
        connected(service, api_key=KEY) as client,
    ):
        yield client


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "authsvc.client"):
        yield caplog


async def test_the_right_api_key(guarded: Client) -> None:
    async with AsyncClient(guarded.address, api_key=KEY) as client:
        assert isinstance(await outcome(client, "garbage"), InvalidTokenError)


@pytest.mark.parametrize("api_key", [None, KEY[:-1] + "2"])
async def test_a_wrong_api_key_is_no_bad_token(
    guarded: Client, api_key: str | None, log: pytest.LogCaptureFixture
) -> None:
    async with AsyncClient(guarded.address, api_key=api_key) as client:
        results = await asyncio.gather(*(outcome(client, text, stale_if_error=60) for text in ("a", "b", "c")))
        for found in results:
            assert isinstance(found, CallerRefusedError)
            assert found.reason == "CALLER_UNAUTHENTICATED"
            assert len(found.trace_id) == 32
        assert client.stats().errors == {"CallerRefusedError": 3}
    lines = [record.getMessage() for record in log.records if record.name == "authsvc.client"]
    assert len(lines) == 1
    assert "refuses this backend: CALLER_UNAUTHENTICATED" in lines[0]
    assert log.records[-1].levelno == logging.ERROR
    assert api_key is None or api_key not in log.text


async def test_a_missing_permission(guarded: Client) -> None:
    async with AsyncClient(guarded.address, api_key=KEY) as client:
        with pytest.raises(CallerRefusedError) as caught:
            await client.auth.RevokeToken(auth_pb2.RevokeTokenRequest(token="x"))
        assert caught.value.reason == "CALLER_NOT_PERMITTED"


async def test_without_any_service() -> None:
    switch = Switch("")
    async with AsyncClient(switch.address) as client:
        with pytest.raises(UnavailableError, match=r"the call failed with UNAVAILABLE: .*[Cc]onnection refused"):
            await client.validate("garbage")
