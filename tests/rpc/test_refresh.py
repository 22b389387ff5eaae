"""RefreshTokens: what follows a refresh token, what a stolen one does, and when a session expires."""

import asyncio
import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from authsvc.config import ServeSettings
from authsvc.usecases.sessions import HOST_SKEW
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.faults import Reset, Throttle
from tests.rpc.conftest import Proxied, Shared
from tests.support import WITNESS, Client, Failure, FakeClock, failure, make_settings, served

ACTIVE = auth_pb2.TOKEN_STATE_ACTIVE
REVOKED = auth_pb2.INACTIVE_REASON_SESSION_REVOKED
GRACE_SECONDS = 60.0


async def logged_in(client: Client) -> auth_pb2.AuthenticateResponse:
    await client.create_user()
    return await again(client)


async def again(client: Client) -> auth_pb2.AuthenticateResponse:
    response: auth_pb2.AuthenticateResponse = await client.log_in()
    return response


async def refused(client: Client, refresh_token: str) -> str:
    return (await failure(client.refresh(refresh_token))).reason


async def is_alive(client: Client, access_token: str) -> bool:
    return (await client.validate(access_token)).state == ACTIVE


def logged_since(position: int, event: str) -> list[str]:
    lines = WITNESS.lines.getvalue()[position:].splitlines()
    return [line for line in lines if f'"event": "{event}"' in line]


def position() -> int:
    return len(WITNESS.lines.getvalue())


async def test_a_refresh_gives_new_tokens_of_the_same_session(anywhere: Client, clock: FakeClock) -> None:
    """ASVS-7.2.4."""
    first = (await logged_in(anywhere)).tokens
    clock.advance(minutes=10)
    second = await anywhere.refresh(first.refresh_token, "192.0.2.1")
    assert second.session_id == first.session_id
    assert second.refresh_token != first.refresh_token
    assert second.access_token_expire_time.ToDatetime(UTC) == clock.now + timedelta(minutes=15)
    assert second.refresh_token_expire_time.ToDatetime(UTC) == clock.now + timedelta(days=7)
    answers = [await anywhere.validate(tokens.access_token) for tokens in (first, second)]
    assert [answer.state for answer in answers] == [ACTIVE, ACTIVE]
    assert answers[0].token_id != answers[1].token_id


@pytest.mark.parametrize(
    ("address", "repeated_from", "is_elsewhere"),
    [
        ("192.0.2.1", "192.0.2.1", False),
        ("192.0.2.1", "198.51.100.7", True),
        ("192.0.2.1", "2001:db8::1", True),
        ("2001:db8::1", "2001:db8::2", False),
        ("2001:db8::1", "2001:db8:0:1::1", True),
        ("192.0.2.1", "", False),
        ("", "192.0.2.1", False),
    ],
)
async def test_a_repeat_from_another_source_than_the_login_is_audited(
    anywhere: Client, address: str, repeated_from: str, *, is_elsewhere: bool
) -> None:
    await anywhere.create_user()
    first = (await anywhere.log_in(client_address=address)).tokens
    begin = position()
    second = await anywhere.refresh(first.refresh_token, address)
    assert (await anywhere.refresh(first.refresh_token, repeated_from)).refresh_token == second.refresh_token
    lines = logged_since(begin, "refresh_replayed_elsewhere")
    assert [(json.loads(line)["source"], json.loads(line)["login_source"]) for line in lines] == (
        [(repeated_from, address)] if is_elsewhere else []
    )


async def test_twenty_concurrent_refreshes_give_one_successor(anywhere: Client) -> None:
    first = (await logged_in(anywhere)).tokens
    all_tokens = await asyncio.gather(*(anywhere.refresh(first.refresh_token) for _ in range(20)))
    (next_token,) = {tokens.refresh_token for tokens in all_tokens}
    assert {await is_alive(anywhere, tokens.access_token) for tokens in all_tokens} == {True}
    assert (await anywhere.refresh(next_token)).refresh_token not in {next_token, first.refresh_token}


