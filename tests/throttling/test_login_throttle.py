"""Which attempts count, and which refusals are cached."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from authsvc import request_context
from authsvc.errors import (
    InvalidCredentialsError,
    OverloadedError,
    PasswordChangeRequiredError,
    StoreUnavailableError,
    TooManyAttemptsError,
)
from authsvc.models import AttemptCount, Counter, CounterUpdate
from authsvc.passwords import hashes
from authsvc.passwords.hash_queue import BACKLOG_PAUSE_SECONDS, HashQueue
from authsvc.stores.sqlite import SQLiteStore, open_sqlite_store
from authsvc.throttling import login_throttle
from authsvc.throttling.budgets import AttemptKeys
from authsvc.throttling.login_throttle import LoginThrottle
from tests.stores.contract.use_cases import EMAIL, UseCases, key_ring
from tests.support import PASSWORD, TEST_COST, WITNESS, FakeClock, until
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


async def test_a_guess_that_is_cancelled_while_it_is_evaluated_counts(
    use_cases: UseCases, store: SQLiteStore, clock: FakeClock, gate: Gate
) -> None:
    """Otherwise an attacker who disconnects in time could guess without limit, and keep the thread busy."""
    guess = guessing(use_cases)
    await asyncio.to_thread(gate.entered.wait)
    guess.cancel()
    with pytest.raises(asyncio.CancelledError):
        await guess
    gate.opened.set()
    await use_cases.hash_queue.aclose()
    assert await counts(store, clock) == [1, 1, 1]


async def running_guess(use_cases: UseCases) -> asyncio.Task[object]:
    """Return a guess that keeps the queue from running another one."""
    guess = guessing(use_cases)
    await until(lambda: len(use_cases.hash_queue) == 1)
    return guess


async def test_a_guess_that_is_cancelled_while_it_waits_does_not_count(
    use_cases: UseCases, store: SQLiteStore, clock: FakeClock, gate: Gate
) -> None:
    running, waiting = await running_guess(use_cases), guessing(use_cases)
    await until(lambda: len(use_cases.hash_queue) == 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.opened.set()
    with pytest.raises(InvalidCredentialsError):
        await running
    assert await counts(store, clock) == [1] * 3


async def test_a_guess_whose_time_is_up_counts_if_it_was_evaluated(
    use_cases: UseCases, store: SQLiteStore, clock: FakeClock, gate: Gate
) -> None:
    with request_context.time_limit(1.5):
        evaluated, waiting = await running_guess(use_cases), guessing(use_cases)
    for guess in (evaluated, waiting):
        with pytest.raises(OverloadedError):
            await guess
    gate.opened.set()
    await use_cases.hash_queue.aclose()
    assert await counts(store, clock) == [1] * 3


async def test_the_store_calls_of_a_flood_of_guesses_are_apart(
    use_cases: UseCases, store: SQLiteStore, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a row they hold validations up."""
    loop = asyncio.get_running_loop()
    times: list[float] = []

    def record(name: str) -> None:
        call = getattr(store, name)

        async def recorded(*args: Any) -> Any:
            times.append(loop.time())
            return await call(*args)

        monkeypatch.setattr(store, name, recorded)

    first, *waiting = await running_guess(use_cases), guessing(use_cases), guessing(use_cases)
    await until(lambda: len(use_cases.hash_queue) == 3)
    await asyncio.to_thread(gate.entered.wait)
    record("reserve_attempt")
    record("get_user_by_email")
    begin = loop.time()
    gate.opened.set()
    results = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert all(isinstance(result, InvalidCredentialsError) for result in results)
    reserved, found, *_ = times
    assert reserved - begin >= BACKLOG_PAUSE_SECONDS
    assert found - reserved >= BACKLOG_PAUSE_SECONDS


async def test_a_login_whose_time_is_up_begins_no_session(
    use_cases: UseCases, store: SQLiteStore, clock: FakeClock, gate: Gate
) -> None:
    """Its attempt is refunded: the password was right."""
    gate.opened.set()
    alice = await use_cases.create()
    gate.opened.clear()
    gate.entered.clear()
    with request_context.time_limit(0.2), pytest.raises(OverloadedError):
        await use_cases.log_in()
    gate.opened.set()
    await use_cases.hash_queue.aclose()
    await use_cases.login_throttle.aclose()
    assert (await store.list_sessions(alice.user_id, 10, None)).sessions == []
    assert not any(await counts(store, clock))


