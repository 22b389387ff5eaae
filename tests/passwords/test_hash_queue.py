import asyncio
import threading
from collections.abc import Iterator

import pytest

from authsvc import request_context
from authsvc.errors import OverloadedError
from authsvc.passwords import hashes
from authsvc.passwords.hash_queue import (
    BACKLOG_PAUSE_SECONDS,
    CAPACITY,
    MAX_RUNNING,
    UNKNOWN_SOURCE_CAPACITY,
    HashQueue,
    QueueSlot,
)
from tests.support import TEST_COST, WITNESS


class Gate:
    """Replaces password hashing; blocks until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.done: list[str] = []

    def hash_password(self, password: str, _cost: int) -> str:
        self.entered.set()
        self.opened.wait()
        self.done.append(password)
        return f"hash of {password}"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(hashes, "hash_password", gate.hash_password)
    return gate


@pytest.fixture
def queue(gate: Gate) -> Iterator[HashQueue]:
    queue = HashQueue(TEST_COST)
    yield queue
    gate.opened.set()
    queue.close()


async def hashed(queue: HashQueue, name: str, *, is_known_source: bool = True, hashes: int = 1) -> str:
    slot = await queue.enter(is_known_source=is_known_source, hashes=hashes)
    return await queue.run(slot, queue.hasher.hash(name))


async def queued(
    queue: HashQueue, *names: str, is_known_source: bool = True, hashes: int = 1
) -> list[asyncio.Task[str]]:
    """Queue passwords; return their hashes, in order."""
    tasks = [asyncio.create_task(hashed(queue, name, is_known_source=is_known_source, hashes=hashes)) for name in names]
    await settled()
    return tasks


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_work_runs_in_the_order_of_arrival(queue: HashQueue, gate: Gate) -> None:
    gate.opened.set()
    tasks = await queued(queue, "1", "2", "3")
    assert await asyncio.gather(*tasks) == ["hash of 1", "hash of 2", "hash of 3"]
    assert gate.done == ["1", "2", "3"]
    assert len(queue) == 0


async def test_a_full_queue_refuses_at_once(queue: HashQueue, gate: Gate) -> None:
    tasks = await queued(queue, *map(str, range(CAPACITY)))
    assert len(queue) == CAPACITY
    for is_known_source in (True, False):
        with pytest.raises(OverloadedError) as refused:
            await queue.enter(is_known_source=is_known_source)
        assert refused.value.retry_delay.total_seconds() >= 1
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert gate.done == [str(number) for number in range(CAPACITY)]
    assert await queue.hash("afterwards") == "hash of afterwards"


async def test_unknown_sources_never_get_all_slots(queue: HashQueue, gate: Gate) -> None:
    tasks = await queued(queue, *map(str, range(UNKNOWN_SOURCE_CAPACITY)), is_known_source=False)
    with pytest.raises(OverloadedError):
        await queue.enter(is_known_source=False)
    tasks += await queued(queue, *map(str, range(UNKNOWN_SOURCE_CAPACITY, CAPACITY)))
    with pytest.raises(OverloadedError):
        await queue.enter()
    gate.opened.set()
    await asyncio.gather(*tasks)


async def test_known_sources_come_first(queue: HashQueue, gate: Gate) -> None:
    tasks = await queued(queue, "runs 1", "runs 2")
    tasks += await queued(queue, "unknown 1", "unknown 2", is_known_source=False)
    tasks += await queued(queue, "known 1", "known 2")
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert gate.done == ["runs 1", "runs 2", "known 1", "known 2", "unknown 1", "unknown 2"]


async def entering(queue: HashQueue, *, is_known_source: bool) -> asyncio.Task[QueueSlot]:
    task = asyncio.create_task(queue.enter(is_known_source=is_known_source))
    await settled()
    return task


async def leave(queue: HashQueue, entered: asyncio.Task[QueueSlot]) -> None:
    await queue.run(await entered, asyncio.sleep(0))
    await settled()


async def test_unknown_sources_run_one_at_a_time_beside_a_known_one(queue: HashQueue) -> None:
    """Otherwise the store calls of a flood's next guess take the core that its hash leaves to validations."""
    first, second, third = [await entering(queue, is_known_source=False) for _ in range(3)]
    known = await entering(queue, is_known_source=True)
    assert [task.done() for task in (first, second, third, known)] == [True, False, False, True]
    await leave(queue, known)
    assert not second.done()
    await leave(queue, first)
    assert second.done()
    assert not third.done()
    await leave(queue, second)
    await leave(queue, third)
    assert len(queue) == 0