@pytest.mark.parametrize("seconds", [0.0, 1.5, 12.0, GRACE_SECONDS, -HOST_SKEW.total_seconds()])
async def test_a_token_repeated_in_the_grace_gives_the_same_successor(
    client: Client, clock: FakeClock, seconds: float
) -> None:
    """A lost answer, two tabs, and another host whose clock is behind."""
    first = (await logged_in(client)).tokens
    clock.advance(minutes=1)
    second = await client.refresh(first.refresh_token)
    clock.advance(seconds=seconds)
    repeated = await client.refresh(first.refresh_token)
    assert repeated.refresh_token == second.refresh_token
    assert repeated.refresh_token_expire_time == second.refresh_token_expire_time
    assert await is_alive(client, repeated.access_token)
    assert (await client.refresh(second.refresh_token)).refresh_token != second.refresh_token


async def test_without_a_grace_every_replaced_token_is_reuse(settings: ServeSettings, clock: FakeClock) -> None:
    async with served(replace(settings, refresh_grace=timedelta()), clock) as client:
        first = (await logged_in(client)).tokens
        second = await client.refresh(first.refresh_token)
        assert await refused(client, first.refresh_token) == "INVALID_REFRESH_TOKEN"
        assert await refused(client, second.refresh_token) == "INVALID_REFRESH_TOKEN"


@pytest.mark.parametrize("seconds", [GRACE_SECONDS + 1, GRACE_SECONDS + 0.001, -HOST_SKEW.total_seconds() - 1])
async def test_a_token_reused_after_the_grace_ends_its_session_alone(
    client: Client, clock: FakeClock, seconds: float
) -> None:
    """Theft: both the thief's and the owner's tokens are dead, the user's other sessions live."""
    first = (await logged_in(client)).tokens
    other = (await again(client)).tokens
    clock.advance(minutes=1)
    second = await client.refresh(first.refresh_token)
    clock.advance(seconds=seconds)
    begin = position()
    assert await refused(client, first.refresh_token) == "INVALID_REFRESH_TOKEN"
    (audit,) = logged_since(begin, "refresh_token_reuse")
    assert first.session_id in audit
    for tokens in (first, second):
        assert (await client.validate(tokens.access_token)).reason == REVOKED
        assert await refused(client, tokens.refresh_token) == "INVALID_REFRESH_TOKEN"
    assert len(logged_since(begin, "refresh_token_reuse")) == 1
    assert await is_alive(client, other.access_token)
    assert await client.refresh(other.refresh_token)


async def test_a_token_of_two_generations_back_is_reuse_at_any_time(anywhere: Client) -> None:
    first = (await logged_in(anywhere)).tokens
    second = await anywhere.refresh(first.refresh_token)
    third = await anywhere.refresh(second.refresh_token)
    assert await refused(anywhere, first.refresh_token) == "INVALID_REFRESH_TOKEN"
    assert await refused(anywhere, third.refresh_token) == "INVALID_REFRESH_TOKEN"
    for tokens in (first, second, third):
        assert (await anywhere.validate(tokens.access_token)).reason == REVOKED


async def test_a_rotating_part_that_never_was_is_reuse(client: Client) -> None:
    """Whoever has the right session part has had a token of the session."""
    first = (await logged_in(client)).tokens
    made_up = first.refresh_token.rpartition(".")[0] + "." + "A" * 43
    assert await refused(client, made_up) == "INVALID_REFRESH_TOKEN"
    assert (await client.validate(first.access_token)).reason == REVOKED


