"""Password hashing off the event loop: one thread at low priority, behind a short queue.

One thread, for a hash takes a core for a quarter of a second, and validations must go on beside it. Strangers, from
whose addresses nobody has logged in before, come last and never get all places: a flood of guesses holds up nobody
else.
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
from authsvc.telemetry import metrics

QUEUE_LIMIT = 16
"""Places of hashes that are to come, wait or run; more are refused at once."""
UNKNOWN_SOURCES_LIMIT = 12
"""How many of these may be strangers'."""
THREAD_NICENESS = 19
"""Where the thread cannot be an idle one."""
TURNS = 2
"""How many in a line do at a time what comes before and after a hash: one for each that is hashed, one to be next."""
_SMOOTHING = 0.2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Job:
    """A hash to compute, and who waits for it."""

    work: Callable[[], object]
    begin: Callable[[], None]
    future: Future[Any] = field(default_factory=Future)

    def run(self) -> None:
        # First, so that whoever could not cancel it knows that it began.
        self.begin()
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.work()
        except BaseException as error:  # noqa: BLE001 - it is for whoever waits
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


@dataclass(slots=True)
class _Line:
    """Jobs that go in turn.

    Args:
        jobs: Those that wait, cancelled ones included.
        pending: How many places are taken.
        turns: How many more may begin what comes before a hash.
    """

    jobs: deque[_Job] = field(default_factory=deque)
    pending: int = 0
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(TURNS))


@dataclass(slots=True)
class QueueSlot:
    """A place in the queue, for one hash.

    Args:
        is_used: Whether there is a hash: then the place is free when that is done.
    """

    line: _Line
    is_used: bool = False


