"""What a worker remembers of users."""

from dataclasses import replace
from datetime import timedelta

import pytest

from authsvc.models import Standing
from authsvc.usecases import user_state_cache as memory_module
from authsvc.usecases.user_state_cache import Memory, Reading
from tests.support import FakeClock

MINUTE = timedelta(minutes=1)
ALICE = Standing(user_id="alice", email="alice@example.com", role="user")


@pytest.fixture
def memory(clock: FakeClock) -> Memory:
    return Memory(clock.monotonic)


def reading(clock: FakeClock, role: str = "user") -> Reading:
    return Reading(replace(ALICE, role=role), clock())


def read(memory: Memory, clock: FakeClock, user_id: str = "alice", role: str = "user") -> Reading:
    """Remember what a read brought that took no time."""
    brought = reading(clock, role)
    memory.remember(user_id, memory.begin(), brought)
    return brought


def test_a_reading_is_recalled_as_long_as_it_is_young_enough(memory: Memory, clock: FakeClock) -> None:
    brought = read(memory, clock)
    assert memory.recall("alice", timedelta(microseconds=1)) == brought
    clock.advance(seconds=60)
    assert memory.recall("alice", MINUTE) == brought
    clock.advance(seconds=0.001)
    assert memory.recall("alice", MINUTE) is None
    assert memory.recall("alice", 2 * MINUTE) == brought
    assert memory.recall("bob", MINUTE) is None


def test_nothing_is_young_enough_where_no_age_is_granted(memory: Memory, clock: FakeClock) -> None:
    read(memory, clock)
    assert memory.recall("alice", timedelta()) is None


def test_the_age_counts_from_the_beginning_of_the_read(memory: Memory, clock: FakeClock) -> None:
    begun, brought = memory.begin(), reading(clock)
    clock.advance(seconds=59)
    memory.remember("alice", begun, brought)
    assert memory.recall("alice", MINUTE) == brought
    clock.advance(seconds=2)
    assert memory.recall("alice", MINUTE) is None


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(hours=-1)])
def test_the_age_is_right_though_the_time_of_day_jumps(memory: Memory, clock: FakeClock, jump: timedelta) -> None:
    """F11."""
    brought = read(memory, clock)
    clock.now += jump
    assert memory.recall("alice", MINUTE) == brought
    clock.seconds += 61
    assert memory.recall("alice", MINUTE) is None


def test_that_there_is_nobody_is_remembered_as_well(memory: Memory, clock: FakeClock) -> None:
    nobody = Reading(None, clock())
    memory.remember("nobody", memory.begin(), nobody)
    assert memory.recall("nobody", MINUTE) == nobody


def test_the_read_that_began_last_is_remembered_though_another_ends_later(memory: Memory, clock: FakeClock) -> None:
    earlier, later = memory.begin(), memory.begin()
    memory.remember("alice", later, reading(clock, "later"))
    memory.remember("alice", earlier, reading(clock, "earlier"))
    assert memory.recall("alice", MINUTE) == reading(clock, "later")
    assert read(memory, clock, role="latest") == memory.recall("alice", MINUTE)


def test_a_write_is_forgotten_with_all_reads_under_way(memory: Memory, clock: FakeClock) -> None:
    read(memory, clock)
    under_way = memory.begin()
    memory.forget("alice")
    assert memory.recall("alice", MINUTE) is None
    memory.remember("alice", under_way, reading(clock, "old"))
    assert memory.recall("alice", MINUTE) is None
    assert read(memory, clock, role="new") == memory.recall("alice", MINUTE)


def test_whoever_was_never_read_is_forgotten_too(memory: Memory, clock: FakeClock) -> None:
    under_way = memory.begin()
    memory.forget("alice")
    memory.remember("alice", under_way, reading(clock))
    assert memory.recall("alice", MINUTE) is None


def test_at_most_so_many_are_remembered_and_those_read_last(
    memory: Memory, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "MAX_USERS", 3)
    for user_id in ("a", "b", "c", "a", "d"):
        read(memory, clock, user_id)
        assert len(memory) <= 3
    assert {user_id for user_id in "abcd" if memory.recall(user_id, MINUTE)} == {"c", "a", "d"}
    memory.forget("e")
    assert len(memory) == 3
    assert {user_id for user_id in "abcd" if memory.recall(user_id, MINUTE)} == {"a", "d"}


def test_an_older_read_that_changes_nothing_takes_nobodys_place(
    memory: Memory, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "MAX_USERS", 2)
    old = memory.begin()
    read(memory, clock, "a")
    read(memory, clock, "b")
    memory.remember("b", old, reading(clock))
    assert all(memory.recall(user_id, MINUTE) for user_id in "ab")
