"""Which attempts count, and which refusals are cached."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from authsvc import request_context
from authsvc.errors import InvalidCredentialsError, OverloadedError, StoreUnavailableError, TooManyAttemptsError
from authsvc.models import AttemptCount, Counter, CounterUpdate
from authsvc.passwords import hashes
from authsvc.passwords.hash_queue import CAPACITY, CONCURRENT_PREPARATIONS, UNKNOWN_SOURCE_CAPACITY, HashQueue
from authsvc.stores.sqlite import SQLiteStore, open_sqlite_store
from authsvc.throttling import login_throttle
from authsvc.throttling.budgets import AttemptKeys
from authsvc.throttling.login_throttle import LoginThrottle
from tests.stores.contract.use_cases import EMAIL, UseCases, key_ring
from tests.support import PASSWORD, TEST_COST, FakeClock
from tests.throttling.test_budgets import BUDGETS

SOURCE = "192.0.2.7"
KEYS = AttemptKeys.of(EMAIL, SOURCE).all


class Gate:
    """Replaces password verification; blocks until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def verify_password(self, password: str, _stored: str | None, _cost: int) -> bool:
        self.entered.set()
        self.opened.wait()
        return password == PASSWORD


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(hashes, "verify_password", gate.verify_password)
    yield gate
    gate.opened.set()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    async with open_sqlite_store(tmp_path / "authsvc.db") as store:
        await store.create_tables()
        yield store


@pytest.fixture
def use_cases(store: SQLiteStore, signing_keys: Path, clock: FakeClock, gate: Gate) -> Iterator[UseCases]:
    with closing(HashQueue(TEST_COST)) as hash_queue:
        yield UseCases(store, key_ring(signing_keys, clock), clock, hash_queue, None, BUDGETS)
        gate.opened.set()


async def counts(store: SQLiteStore, clock: FakeClock) -> list[int]:
    """Return how many attempts the counters hold, narrowest first."""
    stored = await store.get_attempt_counts(KEYS, clock())
    return [stored[key].count for key in KEYS if key in stored]


def guessing(use_cases: UseCases) -> asyncio.Task[object]:
    call = use_cases.logins.authenticate(email=EMAIL, password="wrong", client_address=SOURCE, client_label="")
    return asyncio.create_task(call)


async def test_a_guess_that_is_cancelled_while_it_is_looked_at_counts(
    use_cases: UseCases, store: SQLiteStore, clock: FakeClock, gate: Gate
) -> None:
    """Otherwise an attacker who disconnects in time could guess without limit, and keep the thread busy."""
    guess = guessing(use_cases)
    await asyncio.to_thread(gate.entered.wait)
    guess.cancel()
    with pytest.raises(asyncio.CancelledError):
        await guess
    gate.opened.set()
    assert await counts(store, clock) == [1, 1, 1]


async def test_a_guess_that_is_cancelled_while_it_waits_does_not_count(
    use_cases: UseCases, store: SQLiteStore, clock: FakeClock, gate: Gate
) -> None:
    running, waiting = guessing(use_cases), guessing(use_cases)
    await asyncio.to_thread(gate.entered.wait)
    while await counts(store, clock) != [2, 2, 2]:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await counts(store, clock) == [1, 1, 1]
    gate.opened.set()
    with pytest.raises(InvalidCredentialsError):
        await running


async def test_a_guess_whose_time_is_up_counts_if_it_was_looked_at(
    use_cases: UseCases, store: SQLiteStore, clock: FakeClock, gate: Gate
) -> None:
    with request_context.time_limit(1.0):
        evaluated = guessing(use_cases)
    await asyncio.to_thread(gate.entered.wait)
    with request_context.time_limit(0.5):
        waiting = guessing(use_cases)
    for guess in (evaluated, waiting):
        with pytest.raises(OverloadedError):
            await guess
    await use_cases.login_throttle.aclose()
    assert await counts(store, clock) == [1, 1, 1]


