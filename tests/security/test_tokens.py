"""Hundreds of bad tokens against key rings of both algorithms: the verifier, then the whole service (B1)."""

import base64
import json
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.models import utc_now
from authsvc.tokens.access_tokens import AccessTokens
from authsvc.tokens.key_file import generate_key_file, read_keys
from authsvc.tokens.keys import Key, KeyRing
from authsvc.tokens.verification import AccessToken
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.security.forgeries import GROUPS, Forge, other_spelling
from tests.support import Client, FakeClock, make_settings, served

ISSUER, AUDIENCE = "https://auth.example.com", "backends"


@pytest.fixture(scope="session", params=["ES256", "RS256"])
def key_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    generate_key_file(path, request.param, utc_now())
    return path


@pytest.fixture(scope="session")
def keys(key_file: Path) -> list[Key]:
    return read_keys(key_file)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket whose address tokens give as the place to fetch keys from."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        yield listening


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"http://{host}:{port}"


def was_connected_to(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.fixture
def forge(keys: list[Key], clock: FakeClock, listener: socket.socket) -> Forge:
    now = int(clock().timestamp())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "user-1",
        "client_id": "authsvc",
        "iat": now,
        "exp": now + 900,
        "jti": "token-1",
        "sid": "session-1",
        "gen": 1007,
    }
    return Forge(keys, claims, url_of(listener))


@pytest.fixture
def tokens(keys: list[Key]) -> AccessTokens:
    return AccessTokens(KeyRing(keys), ISSUER, AUDIENCE, timedelta(minutes=15))


def test_the_token_that_all_cases_are_made_of_is_good(tokens: AccessTokens, forge: Forge, clock: FakeClock) -> None:
    token = tokens.verify(forge.good, clock())
    assert isinstance(token, AccessToken)
    assert (token.user_id, token.session_id, token.token_generation) == ("user-1", "session-1", 1007)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 86400},
        {"exp": 0},
        {"exp": -29, "iat": -900},
        {"iat": 30},
        {"nbf": 30},
        {"nbf": -(10**30)},
    ],
    ids=str,
)
def test_a_token_at_its_limits_is_good(
    tokens: AccessTokens, forge: Forge, clock: FakeClock, changes: dict[str, int]
) -> None:
    now = int(clock().timestamp())
    token = forge.with_claims(**{name: now + seconds for name, seconds in changes.items()})
    assert isinstance(tokens.verify(token, clock()), AccessToken)


def test_claims_of_a_later_version_are_ignored(tokens: AccessTokens, forge: Forge, clock: FakeClock) -> None:
    token = forge.with_claims(acr="1", amr=["pwd"], cnf={"jkt": "x"})
    assert isinstance(tokens.verify(token, clock()), AccessToken)


@pytest.mark.parametrize("group", GROUPS)
def test_every_bad_token_is_refused_for_its_reason(
    tokens: AccessTokens, forge: Forge, clock: FakeClock, group: str
) -> None:
    """ASVS-9.1.1, ASVS-9.1.2, ASVS-9.2.1, ASVS-9.2.2, ASVS-9.2.3."""
    cases = list(GROUPS[group](forge))
    assert len({case.name for case in cases}) == len(cases), "two cases have the same name"
    assert forge.good not in {case.token for case in cases}
    wrong = {c.name: answer for c in cases if (answer := tokens.verify(c.token, clock())) is not c.reason}
    assert wrong == {}


def test_no_token_causes_a_connection(
    tokens: AccessTokens, forge: Forge, clock: FakeClock, listener: socket.socket
) -> None:
    """ASVS-9.1.3."""
    cases = [*GROUPS["header_extras"](forge), *GROUPS["kids"](forge)]
    assert sum(url_of(listener).encode() in header_of(case.token) for case in cases) > 10
    for case in cases:
        tokens.verify(case.token, clock())
    assert not was_connected_to(listener)
    with socket.create_connection(listener.getsockname()):
        assert was_connected_to(listener), "the listener does not notice connections"


def header_of(token: str) -> bytes:
    return base64.urlsafe_b64decode(token.partition(".")[0] + "==")


@pytest.fixture
async def service(key_file: Path, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Client]:
    async with served(make_settings(key_file, f"sqlite:{tmp_path / 'authsvc.db'}"), clock) as client:
        yield client


@pytest.fixture
async def validator(service: Client) -> AsyncIterator["auth_grpc.AuthServiceAsyncStub"]:
    """A stub that declares no secrets to WITNESS: these tokens are many, and none is a secret."""
    async with grpc.aio.insecure_channel(service.address) as channel:
        yield auth_grpc.AuthServiceStub(channel)


def claims_of(token: str) -> dict[str, object]:
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return claims


async def test_every_bad_token_ends_inactive_and_says_nothing_but_why(
    service: Client,
    validator: "auth_grpc.AuthServiceAsyncStub",
    keys: list[Key],
    clock: FakeClock,
    listener: socket.socket,
) -> None:
    """B1: for every bad token the response is OK and INACTIVE, with state, reason and checked_time only."""
    await service.create_user()
    login = await service.log_in()
    forge = Forge(keys, claims_of(login.tokens.access_token), url_of(listener))
    cases = [case for group in GROUPS.values() for case in group(forge)]
    assert len(cases) > 1000
    checked_time = Timestamp()
    checked_time.FromDatetime(clock())
    wrong = {}
    for case in cases:
        answer = await validator.ValidateToken(auth_pb2.ValidateTokenRequest(token=case.token))
        expected = auth_pb2.ValidateTokenResponse(
            state=auth_pb2.TOKEN_STATE_INACTIVE,
            reason=auth_pb2.InactiveReason.Value(f"INACTIVE_REASON_{case.reason.name}"),
            checked_time=checked_time,
        )
        if answer != expected:
            wrong[case.name] = answer
    assert wrong == {}
    assert not was_connected_to(listener)
    active = await validator.ValidateToken(auth_pb2.ValidateTokenRequest(token=forge.good))
    assert active.state == auth_pb2.TOKEN_STATE_ACTIVE
    assert active.user_id == login.user.user_id


async def test_the_other_spelling_of_a_good_token_is_the_same_token(client: Client) -> None:
    """No revocation may key on a token's text: anyone turns an ECDSA signature (r, s) into the valid (r, n - s)."""
    await client.create_user()
    token = await client.access_token()
    twin = other_spelling(token)
    assert twin != token
    assert await client.validate(twin) == await client.validate(token)
    assert (await client.validate(twin)).state == auth_pb2.TOKEN_STATE_ACTIVE


async def test_a_refresh_token_is_no_access_token(client: Client) -> None:
    """ASVS-9.2.2."""
    await client.create_user()
    answer = await client.validate((await client.log_in()).tokens.refresh_token)
    assert answer.state == auth_pb2.TOKEN_STATE_INACTIVE
    assert answer.reason == auth_pb2.INACTIVE_REASON_WRONG_TYPE


async def test_an_issued_token_is_for_one_audience(client: Client) -> None:
    """ASVS-9.2.4."""
    await client.create_user()
    assert claims_of(await client.access_token())["aud"] == AUDIENCE
