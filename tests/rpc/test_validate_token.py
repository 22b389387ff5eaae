"""ValidateToken: every inactive reason, and the fields of its responses."""

from dataclasses import replace
from datetime import timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from authsvc.config import ServeSettings
from authsvc.server import app
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.support import PATIENT_LIMITS, Client, FakeClock, connected, failure


def expect_inactive(answer: auth_pb2.ValidateTokenResponse, reason: str) -> None:
    """Expect an inactive response that has its reason and checked_time and no other field."""
    assert auth_pb2.InactiveReason.Name(answer.reason) == f"INACTIVE_REASON_{reason}"
    expected = auth_pb2.ValidateTokenResponse(
        state=auth_pb2.TOKEN_STATE_INACTIVE, reason=answer.reason, checked_time=answer.checked_time
    )
    assert answer == expected
    assert answer.HasField("checked_time")


async def test_malformed(client: Client) -> None:
    expect_inactive(await client.validate("no token"), "MALFORMED")


async def test_wrong_type(client: Client) -> None:
    await client.create_user()
    login = await client.log_in()
    expect_inactive(await client.validate(login.tokens.refresh_token), "WRONG_TYPE")
    expect_inactive(await client.validate("rt_" + "x" * 100_000), "WRONG_TYPE")


async def test_bad_signature(client: Client) -> None:
    await client.create_user()
    token = await client.access_token()
    head, _, signature = token.rpartition(".")
    tampered = head + "." + ("A" if signature[0] != "A" else "B") + signature[1:]
    expect_inactive(await client.validate(tampered), "BAD_SIGNATURE")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"issuer": "https://other.example.com"}, "WRONG_ISSUER"), ({"audience": "others"}, "WRONG_AUDIENCE")],
)
async def test_wrong_issuer_and_audience(
    client: Client, settings: ServeSettings, clock: FakeClock, change: dict[str, str], reason: str
) -> None:
    await client.create_user()
    changed = replace(settings, **change)  # type: ignore[arg-type]
    async with app.run_app(changed, clock, limits=PATIENT_LIMITS) as service, connected(service) as other:
        expect_inactive(await client.validate(await other.access_token()), reason)


async def test_expired(client: Client, settings: ServeSettings, clock: FakeClock) -> None:
    """ASVS-9.2.1."""
    await client.create_user()
    token = await client.access_token()
    clock.now += settings.access_token_ttl + timedelta(seconds=29)
    assert (await client.validate(token)).state == auth_pb2.TOKEN_STATE_ACTIVE
    clock.advance(seconds=1)
    expect_inactive(await client.validate(token), "EXPIRED")


async def test_not_yet_valid(client: Client, clock: FakeClock) -> None:
    """F11: a clock that steps back by less than the leeway refuses no token."""
    await client.create_user()
    token = await client.access_token()
    clock.advance(seconds=-30)
    assert (await client.validate(token)).state == auth_pb2.TOKEN_STATE_ACTIVE
    clock.advance(seconds=-1)
    expect_inactive(await client.validate(token), "NOT_YET_VALID")


async def test_an_empty_token_is_the_callers_mistake(client: Client) -> None:
    refused = await failure(client.validate(""))
    assert (refused.code, refused.reason, refused.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "token",
    )


@pytest.mark.parametrize("length", [8 * 1024, 8 * 1024 + 1, 4_000_000])
async def test_any_length_that_fits_the_message_is_answered(client: Client, length: int) -> None:
    expect_inactive(await client.validate("a" * length), "MALFORMED")


@pytest.mark.parametrize("field", ["max_staleness", "stale_if_error"])
@pytest.mark.parametrize(
    "duration",
    [
        Duration(seconds=-1),
        Duration(nanos=-1),
        Duration(seconds=1, nanos=-1),
        Duration(nanos=1_000_000_000),
        Duration(seconds=315_576_000_001),
        Duration(seconds=2**63 - 1),
    ],
    ids=str,
)
async def test_a_malformed_duration_is_refused(client: Client, field: str, duration: Duration) -> None:
    request = auth_pb2.ValidateTokenRequest(token="x", **{field: duration})
    refused = await failure(client.auth.ValidateToken(request))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", field)


async def test_of_what_is_allowed_nothing_is_used_that_was_never_read(client: Client, clock: FakeClock) -> None:
    """However large max_staleness is: without an earlier read, the store is read."""
    await client.create_user()
    token = await client.access_token()
    longest = Duration(seconds=315_576_000_000)
    request = auth_pb2.ValidateTokenRequest(token=token, max_staleness=longest, stale_if_error=longest)
    clock.advance(seconds=3)
    answer = await client.auth.ValidateToken(request)
    assert answer.state == auth_pb2.TOKEN_STATE_ACTIVE
    assert answer.checked_time.ToDatetime(clock.now.tzinfo) == clock.now
    assert not answer.degraded