async def test_a_guess_that_is_cancelled_while_it_is_reserved_does_not_count(
    use_cases: UseCases, store: SQLiteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve, reserved = store.reserve_attempt, asyncio.Event()

    async def reserve_and_hang(attempt_id: str, counters: Sequence[Counter], now: datetime) -> bool:
        await reserve(attempt_id, counters, now)
        reserved.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(store, "reserve_attempt", reserve_and_hang)
    guess = guessing(use_cases)
    await reserved.wait()
    assert await counts(store, clock) == [1, 1, 1]
    guess.cancel()
    with pytest.raises(asyncio.CancelledError):
        await guess
    assert await counts(store, clock) == [0, 0, 0]


async def test_a_guess_is_reserved_when_it_is_soon_looked_at(
    use_cases: UseCases, store: SQLiteStore, clock: FakeClock, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a burst would use the store at once, for hashes that are seconds away."""
    reserve, begun = store.reserve_attempt, set()

    async def noting_reserve(attempt_id: str, counters: Sequence[Counter], now: datetime) -> bool:
        begun.add(attempt_id)
        return await reserve(attempt_id, counters, now)

    monkeypatch.setattr(store, "reserve_attempt", noting_reserve)
    guesses = [guessing(use_cases) for _ in range(5)]
    await asyncio.to_thread(gate.entered.wait)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(begun) == CONCURRENT_PREPARATIONS
    gate.opened.set()
    for guess in guesses:
        with pytest.raises(InvalidCredentialsError):
            await guess
    assert await counts(store, clock) == [5, 5, 5]


class FakeStore:
    """A store of counters, whose answers a test sets."""

    def __init__(self) -> None:
        self.stored: dict[str, AttemptCount] = {}
        self.accepts = True
        self.settled: list[CounterUpdate] = []
        self.reads = 0

    async def get_attempt_counts(self, keys: Sequence[str], _now: datetime) -> Mapping[str, AttemptCount]:
        self.reads += 1
        return {key: self.stored[key] for key in keys if key in self.stored}

    async def reserve_attempt(self, _attempt_id: str, _counters: Sequence[Counter], _now: datetime) -> bool:
        return self.accepts

    async def settle_attempt(self, _attempt_id: str, update: CounterUpdate) -> None:
        self.settled.append(update)


@pytest.fixture
def fake() -> FakeStore:
    return FakeStore()


@pytest.fixture
def hash_queue() -> Iterator[HashQueue]:
    with closing(HashQueue(TEST_COST)) as hash_queue:
        yield hash_queue


@pytest.fixture
def throttle(fake: FakeStore, hash_queue: HashQueue, clock: FakeClock) -> LoginThrottle:
    store: Any = fake  # implements the methods that the throttle calls
    return LoginThrottle(store, hash_queue, BUDGETS, clock)


async def refusal(throttle: LoginThrottle, source: str = SOURCE, email: str = EMAIL) -> TooManyAttemptsError:
    with pytest.raises(TooManyAttemptsError) as refused:
        async with throttle.reserve(email, source):
            pytest.fail("was let through")
    return refused.value


def fill(fake: FakeStore, key: str, clock: FakeClock) -> None:
    fake.stored[key] = AttemptCount(1000, clock() + timedelta(minutes=5))


async def test_a_counter_that_keeps_changing_refuses_for_a_moment(throttle: LoginThrottle, fake: FakeStore) -> None:
    fake.accepts = False
    refused = await refusal(throttle)
    assert (refused.counter, refused.retry_delay) == ("contended", timedelta(seconds=1))
    assert fake.reads == 1 + login_throttle.MAX_RESERVATIONS


async def test_a_refusal_of_a_pair_is_remembered_for_that_pair(
    throttle: LoginThrottle, fake: FakeStore, clock: FakeClock
) -> None:
    fill(fake, AttemptKeys.of(EMAIL, SOURCE).pair_key, clock)
    for seconds in (300, 299, 298):
        assert (await refusal(throttle)).retry_delay == timedelta(seconds=seconds)
        assert fake.reads == 1
        clock.advance(seconds=1)
    async with throttle.reserve(EMAIL, "192.0.2.8"):
        pass
    async with throttle.reserve("bob@example.com", SOURCE):
        pass


async def test_a_refusal_of_a_source_is_remembered_for_all_accounts(
    throttle: LoginThrottle, fake: FakeStore, clock: FakeClock
) -> None:
    fill(fake, AttemptKeys.of(EMAIL, SOURCE).source_key, clock)
    await refusal(throttle)
    assert (await refusal(throttle, email="bob@example.com")).counter == "source"
    assert fake.reads == 1


async def test_a_refusal_of_an_account_is_remembered_for_each_source(
    throttle: LoginThrottle, fake: FakeStore, clock: FakeClock
) -> None:
    """Another source may be known to the account."""
    fill(fake, AttemptKeys.of(EMAIL, SOURCE).account_key, clock)
    fake.stored[AttemptKeys.of(EMAIL, "192.0.2.8").known_key] = AttemptCount(0, clock() + timedelta(days=1))
    for source in (SOURCE, SOURCE, "", ""):
        assert (await refusal(throttle, source)).counter == "account"
    assert fake.reads == 2
    async with throttle.reserve(EMAIL, "192.0.2.8"):
        pass


async def test_a_refusal_is_forgotten_after_ten_seconds_at_most(
    throttle: LoginThrottle, fake: FakeStore, clock: FakeClock
) -> None:
    """From then on it counts here that another worker has cleared a counter."""
    fill(fake, AttemptKeys.of(EMAIL, SOURCE).pair_key, clock)
    await refusal(throttle)
    fake.stored.clear()
    clock.advance(seconds=4)
    await refusal(throttle)
    clock.advance(seconds=6)
    async with throttle.reserve(EMAIL, SOURCE):
        pass


async def test_what_came_together_is_not_forgotten_together(
    throttle: LoginThrottle, fake: FakeStore, clock: FakeClock
) -> None:
    """Otherwise every refusal of a flood would be read from the store again at one moment."""
    sources = [f"192.0.2.{number}" for number in range(100)]
    for source in sources:
        fill(fake, AttemptKeys.of(EMAIL, source).pair_key, clock)
        await refusal(throttle, source)
    clock.advance(seconds=7.5)
    fake.reads = 0
    for source in sources:
        await refusal(throttle, source)
    assert 10 < fake.reads < 90


async def test_a_login_ends_what_is_remembered(throttle: LoginThrottle, fake: FakeStore, clock: FakeClock) -> None:
    """A concurrent guess was refused while the last admitted attempt was right."""
    async with throttle.reserve(EMAIL, SOURCE):
        fill(fake, AttemptKeys.of(EMAIL, SOURCE).pair_key, clock)
        await refusal(throttle)
    fake.stored.clear()
    async with throttle.reserve(EMAIL, SOURCE):
        pass


async def test_no_more_refusals_are_remembered_than_there_is_room_for(
    hash_queue: HashQueue, fake: FakeStore, clock: FakeClock
) -> None:
    store: Any = fake
    throttle = LoginThrottle(store, hash_queue, BUDGETS, clock, cache_capacity=2)
    for source in (SOURCE, "192.0.2.8", "192.0.2.9"):
        fill(fake, AttemptKeys.of(EMAIL, source).pair_key, clock)
        await refusal(throttle, source)
    fake.reads = 0
    for source in ("192.0.2.9", "192.0.2.8"):
        await refusal(throttle, source)
    assert fake.reads == 0
    await refusal(throttle)
    assert fake.reads == 1


@contextmanager
def full(hash_queue: HashQueue, *, of_unknown_sources: bool) -> Iterator[None]:
    with ExitStack() as slots:
        for _ in range(UNKNOWN_SOURCE_CAPACITY if of_unknown_sources else CAPACITY):
            slots.enter_context(hash_queue.reserve_slot(is_unknown_source=of_unknown_sources))
        yield


async def overload(throttle: LoginThrottle, source: str = SOURCE) -> None:
    with pytest.raises(OverloadedError):
        async with throttle.reserve(EMAIL, source):
            pytest.fail("was let through")


async def test_a_full_queue_refuses_without_a_look(
    throttle: LoginThrottle, fake: FakeStore, hash_queue: HashQueue
) -> None:
    with full(hash_queue, of_unknown_sources=False):
        await overload(throttle)
    assert fake.reads == 0


async def test_where_strangers_places_are_taken_the_store_says_once_who_is_one(
    throttle: LoginThrottle, fake: FakeStore, hash_queue: HashQueue, clock: FakeClock
) -> None:
    home = "192.0.2.8"
    fake.stored[AttemptKeys.of(EMAIL, home).known_key] = AttemptCount(0, clock() + timedelta(days=1))
    with full(hash_queue, of_unknown_sources=True):
        for _ in range(3):
            await overload(throttle)
        assert fake.reads == 1
        async with throttle.reserve(EMAIL, home):
            pass
        clock.advance(seconds=10)
        fake.stored[AttemptKeys.of(EMAIL, SOURCE).known_key] = AttemptCount(0, clock() + timedelta(days=1))
        async with throttle.reserve(EMAIL, SOURCE):  # it has logged in at another worker
            pass


async def test_a_login_makes_a_stranger_one_no_more(
    throttle: LoginThrottle, fake: FakeStore, hash_queue: HashQueue, clock: FakeClock
) -> None:
    async with throttle.reserve(EMAIL, SOURCE):
        pass
    fake.stored[AttemptKeys.of(EMAIL, SOURCE).known_key] = AttemptCount(0, clock() + timedelta(days=1))
    with full(hash_queue, of_unknown_sources=True):
        async with throttle.reserve(EMAIL, SOURCE):
            pass


async def test_a_place_is_given_back_whatever_becomes_of_the_try(
    throttle: LoginThrottle, fake: FakeStore, hash_queue: HashQueue
) -> None:
    for _ in range(CAPACITY + 1):
        with pytest.raises(LookupError):
            async with throttle.reserve(EMAIL, SOURCE):
                raise LookupError
    fake.accepts = False
    for _ in range(CAPACITY + 1):
        await refusal(throttle)


async def test_a_try_that_has_waited_rests_on_a_new_look(
    throttle: LoginThrottle, fake: FakeStore, hash_queue: HashQueue, clock: FakeClock
) -> None:
    """Its counters may have filled up or expired meanwhile."""
    async with AsyncExitStack() as stack:
        for _ in range(CONCURRENT_PREPARATIONS):
            slot = stack.enter_context(hash_queue.reserve_slot(is_unknown_source=True))
            await stack.enter_async_context(hash_queue.prepare(slot))
        refused = asyncio.create_task(refusal(throttle))
        while not fake.reads:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)
        fill(fake, AttemptKeys.of(EMAIL, SOURCE).pair_key, clock)
    assert (await refused).counter == "pair"
    assert fake.reads == 2


async def test_a_store_that_fails_while_settling_is_logged(
    throttle: LoginThrottle, fake: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_attempt_id: str, _update: CounterUpdate) -> None:
        raise StoreUnavailableError("down")

    monkeypatch.setattr(fake, "settle_attempt", fail)
    async with throttle.reserve(EMAIL, SOURCE):
        pass
    await throttle.aclose()
