"""deploy/envoy/jwt_authn.yaml: Envoy verifies tokens itself. What the file says that this costs is true."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from authsvc.config import Address, ServeSettings
from authsvc.models import utc_now
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.gateways.conftest import SPOOFED, bearer
from tests.gateways.envoy import BACKEND, SIDE_PORT, Backend, Envoy, configuration, run_envoy, validate
from tests.support import ADMIN_EMAIL, Client, FakeClock, served

pytestmark = pytest.mark.engines


@pytest.fixture
def clock() -> FakeClock:
    """Begins now: Envoy has no other clock."""
    clock = FakeClock()
    clock.now = utc_now()
    return clock


@pytest.fixture
def settings(settings: ServeSettings) -> ServeSettings:
    return replace(settings, http_listen=Address("127.0.0.1", 0))


@pytest.fixture
async def envoy(client: Client, backend: Backend, envoy_binary: Path) -> AsyncIterator[Envoy]:
    side_port = client.service.http_address
    assert side_port is not None
    text = configuration("jwt_authn.yaml", {SIDE_PORT: side_port.port, BACKEND: backend.port})
    async with run_envoy(envoy_binary, text) as envoy:
        yield envoy


def test_the_configuration_is_valid(envoy_binary: Path) -> None:
    assert not validate(envoy_binary, configuration("jwt_authn.yaml", {}))


async def test_a_token_of_the_service_and_nothing_else_names_a_user(
    client: Client, envoy: Envoy, backend: Backend
) -> None:
    user = await client.create_user()
    tokens = (await client.log_in()).tokens
    good = bearer(tokens.access_token)
    assert (await envoy.send("/me", good, *SPOOFED)).status == 200
    assert backend.seen[-1].identity == {"x-auth-user-id": user.user_id, "x-auth-session-id": tokens.session_id}
    assert not backend.seen[-1].values("authorization")
    assert (await envoy.send("/healthz", *SPOOFED)).status == 200
    assert backend.seen[-1].identity == {}
    seen = len(backend.seen)
    for header in ("accept: */*", "authorization: Bearer garbage", bearer(tokens.refresh_token)):
        refused = await envoy.send("/me", header, *SPOOFED)
        assert (refused.status, "www-authenticate" in refused.headers) == (401, True)
    assert (await envoy.send(f"/me?access_token={tokens.access_token}")).status == 401
    assert (await envoy.send("/me", good, "x_auth_role: admin")).status == 400
    assert len(backend.seen) == seen


async def test_what_it_costs(client: Client, envoy: Envoy, backend: Backend, clock: FakeClock) -> None:
    await client.create_user()
    token = await client.access_token()
    appended = f"{token}A"
    await client.revoke(token)
    for text in (token, appended):
        answer = await client.validate(text)
        assert answer.state == auth_pb2.TOKEN_STATE_INACTIVE
        assert (await envoy.send("/me", bearer(text))).status == 200
    clock.advance(minutes=-16, seconds=-30)
    expired = await client.access_token()
    clock.advance(minutes=16, seconds=30)
    assert (await client.validate(expired)).reason == auth_pb2.INACTIVE_REASON_EXPIRED
    assert (await envoy.send("/me", bearer(expired))).status == 401


async def test_tokens_are_verified_while_the_service_is_down(
    settings: ServeSettings, clock: FakeClock, backend: Backend, envoy_binary: Path
) -> None:
    async with AsyncExitStack() as running:
        client = await running.enter_async_context(served(settings, clock))
        side_port = client.service.http_address
        assert side_port is not None
        replaced = {SIDE_PORT: side_port.port, BACKEND: backend.port, "cache_duration: 300s": "cache_duration: 0.1s"}
        async with run_envoy(envoy_binary, configuration("jwt_authn.yaml", replaced)) as envoy:
            token = await client.access_token(ADMIN_EMAIL)
            await running.aclose()
            failed = "jwks_fetch_failed"
            while not any((await envoy.stats(failed)).values()):
                pass
            assert (await envoy.send("/me", bearer(token))).status == 200