async def test_a_reservation_that_fails_half_way_is_refunded(
    use_cases: UseCases, store: SQLiteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = store.reserve_attempt

    async def reserve_and_fail(attempt_id: str, counters: Sequence[Counter], now: datetime) -> bool:
        await reserve(attempt_id, counters, now)
        assert await counts(store, clock) == [1, 1, 1]
        raise StoreUnavailableError("down")

    monkeypatch.setattr(store, "reserve_attempt", reserve_and_fail)
    with pytest.raises(StoreUnavailableError):
        await guessing(use_cases)
    await use_cases.login_throttle.aclose()
    assert await counts(store, clock) == [0, 0, 0]


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
def throttle(fake: FakeStore, clock: FakeClock) -> LoginThrottle:
    store: Any = fake  # implements the methods that the throttle calls
    return LoginThrottle(store, BUDGETS, clock, clock.monotonic)


async def attempt(
    throttle: LoginThrottle, source: str = SOURCE, email: str = EMAIL, error: Exception | None = None
) -> None:
    """Make an attempt that succeeds, or ends in an error."""

    async def evaluate() -> None:
        if error is not None:
            raise error

    await throttle.attempt(await throttle.check(email, source), evaluate)


async def refusal(throttle: LoginThrottle, source: str = SOURCE, email: str = EMAIL) -> TooManyAttemptsError:
    with pytest.raises(TooManyAttemptsError) as refused:
        await attempt(throttle, source, email, AssertionError("was let through"))
    return refused.value


def fill(fake: FakeStore, key: str, clock: FakeClock) -> None:
    fake.stored[key] = AttemptCount(1000, clock() + timedelta(minutes=5))


async def test_a_counter_that_keeps_changing_refuses_for_a_moment(throttle: LoginThrottle, fake: FakeStore) -> None:
    fake.accepts = False
    refused = await refusal(throttle)
    assert (refused.counter, refused.retry_delay) == ("contended", timedelta(seconds=1))
    assert fake.reads == 1 + login_throttle.MAX_RESERVATIONS


async def test_a_refusal_of_a_pair_is_cached_for_that_pair(
    throttle: LoginThrottle, fake: FakeStore, clock: FakeClock
) -> None:
    fill(fake, AttemptKeys.of(EMAIL, SOURCE).pair_key, clock)
    for seconds in (300, 299, 298):
        assert (await refusal(throttle)).retry_delay == timedelta(seconds=seconds)
        assert fake.reads == 1
        clock.advance(seconds=1)
    await attempt(throttle, "192.0.2.8")
    await attempt(throttle, email="bob@example.com")


async def test_a_refusal_of_a_source_is_cached_for_all_accounts(
    throttle: LoginThrottle, fake: FakeStore, clock: FakeClock
) -> None:
    fill(fake, AttemptKeys.of(EMAIL, SOURCE).source_key, clock)
    await refusal(throttle)
    assert (await refusal(throttle, email="bob@example.com")).counter == "source"
    assert fake.reads == 1


async def test_a_refusal_of_an_account_is_cached_for_each_source(
    throttle: LoginThrottle, fake: FakeStore, clock: FakeClock
) -> None:
    """Another source may be known to the account."""
    fill(fake, AttemptKeys.of(EMAIL, SOURCE).account_key, clock)
    fake.stored[AttemptKeys.of(EMAIL, "192.0.2.8").known_key] = AttemptCount(0, clock() + timedelta(days=1))
    for source in (SOURCE, SOURCE, "", ""):
        assert (await refusal(throttle, source)).counter == "account"
    assert fake.reads == 2
    await attempt(throttle, "192.0.2.8")


async def test_a_refusal_is_dropped_after_ten_seconds_at_most(
    throttle: LoginThrottle, fake: FakeStore, clock: FakeClock
) -> None:
    """From then on it counts here that another worker has cleared a counter."""
    fill(fake, AttemptKeys.of(EMAIL, SOURCE).pair_key, clock)
    await refusal(throttle)
    fake.stored.clear()
    clock.advance(seconds=4)
    await refusal(throttle)
    clock.advance(seconds=6)
    await attempt(throttle)


async def test_a_clock_that_is_set_back_caches_no_refusal_for_longer(
    throttle: LoginThrottle, fake: FakeStore, clock: FakeClock
) -> None:
    fill(fake, AttemptKeys.of(EMAIL, SOURCE).pair_key, clock)
    await refusal(throttle)
    fake.stored.clear()
    clock.now -= timedelta(hours=1)
    clock.advance(seconds=10)
    await attempt(throttle)


async def test_what_came_together_is_not_dropped_together(
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


async def test_a_login_ends_what_is_cached(throttle: LoginThrottle, fake: FakeStore, clock: FakeClock) -> None:
    """A concurrent guess was refused while the last admitted attempt was right."""

    async def evaluate() -> None:
        fill(fake, AttemptKeys.of(EMAIL, SOURCE).pair_key, clock)
        await refusal(throttle)

    await throttle.attempt(await throttle.check(EMAIL, SOURCE), evaluate)
    fake.stored.clear()
    await attempt(throttle)


async def test_no_more_refusals_are_cached_than_there_is_room_for(fake: FakeStore, clock: FakeClock) -> None:
    store: Any = fake
    throttle = LoginThrottle(store, BUDGETS, clock, clock.monotonic, cache_capacity=2)
    for source in (SOURCE, "192.0.2.8", "192.0.2.9"):
        fill(fake, AttemptKeys.of(EMAIL, source).pair_key, clock)
        await refusal(throttle, source)
    fake.reads = 0
    for source in ("192.0.2.9", "192.0.2.8"):
        await refusal(throttle, source)
    assert fake.reads == 0
    await refusal(throttle)
    assert fake.reads == 1


async def test_a_store_that_fails_while_settling_is_logged(
    throttle: LoginThrottle, fake: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_attempt_id: str, _update: CounterUpdate) -> None:
        raise StoreUnavailableError("down")

    monkeypatch.setattr(fake, "settle_attempt", fail)
    await attempt(throttle)
    await throttle.aclose()
    assert '"event": "attempt_not_settled"' in WITNESS.lines.getvalue()


async def test_an_outage_is_reported_before_the_attempt_is_refunded(
    throttle: LoginThrottle, fake: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store would be waited for twice."""
    reported = asyncio.Event()

    async def settle(_attempt_id: str, update: CounterUpdate) -> None:
        await reported.wait()
        fake.settled.append(update)

    monkeypatch.setattr(fake, "settle_attempt", settle)
    async with asyncio.timeout(10):
        with pytest.raises(StoreUnavailableError):
            await attempt(throttle, error=StoreUnavailableError("down"))
    reported.set()
    await throttle.aclose()
    assert len(fake.settled) == 1


@pytest.mark.parametrize(
    ("error", "settled"),
    [
        (InvalidCredentialsError("x"), 0),
        (PasswordChangeRequiredError("x"), 1),
        (OverloadedError(), 1),
        (LookupError(), 1),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_only_wrong_credentials_stay_counted(
    throttle: LoginThrottle, fake: FakeStore, error: Exception, settled: int
) -> None:
    with pytest.raises(type(error)):
        await attempt(throttle, error=error)
    assert len(fake.settled) == settled
    assert not any(update.cleared or update.known for update in fake.settled)


async def test_a_counter_that_fills_up_before_the_attempt_is_reserved_refuses(
    throttle: LoginThrottle, fake: FakeStore, clock: FakeClock
) -> None:
    """The attempt may have waited for the hashing thread."""
    snapshot = await throttle.check(EMAIL, SOURCE)
    fill(fake, AttemptKeys.of(EMAIL, SOURCE).pair_key, clock)
    fake.accepts = False

    async def evaluate() -> None:
        pytest.fail("was let through")

    with pytest.raises(TooManyAttemptsError) as refused:
        await throttle.attempt(snapshot, evaluate)
    assert refused.value.counter == "pair"
