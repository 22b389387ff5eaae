"""The side port: what gateways and libraries find there."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import aiohttp
import jwt
import pytest
from prometheus_client import REGISTRY

from authsvc.config import Address, ServeSettings
from authsvc.errors import ConfigError
from authsvc.server import app, http_server
from authsvc.server.http_connections import HttpLimits
from authsvc.tokens.key_file import generate_key_file
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.support import PATIENT_LIMITS, WITNESS, Client, FakeClock, make_settings, rotate, served

JWKS_PATH = "/.well-known/jwks.json"
DISCOVERY_PATH = "/.well-known/openid-configuration"
TTL = timedelta(minutes=15)


@pytest.fixture
def signing_keys(tmp_path: Path, clock: FakeClock) -> Path:
    """Keys of the test's own, which it rotates."""
    path = tmp_path / "keys.json"
    generate_key_file(path, "ES256", clock())
    return path


@pytest.fixture
def settings(tmp_path: Path, signing_keys: Path) -> ServeSettings:
    store = f"sqlite:{tmp_path / 'authsvc.db'}"
    return make_settings(signing_keys, store, http_listen=Address("127.0.0.1", 0))


@pytest.fixture
async def http(client: Client) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the side port."""
    async with aiohttp.ClientSession(f"http://{client.service.http_address}") as session:
        yield session


async def published(http: aiohttp.ClientSession) -> list[str]:
    async with http.get(JWKS_PATH) as answer:
        return [key["kid"] for key in json.loads(await answer.text())["keys"]]


@pytest.mark.parametrize("path", [JWKS_PATH, DISCOVERY_PATH])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_documents_are_json_that_caches_may_keep(http: aiohttp.ClientSession, method: str, path: str) -> None:
    async with http.request(method, path) as answer:
        assert answer.status == 200
        assert answer.content_type == "application/json"
        assert answer.headers["Cache-Control"] == "public, max-age=300"
        assert bool(await answer.text()) is (method == "GET")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/.well-known", 404),
        ("GET", "/.well-known/jwks.json/", 404),
        ("GET", "/../keys.json", 404),
        ("POST", JWKS_PATH, 405),
        ("DELETE", DISCOVERY_PATH, 405),
    ],
)
async def test_nothing_else_is_there(http: aiohttp.ClientSession, method: str, path: str, status: int) -> None:
    async with http.request(method, path) as answer:
        assert answer.status == status
        assert answer.headers["Server"] == "authsvc", "names no library and no version"


async def test_discovery_leads_to_the_keys(http: aiohttp.ClientSession) -> None:
    async with http.get(DISCOVERY_PATH) as answer:
        document = json.loads(await answer.text())
    assert document["issuer"] == "https://auth.example.com"
    assert document["jwks_uri"] == "https://auth.example.com/.well-known/jwks.json"


async def test_a_token_is_verified_offline(client: Client, http: aiohttp.ClientSession) -> None:
    await client.create_user()
    token = await client.access_token()
    async with http.get(JWKS_PATH) as answer:
        keys = jwt.PyJWKSet.from_json(await answer.text())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(
        token,
        key.key,
        algorithms=["ES256"],
        audience="backends",
        issuer="https://auth.example.com",
        # The test's clock stands still, and PyJWT's does not.
        options={"verify_exp": False, "verify_iat": False},
    )
    assert claims["sub"] == (await client.get_user(email="alice@example.com")).user_id


async def test_the_keys_are_those_of_the_api_before_and_after_a_rotation(
    client: Client, http: aiohttp.ClientSession, signing_keys: Path, clock: FakeClock
) -> None:
    async def by_api() -> list[str]:
        jwks = (await client.auth.GetJwks(auth_pb2.GetJwksRequest())).jwks
        return [key["kid"] for key in json.loads(jwks)["keys"]]

    before = await published(http)
    assert before == await by_api()
    rotation = await rotate(signing_keys, TTL, clock())
    while (after := await published(http)) == before:
        pass
    assert after == await by_api() == [*before, rotation.following.kid]


async def test_a_retired_key_is_gone_at_its_time_though_the_file_stays(
    client: Client, http: aiohttp.ClientSession, signing_keys: Path, clock: FakeClock
) -> None:
    """ASVS-11.1.1."""
    rotation = await rotate(signing_keys, TTL, clock())
    assert rotation.retired is not None
    while rotation.following.kid not in await published(http):
        pass
    clock.advance(minutes=16, seconds=29)
    assert rotation.retired.kid in await published(http)
    clock.advance(seconds=1)
    assert await published(http) == [rotation.signing.kid, rotation.following.kid]
    jwks = (await client.auth.GetJwks(auth_pb2.GetJwksRequest())).jwks
    assert rotation.retired.kid not in jwks


async def test_it_can_be_turned_off(settings: ServeSettings, clock: FakeClock) -> None:
    async with served(replace(settings, http_listen=None), clock) as client:
        assert client.service.http_address is None


async def test_it_listens_on_ipv6(settings: ServeSettings, clock: FakeClock) -> None:
    there = replace(settings, http_listen=Address("::1", 0))
    async with (
        served(there, clock) as client,
        aiohttp.ClientSession(f"http://{client.service.http_address}") as http,
    ):
        assert len(await published(http)) == 2


@pytest.mark.parametrize(
    ("host", "reason"), [("127.0.0.1", "Address already in use"), ("nowhere.invalid", "")], ids=["taken", "unknown"]
)
async def test_an_unavailable_address_is_reported_with_its_setting(
    client: Client, settings: ServeSettings, clock: FakeClock, host: str, reason: str
) -> None:
    assert client.service.http_address is not None
    taken = Address(host, client.service.http_address.port)
    with pytest.raises(ConfigError) as refused:
        async with app.run_app(replace(settings, http_listen=taken), clock, limits=PATIENT_LIMITS):
            pass
    reported = f"AUTHSVC_HTTP_LISTEN: cannot listen on {taken}: {reason}"
    assert str(refused.value).startswith(reported)
    assert str(refused.value).endswith("; set another address, or an empty value to turn it off")
    assert "\n" not in str(refused.value)
    assert "while" not in str(refused.value)


async def test_a_failure_of_its_own_is_logged(settings: ServeSettings) -> None:
    def fail() -> str:
        raise RuntimeError("a bug")

    position = len(WITNESS.lines.getvalue())
    async with (
        http_server.serve_http(settings, fail, REGISTRY) as address,
        aiohttp.ClientSession(f"http://{address}") as http,
        http.get(JWKS_PATH) as answer,
    ):
        assert answer.status == 500
    assert "RuntimeError: a bug" in WITNESS.lines.getvalue()[position:]


async def test_a_service_goes_without_the_default_port_where_it_is_taken(
    settings: ServeSettings, clock: FakeClock, client: Client
) -> None:
    """A second service on a host, which has the same port by default, must serve all the same."""
    taken = client.service.http_address
    assert taken is not None
    limits = replace(PATIENT_LIMITS, http=HttpLimits(optional_address=str(taken)))
    position = len(WITNESS.lines.getvalue())
    async with app.run_app(replace(settings, http_listen=taken), clock, limits=limits) as service:
        assert service.http_address is None
    assert '"event": "http_port_off"' in WITNESS.lines.getvalue()[position:]