class HashQueue:
    """The hashing thread.

    Args:
        cost: bcrypt's cost of new hashes and of every failed attempt.
    """

    def __init__(self, cost: int) -> None:
        self.cost = cost
        self._thread = ThreadPoolExecutor(1, "hashing", initializer=_lower_priority)
        self._lock = threading.Lock()
        self._first, self._last = _Line(), _Line()
        # A starved thread takes longer than its work; that must not keep the next job out once nobody is ahead.
        self._seconds_per_job = self._cpu_seconds_per_job = _estimated_seconds(cost)

    def close(self) -> None:
        """Drop what waits, finish what runs."""
        for job in [*self._first.jobs, *self._last.jobs]:
            job.future.cancel()
        self._thread.shutdown()

    def check_capacity(self) -> None:
        """Refuse whomever `place` would refuse now, stranger or not.

        Raises:
            OverloadedError: As there.
        """
        with self._lock:
            self._check_room(self._first)

    @contextmanager
    def place(self, *, is_unknown_source: bool = False) -> Iterator[QueueSlot]:
        """Take a place in the queue for the body, which may look things up before it has anything to hash.

        Args:
            is_unknown_source: Whether others go first.

        Raises:
            OverloadedError: A hash would not be finished by the request's deadline, or the queue is full.
        """
        line = self._last if is_unknown_source else self._first
        with self._lock:
            self._check_room(line)
            line.pending += 1
        metrics.HASHES_PENDING.inc()
        place = QueueSlot(line)
        try:
            yield place
        finally:
            if not place.is_used:
                self._leave(line)

    @asynccontextmanager
    async def turn(self, place: QueueSlot) -> AsyncIterator[bool]:
        """Wait until a place is near the front, and keep that for the body, which does what comes before the hash.

        Many who come at once would otherwise all ask the store at once, for hashes that are seconds away.

        Yields:
            Whether others went first.

        Raises:
            OverloadedError: It was not near the front by the request's deadline.
        """
        turns = place.line.turns
        must_wait = turns.locked()
        async with self._in_time():
            await turns.acquire()
        try:
            self._check_time(ahead=0)
            yield must_wait
        finally:
            turns.release()

    async def hash(self, password: str) -> str:
        """Return the form in which a password is kept.

        Raises:
            OverloadedError: It would not be finished by the request's deadline, or the queue is full.
        """
        with self.place() as place:
            return await self._run(lambda: hashes.hash_password(password, self.cost), place)

    async def verify(
        self, password: str, stored: str | None, place: QueueSlot, begin: Callable[[], None] = lambda: None
    ) -> bool:
        """Tell whether a password is the stored one, at the same cost whatever is stored.

        Args:
            password: In NFC.
            stored: A hash; None where there is none.
            place: Not used before.
            begin: Called in the hashing thread before the password is looked at. Where this method raises and has not
                called it, nobody has looked.

        Raises:
            OverloadedError: It was not finished by the request's deadline.
        """
        return await self._run(lambda: hashes.verify_password(password, stored, self.cost), place, begin)

    async def _run(self, work: Callable[[], T], place: QueueSlot, begin: Callable[[], None] = lambda: None) -> T:
        job = _Job(lambda: self._timed(work), begin)
        place.is_used = True
        job.future.add_done_callback(lambda _: self._leave(place.line))
        with self._lock:
            place.line.jobs.append(job)
        self._thread.submit(self._run_next)
        async with self._in_time():
            result: T = await asyncio.wrap_future(job.future)
        return result

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(request_context.deadline()):
                yield
        except TimeoutError:
            raise self._overloaded() from None

    def _check_room(self, line: _Line) -> None:
        strangers = self._last.pending
        # At most one stranger's job runs already; those that wait are overtaken.
        ahead = self._first.pending + (strangers if line is self._last else min(strangers, 1))
        is_full = self._pending >= QUEUE_LIMIT or (line is self._last and strangers >= UNKNOWN_SOURCES_LIMIT)
        if is_full:
            raise self._overloaded()
        self._check_time(ahead)

    def _check_time(self, ahead: int) -> None:
        """Refuse a hash that would not be finished in time, if so many are ahead of it."""
        seconds = ahead * self._seconds_per_job + self._cpu_seconds_per_job
        if seconds > request_context.remaining_seconds():
            raise self._overloaded()

    @property
    def _pending(self) -> int:
        return self._first.pending + self._last.pending

    def _run_next(self) -> None:
        with self._lock:
            job = (self._first.jobs or self._last.jobs).popleft()
        job.run()

    def _leave(self, line: _Line) -> None:
        with self._lock:
            line.pending -= 1
        metrics.HASHES_PENDING.dec()

    def _overloaded(self) -> OverloadedError:
        metrics.HASHES_REFUSED.inc()
        return OverloadedError(timedelta(seconds=max(1.0, self._pending * self._seconds_per_job)))

    def _timed(self, job: Callable[[], T]) -> T:
        begin, cpu_begin = time.monotonic(), time.thread_time()
        try:
            return job()
        finally:
            self._seconds_per_job = _smoothed(self._seconds_per_job, time.monotonic() - begin)
            self._cpu_seconds_per_job = _smoothed(self._cpu_seconds_per_job, time.thread_time() - cpu_begin)


def _estimated_seconds(cost: int) -> float:
    """Return about how long a hash takes, from one that is a sixteenth of it, before there was any."""
    probe_cost = max(cost - 4, hashes.MIN_COST)
    begin = time.thread_time()
    hashes.spend(probe_cost)
    return (time.thread_time() - begin) * (1 << (cost - probe_cost))


def _smoothed(average: float, value: float) -> float:
    """Return an average that follows the values."""
    return average + _SMOOTHING * (value - average)


def _lower_priority() -> None:
    """Let validations go first; only Linux gives a thread a priority of its own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        try:
            # Whatever is nicer, however nice, is not interrupted before the end of its slice.
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        except OSError:  # a sandbox that lacks it, gVisor for instance
            os.setpriority(os.PRIO_PROCESS, thread, THREAD_NICENESS)
