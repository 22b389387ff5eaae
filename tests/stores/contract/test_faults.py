"""Every write while DynamoDB and its network fail: it is applied once, and its caller gets the true result."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from authsvc.errors import (
    EmailAlreadyExistsError,
    InvalidCredentialsError,
    StoreUnavailableError,
    UserChangedError,
    UserNotFoundError,
)
from authsvc.models import CounterUpdate, Email, User, revocation_entry
from authsvc.passwords.hash_queue import HashQueue
from authsvc.server.app import Limits
from authsvc.stores.dynamodb.store import DynamoDBStore, open_dynamodb_store
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.stores.interface import MAX_REVOKED_SESSIONS, EmailOwner
from tests.dynamodb import Tables, tables_of
from tests.engines import Engine
from tests.faults import (
    WRITES,
    Conflict,
    Exchange,
    Fault,
    FaultyProxy,
    Hang,
    Injection,
    Reply,
    Reset,
    ServerError,
    Throttle,
)
from tests.stores.contract.test_attempts import counter
from tests.stores.contract.test_store import DIGEST, NOW, SECOND, new_session, new_user, rotated
from tests.stores.contract.use_cases import EMAIL, HASH, NEW_PASSWORD, UseCases, key_ring
from tests.support import PASSWORD, PATIENT_LIMITS, SHORT_READS, FakeClock, use_engine

LOST = Reset(applied=True)
FAULTS: Sequence[Fault] = (
    LOST,
    Hang(applied=True),
    Reset(),
    Conflict(),
    Throttle(),
    ServerError(),
    ServerError(503, html=True),
)

pytestmark = pytest.mark.limits(SHORT_READS)


@dataclass(frozen=True)
class LostThen:
    """Lose a response, and run something else before the next attempt."""

    meanwhile: Callable[[], object]

    async def answer(self, exchange: Exchange, /) -> Reply:
        await exchange.forward()
        self.meanwhile()
        raise ConnectionResetError


@dataclass(frozen=True)
class Overtaken:
    """Another process makes the same transaction first."""

    tables: Tables

    async def answer(self, exchange: Exchange, /) -> Reply:
        payload = {name: value for name, value in exchange.attempt.payload.items() if name != "ClientRequestToken"}
        await asyncio.to_thread(self.tables.dynamodb.transact_write_items, **payload)
        return await exchange.forward()


class StaleIndex:
    """The index on email repeats its first response to each query."""

    def __init__(self) -> None:
        self._first: dict[bytes, Reply] = {}

    async def answer(self, exchange: Exchange, /) -> Reply:
        query = exchange.attempt.body
        if exchange.attempt.payload.get("IndexName") is None or query not in self._first:
            self._first[query] = await exchange.forward()
        return self._first[query]


OTHER_EMAIL = "bob@example.com"
FULL = frozenset(revocation_entry(f"s{n}", NOW + timedelta(hours=1)) for n in range(MAX_REVOKED_SESSIONS))
EXPIRED = frozenset({revocation_entry("expired", NOW - timedelta(hours=1))})


@dataclass(frozen=True)
class Stage:
    """A store behind a proxy, and its rows as another program reads them."""

    store: DynamoDBStore
    proxy: FaultyProxy
    use_cases: UseCases
    tables: Tables

    async def alice(self, **changes: object) -> User:
        return await self.store.create_user(new_user(EMAIL, **changes), NOW)


@pytest.fixture
async def stage(
    request: pytest.FixtureRequest,
    table_prefix: str,
    signing_keys: Path,
    clock: FakeClock,
    hash_queue: HashQueue,
    limits: Limits,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Stage]:
    engine: Engine = request.getfixturevalue(getattr(request, "param", "dynoxide"))
    tables = tables_of(engine, table_prefix)
    async with FaultyProxy(engine.endpoint_url) as proxy:
        use_engine(engine, monkeypatch, proxy.endpoint_url)
        async with open_dynamodb_store(table_prefix, timeouts=limits.dynamodb) as store:
            await store.create_tables()
            use_cases = UseCases(store, key_ring(signing_keys, clock), clock, hash_queue, tables)
            yield Stage(store, proxy, use_cases, tables)


Failing = Callable[[], AbstractContextManager[Injection]]


async def create_user(stage: Stage, failing: Failing) -> None:
    user = new_user()
    with failing():
        assert await stage.store.create_user(user, NOW) == user
    with pytest.raises(EmailAlreadyExistsError):
        await stage.store.create_user(new_user(), NOW)
    assert await stage.store.get_user(user.user_id) == user


async def create_user_by_request(stage: Stage, failing: Failing) -> None:
    user = new_user()
    with failing():
        assert await stage.store.create_user(user, NOW, DIGEST) == user
    assert await stage.store.create_user(new_user(), NOW, DIGEST) == user


async def claim_email(stage: Stage, failing: Failing) -> None:
    stage.tables.put_user("carol", "carol@example.com", is_active={"BOOL": True}, created_at={"S": "2030-01-01"})
    carol = await stage.store.get_user("carol")
    with failing():
        assert await stage.store.claim_email(carol)
    assert stage.tables.claim("carol@example.com") == "carol"


async def update_user(stage: Stage, failing: Failing) -> None:
    user = await stage.alice()
    new = replace(user, role="editor", token_generation=1)
    with failing():
        await stage.store.update_user(user, new)
    assert await stage.store.get_user(user.user_id) == new
    with pytest.raises(UserChangedError):
        await stage.store.update_user(user, replace(user, role="other"))


async def move(stage: Stage, failing: Failing) -> None:
    user = await stage.alice()
    new = replace(user, email=OTHER_EMAIL)
    with failing():
        await stage.store.update_user(user, new)
    assert await stage.store.get_user_by_email(Email(OTHER_EMAIL)) == EmailOwner(new, is_claimed=True)
    await stage.alice()


async def delete_user(stage: Stage, failing: Failing) -> None:
    user = await stage.alice()
    await stage.store.create_session(new_session(user))
    with failing():
        await stage.store.delete_user(user)
    with pytest.raises(UserNotFoundError):
        await stage.store.get_user(user.user_id)
    assert await stage.store.get_session(user.user_id, "session") is None
    await stage.alice()


async def create_session(stage: Stage, failing: Failing) -> None:
    session = new_session(await stage.alice())
    with failing():
        await stage.store.create_session(session)
    assert await stage.store.get_session(session.user_id, session.session_id) == session


async def rotate(stage: Stage, failing: Failing) -> None:
    session = new_session(await stage.alice())
    await stage.store.create_session(session)
    with failing():
        assert await stage.store.rotate_refresh_token(session, rotated(session, 1))
    assert not await stage.store.rotate_refresh_token(session, rotated(session, 2))
    assert await stage.store.get_session(session.user_id, session.session_id) == rotated(session, 1)


async def end_session(stage: Stage, failing: Failing) -> None:
    session = new_session(await stage.alice(revoked_sessions=EXPIRED))
    await stage.store.create_session(session)
    with failing():
        assert await stage.store.end_session(session.user_id, session.session_id, NOW, None)
    user = await stage.store.get_user(session.user_id)
    assert user.revoked_sessions == {revocation_entry("session", session.last_token_expire_time)}
    assert user.token_generation == 0
    assert await stage.store.get_session(session.user_id, session.session_id) == replace(session, end_time=NOW)


async def end_session_of_many(stage: Stage, failing: Failing) -> None:
    session = new_session(await stage.alice(revoked_sessions=FULL))
    await stage.store.create_session(session)
    with failing():
        assert await stage.store.end_session(session.user_id, session.session_id, NOW, None)
    user = await stage.store.get_user(session.user_id)
    assert (user.token_generation, user.revoked_sessions) == (1, frozenset())


async def end_session_without_a_row(stage: Stage, failing: Failing) -> None:
    user = await stage.alice()
    with failing():
        assert await stage.store.end_session(user.user_id, "gone", NOW, NOW + timedelta(hours=1))
    after = await stage.store.get_user(user.user_id)
    assert after == replace(user, revoked_sessions=frozenset({revocation_entry("gone", NOW + timedelta(hours=1))}))


async def reserve_attempt(stage: Stage, failing: Failing) -> None:
    counters = [counter("pair", 2), counter("source", 3)]
    assert await stage.store.reserve_attempt("first", counters, NOW)
    with failing():
        assert await stage.store.reserve_attempt("second", counters, NOW)
    assert not await stage.store.reserve_attempt("third", counters, NOW)
    stored = await stage.store.get_attempt_counts(["pair", "source"], NOW)
    assert [stored[key].count for key in ("pair", "source")] == [2, 2]


async def reserve_first_attempt(stage: Stage, failing: Failing) -> None:
    with failing():
        assert await stage.store.reserve_attempt("first", [counter("pair", 1)], NOW)
    assert not await stage.store.reserve_attempt("second", [counter("pair", 1)], NOW)


async def settle_attempt(stage: Stage, failing: Failing) -> None:
    keys = ["pair", "account", "source"]
    for name in ("first", "second"):
        assert await stage.store.reserve_attempt(name, [counter(key) for key in keys], NOW)
    known = ("known", SECOND + timedelta(days=30))
    with failing():
        await stage.store.settle_attempt("first", CounterUpdate(("account", "source"), ("pair",), known))
    stored = await stage.store.get_attempt_counts([*keys, "known"], NOW)
    assert {key: each.count for key, each in stored.items()} == {"account": 1, "source": 1, "known": 0}


SCENARIOS = (
    reserve_attempt,
    reserve_first_attempt,
    settle_attempt,
    create_user,
    create_user_by_request,
    claim_email,
    update_user,
    move,
    delete_user,
    create_session,
    rotate,
    end_session,
    end_session_of_many,
    end_session_without_a_row,
)
Scenario = Callable[[Stage, Failing], Awaitable[None]]


@pytest.mark.engines
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_each_write_of_a_use_case_fails_once(stage: Stage, scenario: Scenario) -> None:
    for fault in FAULTS:
        await fail_each_write_once(stage, scenario, fault)


@pytest.mark.parametrize("stage", ["moto"], indirect=True)
async def test_a_lost_write_is_known_where_it_is_done_again(stage: Stage) -> None:
    """Moto ignores the idempotency token of a transaction."""
    for scenario in SCENARIOS:
        await fail_each_write_once(stage, scenario, LOST)


async def fail_each_write_once(stage: Stage, scenario: Scenario, fault: Fault) -> None:
    injections: list[Injection] = []

    def failing() -> AbstractContextManager[Injection]:
        return _Noted(stage.proxy.fault(fault, operations=WRITES, skip=len(injections), times=1), injections)

    while not injections or injections[-1].hits:
        await scenario(stage, failing)
        await stage.use_cases.check_rows()
        await clear(stage)
    assert len(injections) > 1


class _Noted(AbstractContextManager[Injection]):
    def __init__(self, inner: AbstractContextManager[Injection], notes: list[Injection]) -> None:
        self._inner, self._notes = inner, notes

    def __enter__(self) -> Injection:
        self._notes.append(self._inner.__enter__())
        return self._notes[-1]

    def __exit__(self, *error: object) -> None:
        self._inner.__exit__(*error)  # type: ignore[arg-type]


async def clear(stage: Stage) -> None:
    """Delete all users, claims, request ids and counters."""
    stage.tables.forget_attempts()
    for row in stage.tables.rows(stage.tables.users):
        stage.tables.delete_user(row["user_id"]["S"])
    for row in stage.tables.rows(stage.tables.unique):
        stage.tables.dynamodb.delete_item(TableName=stage.tables.unique, Key={"unique_key": row["unique_key"]})


@pytest.mark.limits(replace(PATIENT_LIMITS, dynamodb=DynamoDBTimeouts(max_attempts=30, backoff_seconds=0.0)))
async def test_while_three_of_ten_calls_are_throttled(stage: Stage) -> None:
    for scenario in SCENARIOS:
        await scenario(stage, lambda: stage.proxy.fault(Throttle(), probability=0.3))
        await stage.use_cases.check_rows()
        await clear(stage)


async def test_a_user_is_deleted_even_if_the_sessions_cannot_be_tidied_up(stage: Stage) -> None:
    user = await stage.alice()
    await stage.store.create_session(new_session(user))
    with stage.proxy.fault(ServerError(), operations={"DeleteItem"}):
        await stage.store.delete_user(user)
    with pytest.raises(UserNotFoundError):
        await stage.store.get_user(user.user_id)
    await stage.use_cases.check_rows()


async def test_a_write_that_never_gets_an_answer_is_no_lost_race(stage: Stage) -> None:
    user = new_user()
    with stage.proxy.fault(LOST, operations=WRITES), pytest.raises(StoreUnavailableError):
        await stage.store.create_user(user, NOW)
    assert await stage.store.get_user(user.user_id) == user
    await stage.use_cases.check_rows()


async def test_a_try_delayed_in_the_network_does_not_undo_a_later_change(stage: Stage) -> None:
    """A delayed duplicate of a promotion arrives after the promotion was undone."""
    alice = await stage.alice()
    editor = replace(alice, role="editor")
    stage.proxy.forget()
    await stage.store.update_user(alice, editor)
    (delayed,) = stage.proxy.attempts
    await stage.store.update_user(editor, alice)
    stage.tables.dynamodb.transact_write_items(**delayed.payload)
    assert await stage.store.get_user(alice.user_id) == alice


@pytest.mark.parametrize("stage", ["moto", "dynoxide"], indirect=True)
async def test_a_lost_change_of_password_is_known_by_its_hash_after_another_change(stage: Stage) -> None:
    alice = await stage.alice()
    changed = replace(alice, password_hash="$2b$04$" + "b" * 53, token_generation=1)

    as_other = LostThen(lambda: stage.tables.set_attribute(alice.user_id, "role", {"S": "other"}))
    with stage.proxy.fault(as_other, operations=WRITES, times=1):
        await stage.store.update_user(alice, changed)
    assert await stage.store.get_user(alice.user_id) == replace(changed, role="other")


async def test_of_two_that_claim_an_email_for_its_user_at_once_both_have_it(stage: Stage) -> None:
    stage.tables.put_user("carol", EMAIL, is_active={"BOOL": True}, created_at={"S": "2030-01-01"})
    carol = await stage.store.get_user("carol")
    with stage.proxy.fault(Overtaken(stage.tables), operations={"TransactWriteItems"}, times=1) as overtaken:
        assert await stage.store.claim_email(carol)
    assert overtaken.hits == 1
    assert stage.tables.claim(EMAIL) == "carol"
    await stage.use_cases.check_rows()


async def test_a_stale_index_lets_no_old_password_in(stage: Stage) -> None:
    """F8."""
    use_cases = stage.use_cases
    with stage.proxy.fault(StaleIndex(), operations={"Query"}):
        with pytest.raises(InvalidCredentialsError):
            await use_cases.log_in()  # from now on the index answers that it has no such user
        alice = await use_cases.create()
        assert await use_cases.can_log_in(PASSWORD)
        await use_cases.change_password(PASSWORD, NEW_PASSWORD)
        assert not await use_cases.can_log_in(PASSWORD)
        assert await use_cases.can_log_in(NEW_PASSWORD)
        await use_cases.users.update_user(alice.user_id, is_active=False)
        assert not await use_cases.can_log_in(NEW_PASSWORD)
        with pytest.raises(EmailAlreadyExistsError):
            await use_cases.create()
        bob = await use_cases.create(OTHER_EMAIL)
        with pytest.raises(EmailAlreadyExistsError):
            await use_cases.users.update_user(bob.user_id, email=EMAIL)
        await use_cases.check_rows()


@pytest.mark.parametrize("has_claim", [True, False])
async def test_a_stale_index_still_finding_a_user_lets_nobody_in(stage: Stage, *, has_claim: bool) -> None:
    """F8: the index still lists a row that was disabled, moved or deleted, claimed or not."""
    use_cases = stage.use_cases
    with stage.proxy.fault(StaleIndex(), operations={"Query"}):
        stage.tables.put_user("carol", EMAIL, password_hash={"S": HASH}, is_active={"BOOL": True})
        stage.tables.set_attribute("carol", "created_at", {"S": "2030-01-01"})
        if has_claim:
            assert await use_cases.can_log_in(PASSWORD)
        else:
            await use_cases.store.get_user_by_email(Email(EMAIL))
        await use_cases.users.update_user("carol", is_active=False)
        assert not await use_cases.can_log_in(PASSWORD)
        await use_cases.users.update_user("carol", is_active=True, email=OTHER_EMAIL)
        assert not await use_cases.can_log_in(PASSWORD)
        assert await use_cases.can_log_in(PASSWORD, OTHER_EMAIL)
        alice = await use_cases.create()
        await use_cases.users.delete_user(alice.user_id)
        assert not await use_cases.can_log_in(PASSWORD)
        await use_cases.users.delete_user("carol")
        assert not await use_cases.can_log_in(PASSWORD, OTHER_EMAIL)
        await use_cases.create(OTHER_EMAIL)
        await use_cases.check_rows()


@pytest.mark.parametrize("has_claim", [True, False])
async def test_only_the_spelling_of_an_address_changes(stage: Stage, *, has_claim: bool) -> None:
    """Of a row of another program, claimed since its first login or not."""
    stage.tables.put_user("carol", "Alice@Example.com", is_active={"BOOL": True}, created_at={"S": "2030-01-01"})
    if has_claim:
        assert await stage.store.claim_email(await stage.store.get_user("carol"))
    await stage.use_cases.users.update_user("carol", email=EMAIL)
    await stage.use_cases.check_rows()
