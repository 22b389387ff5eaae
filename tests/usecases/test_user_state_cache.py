"""The cache of users' states."""

from dataclasses import replace
from datetime import timedelta

import pytest

from authsvc.models import UserState
from authsvc.usecases.user_state_cache import CachedRead, UserStateCache
from tests.support import FakeClock

MINUTE = timedelta(minutes=1)
ALICE = UserState(user_id="alice", email="alice@example.com", role="user")


@pytest.fixture
def cache(clock: FakeClock) -> UserStateCache:
    return UserStateCache(clock.monotonic)


def reading(clock: FakeClock, role: str = "user") -> CachedRead:
    return CachedRead(replace(ALICE, role=role), clock())


def read(cache: UserStateCache, clock: FakeClock, user_id: str = "alice", role: str = "user") -> CachedRead:
    """Cache what an instant read returned."""
    brought = reading(clock, role)
    cache.put(user_id, cache.start_read(), brought)
    return brought


def test_a_reading_is_recalled_as_long_as_it_is_young_enough(cache: UserStateCache, clock: FakeClock) -> None:
    brought = read(cache, clock)
    assert cache.get("alice", timedelta(microseconds=1)) == brought
    clock.advance(seconds=60)
    assert cache.get("alice", MINUTE) == brought
    clock.advance(seconds=0.001)
    assert cache.get("alice", MINUTE) is None
    assert cache.get("alice", 2 * MINUTE) == brought
    assert cache.get("bob", MINUTE) is None


def test_nothing_is_young_enough_where_no_age_is_granted(cache: UserStateCache, clock: FakeClock) -> None:
    read(cache, clock)
    assert cache.get("alice", timedelta()) is None


def test_the_age_counts_from_the_beginning_of_the_read(cache: UserStateCache, clock: FakeClock) -> None:
    begun, brought = cache.start_read(), reading(clock)
    clock.advance(seconds=59)
    cache.put("alice", begun, brought)
    assert cache.get("alice", MINUTE) == brought
    clock.advance(seconds=2)
    assert cache.get("alice", MINUTE) is None


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(hours=-1)])
def test_the_age_is_right_though_the_time_of_day_jumps(
    cache: UserStateCache, clock: FakeClock, jump: timedelta
) -> None:
    """F11."""
    brought = read(cache, clock)
    clock.now += jump
    assert cache.get("alice", MINUTE) == brought
    clock.seconds += 61
    assert cache.get("alice", MINUTE) is None


def test_a_missing_user_is_cached_as_well(cache: UserStateCache, clock: FakeClock) -> None:
    nobody = CachedRead(None, clock())
    cache.put("nobody", cache.start_read(), nobody)
    assert cache.get("nobody", MINUTE) == nobody


def test_the_read_that_began_last_is_cached_though_another_ends_later(cache: UserStateCache, clock: FakeClock) -> None:
    earlier, later = cache.start_read(), cache.start_read()
    cache.put("alice", later, reading(clock, "later"))
    cache.put("alice", earlier, reading(clock, "earlier"))
    assert cache.get("alice", MINUTE) == reading(clock, "later")
    assert read(cache, clock, role="latest") == cache.get("alice", MINUTE)


def test_a_write_is_forgotten_with_all_reads_under_way(cache: UserStateCache, clock: FakeClock) -> None:
    read(cache, clock)
    under_way = cache.start_read()
    cache.invalidate("alice")
    assert cache.get("alice", MINUTE) is None
    cache.put("alice", under_way, reading(clock, "old"))
    assert cache.get("alice", MINUTE) is None
    assert read(cache, clock, role="new") == cache.get("alice", MINUTE)


def test_a_user_who_was_never_read_is_invalidated_too(cache: UserStateCache, clock: FakeClock) -> None:
    under_way = cache.start_read()
    cache.invalidate("alice")
    cache.put("alice", under_way, reading(clock))
    assert cache.get("alice", MINUTE) is None


def test_the_cache_is_bounded_and_keeps_those_read_last(
    clock: FakeClock,
) -> None:
    cache = UserStateCache(clock.monotonic, max_users=3)
    for user_id in ("a", "b", "c", "a", "d"):
        read(cache, clock, user_id)
        assert len(cache) <= 3
    assert {user_id for user_id in "abcd" if cache.get(user_id, MINUTE)} == {"c", "a", "d"}
    cache.invalidate("e")
    assert len(cache) == 3
    assert {user_id for user_id in "abcd" if cache.get(user_id, MINUTE)} == {"a", "d"}


def test_an_older_read_that_changes_nothing_evicts_none(
    clock: FakeClock,
) -> None:
    cache = UserStateCache(clock.monotonic, max_users=2)
    old = cache.start_read()
    read(cache, clock, "a")
    read(cache, clock, "b")
    cache.put("b", old, reading(clock))
    assert all(cache.get(user_id, MINUTE) for user_id in "ab")
