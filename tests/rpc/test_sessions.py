"""RevokeToken, ListUserSessions, RevokeUserSessions: how sessions end and what is returned of them."""

import asyncio
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any

import pytest

from authsvc.fields import encode_page_token
from authsvc.stores.interface import MAX_REVOKED_SESSIONS
from authsvc.tokens.access_tokens import AccessTokens
from authsvc.usecases.sessions import Tokens
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.dynamodb import Tables
from tests.faults import Throttle
from tests.rpc.conftest import Proxied, Shared
from tests.security.forgeries import other_spelling
from tests.support import PASSWORD, WITNESS, Client, FakeClock, failure

ACTIVE = auth_pb2.TOKEN_STATE_ACTIVE
REVOKED = auth_pb2.INACTIVE_REASON_SESSION_REVOKED
EXPIRED = auth_pb2.INACTIVE_REASON_EXPIRED
READS = {"GetItem"}
LONGEST_EMAIL = "a" * 64 + "@" + ".".join(["b" * 60, "c" * 60, "d" * 60, "com"])
LONG_PASSWORD = "correct horse battery staple " * 8
"""Whose hash takes the longer form."""


async def test_every_spelling_of_a_token_ends_its_session(client: Client, subtests: pytest.Subtests) -> None:
    """B3: the signature (r, n - s), a sibling's token, an old refresh token."""
    await client.create_user()
    spellings: dict[str, Callable[[Any, Any], str]] = {
        "as issued": lambda first, _: first.access_token,
        "n - s": lambda first, _: other_spelling(first.access_token),
        "a sibling": lambda _, second: second.access_token,
        "a sibling's n - s": lambda _, second: other_spelling(second.access_token),
        "refresh token": lambda _, second: second.refresh_token,
        "old refresh token": lambda first, _: first.refresh_token,
    }
    for name, spelling in spellings.items():
        with subtests.test(token=name):
            first = (await client.log_in()).tokens
            other = (await client.log_in()).tokens
            second = await client.refresh(first.refresh_token)
            await client.revoke(spelling(first, second))
            for tokens in (first, second):
                for token in (tokens.access_token, other_spelling(tokens.access_token)):
                    assert (await client.validate(token)).reason == REVOKED
                assert (await failure(client.refresh(tokens.refresh_token))).reason == "INVALID_REFRESH_TOKEN"
            assert (await client.validate(other.access_token)).state == ACTIVE


async def test_an_expired_token_ends_its_session(anywhere: Client, clock: FakeClock) -> None:
    """RFC 7009: whoever logs out with what they have is logged out."""
    await anywhere.create_user()
    first = (await anywhere.log_in()).tokens
    clock.advance(days=2)
    second = await anywhere.refresh(first.refresh_token)
    assert (await anywhere.validate(first.access_token)).reason == EXPIRED
    await anywhere.revoke(first.access_token)
    assert (await anywhere.validate(second.access_token)).reason == REVOKED
    assert (await failure(anywhere.refresh(second.refresh_token))).reason == "INVALID_REFRESH_TOKEN"


async def test_a_token_ends_its_session_also_when_its_row_is_gone(shared: Shared) -> None:
    await shared.client.create_user()
    login = await shared.client.log_in()
    key = {"user_id": {"S": login.user.user_id}, "session_id": {"S": login.tokens.session_id}}
    shared.tables.dynamodb.delete_item(TableName=shared.tables.sessions, Key=key)
    await shared.client.revoke(login.tokens.refresh_token)  # which nothing can be compared with
    assert (await shared.client.validate(login.tokens.access_token)).state == ACTIVE
    await shared.client.revoke(login.tokens.access_token)
    assert (await shared.client.validate(login.tokens.access_token)).reason == REVOKED


def foreign_token(client: Client, issuer: str, audience: str, user_id: str, session_id: str) -> str:
    """A token that our own key signed for another issuer or audience."""
    ring = client.service.sessions._tokens.ring  # noqa: SLF001 - nothing else has the key
    now = client.service.sessions._clock()  # noqa: SLF001
    tokens = AccessTokens(ring, issuer, audience, timedelta(minutes=15))
    token = tokens.issue(
        user_id=user_id,
        session_id=session_id,
        token_generation=0,
        client_id="authsvc",
        now=now,
        not_after=now + timedelta(hours=1),
    )
    WITNESS.hide(token.text)
    return token.text


