"""User states as validations read them from each store, and the store's reports of changed users."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path

import pytest

from authsvc.errors import CorruptItemError, EmailAlreadyExistsError, StoreUnavailableError, UserChangedError
from authsvc.models import User, UserState, revocation_entry
from authsvc.server.app import PRODUCTION_LIMITS, Limits
from authsvc.stores.dynamodb.store import DynamoDBStore, open_dynamodb_store
from authsvc.stores.interface import MAX_REVOKED_SESSIONS, Store
from authsvc.stores.sqlite import open_sqlite_store
from tests.dynamodb import Tables
from tests.engines import Engine
from tests.faults import Conflict, Exchange, Fault, FaultyProxy, Hang, Reply, Reset, ServerError
from tests.stores.contract.test_store import NOW, new_session, new_user
from tests.support import use_engine


def user_state_of(user: User) -> UserState:
    return UserState(**{field.name: getattr(user, field.name) for field in fields(UserState)})


async def test_a_users_state_is_that_of_get_user(store: Store) -> None:
    users = [
        await store.create_user(new_user("plain@example.com"), NOW),
        await store.create_user(new_user("disabled@example.com", is_active=False), NOW),
        await store.create_user(new_user("revoked@example.com", revoked_sessions=frozenset({"a:1", "b:2"})), NOW),
        await store.create_user(new_user("other@example.com", role="ops_2-x", token_generation=7), NOW),
    ]
    for _ in range(2):
        states = await store.get_user_states([*(user.user_id for user in users), "missing"])
        expected = {user.user_id: user_state_of(await store.get_user(user.user_id)) for user in users}
        assert states == {**expected, "missing": None}
        users = [replace(user, role="changed", is_active=not user.is_active) for user in users]
        for user in users:
            await store.update_user(await store.get_user(user.user_id), user)


async def test_a_deleted_user_has_no_state(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    assert await store.get_user_states([user.user_id]) == {user.user_id: user_state_of(user)}
    await store.delete_user(user)
    assert await store.get_user_states([user.user_id]) == {user.user_id: None}


async def test_the_end_of_a_session_is_seen_at_once(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    await store.create_session(new_session(user))
    await store.end_session(user.user_id, "session", NOW, None)
    (state,) = (await store.get_user_states([user.user_id])).values()
    assert isinstance(state, UserState)
    assert state.has_revoked("session")


async def test_a_read_of_no_user_returns_nothing(store: Store) -> None:
    assert await store.get_user_states([]) == {}


async def test_a_hundred_are_read_together_and_many_hundreds_at_once(concurrent_store: Store) -> None:
    users = [await concurrent_store.create_user(new_user(f"user{n}@example.com"), NOW) for n in range(30)]
    expected: dict[str, UserState | None] = {user.user_id: user_state_of(user) for user in users}
    expected |= dict.fromkeys(f"missing-{n}" for n in range(70))
    assert await concurrent_store.get_user_states(expected) == expected
    one_by_one = [concurrent_store.get_user_states([user_id]) for user_id in expected]
    together = [concurrent_store.get_user_states(expected) for _ in range(3)]
    for found in await asyncio.gather(*one_by_one, *together):
        assert found == {user_id: expected[user_id] for user_id in found}


async def test_a_broken_row_spoils_its_own_answer_alone(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    sound = await dynamodb_store.create_user(new_user(), NOW)
    tables.put_user("no-email")
    tables.put_user("number", "number@example.com", role={"N": "5"})
    tables.put_user("list", "list@example.com", revoked_sessions={"L": []})
    tables.put_user("foreign", "Foreign@Example.com", unknown={"M": {}})
    states = await dynamodb_store.get_user_states([sound.user_id, "no-email", "number", "list", "foreign", "missing"])
    corrupt = {"no-email": "email", "number": "role", "list": "revoked_sessions"}
    corrupt_attributes = {key: error.attribute for key, error in states.items() if isinstance(error, CorruptItemError)}
    assert corrupt_attributes == corrupt
    assert states[sound.user_id] == user_state_of(sound)
    assert states["foreign"] == UserState(user_id="foreign", email="Foreign@Example.com", role="user")
    assert states["missing"] is None


async def test_a_store_that_cannot_be_read_is_no_store_without_users(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "authsvc.db") as store:
        (state,) = (await store.get_user_states(["alice"])).values()
    assert isinstance(state, StoreUnavailableError)


@dataclass(frozen=True)
class Reporting:
    """A store, and the ids of the users that it reported as changed."""

    store: Store
    changed: list[str]

    async def alice(self, **changes: object) -> User:
        alice = await self.store.create_user(new_user(**changes), NOW)  # type: ignore[arg-type]
        await self.store.create_session(new_session(alice))
        self.changed.clear()
        return alice


Write = Callable[[Store, User], Awaitable[object]]


async def update(store: Store, alice: User) -> None:
    await store.update_user(alice, replace(alice, is_active=False))


async def move(store: Store, alice: User) -> None:
    await store.update_user(alice, replace(alice, email="moved@example.com"))


async def delete(store: Store, alice: User) -> None:
    await store.delete_user(alice)


async def end(store: Store, alice: User) -> None:
    await store.end_session(alice.user_id, "session", NOW, None)


async def end_one_without_a_row(store: Store, alice: User) -> None:
    await store.end_session(alice.user_id, "gone", NOW, NOW + timedelta(hours=1))


WRITES: list[Write] = [update, move, delete, end, end_one_without_a_row]
FULL = frozenset(revocation_entry(f"s{n}", NOW + timedelta(hours=1)) for n in range(MAX_REVOKED_SESSIONS))


@pytest.fixture(params=["sqlite", "dynoxide", "moto"])
async def reporting(
    request: pytest.FixtureRequest, tmp_path: Path, table_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Reporting]:
    changed: list[str] = []
    if request.param == "sqlite":
        opening = open_sqlite_store(tmp_path / "authsvc.db", changed.append)
    else:
        use_engine(request.getfixturevalue(request.param), monkeypatch)
        opening = open_dynamodb_store(table_prefix, changed.append)  # type: ignore[assignment]
    async with opening as store:
        await store.create_tables()
        yield Reporting(store, changed)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
async def test_every_write_of_a_user_is_reported(reporting: Reporting, write: Write) -> None:
    alice = await reporting.alice()
    await write(reporting.store, alice)
    assert set(reporting.changed) == {alice.user_id}


async def test_the_end_of_all_sessions_by_the_hundredth_is_reported(reporting: Reporting) -> None:
    alice = await reporting.alice(revoked_sessions=FULL)
    await end(reporting.store, alice)
    assert set(reporting.changed) == {alice.user_id}


async def test_a_lost_race_is_reported_as_well(reporting: Reporting) -> None:
    """An earlier attempt of this write may have won the race."""
    alice = await reporting.alice()
    with pytest.raises(UserChangedError):
        await reporting.store.update_user(replace(alice, role="stale"), replace(alice, role="new"))
    assert reporting.changed == [alice.user_id]


async def test_a_call_that_writes_no_user_is_not_reported(reporting: Reporting) -> None:
    alice = await reporting.alice()
    await reporting.store.create_user(new_user("bob@example.com"), NOW)
    with pytest.raises(EmailAlreadyExistsError):
        await reporting.store.create_user(new_user(), NOW)
    session = new_session(alice, "other")
    await reporting.store.create_session(session)
    await reporting.store.rotate_refresh_token(session, replace(session, rotating_part_sha256=b"n" * 32))
    await reporting.store.get_user_states([alice.user_id])
    assert reporting.changed == []


@dataclass(frozen=True)
class Failing(Reporting):
    """The same behind a proxy."""

    proxy: FaultyProxy


@pytest.fixture
async def failing(
    dynoxide: Engine, table_prefix: str, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Failing]:
    changed: list[str] = []
    async with FaultyProxy(dynoxide.endpoint_url) as proxy:
        use_engine(dynoxide, monkeypatch, proxy.endpoint_url)
        async with open_dynamodb_store(table_prefix, changed.append, timeouts=limits.dynamodb) as store:
            await store.create_tables()
            yield Failing(store, changed, proxy)


@pytest.mark.limits(PRODUCTION_LIMITS)
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("fault", [Reset(applied=True), Hang(applied=True), Conflict()], ids=repr)
async def test_a_write_whose_response_was_lost_is_reported(failing: Failing, write: Write, fault: Fault) -> None:
    alice = await failing.alice()
    with failing.proxy.fault(fault, operations={"TransactWriteItems"}, times=1) as hit:
        await write(failing.store, alice)
    assert hit.hits == 1
    assert set(failing.changed) == {alice.user_id}


@pytest.mark.limits(PRODUCTION_LIMITS)
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("fault", [Reset(applied=True), ServerError()], ids=repr)
async def test_a_failed_write_is_reported_because_it_may_have_happened(
    failing: Failing, write: Write, fault: Fault
) -> None:
    alice = await failing.alice()
    with failing.proxy.fault(fault, operations={"TransactWriteItems"}), pytest.raises(StoreUnavailableError):
        await write(failing.store, alice)
    assert set(failing.changed) == {alice.user_id}


class Arriving:
    """Hang, and report the arrival of a request."""

    def __init__(self) -> None:
        self.has_arrived = asyncio.Event()

    async def answer(self, exchange: Exchange, /) -> Reply:
        self.has_arrived.set()
        return await Hang().answer(exchange)


async def test_a_cancelled_write_is_reported(failing: Failing) -> None:
    alice = await failing.alice()
    arriving = Arriving()
    with failing.proxy.fault(arriving, operations={"TransactWriteItems"}):
        writing = asyncio.ensure_future(update(failing.store, alice))
        await arriving.has_arrived.wait()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    assert failing.changed == [alice.user_id]