def _encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def not_quite(mine: str, hers: str) -> dict[str, str]:
    """Texts that come near another user's refresh token, made by somebody who has one of their own.

    A session id is no secret: it is in every access token and in logs.
    """
    my_user, _, my_part, my_rotating = mine.split(".")
    her_user, her_session, her_part, her_rotating = hers.split(".")
    return {
        "session id alone": f"{her_user}.{her_session}.{'A' * 22}.{'A' * 43}",
        "session id with parts of one's own": f"{her_user}.{her_session}.{my_part}.{my_rotating}",
        "rotating part without session part": f"{her_user}.{her_session}.{my_part}.{her_rotating}",
        "wrong user": f"{my_user}.{her_session}.{her_part}.{her_rotating}",
        "nobody": f"rt_{_encoded('nobody')}.{her_session}.{her_part}.{her_rotating}",
        "unknown session": f"{her_user}.{'A' * 22}.{her_part}.{her_rotating}",
        "truncated": hers[:-1],
        "longer": hers + "A",
        "newline": hers + "\n",
        "space": " " + hers,
        "another spelling": hers[:-1] + chr(ord(hers[-1]) + 1),
        "no prefix": hers.removeprefix("rt_"),
        "prefix": "rt_",
        "dots": "rt_...",
        "garbage": "garbage",
        "NUL": "\0",
        "long": "rt_" + "A" * 100_000,
        "user id that is no UTF-8": f"rt__w.{her_session}.{her_part}.{her_rotating}",
    }


async def test_whoever_lacks_the_session_part_changes_nothing(
    proxied: Proxied, subtests: pytest.Subtests, clock: FakeClock
) -> None:
    """And hears the same whatever is wrong, and after the session's end too."""
    client = proxied.client
    hers = (await logged_in(client)).tokens
    await client.create_user("mallory@example.com")
    mine = (await client.log_in("mallory@example.com")).tokens
    heard: set[Failure] = set()

    async def hear(text: str) -> None:
        reported = await failure(client.refresh(text))
        assert reported.trace_id
        heard.add(
            Failure(
                reported.code,
                reported.reason,
                reported.text,
                "",
                reported.field,
                reported.problem,
                reported.retry_seconds,
            )
        )

    for name, text in not_quite(mine.refresh_token, hers.refresh_token).items():
        with subtests.test(token=name):
            proxied.proxy.forget()
            await hear(text)
            assert set(proxied.proxy.requests) <= {"GetItem"}
    assert await is_alive(client, hers.access_token)
    await hear(hers.access_token)  # ASVS-9.2.2
    following = await client.refresh(hers.refresh_token)
    assert await is_alive(client, following.access_token)

    await client.revoke(following.refresh_token)
    await hear(following.refresh_token)
    clock.advance(days=8)
    await hear(mine.refresh_token)
    (same,) = heard
    assert (same.code.name, same.reason) == ("UNAUTHENTICATED", "INVALID_REFRESH_TOKEN")


async def test_a_refresh_token_is_no_access_token(client: Client) -> None:
    """ASVS-9.2.2."""
    tokens = (await logged_in(client)).tokens
    assert (await client.validate(tokens.refresh_token)).reason == auth_pb2.INACTIVE_REASON_WRONG_TYPE


async def test_a_wrong_field_is_named(client: Client) -> None:
    tokens = (await logged_in(client)).tokens
    empty = await failure(client.refresh(""))
    assert (empty.reason, empty.field) == ("INVALID_FIELD", "refresh_token")
    address = await failure(client.refresh(tokens.refresh_token, "localhost"))
    assert (address.reason, address.field) == ("INVALID_FIELD", "client_address")
    assert await client.refresh(tokens.refresh_token)


async def test_an_unused_session_expires(client: Client, clock: FakeClock) -> None:
    """ASVS-7.3.1."""
    tokens = (await logged_in(client)).tokens
    clock.advance(days=7, seconds=-1)
    tokens = await client.refresh(tokens.refresh_token)
    clock.advance(days=7)
    assert await refused(client, tokens.refresh_token) == "INVALID_REFRESH_TOKEN"


async def test_a_chain_of_refreshes_stops_at_the_absolute_limit(client: Client, clock: FakeClock) -> None:
    """ASVS-7.3.2, NIST-AAL1."""
    tokens = (await logged_in(client)).tokens
    end = clock.now + timedelta(days=30)
    while clock.now < end - timedelta(minutes=5):
        clock.now = min(clock.now + timedelta(days=6), end - timedelta(minutes=5))
        tokens = await client.refresh(tokens.refresh_token)
        assert tokens.refresh_token_expire_time.ToDatetime(UTC) == min(clock.now + timedelta(days=7), end)
        assert tokens.access_token_expire_time.ToDatetime(UTC) == min(clock.now + timedelta(minutes=15), end)
    clock.now = end - timedelta(seconds=1)
    last = await client.refresh(tokens.refresh_token)
    assert last.access_token_expire_time.ToDatetime(UTC) == end
    clock.now = end
    assert await refused(client, last.refresh_token) == "INVALID_REFRESH_TOKEN"
    clock.advance(seconds=30)
    assert (await client.validate(last.access_token)).reason == auth_pb2.INACTIVE_REASON_EXPIRED