async def test_unknown_sources_are_a_backlog_while_others_of_them_wait(queue: HashQueue) -> None:
    lone = await entering(queue, is_known_source=False)
    assert not (await lone).is_backlog
    second, third, known = [await entering(queue, is_known_source=is_known) for is_known in (False, False, True)]
    assert not (await known).is_backlog
    await leave(queue, lone)
    assert (await second).is_backlog
    await leave(queue, second)
    assert not (await third).is_backlog
    await leave(queue, known)
    await leave(queue, third)


async def test_only_a_backlog_pauses() -> None:
    loop = asyncio.get_running_loop()
    slot = QueueSlot(is_known_source=False, hashes=1)
    begin = loop.time()
    pause = slot.pause()
    with pytest.raises(StopIteration):  # ended without waiting
        pause.send(None)
    slot.is_backlog = True
    await slot.pause()
    assert loop.time() - begin >= BACKLOG_PAUSE_SECONDS


async def test_few_slots_run_at_a_time(queue: HashQueue, gate: Gate) -> None:
    """Otherwise a burst of logins would use the store at once, for hashes that are seconds away."""
    begun: list[str] = []

    async def work(name: str) -> None:
        begun.append(name)
        await queue.hasher.hash(name)

    async def run(name: str) -> None:
        await queue.run(await queue.enter(), work(name))

    tasks = [asyncio.create_task(run(name)) for name in "ABCD"]
    await asyncio.to_thread(gate.entered.wait)
    await settled()
    assert begun == ["A", "B"]
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert begun == ["A", "B", "C", "D"]


async def test_what_would_end_too_late_is_refused_at_once(queue: HashQueue, gate: Gate) -> None:
    queue.hasher.seconds_per_hash = 1.0
    tasks = await queued(queue, "ends after 1 s")
    with request_context.time_limit(1.5), pytest.raises(OverloadedError):
        await queue.enter()
    tasks += await queued(queue, "ends after 3 s", hashes=2)
    with request_context.time_limit(3.5), pytest.raises(OverloadedError) as refused:
        await queue.enter()
    assert refused.value.retry_delay.total_seconds() == pytest.approx(3)
    with request_context.time_limit(4.5), pytest.raises(OverloadedError):
        await queue.enter(hashes=2)
    gate.opened.set()
    await asyncio.gather(*tasks)


async def test_work_of_unknown_sources_that_known_ones_overtake_does_not_delay_them(
    queue: HashQueue, gate: Gate
) -> None:
    queue.hasher.seconds_per_hash = 0.5
    with request_context.time_limit(1.9):
        tasks = await queued(queue, "runs 1", "runs 2")
        tasks += await queued(queue, "waits", is_known_source=False)
        with pytest.raises(OverloadedError):
            await queue.enter(is_known_source=False)
        tasks += await queued(queue, "overtakes")
        with pytest.raises(OverloadedError):
            await queue.enter()
    gate.opened.set()
    assert await asyncio.gather(*tasks)


async def test_a_deadline_that_no_hash_can_meet_is_logged(queue: HashQueue, gate: Gate) -> None:
    """Otherwise nobody would learn that a client's deadline or the configured cost is wrong."""
    queue.hasher.seconds_per_hash = 3.0
    position = len(WITNESS.lines.getvalue())
    with request_context.time_limit(2.5), pytest.raises(OverloadedError):
        await queue.hash("x")
    assert not gate.entered.is_set()
    assert f'"hash_seconds": 3.0, "cost": {TEST_COST}' in WITNESS.lines.getvalue()[position:]


