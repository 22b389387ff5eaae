"""deploy/envoy/envoy.yaml: the service decides about every request, and the backend learns from it who the user is."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from prometheus_client import REGISTRY

from authsvc.coalescer import MAX_IN_FLIGHT
from authsvc.config import Address, ServeSettings
from authsvc.server import app
from authsvc.usecases.validation import Check, Validation
from tests.client.switch import switch_to
from tests.e2e.certificates import Authority
from tests.engines import Engine
from tests.engines.process import free_port
from tests.faults import Exchange, FaultyProxy, Hang, Reply
from tests.gateways.conftest import ENVOY_IDENTITY, Gateway, RunEnvoy, ServeSecured, bearer
from tests.gateways.envoy import (
    FILES,
    Backend,
    configuration,
    validate,
    with_client_certificate,
)
from tests.support import ADMIN_EMAIL, PATIENT_LIMITS, FakeClock, use_engine

pytestmark = pytest.mark.engines

IN_FLIGHT = 800


def test_the_configuration_is_valid(envoy_binary: Path, files: Path, authority: Authority) -> None:
    text = configuration("envoy.yaml", {FILES: files})
    assert not validate(envoy_binary, text)
    pair = authority.issue("envoy")
    (files / "envoy.pem").write_bytes(pair.certificate.read_bytes())
    (files / "envoy.key").write_bytes(pair.key.read_bytes())
    assert not validate(envoy_binary, with_client_certificate(text))


async def test_the_backend_learns_the_user_and_never_the_token(gateway: Gateway) -> None:
    user = await gateway.client.create_user()
    tokens = (await gateway.client.log_in()).tokens
    alice = {
        "x-auth-user-id": user.user_id,
        "x-auth-email": "alice@example.com",
        "x-auth-role": "user",
        "x-auth-session-id": tokens.session_id,
    }
    for target in ("/", "/me?x=1", "/catalogue/1"):
        assert await gateway.identity(target, bearer(tokens.access_token), "cookie: a=1", "accept: x") == alice
        seen = gateway.backend.seen[-1]
        assert (seen.path, seen.values("authorization"), seen.values("cookie")) == (target, [], ["a=1"])
    for target in ("/healthz", "/catalogue/1"):
        assert await gateway.identity(target) == {}
    await gateway.client.update_user(user.user_id, role="editor")
    assert (await gateway.identity("/", bearer(tokens.access_token)))["x-auth-role"] == "editor"


async def test_a_missing_or_bad_token_is_unauthorized(gateway: Gateway, clock: FakeClock) -> None:
    user = await gateway.client.create_user()
    old = await gateway.client.access_token()
    clock.advance(minutes=16)
    assert (await gateway.refusal("/", bearer(old))).status == 401
    tokens = (await gateway.client.log_in()).tokens
    token = tokens.access_token
    head, _, signature = token.rpartition(".")
    forged = f"{head}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"
    bad: dict[str, str | bytes] = {
        "forged": bearer(forged),
        "trailing garbage": bearer(token + "A"),
        "trailing bytes": bearer(token).encode() + b"\xff",
        "refresh token": bearer(tokens.refresh_token),
        "API key": bearer("ask_" + "A" * 43),
        "another scheme": f"authorization: Basic {token}",
        "empty": "authorization: Bearer ",
    }
    for name, header in bad.items():
        for target in ("/", "/catalogue", "/admin"):
            response = await gateway.refusal(target, header)
            assert (response.status, json.loads(response.body).keys()) == (401, {"error"}), (name, target)
            assert response.headers["www-authenticate"].startswith("Bearer"), (name, target)
    for target in ("/", "/admin"):
        response = await gateway.refusal(target)
        assert (response.status, response.headers["www-authenticate"].startswith("Bearer")) == (401, True)
    assert await gateway.identity("/", bearer(token))
    await gateway.client.revoke(token)
    assert (await gateway.refusal("/", bearer(token))).status == 401
    token = await gateway.client.access_token()
    assert await gateway.identity("/", bearer(token))
    await gateway.client.update_user(user.user_id, is_active=False)
    assert (await gateway.refusal("/", bearer(token))).status == 401


async def test_a_route_can_need_a_role(gateway: Gateway) -> None:
    await gateway.client.create_user()
    await gateway.client.create_user("boss@example.com", role="admin")
    alice, boss = await gateway.client.access_token(), await gateway.client.access_token("boss@example.com")
    assert (await gateway.identity("/admin/users", bearer(boss)))["x-auth-role"] == "admin"
    for target in ("/admin", "/admin/", "/admin/users", "/a/../admin", "//admin", "/%61dmin", "/./admin/x", "/admin?x"):
        assert (await gateway.refusal(target, bearer(alice))).status == 403, target
    for target in ("/x%2fadmin", "/%5cadmin"):
        assert (await gateway.refusal(target, bearer(alice))).status == 400, target
    assert (await gateway.identity("/administration", bearer(alice)))["x-auth-role"] == "user"


async def test_a_large_body_passes(gateway: Gateway) -> None:
    await gateway.client.create_user()
    header = bearer(await gateway.client.access_token())
    response = await gateway.envoy.send("/upload", header, method="POST", body=bytes(1 << 20))
    assert (response.status, gateway.backend.seen[-1].size) == (200, 1 << 20)


async def test_envoy_authenticates_by_a_certificate(
    secured: ServeSettings,
    serve_secured: ServeSecured,
    in_front: RunEnvoy,
    backend: Backend,
    authority: Authority,
    files: Path,
) -> None:
    pair = authority.issue("envoy", names=[x509.UniformResourceIdentifier(ENVOY_IDENTITY)])
    (files / "envoy.pem").write_bytes(pair.certificate.read_bytes())
    (files / "envoy.key").write_bytes(pair.key.read_bytes())
    settings = replace(secured, tls_client_ca=authority.certificate)
    async with (
        serve_secured(settings) as client,
        in_front(client.address, adapt=with_client_certificate) as envoy,
    ):
        await client.create_user()
        gateway = Gateway(client, envoy, backend)
        assert (await gateway.identity("/", bearer(await client.access_token())))["x-auth-role"] == "user"


async def test_a_service_that_does_not_know_envoy_is_an_outage(
    secured: ServeSettings, serve_secured: ServeSecured, in_front: RunEnvoy, backend: Backend
) -> None:
    async with serve_secured(secured) as client, in_front(client.address, key="ask_wrong") as envoy:
        token = await client.access_token(ADMIN_EMAIL)
        assert (await Gateway(client, envoy, backend).refusal("/", bearer(token))).status == 503


async def test_a_stopped_service_is_an_outage_until_it_is_back(
    secured: ServeSettings, serve_secured: ServeSecured, in_front: RunEnvoy, backend: Backend, clock: FakeClock
) -> None:
    settings = replace(secured, listen=Address("127.0.0.1", free_port()))
    async with AsyncExitStack() as running, in_front(str(settings.listen)) as envoy:
        client = await running.enter_async_context(serve_secured(settings))
        gateway = Gateway(client, envoy, backend)
        token = await client.access_token(ADMIN_EMAIL)
        assert await gateway.identity("/", bearer(token))
        await running.aclose()
        for header in (bearer(token), bearer("garbage"), "accept: */*"):
            for target in ("/", "/admin", "/catalogue"):
                assert (await gateway.refusal(target, header)).status == 503
        assert await gateway.identity("/healthz") == {}
        async with app.run_app(settings, clock, clock.monotonic):
            assert await gateway.identity("/", bearer(token))


async def test_a_stalled_service_is_an_outage(
    secured: ServeSettings, serve_secured: ServeSecured, in_front: RunEnvoy, backend: Backend
) -> None:
    async with (
        serve_secured(secured) as client,
        switch_to(client.address) as switch,
        in_front(switch.address) as envoy,
    ):
        gateway = Gateway(client, envoy, backend)
        token = await client.access_token(ADMIN_EMAIL)
        assert await gateway.identity("/", bearer(token))
        switch.freeze()
        assert (await gateway.refusal("/", bearer(token))).status == 503


@dataclass(frozen=True)
class OnDynamoDB:
    """The gateway before a service on dynoxide, with a proxy between them that injects faults."""

    gateway: Gateway
    proxy: FaultyProxy


@pytest.fixture
async def on_dynamodb(
    secured: ServeSettings,
    serve_secured: ServeSecured,
    in_front: RunEnvoy,
    backend: Backend,
    dynoxide: Engine,
    table_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> AsyncIterator[OnDynamoDB]:
    adapt = getattr(request, "param", str)
    async with FaultyProxy(dynoxide.endpoint_url) as proxy:
        use_engine(dynoxide, monkeypatch, proxy.endpoint_url)
        async with (
            serve_secured(replace(secured, store="dynamodb", table_prefix=table_prefix)) as client,
            in_front(client.address, adapt=adapt) as envoy,
        ):
            yield OnDynamoDB(Gateway(client, envoy, backend), proxy)


@pytest.mark.limits(replace(PATIENT_LIMITS, request_seconds=1.0, stale_fallback_seconds=0.1))
async def test_a_store_that_is_stopped_or_slow_is_an_outage(on_dynamodb: OnDynamoDB) -> None:
    gateway, proxy = on_dynamodb.gateway, on_dynamodb.proxy
    token = await gateway.client.access_token(ADMIN_EMAIL)
    for outage in (proxy.down, lambda: proxy.fault(Hang())):
        assert await gateway.identity("/", bearer(token))
        with outage():
            for target in ("/", "/admin"):
                response = await gateway.refusal(target, bearer(token))
                assert (response.status, json.loads(response.body).keys()) == (503, {"error"})
                assert int(response.headers["retry-after"]) > 0
            assert (await gateway.refusal("/", bearer("garbage"))).status == 401
            # The route may live with an older answer.
            assert (await gateway.identity("/catalogue", bearer(token)))["x-auth-role"] == "admin"
    assert await gateway.identity("/", bearer(token))


class Held:
    """Requests wait until the fault is lifted."""

    async def answer(self, exchange: Exchange, /) -> Reply:
        await exchange.until_lifted()
        return await exchange.forward()


def patient(text: str) -> str:
    """Let a check take longer than in production: a busy machine is slow."""
    assert text.count("timeout: 2.5s") == 1
    return text.replace("timeout: 2.5s", "timeout: 60s")


def batches() -> float:
    """Return the number of batched reads so far."""
    return REGISTRY.get_sample_value("authsvc_key_reads_batch_size_count") or 0


@pytest.mark.parametrize("on_dynamodb", [patient], indirect=True)
async def test_requests_in_flight_share_reads(on_dynamodb: OnDynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, validations = on_dynamodb.gateway, on_dynamodb.gateway.client.service.validations
    tokens = []
    for number in range(20):
        await gateway.client.create_user(f"user{number}@example.com")
        tokens.append(await gateway.client.access_token(f"user{number}@example.com"))
    validate, checks, all_arrived = validations.validate, [], asyncio.Event()

    async def count(check: Check) -> Validation:
        checks.append(check)
        if len(checks) == IN_FLIGHT:
            all_arrived.set()
        return await validate(check)

    monkeypatch.setattr(validations, "validate", count)
    before = batches()
    on_dynamodb.proxy.forget()
    url = f"http://127.0.0.1:{gateway.envoy.port}/"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def get(token: str) -> int:
            async with session.get(url, headers={"authorization": f"Bearer {token}"}) as response:
                return response.status

        with on_dynamodb.proxy.fault(Held()):
            requests = [asyncio.create_task(get(tokens[number % len(tokens)])) for number in range(IN_FLIGHT)]
            await all_arrived.wait()
        assert set(await asyncio.gather(*requests)) == {200}
    reads = batches() - before
    assert reads == on_dynamodb.proxy.requests["BatchGetItem"]
    # Those that are in flight at once, and one more; without coalescing there would be one for each request.
    assert reads <= MAX_IN_FLIGHT + 1
