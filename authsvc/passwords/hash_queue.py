"""The password-hashing queue: one thread of low priority, behind a short queue with two priorities.

One thread, for a hash takes a core for a quarter of a second, and validations must go on beside it. Attempts from
unknown sources come last and never get all slots: a flood of guesses neither locks nor crowds out a user.
"""

import asyncio
import os
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from authsvc import request_context
from authsvc.errors import OverloadedError
from authsvc.passwords import hashes
from authsvc.passwords.hashes import StoredHash
from authsvc.telemetry import metrics

CAPACITY = 16
"""Slots of hashes that are reserved, waiting or running; further ones are refused at once."""
UNKNOWN_SOURCE_CAPACITY = 12
"""How many of these slots unknown sources may use."""
THREAD_NICENESS = 5
"""Validations come first, but on a host whose cores are all busy the thread still gets a share."""
CONCURRENT_PREPARATIONS = 2
"""Slots per priority that may use the store at a time: one before the running hash, one for the next."""
_SMOOTHING = 0.2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Job:
    """A hash to compute, and the future of its result."""

    work: Callable[[], object]
    on_start: Callable[[], None]
    future: Future[Any] = field(default_factory=Future)

    def run(self) -> None:
        # Before the future runs: a caller that can no longer cancel it must know that it has started.
        self.on_start()
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.work()
        except BaseException as error:  # noqa: BLE001 - delivered to the caller
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


@dataclass(slots=True)
class _Lane:
    """The jobs of one priority, first in, first out.

    Args:
        jobs: Waiting ones, cancelled ones included.
        slots: How many slots are in use.
        preparations: Bounds those that use the store at a time.
    """

    jobs: deque[_Job] = field(default_factory=deque)
    slots: int = 0
    preparations: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT_PREPARATIONS))


@dataclass(slots=True)
class QueueSlot:
    """A reserved slot, for one hash.

    Args:
        is_used: Whether its hash was submitted: then the slot is released when the hash is done.
    """

    lane: _Lane
    is_used: bool = False