async def test_a_repeated_token_is_good_where_access_tokens_are_short(
    tmp_path: Path, signing_keys: Path, clock: FakeClock
) -> None:
    """The session stores the last of them, so that its revocation is kept until it has expired."""
    settings = make_settings(signing_keys, f"sqlite:{tmp_path / 'db'}", access_token_ttl=timedelta(seconds=2))
    async with served(settings, clock) as client:
        first = (await logged_in(client)).tokens
        second = await client.refresh(first.refresh_token)
        clock.advance(seconds=GRACE_SECONDS)
        repeated = await client.refresh(first.refresh_token)
        assert repeated.access_token_expire_time.ToDatetime(UTC) == clock.now + timedelta(seconds=2)
        assert await is_alive(client, repeated.access_token)
        await client.revoke(second.refresh_token)
        # The next writer removes what is over; these tokens are not, to a host whose clock is behind.
        clock.advance(seconds=31)
        other = (await again(client)).tokens
        await client.revoke(other.refresh_token)
        assert (await client.validate(repeated.access_token)).reason == REVOKED


async def test_expired_rows_that_are_still_there_are_refused(shared: Shared, clock: FakeClock) -> None:
    """F9: DynamoDB deletes them days later."""
    tokens = (await logged_in(shared.client)).tokens
    clock.now = tokens.refresh_token_expire_time.ToDatetime(UTC)
    assert tokens.session_id in {row["session_id"]["S"] for row in shared.tables.rows(shared.tables.sessions)}
    assert await refused(shared.client, tokens.refresh_token) == "INVALID_REFRESH_TOKEN"
    admin = await shared.client.as_admin()
    user_id = (await admin.get_user(email="alice@example.com")).user_id
    assert not (await admin.list_sessions(user_id)).sessions


async def test_a_user_disabled_or_deleted_by_others_gets_no_tokens(shared: Shared) -> None:
    tokens = (await logged_in(shared.client)).tokens
    alice = await shared.client.get_user(email="alice@example.com")
    shared.tables.update_user(alice.user_id, "SET is_active = :v", v={"BOOL": False})
    assert await refused(shared.client, tokens.refresh_token) == "INVALID_REFRESH_TOKEN"
    shared.tables.update_user(alice.user_id, "SET is_active = :v", v={"BOOL": True})
    tokens = await shared.client.refresh(tokens.refresh_token)
    shared.tables.update_user(alice.user_id, "ADD token_generation :n", n={"N": "1"})
    assert await refused(shared.client, tokens.refresh_token) == "INVALID_REFRESH_TOKEN"
    shared.tables.delete_user(alice.user_id)
    assert await refused(shared.client, tokens.refresh_token) == "INVALID_REFRESH_TOKEN"


async def test_a_refresh_is_two_reads_and_one_write(proxied: Proxied) -> None:
    first = (await logged_in(proxied.client)).tokens
    proxied.proxy.forget()
    await proxied.client.refresh(first.refresh_token)
    assert proxied.proxy.requests == {"GetItem": 2, "PutItem": 1}
    reads = [attempt.payload for attempt in proxied.proxy.attempts if attempt.operation == "GetItem"]
    assert all(read["ConsistentRead"] for read in reads)
    proxied.proxy.forget()
    await proxied.client.refresh(first.refresh_token)
    assert proxied.proxy.requests == {"GetItem": 2}


async def test_a_refresh_whose_write_lost_its_response_gives_its_successor(proxied: Proxied) -> None:
    first = (await logged_in(proxied.client)).tokens
    with proxied.proxy.fault(Reset(applied=True), operations={"PutItem"}, times=1) as hit:
        second = await proxied.client.refresh(first.refresh_token)
    assert hit.hits == 1
    assert (await proxied.client.refresh(first.refresh_token)).refresh_token == second.refresh_token
    assert await proxied.client.refresh(second.refresh_token)