async def test_a_token_that_is_none_changes_nothing(proxied: Proxied, subtests: pytest.Subtests) -> None:
    """RFC 7009 §2.2: OK, and no store write."""
    client = proxied.client
    alice = await client.create_user()
    tokens = (await client.log_in()).tokens
    session_id = tokens.session_id
    header, claims, signature = tokens.access_token.split(".")
    user, _, part, rotating = tokens.refresh_token.split(".")
    ours, audience = "https://auth.example.com", "backends"
    texts = {
        "garbage": "garbage",
        "NUL": "\0",
        "session id": "x" + session_id,
        "long": "x" * 100_000,
        "no signature": f"{header}.{claims}.",
        "forged signature": f"{header}.{claims}.{'A' * len(signature)}",
        "another issuer's": foreign_token(client, "https://evil.example.com", audience, alice.user_id, session_id),
        "another audience's": foreign_token(client, ours, "others", alice.user_id, session_id),
        "of nobody": foreign_token(client, ours, audience, "nobody", session_id),
        "refresh token, wrong session part": f"{user}.{session_id}.{'A' * 22}.{rotating}",
        "refresh token, unknown session": f"{user}.{'A' * 22}.{part}.{rotating}",
        "refresh token, truncated": tokens.refresh_token[:-1],
    }
    for name, text in texts.items():
        with subtests.test(token=name):
            proxied.proxy.forget()
            await client.revoke(text)
            assert set(proxied.proxy.requests) <= READS
    assert (await client.validate(tokens.access_token)).state == ACTIVE
    await client.revoke(tokens.access_token)
    proxied.proxy.forget()
    await client.revoke(tokens.access_token)
    await client.revoke(tokens.refresh_token)
    assert set(proxied.proxy.requests) <= READS


async def test_an_empty_token_is_the_callers_mistake(client: Client) -> None:
    refused = await failure(client.revoke(""))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "token")


async def test_a_session_that_cannot_be_ended_now_is_not_said_to_be(proxied: Proxied) -> None:
    await proxied.client.create_user()
    tokens = (await proxied.client.log_in()).tokens
    for token in (tokens.access_token, tokens.refresh_token):
        with proxied.proxy.fault(Throttle(), operations={"TransactWriteItems"}):
            assert (await failure(proxied.client.revoke(token))).reason == "STORE_UNAVAILABLE"
    assert (await proxied.client.validate(tokens.access_token)).state == ACTIVE


async def begun(client: Client, user_id: str, number: int) -> list[Tokens]:
    """Begin sessions without the cost of logging in."""
    user = await client.service.users.get_user(user_id)
    tokens = [*await asyncio.gather(*(client.service.sessions.begin(user, "", "") for _ in range(number)))]
    for each in tokens:
        WITNESS.hide(each.access_token.text, each.refresh_token.text)
    return tokens


def read_units(tables: Tables, user_id: str) -> float:
    answer = tables.dynamodb.get_item(
        TableName=tables.users,
        Key={"user_id": {"S": user_id}},
        ConsistentRead=True,
        ReturnConsumedCapacity="TOTAL",
    )
    return answer["ConsumedCapacity"]["CapacityUnits"]


@pytest.mark.engines
async def test_a_thousand_sessions_ended_one_by_one_stay_ended(proxied: Proxied, clock: FakeClock) -> None:
    """The user stays within one read unit, and no entry is forgotten before its tokens are over."""
    client = proxied.client
    user_id = (await client.create_user(LONGEST_EMAIL, LONG_PASSWORD, role="r" * 63)).user_id
    ended: list[Tokens] = []
    generations, most = [], []
    user = await client.service.users.get_user(user_id)
    for hundred in range(10):
        # Slowly, so that entries pass; then quickly, so that there are too many.
        seconds = 1 if hundred % 2 else 12
        sizes = []
        for _ in range(10):
            tokens = await begun(client, user_id, 10)
            for number, each in enumerate(tokens):
                await client.revoke(each.refresh_token.text if number % 2 else each.access_token.text)
                clock.advance(seconds=seconds)
            ended += tokens
            user = await client.service.users.get_user(user_id)
            sizes.append(len(user.revoked_sessions))
            assert read_units(proxied.tables, user_id) == 1.0
        generations.append(user.token_generation)
        most.append(max(sizes))
        for each in (*ended[::100], *ended[-100::10]):
            assert (await client.validate(each.access_token.text)).reason in {REVOKED, EXPIRED}
    assert generations[0] == 0  # entries pass in time: nothing else was ended
    assert generations[-1] > 1
    assert 80 <= most[0] <= max(most) <= MAX_REVOKED_SESSIONS
    now = clock.now - timedelta(seconds=30)
    unexpired = [each for each in ended if each.access_token.expire_time > now]
    assert len(unexpired) >= 100
    reasons = {(await client.validate(each.access_token.text)).reason for each in unexpired}
    assert reasons == {REVOKED}
    for each in ended[::50]:
        assert (await failure(client.refresh(each.refresh_token.text))).reason == "INVALID_REFRESH_TOKEN"
    (alive,) = await begun(client, user_id, 1)
    assert (await client.validate(alive.access_token.text)).state == ACTIVE


