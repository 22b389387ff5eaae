"""Which sessions and tokens each event ends, as the next call to another server sees it (ASVS-7.4.1)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.rpc.conftest import Pair
from tests.support import PASSWORD, Client, failure

ON_TWO_STORES = pytest.mark.parametrize("pair", ["sqlite", "dynoxide"], indirect=True)
NEW_PASSWORD = "another password of words"
ACTIVE = "ACTIVE"
REVOKED = "SESSION_REVOKED"
DISABLED = "USER_DISABLED"
GONE = "USER_NOT_FOUND"


@dataclass(frozen=True)
class Login:
    """A session after one refresh: all its access tokens, and its current refresh token."""

    session_id: str
    access_tokens: list[str]
    refresh_token: str

    @classmethod
    async def of(cls, client: Client, email: str) -> "Login":
        first = (await client.log_in(email)).tokens
        second = await client.refresh(first.refresh_token)
        return cls(first.session_id, [first.access_token, second.access_token], second.refresh_token)


@dataclass(frozen=True)
class World:
    """A user with two sessions, before the event.

    Args:
        here: The server where the event happens.
        struck: The session that the event names, where it names one.
        sibling: The user's other session.
    """

    here: Client
    user_id: str
    email: str
    struck: Login
    sibling: Login


async def revoke_by_access_token(world: World) -> None:
    await world.here.revoke(world.struck.access_tokens[0])


async def revoke_by_refresh_token(world: World) -> None:
    await world.here.revoke(world.struck.refresh_token)


async def revoke_by_session_id(world: World) -> None:
    await world.here.revoke_sessions(world.user_id, world.struck.session_id)


async def revoke_all(world: World) -> None:
    await world.here.revoke_sessions(world.user_id)


async def disable(world: World) -> None:
    assert not (await world.here.update_user(world.user_id, is_active=False)).is_active


async def disable_and_enable(world: World) -> None:
    await disable(world)
    assert (await world.here.update_user(world.user_id, is_active=True)).is_active


async def change_password(world: World) -> None:
    await world.here.change_password(NEW_PASSWORD, email=world.email)


async def reset_password(world: World) -> None:
    await world.here.reset_password(world.user_id)


async def change_role(world: World) -> None:
    await world.here.update_user(world.user_id, role="editor")


async def move(world: World) -> None:
    await world.here.update_user(world.user_id, email=f"moved-{world.email}")


async def delete(world: World) -> None:
    await world.here.delete_user(world.user_id)


async def delete_and_create(world: World) -> None:
    await delete(world)
    assert (await world.here.create_user(world.email)).user_id != world.user_id


async def nothing(_: World) -> None:
    """The control: no event."""


@dataclass(frozen=True)
class Event:
    """An event and its effect.

    Args:
        happen: Causes the event.
        struck: State of the first session afterwards.
        sibling: State of the other session afterwards.
        login: OK, or the reason why a login with the old email and password fails afterwards.
    """

    happen: Callable[[World], Awaitable[None]]
    struck: str
    sibling: str
    login: str = "OK"


EVENTS = (
    Event(nothing, ACTIVE, ACTIVE),
    Event(revoke_by_access_token, REVOKED, ACTIVE),
    Event(revoke_by_refresh_token, REVOKED, ACTIVE),
    Event(revoke_by_session_id, REVOKED, ACTIVE),
    Event(revoke_all, REVOKED, REVOKED),
    Event(disable, DISABLED, DISABLED, "INVALID_CREDENTIALS"),
    Event(disable_and_enable, REVOKED, REVOKED),
    Event(change_password, REVOKED, REVOKED, "INVALID_CREDENTIALS"),
    Event(reset_password, REVOKED, REVOKED, "INVALID_CREDENTIALS"),
    Event(change_role, ACTIVE, ACTIVE),
    Event(move, ACTIVE, ACTIVE, "INVALID_CREDENTIALS"),
    Event(delete, GONE, GONE, "INVALID_CREDENTIALS"),
    Event(delete_and_create, GONE, GONE),
)


async def state(client: Client, token: str) -> str:
    answer = await client.validate(token)
    if answer.state == auth_pb2.TOKEN_STATE_ACTIVE:
        return ACTIVE
    return auth_pb2.InactiveReason.Name(answer.reason).removeprefix("INACTIVE_REASON_")


async def check(there: Client, login: Login, expected: str) -> None:
    """Expect every access token of a session in the state, and its refresh token to work only in an active one."""
    assert [await state(there, token) for token in login.access_tokens] == [expected] * 2
    if expected == ACTIVE:
        tokens = await there.refresh(login.refresh_token)
        assert tokens.session_id == login.session_id
        assert await state(there, tokens.access_token) == ACTIVE
    else:
        assert (await failure(there.refresh(login.refresh_token))).reason == "INVALID_REFRESH_TOKEN"
        assert [await state(there, token) for token in login.access_tokens] == [expected] * 2


async def check_login(there: Client, email: str, expected: str) -> None:
    if expected == "OK":
        assert await state(there, await there.access_token(email)) == ACTIVE
    else:
        assert (await failure(there.log_in(email))).reason == expected


@pytest.mark.long_on_dynoxide
async def test_what_each_event_ends_and_leaves_alone(pair: Pair, subtests: pytest.Subtests) -> None:
    """ASVS-7.4.1, ASVS-7.4.2, ASVS-7.4.3, ASVS-7.4.5, ASVS-8.3.2."""
    await pair.first.create_user("other@example.com")
    for number, event in enumerate(EVENTS):
        name = event.happen.__name__
        # The two servers take turns as the one where the event happens.
        here, there = (pair.first, pair.second) if number % 2 else (pair.second, pair.first)
        email = f"{name}@example.com"
        user = await here.create_user(email)
        other = await Login.of(here, "other@example.com")
        world = World(here, user.user_id, email, await Login.of(here, email), await Login.of(there, email))
        with subtests.test(event=name):
            await event.happen(world)
            await check(there, world.struck, event.struck)
            await check(there, world.sibling, event.sibling)
            await check(there, other, ACTIVE)
            await check_login(there, email, event.login)


@ON_TWO_STORES
async def test_a_password_change_leaves_its_own_session_alone(pair: Pair) -> None:
    """ASVS-7.4.3."""
    await pair.first.create_user()
    before = await Login.of(pair.first, "alice@example.com")
    tokens = await pair.first.change_password(NEW_PASSWORD, client_address="192.0.2.1", client_label="laptop")
    await check(pair.second, before, REVOKED)
    assert await state(pair.second, tokens.access_token) == ACTIVE
    following = await pair.second.refresh(tokens.refresh_token)
    assert await state(pair.first, following.access_token) == ACTIVE
    assert await state(pair.second, await pair.second.access_token(password=NEW_PASSWORD)) == ACTIVE


@ON_TWO_STORES
async def test_the_next_fresh_answer_has_the_new_role_and_address(pair: Pair) -> None:
    """ASVS-8.3.2."""
    alice = await pair.first.create_user(role="admin")
    token = await pair.first.access_token()
    await pair.first.update_user(alice.user_id, role="editor", email="Alicia@Example.com")
    answer = await pair.second.validate(token)
    assert (answer.role, answer.email) == ("editor", "alicia@example.com")
    # The permission of the old role is gone too.
    as_alice = replace(pair.second, admin=(("authorization", f"Bearer {token}"),))
    assert (await failure(as_alice.list_users())).reason == "CALLER_NOT_PERMITTED"


@ON_TWO_STORES
async def test_nothing_of_a_disabled_user_lives_again(pair: Pair) -> None:
    """ASVS-7.4.2."""
    alice = await pair.first.create_user()
    old = await Login.of(pair.first, "alice@example.com")
    await pair.first.update_user(alice.user_id, is_active=False)
    # Disabling or enabling a second time changes nothing.
    await pair.second.update_user(alice.user_id, is_active=False)
    await pair.first.update_user(alice.user_id, is_active=True)
    await pair.second.update_user(alice.user_id, is_active=True)
    new = await Login.of(pair.second, "alice@example.com")
    await check(pair.first, old, REVOKED)
    await check(pair.first, new, ACTIVE)


@ON_TWO_STORES
async def test_revoking_all_and_a_login_in_the_same_second(pair: Pair) -> None:
    """The clock stands still, so generations decide, not times."""
    alice = await pair.first.create_user()
    before = await Login.of(pair.first, "alice@example.com")
    await pair.first.revoke_sessions(alice.user_id)
    after = await Login.of(pair.second, "alice@example.com")
    await check(pair.second, before, REVOKED)
    await check(pair.first, after, ACTIVE)


@ON_TWO_STORES
async def test_an_address_created_again_is_another_user(pair: Pair) -> None:
    first = await pair.first.create_user()
    old = await Login.of(pair.first, "alice@example.com")
    await pair.first.delete_user(first.user_id)
    second = await pair.second.create_user(password=NEW_PASSWORD)
    assert second.user_id != first.user_id
    await check(pair.first, old, GONE)
    assert (await failure(pair.first.log_in(password=PASSWORD))).reason == "INVALID_CREDENTIALS"
    answer = await pair.first.validate(await pair.first.access_token(password=NEW_PASSWORD))
    assert answer.user_id == second.user_id
    listed = (await pair.first.list_sessions(second.user_id)).sessions
    assert len(listed) == 1


@ON_TWO_STORES
async def test_what_is_gone_is_not_found(pair: Pair) -> None:
    alice = await pair.first.create_user()
    await pair.first.delete_user(alice.user_id)
    calls = (
        pair.second.get_user(user_id=alice.user_id),
        pair.second.get_user(email="alice@example.com"),
        pair.second.update_user(alice.user_id, role="editor"),
        pair.second.delete_user(alice.user_id),
        pair.second.reset_password(alice.user_id),
        pair.second.list_sessions(alice.user_id),
        pair.second.revoke_sessions(alice.user_id),
        pair.second.revoke_sessions(alice.user_id, "x" * 22),
    )
    assert {(await failure(call)).reason for call in calls} == {"USER_NOT_FOUND"}