class HashQueue:
    """The queue and its thread.

    Args:
        cost: bcrypt's, of new hashes and of every failed attempt.
        capacity: Slots; further hashes are refused.
    """

    def __init__(self, cost: int, capacity: int = CAPACITY) -> None:
        self.cost = cost
        self._capacity = capacity
        self._thread = ThreadPoolExecutor(1, "hashing", initializer=_lower_priority)
        self._lock = threading.Lock()
        self._known, self._unknown = _Lane(), _Lane()
        # A starved thread needs more wall time than CPU time. With an empty queue only the CPU time counts, or an
        # estimate beyond every deadline would refuse all logins and never be corrected.
        self._seconds_per_hash = self._cpu_seconds_per_hash = _estimate_seconds(cost)

    def close(self) -> None:
        """Cancel waiting hashes, finish the running one."""
        for job in [*self._known.jobs, *self._unknown.jobs]:
            job.future.cancel()
        self._thread.shutdown()

    def require_capacity(self) -> None:
        """Refuse early what no priority could be given a slot for.

        Raises:
            OverloadedError: As reserve_slot.
        """
        with self._lock:
            self._require_capacity(self._known)

    @contextmanager
    def reserve_slot(self, *, is_unknown_source: bool = False) -> Iterator[QueueSlot]:
        """Reserve a slot for the body, which may use the store before it has something to hash.

        Args:
            is_unknown_source: Whether the lower priority applies.

        Raises:
            OverloadedError: The queue is full, or the hash would miss the request's deadline.
        """
        lane = self._unknown if is_unknown_source else self._known
        with self._lock:
            self._require_capacity(lane)
            lane.slots += 1
        metrics.HASHES_PENDING.inc()
        slot = QueueSlot(lane)
        try:
            yield slot
        finally:
            if not slot.is_used:
                self._release(lane)

    @asynccontextmanager
    async def prepare(self, slot: QueueSlot) -> AsyncIterator[bool]:
        """Wait until a slot is near the front of the queue; the body does the store work around the hash.

        Otherwise a burst of logins would use the store at once, for hashes that are seconds away.

        Yields:
            Whether the slot had to wait.

        Raises:
            OverloadedError: The slot was not near the front by the request's deadline.
        """
        preparations = slot.lane.preparations
        must_wait = preparations.locked()
        async with self._until_deadline():
            await preparations.acquire()
        try:
            self._require_time(jobs_ahead=0)
            yield must_wait
        finally:
            preparations.release()

    async def hash(self, password: str) -> str:
        """Return the hash under which a password is stored.

        Raises:
            OverloadedError: The queue is full, or the hash would miss the request's deadline.
        """
        with self.reserve_slot() as slot:
            return await self._run(lambda: hashes.hash_password(password, self.cost), slot)

    async def verify(
        self, password: str, stored: StoredHash | None, slot: QueueSlot, on_start: Callable[[], None] = lambda: None
    ) -> bool:
        """Tell whether a password is the stored one, at the same cost whatever is stored.

        Args:
            password: In NFC.
            stored: None where there is no readable hash.
            slot: Unused.
            on_start: Called in the hashing thread before the password is evaluated. Where this method raises without
                that call, the password was not evaluated.

        Raises:
            OverloadedError: The hash was not finished by the request's deadline.
        """
        return await self._run(lambda: hashes.verify_password(password, stored, self.cost), slot, on_start)

    async def _run(self, work: Callable[[], T], slot: QueueSlot, on_start: Callable[[], None] = lambda: None) -> T:
        job = _Job(lambda: self._timed(work), on_start)
        slot.is_used = True
        job.future.add_done_callback(lambda _: self._release(slot.lane))
        with self._lock:
            slot.lane.jobs.append(job)
        self._thread.submit(self._run_next)
        async with self._until_deadline():
            result: T = await asyncio.wrap_future(job.future)
        return result

    @asynccontextmanager
    async def _until_deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(request_context.deadline()):
                yield
        except TimeoutError:
            raise self._overloaded() from None

    def _require_capacity(self, lane: _Lane) -> None:
        unknown = self._unknown.slots
        # Of unknown sources only the running job is ahead of a known one: waiting ones are overtaken.
        jobs_ahead = self._known.slots + (unknown if lane is self._unknown else min(unknown, 1))
        is_lane_full = lane is self._unknown and unknown >= UNKNOWN_SOURCE_CAPACITY
        if self._slots >= self._capacity or is_lane_full:
            raise self._overloaded()
        self._require_time(jobs_ahead)

    def _require_time(self, jobs_ahead: int) -> None:
        """Refuse a hash that would miss the deadline behind that many others."""
        seconds = jobs_ahead * self._seconds_per_hash + self._cpu_seconds_per_hash
        if seconds > request_context.remaining_seconds():
            raise self._overloaded()

    @property
    def _slots(self) -> int:
        return self._known.slots + self._unknown.slots

    def _run_next(self) -> None:
        with self._lock:
            job = (self._known.jobs or self._unknown.jobs).popleft()
        job.run()

    def _release(self, lane: _Lane) -> None:
        with self._lock:
            lane.slots -= 1
        metrics.HASHES_PENDING.dec()

    def _overloaded(self) -> OverloadedError:
        metrics.HASHES_REFUSED.inc()
        return OverloadedError(timedelta(seconds=max(1.0, self._slots * self._seconds_per_hash)))

    def _timed(self, work: Callable[[], T]) -> T:
        begin, cpu_begin = time.monotonic(), time.thread_time()
        try:
            return work()
        finally:
            self._seconds_per_hash = _smoothed(self._seconds_per_hash, time.monotonic() - begin)
            self._cpu_seconds_per_hash = _smoothed(self._cpu_seconds_per_hash, time.thread_time() - cpu_begin)


def _estimate_seconds(cost: int) -> float:
    """Return the estimated CPU seconds of a hash, extrapolated from one of a sixteenth of its cost."""
    probe_cost = max(cost - 4, hashes.MIN_COST)
    begin = time.thread_time()
    hashes.dummy_hash(probe_cost)
    return (time.thread_time() - begin) * (1 << (cost - probe_cost))


def _smoothed(average: float, value: float) -> float:
    """Return the exponential moving average."""
    return average + _SMOOTHING * (value - average)


def _lower_priority() -> None:
    """Let validations come first; only Linux has priorities per thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), THREAD_NICENESS)
