import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest

from authsvc.passwords import hasher, hashes
from authsvc.passwords.hasher import BACKLOG_NICENESS, THREAD_NICENESS, Hasher, estimate_seconds
from tests.support import TEST_COST

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a thread a priority of its own")


class Spy:
    """Replaces password hashing, and notes which thread does it."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.policy: int | None = None
        self.niceness: int | None = None

    def hash_password(self, password: str, cost: int) -> str:
        self.threads.add(threading.get_ident())
        if sys.platform == "linux":
            thread = threading.get_native_id()
            self.policy, self.niceness = os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)
        return f"{password} at {cost}"


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy()
    monkeypatch.setattr(hashes, "hash_password", spy.hash_password)
    return spy


@pytest.fixture
def made() -> Iterator[Hasher]:
    with closing(Hasher(TEST_COST)) as made:
        yield made


async def test_it_hashes_and_verifies_with_its_cost(made: Hasher) -> None:
    stored = hashes.parse_stored_hash(await made.hash("a password"))
    assert stored is not None
    assert stored.cost == TEST_COST
    assert await made.verify(["a password"], stored) == "a password"
    assert await made.verify(["another", "a password"], stored) == "a password"
    assert await made.verify(["another"], stored) is None
    assert await made.verify(["a password"], None) is None


async def test_one_thread_does_all_of_it(made: Hasher, spy: Spy) -> None:
    assert [await made.hash(name) for name in "12"] == ["1 at 4", "2 at 4"]
    assert len(spy.threads) == 1
    assert threading.get_ident() not in spy.threads


@on_linux
async def test_the_thread_is_nice_and_no_other(made: Hasher, spy: Spy) -> None:
    """Of idle priority it would not run at all on a host whose cores are all busy."""
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    await made.hash("1")
    assert spy.policy == os.SCHED_OTHER
    assert spy.niceness == before + THREAD_NICENESS
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@on_linux
async def test_a_backlog_is_verified_beside_other_hashes_and_after_them(
    made: Hasher, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "verify_password", lambda password, _, cost: spy.hash_password(password, cost) == "")
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    await made.verify(["1"], None)
    assert spy.niceness == before + THREAD_NICENESS
    await made.verify(["1"], None, is_backlog=True)
    assert spy.niceness == before + BACKLOG_NICENESS
    assert len(spy.threads) == 2


async def test_a_fault_while_hashing_reaches_the_caller(made: Hasher, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise LookupError("broken")

    monkeypatch.setattr(hashes, "verify_password", fail)
    with pytest.raises(LookupError, match="broken"):
        await made.verify(["x"], None)
    assert await made.hash("next")


@pytest.mark.parametrize("cost", [hashes.MIN_COST, 11])
def test_the_estimate_is_about_what_a_hash_takes(cost: int) -> None:
    begin = time.thread_time()
    hashes.dummy_hash(cost)
    seconds = time.thread_time() - begin
    assert seconds / 10 < estimate_seconds(cost) < seconds * 10


def test_other_programs_do_not_prolong_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a host that is busy for a moment at the start would refuse every login from then on."""
    cpu_seconds = iter([0.0, 5.0, 5.0, 5.25, 6.0, 7.0])
    monkeypatch.setattr(hasher, "time", SimpleNamespace(thread_time=lambda: next(cpu_seconds)))
    assert estimate_seconds(hasher.PROBE_COST + 2) == 1.0
