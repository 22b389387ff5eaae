import asyncio
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
    """Replaces password hashing; blocks until it is opened."""

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
def queue(gate: Gate) -> Iterator[HashQueue]:
    queue = HashQueue(TEST_COST)
    yield queue
    gate.opened.set()
    queue.close()


async def verify(
    queue: HashQueue,
    password: str,
    stored: Any = None,
    *,
    is_unknown_source: bool = False,
    on_start: Callable[[], None] = lambda: None,
) -> bool:
    with queue.reserve_slot(is_unknown_source=is_unknown_source) as slot:
        return await queue.verify(password, stored, slot, on_start)


async def queued(queue: HashQueue, *names: str) -> list[asyncio.Task[str]]:
    """Queue passwords; return their hashes, in order."""
    tasks = [asyncio.create_task(queue.hash(name)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def test_it_hashes_and_verifies_with_its_cost() -> None:
    queue = HashQueue(TEST_COST)
    stored = await queue.hash("a password")
    assert stored.startswith("$2b$04$")
    assert await verify(queue, "a password", hashes.parse_stored_hash(stored))
    assert not await verify(queue, "another", hashes.parse_stored_hash(stored))
    assert not await verify(queue, "a password")
    queue.close()


async def test_one_thread_does_all_of_it_in_turn(queue: HashQueue, gate: Gate) -> None:
    gate.opened.set()
    tasks = await queued(queue, "1", "2", "3")
    assert await asyncio.gather(*tasks) == ["1 at 4", "2 at 4", "3 at 4"]
    assert gate.done == ["1", "2", "3"]
    assert len(gate.threads) == 1
    assert threading.get_ident() not in gate.threads


@on_linux
async def test_the_thread_is_nice_and_no_other(queue: HashQueue, gate: Gate) -> None:
    """Of idle priority it would not run at all on a host whose cores are all busy."""
    gate.opened.set()
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    await queue.hash("1")
    assert gate.policy == os.SCHED_OTHER
    assert gate.niceness == before + THREAD_NICENESS
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


async def test_elsewhere_than_on_linux_the_thread_is_like_others(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("would change the priority of the whole process")

    monkeypatch.setattr(hash_queue, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(os, "setpriority", refuse)
    gate.opened.set()
    with closing(HashQueue(TEST_COST)) as queue:
        assert await queue.hash("1") == "1 at 4"


async def test_a_full_queue_refuses_at_once(queue: HashQueue, gate: Gate) -> None:
    tasks = await queued(queue, *map(str, range(CAPACITY)))
    with pytest.raises(OverloadedError) as refused:
        await queue.hash("one too many")
    assert refused.value.retry_delay.total_seconds() >= 1
    with pytest.raises(OverloadedError):
        await verify(queue, "one too many")
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert gate.done == [str(number) for number in range(CAPACITY)]
    assert await queue.hash("afterwards") == "afterwards at 4"


async def unknown_sources(queue: HashQueue, *names: str) -> list[asyncio.Task[bool]]:
    """Queue passwords of unknown sources; return their verifications, in order."""
    tasks = [asyncio.create_task(verify(queue, name, is_unknown_source=True)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def test_strangers_never_get_all_places(queue: HashQueue, gate: Gate) -> None:
    tasks: list[asyncio.Task[Any]] = [*await unknown_sources(queue, *map(str, range(UNKNOWN_SOURCE_CAPACITY)))]
    with pytest.raises(OverloadedError):
        await verify(queue, "one unknown source too many", is_unknown_source=True)
    tasks += await queued(queue, *map(str, range(UNKNOWN_SOURCE_CAPACITY, CAPACITY)))
    with pytest.raises(OverloadedError):
        await verify(queue, "one too many")
    gate.opened.set()
    await asyncio.gather(*tasks)


async def test_a_place_that_others_took_is_none_for_strangers(queue: HashQueue, gate: Gate) -> None:
    tasks: list[asyncio.Task[Any]] = [*await queued(queue, *map(str, range(CAPACITY)))]
    with pytest.raises(OverloadedError):
        await verify(queue, "unknown", is_unknown_source=True)
    gate.opened.set()
    await asyncio.gather(*tasks)


async def test_strangers_come_last(queue: HashQueue, gate: Gate) -> None:
    tasks: list[asyncio.Task[Any]] = [*await unknown_sources(queue, "runs", "unknown 1", "unknown 2")]
    await asyncio.to_thread(gate.entered.wait)
    tasks += [asyncio.create_task(verify(queue, "known")), *await queued(queue, "new")]
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert gate.done == ["runs", "known", "new", "unknown 1", "unknown 2"]


async def test_what_begins_is_told_and_what_waits_is_not(queue: HashQueue, gate: Gate) -> None:
    started: list[str] = []
    tasks = [
        asyncio.create_task(verify(queue, name, on_start=partial(started.append, name))) for name in ("runs", "waits")
    ]
    await asyncio.to_thread(gate.entered.wait)
    assert started == ["runs"]
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert started == ["runs", "waits"]


@dataclass
class SlowClock:
    """Gives every hash a fixed duration and CPU time."""

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


async def test_how_long_a_hash_takes_is_known_before_the_first(slow_clock: SlowClock, queue: HashQueue) -> None:
    with request_context.time_limit(0.5), pytest.raises(OverloadedError):
        await queue.hash("would end after a second")


async def test_the_first_estimate_is_about_what_a_hash_takes() -> None:
    with closing(HashQueue(TEST_COST + 4)) as queue:
        begin = time.thread_time()
        hashes.dummy_hash(TEST_COST + 4)
        seconds = time.thread_time() - begin
        with request_context.time_limit(seconds / 10), pytest.raises(OverloadedError):
            queue.require_capacity()
        with request_context.time_limit(seconds * 10):
            queue.require_capacity()


async def test_what_would_end_too_late_is_refused_at_once(slow_clock: SlowClock, queue: HashQueue, gate: Gate) -> None:
    gate.opened.set()
    await queue.hash("measured")
    gate.opened.clear()
    (running,) = await queued(queue, "runs")
    with request_context.time_limit(1.5), pytest.raises(OverloadedError):
        await queue.hash("would end after 2 s")
    (waiting,) = await queued(queue, "ends after 2 s")
    with request_context.time_limit(2.5), pytest.raises(OverloadedError) as refused:
        await queue.hash("would end after 3 s")
    assert refused.value.retry_delay.total_seconds() == pytest.approx(2)
    gate.opened.set()
    await asyncio.gather(running, waiting)
    assert gate.done == ["measured", "runs", "ends after 2 s"]


async def test_the_strangers_that_others_overtake_do_not_delay_them(
    slow_clock: SlowClock, queue: HashQueue, gate: Gate
) -> None:
    gate.opened.set()
    await queue.hash("measured")
    gate.opened.clear()
    tasks: list[asyncio.Task[Any]] = [*await unknown_sources(queue, "runs", "waits 1", "waits 2")]
    with request_context.time_limit(2.5):
        with pytest.raises(OverloadedError):
            await verify(queue, "would end after 4 s", is_unknown_source=True)
        tasks += await queued(queue, "ends after 2 s")
    with request_context.time_limit(2.5), pytest.raises(OverloadedError):
        await queue.hash("would end after 3 s")
    gate.opened.set()
    await asyncio.gather(*tasks)


async def test_the_estimate_follows_what_hashes_take(slow_clock: SlowClock, queue: HashQueue, gate: Gate) -> None:
    gate.opened.set()
    await queue.hash("slow")
    slow_clock.seconds = slow_clock.cpu_seconds = 0.001
    with request_context.time_limit(1.0), pytest.raises(OverloadedError):
        await queue.hash("refused by the old estimate")
    await queue.hash("fast")
    with request_context.time_limit(1.0):
        await queue.hash("taken by the new one")


async def test_a_starved_thread_goes_on_once_nobody_is_ahead(
    slow_clock: SlowClock, queue: HashQueue, gate: Gate
) -> None:
    """Otherwise an estimate beyond every deadline would refuse every hash, and never be corrected."""
    gate.opened.set()
    slow_clock.seconds, slow_clock.cpu_seconds = 60.0, 0.25
    await queue.hash("took a minute")
    with request_context.time_limit(0.2), pytest.raises(OverloadedError):
        await queue.hash("needs longer at the best")
    gate.opened.clear()
    with request_context.time_limit(2.5):
        (taken,) = await queued(queue, "none is ahead")
        with pytest.raises(OverloadedError):
            await queue.hash("would end after a minute")
    gate.opened.set()
    assert await taken


async def test_a_place_is_taken_before_there_is_anything_to_hash(queue: HashQueue, gate: Gate) -> None:
    gate.opened.set()
    with ExitStack() as slots:
        for number in range(CAPACITY):
            queue.require_capacity()
            slots.enter_context(queue.reserve_slot(is_unknown_source=number < UNKNOWN_SOURCE_CAPACITY))
        with pytest.raises(OverloadedError):
            queue.require_capacity()
        with pytest.raises(OverloadedError):
            await queue.hash("one too many")
    queue.require_capacity()
    assert await queue.hash("afterwards") == "afterwards at 4"


async def test_a_place_is_for_one_hash(queue: HashQueue, gate: Gate) -> None:
    """It is released when the hash is done, and can be reserved again."""
    gate.opened.set()
    for _ in range(CAPACITY + 1):
        await verify(queue, "a password")
        with queue.reserve_slot():
            pass
    with ExitStack() as slots:
        for _ in range(CAPACITY):
            slots.enter_context(queue.reserve_slot())
        with pytest.raises(OverloadedError):
            queue.require_capacity()


async def prepare_and_verify(queue: HashQueue, started: list[str], name: str, *, is_unknown_source: bool) -> None:
    """Reserve a slot, prepare it, note the start, and verify."""
    with queue.reserve_slot(is_unknown_source=is_unknown_source) as slot:
        async with queue.prepare(slot) as has_waited:
            started.append(f"{name} {'has waited' if has_waited else 'at once'}")
            await queue.verify(name, None, slot)


@pytest.mark.parametrize("is_unknown_source", [True, False])
async def test_one_is_made_ready_while_another_is_hashed(
    queue: HashQueue, gate: Gate, *, is_unknown_source: bool
) -> None:
    started: list[str] = []
    tasks = [
        asyncio.create_task(prepare_and_verify(queue, started, name, is_unknown_source=is_unknown_source))
        for name in "ABCD"
    ]
    await asyncio.to_thread(gate.entered.wait)
    assert started == ["A at once", "B at once"]
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert started == ["A at once", "B at once", "C has waited", "D has waited"]
    await prepare_and_verify(queue, started, "E", is_unknown_source=is_unknown_source)
    assert started[-1] == "E at once"


async def test_strangers_keep_nobody_elses_turn(queue: HashQueue, gate: Gate) -> None:
    started: list[str] = []
    tasks = [asyncio.create_task(prepare_and_verify(queue, started, name, is_unknown_source=True)) for name in "ABC"]
    await asyncio.to_thread(gate.entered.wait)
    tasks.append(asyncio.create_task(prepare_and_verify(queue, started, "known", is_unknown_source=False)))
    await asyncio.sleep(0)
    assert started == ["A at once", "B at once", "known at once"]
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert gate.done == ["A", "known", "B", "C"]


async def test_a_turn_that_does_not_come_in_time_is_overload(queue: HashQueue, gate: Gate) -> None:
    started: list[str] = []
    tasks = [asyncio.create_task(prepare_and_verify(queue, started, name, is_unknown_source=True)) for name in "AB"]
    await asyncio.to_thread(gate.entered.wait)
    with request_context.time_limit(0.02), pytest.raises(OverloadedError):
        await prepare_and_verify(queue, started, "late", is_unknown_source=True)
    gate.opened.set()
    await asyncio.gather(*tasks)
    await prepare_and_verify(queue, started, "next", is_unknown_source=True)
    assert gate.done == ["A", "B", "next"]
    assert started[2:] == ["next at once"]


async def test_a_turn_that_comes_too_late_for_a_hash_is_overload(
    slow_clock: SlowClock, queue: HashQueue, gate: Gate
) -> None:
    """Otherwise a request without enough time would call the store, and report the store as unavailable."""
    gate.opened.set()
    started: list[str] = []
    with queue.reserve_slot() as slot, request_context.time_limit(0.5), pytest.raises(OverloadedError):
        async with queue.prepare(slot):
            started.append("too late")
    assert not started
    await prepare_and_verify(queue, started, "next", is_unknown_source=False)
    assert started == ["next at once"]


async def test_a_deadline_that_has_passed_is_refused_at_once(queue: HashQueue, gate: Gate) -> None:
    with request_context.time_limit(-1.0), pytest.raises(OverloadedError):
        await queue.hash("late")
    assert not gate.entered.is_set()


async def test_a_hash_that_takes_too_long_is_overload(queue: HashQueue, gate: Gate) -> None:
    with request_context.time_limit(0.02), pytest.raises(OverloadedError):
        await queue.hash("never ends")
    gate.opened.set()
    assert await queue.hash("next") == "next at 4"


async def test_a_hash_that_nobody_waits_for_never_runs(queue: HashQueue, gate: Gate) -> None:
    running, cancelled, waiting = await queued(queue, "runs", "is cancelled", "waits")
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with request_context.time_limit(0.02), pytest.raises(OverloadedError):
        await queue.hash("is too late")
    gate.opened.set()
    await asyncio.gather(running, waiting)
    assert gate.done == ["runs", "waits"]


async def test_a_cancelled_hash_gives_its_place_back(queue: HashQueue, gate: Gate) -> None:
    tasks = await queued(queue, *map(str, range(CAPACITY)))
    tasks[-1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[-1]
    (replacement,) = await queued(queue, "replacement")
    gate.opened.set()
    await asyncio.gather(*tasks[:-1], replacement)
    assert "replacement" in gate.done


async def test_a_fault_while_hashing_reaches_whoever_waits(
    queue: HashQueue, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise LookupError("broken")

    monkeypatch.setattr(hashes, "verify_password", fail)
    with pytest.raises(LookupError, match="broken"):
        await verify(queue, "x")
    gate.opened.set()
    assert await queue.hash("next") == "next at 4"


async def test_closing_finishes_what_runs_and_drops_what_waits(queue: HashQueue, gate: Gate) -> None:
    running, waiting = await queued(queue, "runs", "waits")
    await asyncio.to_thread(gate.entered.wait)
    closed = asyncio.create_task(asyncio.to_thread(queue.close))
    await asyncio.wait([waiting])
    gate.opened.set()
    await closed
    assert await running == "runs at 4"
    assert waiting.cancelled()
    assert gate.done == ["runs"]