async def test_a_refresh_in_an_outage_can_be_made_again(proxied: Proxied) -> None:
    client = proxied.client
    first = (await logged_in(client)).tokens
    with proxied.proxy.fault(Throttle(), operations={"PutItem"}):
        assert await refused(client, first.refresh_token) == "STORE_UNAVAILABLE"
    with proxied.proxy.fault(Throttle(), operations={"GetItem"}):
        assert await refused(client, first.refresh_token) == "STORE_UNAVAILABLE"
    # Nothing was written: the token is still the current one.
    rows = [row for row in proxied.tables.rows(proxied.tables.sessions) if row["session_id"]["S"] == first.session_id]
    assert "previous_part_sha256" not in rows[0]

    with proxied.proxy.fault(Reset(applied=True), operations={"PutItem"}):
        assert await refused(client, first.refresh_token) == "STORE_UNAVAILABLE"
    # It was written, and nobody heard of it.
    second = await client.refresh(first.refresh_token)
    assert (await client.refresh(first.refresh_token)).refresh_token == second.refresh_token
    assert await client.refresh(second.refresh_token)


async def test_without_the_time_of_the_last_rotation_nothing_is_within_its_grace(proxied: Proxied) -> None:
    """Another program has taken it from the row."""
    first = (await logged_in(proxied.client)).tokens
    second = await proxied.client.refresh(first.refresh_token)
    row = next(
        row for row in proxied.tables.rows(proxied.tables.sessions) if row["session_id"]["S"] == first.session_id
    )
    del row["last_refreshed_at"]
    proxied.tables.dynamodb.put_item(TableName=proxied.tables.sessions, Item=row)
    assert await refused(proxied.client, first.refresh_token) == "INVALID_REFRESH_TOKEN"
    assert not await is_alive(proxied.client, second.access_token)


async def test_reuse_in_an_outage_is_reported_as_the_outage_and_ends_the_session_later(
    proxied: Proxied, clock: FakeClock
) -> None:
    first = (await logged_in(proxied.client)).tokens
    second = await proxied.client.refresh(first.refresh_token)
    clock.advance(minutes=2)
    with proxied.proxy.fault(Throttle(), operations={"TransactWriteItems"}):
        assert await refused(proxied.client, first.refresh_token) == "STORE_UNAVAILABLE"
    assert await is_alive(proxied.client, second.access_token)
    assert await refused(proxied.client, first.refresh_token) == "INVALID_REFRESH_TOKEN"
    assert not await is_alive(proxied.client, second.access_token)


async def test_a_session_that_never_stops_changing_is_an_outage(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (await logged_in(client)).tokens

    async def lose(_expected: object, _new: object) -> bool:
        return False

    store = client.service.sessions._store  # noqa: SLF001 - every race is lost
    monkeypatch.setattr(store, "rotate_refresh_token", lose)
    assert await refused(client, first.refresh_token) == "STORE_UNAVAILABLE"
    monkeypatch.undo()
    assert await client.refresh(first.refresh_token)


async def test_a_clock_that_jumps_makes_no_token_that_lasts_too_long(
    client: Client, clock: FakeClock, settings: ServeSettings
) -> None:
    """F11: an hour ahead, and back again."""
    tokens = (await logged_in(client)).tokens
    begin = clock.now
    clock.advance(hours=1)
    ahead = await client.refresh(tokens.refresh_token)
    clock.now = begin
    assert (await client.validate(ahead.access_token)).reason == auth_pb2.INACTIVE_REASON_NOT_YET_VALID
    back = await client.refresh(ahead.refresh_token)
    assert await is_alive(client, back.access_token)
    lasts = datetime.fromtimestamp(back.access_token_expire_time.seconds, UTC) - clock.now
    assert lasts == settings.access_token_ttl
    # The tokens of the hour that has not come yet are revoked with the session.
    await client.revoke(back.access_token)
    clock.advance(hours=1)
    assert (await client.validate(ahead.access_token)).reason == REVOKED
