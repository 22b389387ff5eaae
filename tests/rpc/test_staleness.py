"""max_staleness and stale_if_error: cached user states may answer, within the limits of caller and settings."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from authsvc.server.app import PRODUCTION_LIMITS
from authsvc.usecases import user_state_cache
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.engines import Engine
from tests.faults import Fault, FaultyProxy, Hang, Reset, ServerError, Throttle
from tests.rpc.conftest import Proxied, Shared
from tests.rpc.test_batches import error_of, validate_all
from tests.support import Client, FakeClock, failure, make_settings, served, use_engine

ACTIVE = auth_pb2.TOKEN_STATE_ACTIVE
MINUTE = timedelta(minutes=1)
CAP = timedelta(seconds=60)
CAP_IF_ERROR = timedelta(minutes=15)
"""The settings' caps, as in make_settings."""
NEW_PASSWORD = "another password of words"


def request(token: str, staleness: timedelta | None = None, if_error: timedelta | None = None) -> Any:
    made = auth_pb2.ValidateTokenRequest(token=token)
    if staleness is not None:
        made.max_staleness.FromTimedelta(staleness)
    if if_error is not None:
        made.stale_if_error.FromTimedelta(if_error)
    return made


async def stale(client: Client, token: str, staleness: timedelta = MINUTE) -> auth_pb2.ValidateTokenResponse:
    """Validate, by a cached user state up to that age."""
    return await client.auth.ValidateToken(request(token, staleness))


async def with_fallback(client: Client, token: str, age: timedelta = CAP_IF_ERROR) -> auth_pb2.ValidateTokenResponse:
    """Validate fresh, with a stale fallback up to that age."""
    return await client.auth.ValidateToken(request(token, if_error=age))


def outcome(answer: auth_pb2.ValidateTokenResponse) -> str:
    """Return the reason of an inactive token, the role of an active one."""
    return answer.role if answer.state == ACTIVE else auth_pb2.InactiveReason.Name(answer.reason)[16:]


def age(answer: auth_pb2.ValidateTokenResponse, clock: FakeClock) -> timedelta:
    return clock.now - answer.checked_time.ToDatetime(clock.now.tzinfo)


@dataclass(frozen=True)
class Alice:
    """A user with an active access token."""

    user_id: str
    token: str
    session_id: str


async def alice_of(client: Client) -> Alice:
    user = await client.create_user()
    tokens = (await client.log_in()).tokens
    return Alice(user.user_id, tokens.access_token, tokens.session_id)


async def test_a_young_reading_answers_without_the_store(proxied: Proxied, clock: FakeClock) -> None:
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.validate(alice.token)
    proxied.proxy.forget()
    clock.advance(seconds=5)
    for _ in range(3):
        answer = await stale(client, alice.token, timedelta(seconds=5))
        assert (outcome(answer), age(answer, clock), answer.degraded) == ("user", timedelta(seconds=5), False)
    assert proxied.proxy.requests == {}
    clock.advance(seconds=1)
    answer = await stale(client, alice.token, timedelta(seconds=5))
    assert (outcome(answer), age(answer, clock)) == ("user", timedelta())
    assert proxied.proxy.requests == {"BatchGetItem": 1}


async def test_the_setting_caps_what_is_asked_for(proxied: Proxied, clock: FakeClock) -> None:
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.validate(alice.token)
    proxied.proxy.forget()
    clock.advance(seconds=CAP.total_seconds())
    assert age(await stale(client, alice.token, timedelta(hours=1)), clock) == CAP
    assert proxied.proxy.requests == {}
    clock.advance(seconds=1)
    assert age(await stale(client, alice.token, timedelta(hours=1)), clock) == timedelta()
    assert proxied.proxy.requests == {"BatchGetItem": 1}


