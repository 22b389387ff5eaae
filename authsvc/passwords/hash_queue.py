"""The queue for the hashing thread: bounded, known sources first, nothing that would miss its deadline.

Unknown sources come last, run one at a time, and never get all slots: a flood of guesses neither locks nor crowds out a
user. While several of them queue up, they are a backlog: their work pauses between its steps, and their hashes have a
still lower priority.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import structlog

from authsvc import request_context
from authsvc.errors import OverloadedError
from authsvc.passwords.hasher import Hasher
from authsvc.telemetry import metrics

CAPACITY = 16
"""Slots, of running and waiting work; further work is refused at once."""
UNKNOWN_SOURCE_CAPACITY = 12
"""How many of these slots unknown sources may use."""
MAX_RUNNING = 2
"""One uses the hashing thread while the other uses the store."""
MAX_UNKNOWN_SOURCES_RUNNING = 1
"""With one core for the hash, validations share the other with the store calls of the next work."""
BACKLOG_PAUSE_SECONDS = 0.02
"""Between the steps of a backlog's work: its store calls in a row would hold validations up."""

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class QueueSlot:
    """A slot of the queue.

    Args:
        is_known_source: Whether the higher priority applies.
        hashes: How many hashes its work takes at most.
        front: Set when its work may run.
        is_backlog: Whether it came to the front as one of several unknown sources.
    """

    is_known_source: bool
    hashes: int
    front: asyncio.Event = field(default_factory=asyncio.Event)
    is_backlog: bool = False

    async def pause(self) -> None:
        """Leave the event loop to validations before the next step of work of a backlog."""
        if self.is_backlog:
            await asyncio.sleep(BACKLOG_PAUSE_SECONDS)


class HashQueue:
    """The queue. Work that has begun runs to its end, even if its caller is gone or out of time.

    Args:
        cost: bcrypt's, of new hashes and of every failed attempt.
        capacity: Slots.
    """

    def __init__(self, cost: int, capacity: int = CAPACITY) -> None:
        self.hasher = Hasher(cost)
        self._capacity = capacity
        self._waiting: list[QueueSlot] = []
        self._running: list[QueueSlot] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """Return how many slots are in use."""
        return len(self._running) + len(self._waiting)

    def close(self) -> None:
        """Stop the hashing thread."""
        self.hasher.close()

    async def aclose(self) -> None:
        """Finish the work whose callers are gone, then stop the hashing thread."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.close()

    async def hash(self, password: str) -> str:
        """Return the hash under which a password is stored, with the priority of a known source.

        Raises:
            OverloadedError: As enter and run.
        """
        return await self.run(await self.enter(), self.hasher.hash(password))

    async def enter(self, *, is_known_source: bool = True, hashes: int = 1) -> QueueSlot:
        """Wait in the queue until work may run.

        Args:
            is_known_source: Whether the higher priority applies.
            hashes: How many hashes the work takes at most.

        Returns:
            The slot, to be passed to run at once.

        Raises:
            OverloadedError: The queue is full, or the work would miss the request's deadline.
        """
        slot = QueueSlot(is_known_source, hashes)
        self._require_room(slot)
        metrics.HASHES_PENDING.inc()
        self._waiting.append(slot)
        self._advance()
        try:
            async with asyncio.timeout_at(request_context.deadline()):
                await slot.front.wait()
            self._require_time(hashes)
        except TimeoutError:
            self._leave(slot)
            raise self._overloaded() from None
        except BaseException:
            self._leave(slot)
            raise
        return slot

    async def run(self, slot: QueueSlot, work: Coroutine[Any, Any, T]) -> T:
        """Run the work of a slot.

        Raises:
            OverloadedError: It did not end by the request's deadline; it goes on.
        """
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._end(task, slot))
        done, _ = await asyncio.wait({task}, timeout=max(0.0, request_context.remaining_seconds()))
        if not done:
            raise self._overloaded()
        return task.result()

    def _end(self, task: asyncio.Task[Any], slot: QueueSlot) -> None:
        self._tasks.discard(task)
        self._leave(slot)
        with contextlib.suppress(asyncio.CancelledError):
            task.exception()  # retrieved: its caller may be gone

    def _leave(self, slot: QueueSlot) -> None:
        (self._running if slot in self._running else self._waiting).remove(slot)
        metrics.HASHES_PENDING.dec()
        self._advance()

    def _advance(self) -> None:
        """Let the next work run: that of known sources first, in the order of arrival."""
        while (slot := self._next()) is not None:
            self._waiting.remove(slot)
            self._running.append(slot)
            slot.is_backlog = not slot.is_known_source and _count_unknown(self._waiting) > 0
            slot.front.set()

    def _next(self) -> QueueSlot | None:
        """Return the slot whose work may run now; None where there is none."""
        slot = min(self._waiting, key=lambda waiting: not waiting.is_known_source, default=None)
        if slot is None or len(self._running) == MAX_RUNNING:
            return None
        has_place = slot.is_known_source or _count_unknown(self._running) < MAX_UNKNOWN_SOURCES_RUNNING
        return slot if has_place else None

    def _require_room(self, slot: QueueSlot) -> None:
        slots = [*self._running, *self._waiting]
        is_crowded = not slot.is_known_source and _count_unknown(slots) >= UNKNOWN_SOURCE_CAPACITY
        if len(slots) >= self._capacity or is_crowded:
            raise self._overloaded()
        overtaken = [other for other in self._waiting if slot.is_known_source and not other.is_known_source]
        hashes_ahead = sum(other.hashes for other in slots if other not in overtaken)
        if not hashes_ahead and not self._has_time(slot.hashes):
            needed = round(slot.hashes * self.hasher.seconds_per_hash, 3)
            _log.warning("deadline_shorter_than_hash", hash_seconds=needed, cost=self.hasher.cost)
        self._require_time(hashes_ahead + slot.hashes)

    def _require_time(self, hashes: int) -> None:
        """Refuse work that would end after the deadline with that many hashes."""
        if not self._has_time(hashes):
            raise self._overloaded()

    def _has_time(self, hashes: int) -> bool:
        return hashes * self.hasher.seconds_per_hash <= request_context.remaining_seconds()

    def _overloaded(self) -> OverloadedError:
        metrics.HASHES_REFUSED.inc()
        hashes = sum(slot.hashes for slot in [*self._running, *self._waiting])
        return OverloadedError(timedelta(seconds=max(1.0, hashes * self.hasher.seconds_per_hash)))


def _count_unknown(slots: Iterable[QueueSlot]) -> int:
    return sum(not slot.is_known_source for slot in slots)
