import asyncio
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from authsvc import request_context
from authsvc.errors import OverloadedError
from authsvc.passwords import hash_queue, hashes
from authsvc.passwords.hash_queue import CAPACITY, THREAD_NICENESS, UNKNOWN_SOURCE_CAPACITY, HashQueue
from tests.support import TEST_COST

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a thread a priority of its own")


class Gate:
    """Stands where passwords are hashed: lets nothing through until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.done: list[str] = []
        self.threads: set[int] = set()
        self.policy: int | None = None
        self.niceness: int | None = None

    def verify_password(self, password: str, _stored: str | None, cost: int) -> bool:
        return bool(self.hash_password(password, cost))

    def hash_password(self, password: str, cost: int) -> str:
        self.entered.set()
        self.opened.wait()
        self.done.append(password)
        self.threads.add(threading.get_ident())
        if sys.platform == "linux":
            thread = threading.get_native_id()
            self.policy, self.niceness = os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)
        return f"{password} at {cost}"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(hashes, "hash_password", gate.hash_password)
    monkeypatch.setattr(hashes, "verify_password", gate.verify_password)
    return gate


@pytest.fixture
def hasher(gate: Gate) -> Iterator[HashQueue]:
    hasher = HashQueue(TEST_COST)
    yield hasher
    gate.opened.set()
    hasher.close()


async def verify(
    hasher: HashQueue,
    password: str,
    stored: Any = None,
    *,
    is_unknown_source: bool = False,
    begin: Callable[[], None] = lambda: None,
) -> bool:
    with hasher.reserve_slot(is_unknown_source=is_unknown_source) as place:
        return await hasher.verify(password, stored, place, begin)


async def queued(hasher: HashQueue, *names: str) -> list[asyncio.Task[str]]:
    """Passwords that wait or run, in order."""
    tasks = [asyncio.create_task(hasher.hash(name)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def test_it_hashes_and_verifies_with_its_cost() -> None:
    hasher = HashQueue(TEST_COST)
    stored = await hasher.hash("a password")
    assert stored.startswith("$2b$04$")
    assert await verify(hasher, "a password", hashes.parse_stored_hash(stored))
    assert not await verify(hasher, "another", hashes.parse_stored_hash(stored))
    assert not await verify(hasher, "a password")
    hasher.close()


async def test_one_thread_does_all_of_it_in_turn(hasher: HashQueue, gate: Gate) -> None:
    gate.opened.set()
    tasks = await queued(hasher, "1", "2", "3")
    assert await asyncio.gather(*tasks) == ["1 at 4", "2 at 4", "3 at 4"]
    assert gate.done == ["1", "2", "3"]
    assert len(gate.threads) == 1
    assert threading.get_ident() not in gate.threads


@on_linux
async def test_the_thread_steps_back_for_validations(hasher: HashQueue, gate: Gate) -> None:
    gate.opened.set()
    before = os.sched_getscheduler(threading.get_native_id())
    await hasher.hash("1")
    assert gate.policy == os.SCHED_IDLE
    assert os.sched_getscheduler(threading.get_native_id()) == before


@on_linux
async def test_where_a_sandbox_knows_no_idle_threads_the_thread_is_nice(
    monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    gate.opened.set()
    with closing(HashQueue(TEST_COST)) as hasher:
        assert await hasher.hash("1") == "1 at 4"
    assert gate.niceness == THREAD_NICENESS


async def test_elsewhere_than_on_linux_the_thread_is_like_others(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("would change the priority of the whole process")

    monkeypatch.setattr(hash_queue, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    gate.opened.set()
    with closing(HashQueue(TEST_COST)) as hasher:
        assert await hasher.hash("1") == "1 at 4"


async def test_a_full_queue_refuses_at_once(hasher: HashQueue, gate: Gate) -> None:
    tasks = await queued(hasher, *map(str, range(CAPACITY)))
    with pytest.raises(OverloadedError) as refused:
        await hasher.hash("one too many")
    assert refused.value.retry_delay.total_seconds() >= 1
    with pytest.raises(OverloadedError):
        await verify(hasher, "one too many")
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert gate.done == [str(number) for number in range(CAPACITY)]
    assert await hasher.hash("afterwards") == "afterwards at 4"


async def strangers(hasher: HashQueue, *names: str) -> list[asyncio.Task[bool]]:
    """Strangers' passwords that wait or run, in order."""
    tasks = [asyncio.create_task(verify(hasher, name, is_unknown_source=True)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def test_strangers_never_get_all_places(hasher: HashQueue, gate: Gate) -> None:
    tasks: list[asyncio.Task[Any]] = [*await strangers(hasher, *map(str, range(UNKNOWN_SOURCE_CAPACITY)))]
    with pytest.raises(OverloadedError):
        await verify(hasher, "one stranger too many", is_unknown_source=True)
    tasks += await queued(hasher, *map(str, range(UNKNOWN_SOURCE_CAPACITY, CAPACITY)))
    with pytest.raises(OverloadedError):
        await verify(hasher, "one too many")
    gate.opened.set()
    await asyncio.gather(*tasks)


async def test_a_place_that_others_took_is_none_for_strangers(hasher: HashQueue, gate: Gate) -> None:
    tasks: list[asyncio.Task[Any]] = [*await queued(hasher, *map(str, range(CAPACITY)))]
    with pytest.raises(OverloadedError):
        await verify(hasher, "stranger", is_unknown_source=True)
    gate.opened.set()
    await asyncio.gather(*tasks)


async def test_strangers_come_last(hasher: HashQueue, gate: Gate) -> None:
    tasks: list[asyncio.Task[Any]] = [*await strangers(hasher, "runs", "stranger 1", "stranger 2")]
    await asyncio.to_thread(gate.entered.wait)
    tasks += [asyncio.create_task(verify(hasher, "known")), *await queued(hasher, "new")]
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert gate.done == ["runs", "known", "new", "stranger 1", "stranger 2"]


async def test_what_begins_is_told_and_what_waits_is_not(hasher: HashQueue, gate: Gate) -> None:
    begun: list[str] = []
    tasks = [asyncio.create_task(verify(hasher, name, begin=partial(begun.append, name))) for name in ("runs", "waits")]
    await asyncio.to_thread(gate.entered.wait)
    assert begun == ["runs"]
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert begun == ["runs", "waits"]


@dataclass
class SlowClock:
    """Makes every hash seem to take so long, and so much of a core."""

    seconds: float = 1.0
    cpu_seconds: float = 1.0
    _now: float = 0.0
    _cpu_now: float = 0.0

    def monotonic(self) -> float:
        self._now += self.seconds
        return self._now

    def thread_time(self) -> float:
        self._cpu_now += self.cpu_seconds
        return self._cpu_now


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> SlowClock:
    clock = SlowClock()
    monkeypatch.setattr(hash_queue, "time", clock)
    return clock


async def test_how_long_a_hash_takes_is_known_before_the_first(slow_clock: SlowClock, hasher: HashQueue) -> None:
    with request_context.time_limit(0.5), pytest.raises(OverloadedError):
        await hasher.hash("would end after a second")


async def test_the_first_estimate_is_about_what_a_hash_takes() -> None:
    with closing(HashQueue(TEST_COST + 4)) as hasher:
        begin = time.thread_time()
        hashes.dummy_hash(TEST_COST + 4)
        seconds = time.thread_time() - begin
        with request_context.time_limit(seconds / 10), pytest.raises(OverloadedError):
            hasher.require_capacity()
        with request_context.time_limit(seconds * 10):
            hasher.require_capacity()


async def test_what_would_end_too_late_is_refused_at_once(slow_clock: SlowClock, hasher: HashQueue, gate: Gate) -> None:
    gate.opened.set()
    await hasher.hash("measured")
    gate.opened.clear()
    (running,) = await queued(hasher, "runs")
    with request_context.time_limit(1.5), pytest.raises(OverloadedError):
        await hasher.hash("would end after 2 s")
    (waiting,) = await queued(hasher, "ends after 2 s")
    with request_context.time_limit(2.5), pytest.raises(OverloadedError) as refused:
        await hasher.hash("would end after 3 s")
    assert refused.value.retry_delay.total_seconds() == pytest.approx(2)
    gate.opened.set()
    await asyncio.gather(running, waiting)
    assert gate.done == ["measured", "runs", "ends after 2 s"]


async def test_the_strangers_that_others_overtake_do_not_delay_them(
    slow_clock: SlowClock, hasher: HashQueue, gate: Gate
) -> None:
    gate.opened.set()
    await hasher.hash("measured")
    gate.opened.clear()
    tasks: list[asyncio.Task[Any]] = [*await strangers(hasher, "runs", "waits 1", "waits 2")]
    with request_context.time_limit(2.5):
        with pytest.raises(OverloadedError):
            await verify(hasher, "would end after 4 s", is_unknown_source=True)
        tasks += await queued(hasher, "ends after 2 s")
    with request_context.time_limit(2.5), pytest.raises(OverloadedError):
        await hasher.hash("would end after 3 s")
    gate.opened.set()
    await asyncio.gather(*tasks)


async def test_the_estimate_follows_what_hashes_take(slow_clock: SlowClock, hasher: HashQueue, gate: Gate) -> None:
    gate.opened.set()
    await hasher.hash("slow")
    slow_clock.seconds = slow_clock.cpu_seconds = 0.001
    with request_context.time_limit(1.0), pytest.raises(OverloadedError):
        await hasher.hash("refused by the old estimate")
    await hasher.hash("fast")
    with request_context.time_limit(1.0):
        await hasher.hash("taken by the new one")


async def test_a_starved_thread_goes_on_once_nobody_is_ahead(
    slow_clock: SlowClock, hasher: HashQueue, gate: Gate
) -> None:
    """Or an estimate beyond every deadline would let nobody in to correct it."""
    gate.opened.set()
    slow_clock.seconds, slow_clock.cpu_seconds = 60.0, 0.25
    await hasher.hash("took a minute")
    with request_context.time_limit(0.2), pytest.raises(OverloadedError):
        await hasher.hash("needs longer at the best")
    gate.opened.clear()
    with request_context.time_limit(2.5):
        (taken,) = await queued(hasher, "nobody is ahead")
        with pytest.raises(OverloadedError):
            await hasher.hash("would end after a minute")
    gate.opened.set()
    assert await taken


async def test_a_place_is_taken_before_there_is_anything_to_hash(hasher: HashQueue, gate: Gate) -> None:
    gate.opened.set()
    with ExitStack() as places:
        for number in range(CAPACITY):
            hasher.require_capacity()
            places.enter_context(hasher.reserve_slot(is_unknown_source=number < UNKNOWN_SOURCE_CAPACITY))
        with pytest.raises(OverloadedError):
            hasher.require_capacity()
        with pytest.raises(OverloadedError):
            await hasher.hash("one too many")
    hasher.require_capacity()
    assert await hasher.hash("afterwards") == "afterwards at 4"


async def test_a_place_is_for_one_hash(hasher: HashQueue, gate: Gate) -> None:
    """It is free when that is done, and again when the next one is."""
    gate.opened.set()
    for _ in range(CAPACITY + 1):
        await verify(hasher, "a password")
        with hasher.reserve_slot():
            pass
    with ExitStack() as places:
        for _ in range(CAPACITY):
            places.enter_context(hasher.reserve_slot())
        with pytest.raises(OverloadedError):
            hasher.require_capacity()


async def in_turn(hasher: HashQueue, begun: list[str], name: str, *, is_unknown_source: bool) -> None:
    """Take a place and a turn, note it, and hash."""
    with hasher.reserve_slot(is_unknown_source=is_unknown_source) as place:
        async with hasher.prepare(place) as has_waited:
            begun.append(f"{name} {'has waited' if has_waited else 'at once'}")
            await hasher.verify(name, None, place)


@pytest.mark.parametrize("is_unknown_source", [True, False])
async def test_one_is_made_ready_while_another_is_hashed(
    hasher: HashQueue, gate: Gate, *, is_unknown_source: bool
) -> None:
    begun: list[str] = []
    tasks = [asyncio.create_task(in_turn(hasher, begun, name, is_unknown_source=is_unknown_source)) for name in "ABCD"]
    await asyncio.to_thread(gate.entered.wait)
    assert begun == ["A at once", "B at once"]
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert begun == ["A at once", "B at once", "C has waited", "D has waited"]
    await in_turn(hasher, begun, "E", is_unknown_source=is_unknown_source)
    assert begun[-1] == "E at once"


async def test_strangers_keep_nobody_elses_turn(hasher: HashQueue, gate: Gate) -> None:
    begun: list[str] = []
    tasks = [asyncio.create_task(in_turn(hasher, begun, name, is_unknown_source=True)) for name in "ABC"]
    await asyncio.to_thread(gate.entered.wait)
    tasks.append(asyncio.create_task(in_turn(hasher, begun, "known", is_unknown_source=False)))
    await asyncio.sleep(0)
    assert begun == ["A at once", "B at once", "known at once"]
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert gate.done == ["A", "known", "B", "C"]


async def test_a_turn_that_does_not_come_in_time_is_overload(hasher: HashQueue, gate: Gate) -> None:
    begun: list[str] = []
    tasks = [asyncio.create_task(in_turn(hasher, begun, name, is_unknown_source=True)) for name in "AB"]
    await asyncio.to_thread(gate.entered.wait)
    with request_context.time_limit(0.02), pytest.raises(OverloadedError):
        await in_turn(hasher, begun, "late", is_unknown_source=True)
    gate.opened.set()
    await asyncio.gather(*tasks)
    await in_turn(hasher, begun, "next", is_unknown_source=True)
    assert gate.done == ["A", "B", "next"]
    assert begun[2:] == ["next at once"]


async def test_a_turn_that_comes_too_late_for_a_hash_is_overload(
    slow_clock: SlowClock, hasher: HashQueue, gate: Gate
) -> None:
    """Whoever begins all the same asks the store in vain, and blames it."""
    gate.opened.set()
    begun: list[str] = []
    with hasher.reserve_slot() as place, request_context.time_limit(0.5), pytest.raises(OverloadedError):
        async with hasher.prepare(place):
            begun.append("too late")
    assert not begun
    await in_turn(hasher, begun, "next", is_unknown_source=False)
    assert begun == ["next at once"]


async def test_a_deadline_that_has_passed_is_refused_at_once(hasher: HashQueue, gate: Gate) -> None:
    with request_context.time_limit(-1.0), pytest.raises(OverloadedError):
        await hasher.hash("late")
    assert not gate.entered.is_set()


async def test_a_hash_that_takes_too_long_is_overload(hasher: HashQueue, gate: Gate) -> None:
    with request_context.time_limit(0.02), pytest.raises(OverloadedError):
        await hasher.hash("never ends")
    gate.opened.set()
    assert await hasher.hash("next") == "next at 4"


async def test_a_hash_that_nobody_waits_for_never_runs(hasher: HashQueue, gate: Gate) -> None:
    running, cancelled, waiting = await queued(hasher, "runs", "is cancelled", "waits")
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with request_context.time_limit(0.02), pytest.raises(OverloadedError):
        await hasher.hash("is too late")
    gate.opened.set()
    await asyncio.gather(running, waiting)
    assert gate.done == ["runs", "waits"]


async def test_a_cancelled_hash_gives_its_place_back(hasher: HashQueue, gate: Gate) -> None:
    tasks = await queued(hasher, *map(str, range(CAPACITY)))
    tasks[-1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[-1]
    (replacement,) = await queued(hasher, "replacement")
    gate.opened.set()
    await asyncio.gather(*tasks[:-1], replacement)
    assert "replacement" in gate.done


async def test_a_fault_while_hashing_reaches_whoever_waits(
    hasher: HashQueue, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise LookupError("broken")

    monkeypatch.setattr(hashes, "verify_password", fail)
    with pytest.raises(LookupError, match="broken"):
        await verify(hasher, "x")
    gate.opened.set()
    assert await hasher.hash("next") == "next at 4"


async def test_closing_finishes_what_runs_and_drops_what_waits(hasher: HashQueue, gate: Gate) -> None:
    running, waiting = await queued(hasher, "runs", "waits")
    await asyncio.to_thread(gate.entered.wait)
    closed = asyncio.create_task(asyncio.to_thread(hasher.close))
    await asyncio.wait([waiting])
    gate.opened.set()
    await closed
    assert await running == "runs at 4"
    assert waiting.cancelled()
    assert gate.done == ["runs"]