@pytest.mark.parametrize("engine", ["dynoxide"], indirect=True)
async def test_where_the_setting_is_zero_every_answer_is_fresh(
    engine: Engine, signing_keys: Path, table_prefix: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultyProxy(engine.endpoint_url) as proxy:
        use_engine(engine, monkeypatch, proxy.endpoint_url)
        settings = make_settings(
            signing_keys,
            "dynamodb",
            table_prefix=table_prefix,
            max_staleness=timedelta(),
            max_stale_if_error=timedelta(),
        )
        async with served(settings, clock) as client:
            alice = await alice_of(client)
            proxy.forget()
            for _ in range(2):
                await stale(client, alice.token)
            assert proxy.requests == {"BatchGetItem": 2}
            with proxy.down():
                assert (await failure(with_fallback(client, alice.token))).reason == "STORE_UNAVAILABLE"


@pytest.mark.parametrize("jump", [timedelta(minutes=10), timedelta(seconds=-30)])
async def test_the_age_is_right_though_the_time_of_day_jumps(
    proxied: Proxied, clock: FakeClock, jump: timedelta
) -> None:
    """F11."""
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.validate(alice.token)
    proxied.proxy.forget()
    clock.now += jump
    await stale(client, alice.token)
    assert proxied.proxy.requests == {}
    clock.seconds += 61
    await stale(client, alice.token)
    assert proxied.proxy.requests == {"BatchGetItem": 1}


async def test_an_inactive_answer_is_cached_too(shared: Shared) -> None:
    client, alice = shared.client, await alice_of(shared.client)
    shared.tables.update_user(alice.user_id, "SET is_active = :v", v={"BOOL": False})
    assert outcome(await client.validate(alice.token)) == "USER_DISABLED"
    shared.tables.update_user(alice.user_id, "SET is_active = :v", v={"BOOL": True})
    assert outcome(await stale(client, alice.token)) == "USER_DISABLED"
    shared.tables.delete_user(alice.user_id)
    assert outcome(await client.validate(alice.token)) == "USER_NOT_FOUND"
    shared.tables.put_user(alice.user_id, "alice@example.com")
    assert outcome(await stale(client, alice.token)) == "USER_NOT_FOUND"
    assert outcome(await client.validate(alice.token)) == "user"


async def test_a_fresh_call_sees_what_others_changed_and_refreshes_the_cache(shared: Shared, clock: FakeClock) -> None:
    client, alice = shared.client, await alice_of(shared.client)
    await client.validate(alice.token)
    shared.tables.set_attribute(alice.user_id, "role", {"S": "editor"})
    clock.advance(seconds=10)
    assert outcome(await stale(client, alice.token)) == "user"
    assert outcome(await client.validate(alice.token)) == "editor"
    answer = await stale(client, alice.token)
    assert (outcome(answer), age(answer, clock)) == ("editor", timedelta())


async def test_a_broken_row_is_no_reading(shared: Shared) -> None:
    """A state cached earlier still answers within max_staleness; a corrupt row is not an outage."""
    client, alice = shared.client, await alice_of(shared.client)
    await client.validate(alice.token)
    shared.tables.set_attribute(alice.user_id, "role", {"N": "5"})
    assert (await failure(with_fallback(client, alice.token))).reason == "INTERNAL"
    assert outcome(await stale(client, alice.token)) == "user"


Write = Callable[[Client, Alice], Awaitable[object]]
WRITES: dict[str, tuple[Write, str]] = {
    "disable": (lambda c, a: c.update_user(a.user_id, is_active=False), "USER_DISABLED"),
    "change role": (lambda c, a: c.update_user(a.user_id, role="editor"), "editor"),
    "delete": (lambda c, a: c.delete_user(a.user_id), "USER_NOT_FOUND"),
    "reset password": (lambda c, a: c.reset_password(a.user_id), "SESSION_REVOKED"),
    "revoke token": (lambda c, a: c.revoke(a.token), "SESSION_REVOKED"),
    "revoke one session": (lambda c, a: c.revoke_sessions(a.user_id, a.session_id), "SESSION_REVOKED"),
    "revoke all sessions": (lambda c, a: c.revoke_sessions(a.user_id), "SESSION_REVOKED"),
    "change password": (lambda c, _: c.change_password(NEW_PASSWORD), "SESSION_REVOKED"),
}


@pytest.mark.parametrize("write", WRITES)
async def test_own_writes_are_seen_at_once(anywhere: Client, write: str) -> None:
    alice = await alice_of(anywhere)
    assert outcome(await anywhere.validate(alice.token)) == "user"
    act, expected = WRITES[write]
    await act(anywhere, alice)
    assert outcome(await stale(anywhere, alice.token)) == expected


async def test_an_own_change_of_address_is_seen_at_once(anywhere: Client) -> None:
    alice = await alice_of(anywhere)
    await anywhere.validate(alice.token)
    await anywhere.update_user(alice.user_id, email="moved@example.com")
    answer = await stale(anywhere, alice.token)
    assert answer.email in {"moved@example.com", ""}
    assert answer.checked_time == (await anywhere.validate(alice.token)).checked_time


async def test_a_reused_refresh_token_ends_its_session_at_once(anywhere: Client, clock: FakeClock) -> None:
    await anywhere.create_user()
    stolen = (await anywhere.log_in()).tokens
    current = await anywhere.refresh(await refreshed(anywhere, stolen.refresh_token))
    clock.advance(minutes=2)
    assert outcome(await anywhere.validate(current.access_token)) == "user"
    assert (await failure(anywhere.refresh(stolen.refresh_token))).reason == "INVALID_REFRESH_TOKEN"
    assert outcome(await stale(anywhere, current.access_token)) == "SESSION_REVOKED"


async def refreshed(client: Client, refresh_token: str) -> str:
    text: str = (await client.refresh(refresh_token)).refresh_token
    return text


async def test_a_user_who_is_enabled_again_is_so_at_once(anywhere: Client) -> None:
    alice = await alice_of(anywhere)
    await anywhere.update_user(alice.user_id, is_active=False)
    assert outcome(await anywhere.validate(alice.token)) == "USER_DISABLED"
    await anywhere.update_user(alice.user_id, is_active=True)
    token = await anywhere.access_token()
    assert outcome(await stale(anywhere, token)) == "user"


async def test_a_stale_answer_bridges_an_outage_where_the_call_allows_it(proxied: Proxied, clock: FakeClock) -> None:
    """F1: refused connections. Once the store is back, the first call is answered without a restart."""
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.validate(alice.token)
    with proxied.proxy.down():
        clock.advance(minutes=5)
        answer = await with_fallback(client, alice.token)
        assert (outcome(answer), age(answer, clock), answer.degraded) == ("user", timedelta(minutes=5), True)
        assert (await failure(client.validate(alice.token))).reason == "STORE_UNAVAILABLE"
        clock.advance(minutes=5)
        assert age(await with_fallback(client, alice.token), clock) == timedelta(minutes=10)
    answer = await with_fallback(client, alice.token)
    assert (outcome(answer), age(answer, clock), answer.degraded) == ("user", timedelta(), False)


async def test_a_store_that_answers_is_never_stood_in_for(proxied: Proxied, clock: FakeClock) -> None:
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.validate(alice.token)
    clock.advance(minutes=1)
    proxied.tables.set_attribute(alice.user_id, "role", {"S": "editor"})
    with proxied.proxy.fault(Throttle(), times=1):
        answer = await with_fallback(client, alice.token)
    assert (outcome(answer), age(answer, clock), answer.degraded) == ("editor", timedelta(), False)


async def test_inactive_answers_bridge_an_outage_too(proxied: Proxied) -> None:
    client, alice = proxied.client, await alice_of(proxied.client)
    proxied.tables.update_user(alice.user_id, "SET is_active = :v", v={"BOOL": False})
    await client.validate(alice.token)
    with proxied.proxy.down():
        answer = await with_fallback(client, alice.token)
        assert (outcome(answer), answer.degraded) == ("USER_DISABLED", True)
        # A malformed token needs no store, so its answer is not degraded.
        refused = await with_fallback(client, "garbage")
        assert (outcome(refused), refused.degraded) == ("MALFORMED", False)


async def test_what_is_too_old_or_unknown_bridges_nothing(proxied: Proxied, clock: FakeClock) -> None:
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.validate(alice.token)
    await client.create_user("bob@example.com")
    bob = await client.access_token("bob@example.com")
    with proxied.proxy.down():
        assert (await failure(with_fallback(client, bob))).reason == "STORE_UNAVAILABLE"
        clock.advance(seconds=60)
        assert (await with_fallback(client, alice.token, MINUTE)).degraded
        clock.advance(seconds=1)
        assert (await failure(with_fallback(client, alice.token, MINUTE))).reason == "STORE_UNAVAILABLE"


async def test_the_setting_caps_how_long_an_outage_is_bridged(proxied: Proxied, clock: FakeClock) -> None:
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.validate(alice.token)
    with proxied.proxy.down():
        # On the monotonic clock alone: by the wall clock the token would expire.
        clock.seconds += CAP_IF_ERROR.total_seconds()
        assert (await with_fallback(client, alice.token, timedelta(days=1))).degraded
        clock.seconds += 1
        assert (await failure(with_fallback(client, alice.token, timedelta(days=1)))).reason == "STORE_UNAVAILABLE"


@pytest.mark.parametrize("fault", [Hang(), Throttle(), ServerError(), Reset()], ids=repr)
@pytest.mark.limits(PRODUCTION_LIMITS)
async def test_a_store_in_any_trouble_is_stood_in_for_by_the_deadline(proxied: Proxied, fault: Fault) -> None:
    """F1, F2: otherwise gRPC would end the call with DEADLINE_EXCEEDED."""
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.validate(alice.token)
    both = request(alice.token, timedelta(), CAP_IF_ERROR)
    with proxied.proxy.fault(fault):
        for timeout in (2 * user_state_cache.STALE_FALLBACK_TIMEOUT_SECONDS + 2, None):
            assert (await client.auth.ValidateToken(both, timeout=timeout)).degraded


@pytest.mark.limits(PRODUCTION_LIMITS)
async def test_an_own_write_is_no_stand_in_even_if_it_may_have_failed(proxied: Proxied) -> None:
    """A failed write may have been applied, so it evicts the cached state."""
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.validate(alice.token)
    with proxied.proxy.fault(Reset(applied=True), operations={"TransactWriteItems"}):
        assert (await failure(client.revoke(alice.token))).reason == "STORE_UNAVAILABLE"
    with proxied.proxy.down():
        assert (await failure(with_fallback(client, alice.token))).reason == "STORE_UNAVAILABLE"
    assert outcome(await stale(client, alice.token)) == "SESSION_REVOKED"


async def test_in_a_batch_each_has_its_own_options(proxied: Proxied, clock: FakeClock) -> None:
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.create_user("bob@example.com")
    bob = await client.access_token("bob@example.com")
    await client.validate(alice.token)
    clock.advance(seconds=30)
    proxied.proxy.forget()
    requests = [
        request(alice.token, MINUTE),
        request(alice.token),
        request(alice.token, timedelta(seconds=29)),
        request(bob, MINUTE),
        request("garbage", MINUTE),
    ]
    results = [result.response for result in await validate_all(client, *requests)]
    assert [outcome(result) for result in results] == ["user"] * 4 + ["MALFORMED"]
    assert [age(result, clock).total_seconds() for result in results] == [30, 0, 0, 0, 0]
    assert proxied.proxy.requests == {"BatchGetItem": 1}

    clock.advance(seconds=61)
    with proxied.proxy.down():
        results = await validate_all(
            client,
            request(alice.token, MINUTE, CAP_IF_ERROR),
            request(alice.token, MINUTE),
            request(bob, if_error=MINUTE),
            request(bob, if_error=timedelta(seconds=61)),
            request("garbage", if_error=CAP_IF_ERROR),
        )
    assert [result.WhichOneof("outcome") for result in results] == [
        "response",
        "error",
        "error",
        "response",
        "response",
    ]
    assert {error_of(result)[1] for result in results[1:3]} == {"ERROR_REASON_STORE_UNAVAILABLE"}
    assert [results[at].response.degraded for at in (0, 3, 4)] == [True, True, False]
    assert age(results[0].response, clock) == timedelta(seconds=61)


async def test_a_batch_of_cached_users_needs_no_store(proxied: Proxied) -> None:
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.validate(alice.token)
    proxied.proxy.forget()
    results = await validate_all(client, *[request(alice.token, MINUTE)] * 100)
    assert {outcome(result.response) for result in results} == {"user"}
    assert proxied.proxy.requests == {}


async def test_young_enough_is_not_degraded_though_the_store_is_down(proxied: Proxied, clock: FakeClock) -> None:
    client, alice = proxied.client, await alice_of(proxied.client)
    await client.validate(alice.token)
    both = request(alice.token, MINUTE, CAP_IF_ERROR)
    with proxied.proxy.down():
        clock.advance(seconds=60)
        assert not (await client.auth.ValidateToken(both)).degraded
        clock.advance(seconds=1)
        answer = await client.auth.ValidateToken(both)
        assert (answer.degraded, age(answer, clock)) == (True, timedelta(seconds=61))
