"""The counters of login attempts, on each engine."""

import asyncio
from datetime import timedelta

import pytest

from authsvc import request_context
from authsvc.models import AttemptCount, Counter, CounterUpdate
from authsvc.stores.interface import Store
from tests.stores.contract.test_store import NOW, SECOND

LONG_SECONDS = 240.0
"""Deadline of a thousand concurrent calls on a busy machine."""
MINUTE = timedelta(minutes=1)
KEYS = ["pair", "account", "source"]


def counter(key: str = "pair", limit: int = 10, span: timedelta = 15 * MINUTE) -> Counter:
    return Counter("pair", key, limit, SECOND + span)


async def count(store: Store, key: str = "pair") -> int:
    stored = await store.get_attempt_counts([key], NOW)
    return stored[key].count if key in stored else 0


async def test_nothing_is_stored_before_the_first_try(store: Store) -> None:
    assert await store.get_attempt_counts(KEYS, NOW) == {}


async def test_a_counter_holds_its_limit_and_refuses_more(store: Store) -> None:
    for number in range(3):
        assert await store.reserve_attempt(f"attempt-{number}", [counter(limit=3)], NOW)
    assert not await store.reserve_attempt("one too many", [counter(limit=3)], NOW)
    assert await store.get_attempt_counts(KEYS, NOW) == {"pair": AttemptCount(3, SECOND + 15 * MINUTE)}


async def test_the_span_begins_with_the_first_try(store: Store) -> None:
    await store.reserve_attempt("first", [counter()], NOW)
    later = Counter("pair", "pair", 10, SECOND + 29 * MINUTE)
    await store.reserve_attempt("second", [later], NOW + 14 * MINUTE)
    assert await store.get_attempt_counts(KEYS, NOW) == {"pair": AttemptCount(2, SECOND + 15 * MINUTE)}


async def test_an_expired_counter_counts_nothing_and_begins_anew(store: Store) -> None:
    """F9: regardless of whether the engine has deleted the item by then."""
    for number in range(2):
        await store.reserve_attempt(f"attempt-{number}", [counter(limit=2)], NOW)
    expiry = SECOND + 15 * MINUTE
    just_before = expiry - timedelta(milliseconds=1)
    assert not await store.reserve_attempt("too early", [counter(limit=2)], just_before)
    assert "pair" in await store.get_attempt_counts(KEYS, just_before)
    assert await store.get_attempt_counts(KEYS, expiry) == {}
    assert await store.reserve_attempt("third", [counter(limit=2, span=30 * MINUTE)], expiry)
    assert await store.get_attempt_counts(KEYS, expiry) == {"pair": AttemptCount(1, SECOND + 30 * MINUTE)}


async def test_a_try_goes_into_all_counters_or_none(store: Store) -> None:
    narrow, wide = counter("pair", 5), counter("source", 1)
    assert await store.reserve_attempt("first", [narrow, wide], NOW)
    assert not await store.reserve_attempt("second", [narrow, wide], NOW)
    assert (await count(store, "pair"), await count(store, "source")) == (1, 1)


async def test_a_repeated_try_counts_once(store: Store) -> None:
    for _ in range(3):
        await store.reserve_attempt("same", [counter()], NOW)
    assert await count(store) == 1


async def test_a_try_that_is_given_back_makes_room(store: Store) -> None:
    await store.reserve_attempt("first", [counter(limit=1)], NOW)
    for _ in range(2):  # idempotent
        await store.settle_attempt("first", CounterUpdate(released=("pair",)))
    assert await count(store) == 0
    assert await store.reserve_attempt("second", [counter(limit=1)], NOW)


async def test_a_counter_that_was_emptied_begins_anew(store: Store) -> None:
    await store.reserve_attempt("first", [counter()], NOW)
    await store.settle_attempt("first", CounterUpdate(released=("pair",)))
    later = Counter("pair", "pair", 10, SECOND + 29 * MINUTE)
    await store.reserve_attempt("second", [later], NOW + 14 * MINUTE)
    assert await store.get_attempt_counts(KEYS, NOW) == {"pair": AttemptCount(1, SECOND + 29 * MINUTE)}


async def test_a_try_is_not_taken_out_of_a_counter_that_began_anew(store: Store) -> None:
    await store.reserve_attempt("old", [counter()], NOW)
    expiry = NOW + 15 * MINUTE
    await store.reserve_attempt("new", [counter(span=30 * MINUTE)], expiry)
    await store.settle_attempt("old", CounterUpdate(released=("pair", "missing")))
    assert await store.get_attempt_counts([*KEYS, "missing"], expiry) == {"pair": AttemptCount(1, SECOND + 30 * MINUTE)}


async def test_a_login_clears_and_marks(store: Store) -> None:
    for number in range(3):
        await store.reserve_attempt(f"attempt-{number}", [counter(key) for key in KEYS], NOW)
    known = ("known", SECOND + timedelta(days=30))
    for _ in range(2):
        await store.settle_attempt("attempt-2", CounterUpdate(("source",), ("pair", "account"), known))
    assert await store.get_attempt_counts([*KEYS, "known"], NOW) == {
        "source": AttemptCount(2, SECOND + 15 * MINUTE),
        "known": AttemptCount(0, SECOND + timedelta(days=30)),
    }
    assert "known" not in await store.get_attempt_counts(["known"], SECOND + timedelta(days=30))


@pytest.mark.long_on_dynoxide
async def test_of_a_thousand_tries_at_once_a_counter_takes_its_limit(concurrent_store: Store) -> None:
    calls = (concurrent_store.reserve_attempt(f"attempt-{number}", [counter(limit=25)], NOW) for number in range(1000))
    with request_context.time_limit(LONG_SECONDS):
        assert (await asyncio.gather(*calls)).count(True) == 25
    assert await count(concurrent_store) == 25


async def test_of_many_tries_at_once_an_expired_counter_takes_its_limit(concurrent_store: Store) -> None:
    for number in range(25):
        await concurrent_store.reserve_attempt(f"old-{number}", [counter(limit=25)], NOW)
    later, next_window = NOW + 16 * MINUTE, counter(limit=25, span=30 * MINUTE)
    calls = (concurrent_store.reserve_attempt(f"new-{number}", [next_window], later) for number in range(200))
    with request_context.time_limit(LONG_SECONDS):
        assert (await asyncio.gather(*calls)).count(True) == 25
    assert (await concurrent_store.get_attempt_counts(KEYS, later))["pair"].count == 25