async def test_a_slot_that_is_at_the_front_too_late_is_overload(queue: HashQueue, gate: Gate) -> None:
    """Otherwise a request without enough time would call the store, and report the store as unavailable."""
    tasks = await queued(queue, "A", "B")
    with request_context.time_limit(0.02), pytest.raises(OverloadedError):
        await queue.enter()
    with request_context.time_limit(0.5):
        late = asyncio.create_task(queue.enter())
    await settled()
    queue.hasher.seconds_per_hash = 1.0
    gate.opened.set()
    with pytest.raises(OverloadedError):
        await late
    await asyncio.gather(*tasks)
    queue.hasher.seconds_per_hash = 0.0
    await queue.hash("next")
    assert gate.done == ["A", "B", "next"]


async def test_a_deadline_that_has_passed_is_refused_at_once(queue: HashQueue, gate: Gate) -> None:
    with request_context.time_limit(-1.0), pytest.raises(OverloadedError):
        await queue.hash("late")
    assert not gate.entered.is_set()


async def test_work_that_has_begun_ends_though_its_caller_is_out_of_time(queue: HashQueue, gate: Gate) -> None:
    with request_context.time_limit(0.02), pytest.raises(OverloadedError):
        await queue.hash("takes too long")
    assert len(queue) == 1
    gate.opened.set()
    assert await queue.hash("next") == "hash of next"
    assert gate.done == ["takes too long", "next"]


async def test_work_that_has_begun_ends_though_its_caller_is_gone(queue: HashQueue, gate: Gate) -> None:
    gone, other = await queued(queue, "gone", "other")
    await asyncio.to_thread(gate.entered.wait)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    gate.opened.set()
    await other
    assert gate.done == ["gone", "other"]


async def test_work_that_fails_unseen_leaves_no_trace(queue: HashQueue, gate: Gate) -> None:
    """asyncio would print the error of a task that nobody awaits."""

    async def fail() -> None:
        await asyncio.to_thread(gate.opened.wait)
        raise LookupError

    task = asyncio.create_task(queue.run(await queue.enter(), fail()))
    await settled()
    task.cancel()
    gate.opened.set()
    await queue.aclose()
    assert len(queue) == 0


async def test_a_waiting_caller_that_leaves_gives_its_slot_back(queue: HashQueue, gate: Gate) -> None:
    tasks = await queued(queue, *map(str, range(CAPACITY)))
    tasks[-1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[-1]
    tasks[-1:] = await queued(queue, "replacement")
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert gate.done == [*map(str, range(CAPACITY - 1)), "replacement"]


async def test_a_caller_that_leaves_at_the_front_gives_its_slot_back(queue: HashQueue, gate: Gate) -> None:
    """Between the moment its work may run and the moment it notices."""
    gate.opened.set()
    first, second = await queue.enter(), await queue.enter()
    leaves = asyncio.create_task(queue.enter())
    await settled()
    assert len(queue) == MAX_RUNNING + 1

    async def end() -> None:
        """End; once the next slot is at the front, and before its task runs, its caller leaves."""
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(leaves.cancel))

    await queue.run(first, end())
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert len(queue) == 1
    await queue.run(second, queue.hasher.hash("second"))
    assert await queue.hash("next") == "hash of next"
    assert len(queue) == 0


async def test_closing_finishes_what_has_begun(queue: HashQueue, gate: Gate) -> None:
    (task,) = await queued(queue, "runs")
    await asyncio.to_thread(gate.entered.wait)
    task.cancel()
    closing = asyncio.create_task(queue.aclose())
    await settled()
    assert not closing.done()
    gate.opened.set()
    await closing
    assert gate.done == ["runs"]