async def all_sessions(client: Client, user_id: str, page_size: int) -> list[Any]:
    sessions: list[Any] = []
    page_token = ""
    while True:
        page = await client.list_sessions(user_id, page_size, page_token)
        assert len(page.sessions) <= page_size
        sessions += page.sessions
        page_token = page.next_page_token
        if not page_token:
            return sessions


async def test_only_living_sessions_are_listed(anywhere: Client, clock: FakeClock) -> None:
    user_id = (await anywhere.create_user()).user_id
    await anywhere.create_user("bob@example.com")
    await anywhere.log_in("bob@example.com")
    expired = (await anywhere.log_in()).tokens
    kept = (await anywhere.log_in(client_address="2001:DB8::7", client_label="laptop")).tokens
    begin = clock.now
    clock.advance(days=6)
    await anywhere.refresh(kept.refresh_token)
    refreshed = clock.now
    clock.advance(days=1)
    by_admin = await anywhere.as_admin()
    revoked, listed = (await anywhere.log_in()).tokens, (await anywhere.log_in(client_label="phone")).tokens
    await anywhere.revoke(revoked.access_token)
    sessions = {s.session_id: s for s in await all_sessions(by_admin, user_id, 50)}
    assert set(sessions) == {kept.session_id, listed.session_id}
    for page_size in (1, 2):
        assert {s.session_id for s in await all_sessions(by_admin, user_id, page_size)} == set(sessions)
    assert expired.session_id not in sessions
    laptop, phone = sessions[kept.session_id], sessions[listed.session_id]
    assert (laptop.client_label, laptop.client_address) == ("laptop", "2001:db8::7")
    assert laptop.create_time.ToDatetime(UTC) == begin
    assert laptop.last_refresh_time.ToDatetime(UTC) == refreshed
    assert laptop.expire_time.ToDatetime(UTC) == refreshed + timedelta(days=7)
    assert not phone.HasField("last_refresh_time")
    assert phone.expire_time == listed.refresh_token_expire_time
    await by_admin.revoke_sessions(user_id)
    assert await all_sessions(by_admin, user_id, 50) == []


async def test_an_id_that_is_not_that_users_changes_nothing(anywhere: Client) -> None:
    """ASVS-8.2.2."""
    alice = await anywhere.create_user()
    await anywhere.create_user("bob@example.com")
    hers, her_other = (await anywhere.log_in()).tokens, (await anywhere.log_in()).tokens
    his = (await anywhere.log_in("bob@example.com")).tokens
    ids = [his.session_id, "nothing", hers.session_id, hers.session_id, "x" * 128, "\0"]
    await anywhere.revoke_sessions(alice.user_id, *ids)
    assert (await anywhere.validate(hers.access_token)).reason == REVOKED
    for tokens in (her_other, his):
        assert (await anywhere.validate(tokens.access_token)).state == ACTIVE
        assert await anywhere.refresh(tokens.refresh_token)


async def test_a_wrong_field_is_named(client: Client) -> None:
    alice = await client.create_user()
    calls = {
        "session_ids": (
            client.revoke_sessions(alice.user_id, ""),
            client.revoke_sessions(alice.user_id, "x" * 129),
            client.revoke_sessions(alice.user_id, *map(str, range(101))),
        ),
        "page_size": (client.list_sessions(alice.user_id, -1),),
        "page_token": (
            client.list_sessions(alice.user_id, 0, "x"),
            client.list_sessions(alice.user_id, 0, encode_page_token("x" * 129)),
        ),
        "user_id": (
            client.list_sessions(""),
            client.list_sessions("x" * 257),
            client.revoke_sessions(""),
            client.revoke_sessions("x" * 257),
            client.revoke_sessions("x" * 257, "x"),
        ),
    }
    for field, refused in calls.items():
        for call in refused:
            reported = await failure(call)
            assert (reported.reason, reported.field) == ("INVALID_FIELD", field)


async def test_each_end_of_a_session_leaves_a_line(client: Client) -> None:
    """ASVS-16.3.1: one line, however often it is asked for."""
    alice = await client.create_user()
    position = len(WITNESS.lines.getvalue())
    first, second, third = [(await client.log_in(password=PASSWORD)).tokens for _ in range(3)]
    for _ in range(2):
        await client.revoke(first.access_token)
        await client.revoke(second.refresh_token)
        await client.revoke_sessions(alice.user_id, third.session_id, "unknown")
    await client.revoke_sessions(alice.user_id)
    lines = WITNESS.lines.getvalue()[position:].splitlines()
    ends = [line for line in lines if '"event": "session_revoked"' in line]
    for tokens, by in ((first, "access_token"), (second, "refresh_token"), (third, "admin")):
        (line,) = [line for line in ends if tokens.session_id in line]
        assert f'"reason": "{by}"' in line
    assert len(ends) == 3
    assert len([line for line in lines if '"event": "sessions_revoked"' in line]) == 1
