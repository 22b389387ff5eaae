"""Password hashing off the event loop: one thread at low priority, behind a short queue.

One thread, for a hash takes a core for a quarter of a second, and validations must go on beside it.
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

from authsvc import deadline, passwords
from authsvc.errors import OverloadedError

QUEUE_LIMIT = 16
"""Hashes that wait or run; more are refused at once."""
THREAD_NICENESS = 10
_SMOOTHING = 0.2

T = TypeVar("T")


class Hashing:
    """The hashing thread.

    Args:
        cost: bcrypt's cost of new hashes and of every failed attempt.
    """

    def __init__(self, cost: int) -> None:
        self.cost = cost
        self._thread = ThreadPoolExecutor(1, "hashing", initializer=_lower_priority)
        self._lock = threading.Lock()
        self._pending = 0
        self._seconds_per_job = 0.0

    def close(self) -> None:
        """Drop what waits, finish what runs."""
        self._thread.shutdown(cancel_futures=True)

    async def hash(self, password: str) -> str:
        """Return the form in which a password is kept.

        Raises:
            OverloadedError: It would not be finished by the request's deadline, or the queue is full.
        """
        return await self._run(lambda: passwords.hash_password(password, self.cost))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Tell whether a password is the stored one, at the same cost whatever is stored.

        Raises:
            OverloadedError: It would not be finished by the request's deadline, or the queue is full.
        """
        return await self._run(lambda: passwords.verify_password(password, stored, self.cost))

    async def _run(self, job: Callable[[], T]) -> T:
        self._admit()
        future = self._thread.submit(self._timed, job)
        future.add_done_callback(lambda _: self._leave())
        try:
            async with asyncio.timeout_at(deadline.at()):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise self._overloaded() from None

    def _admit(self) -> None:
        with self._lock:
            wait_seconds = (self._pending + 1) * self._seconds_per_job
            if self._pending >= QUEUE_LIMIT or wait_seconds > deadline.remaining_seconds():
                raise self._overloaded()
            self._pending += 1

    def _leave(self) -> None:
        with self._lock:
            self._pending -= 1

    def _overloaded(self) -> OverloadedError:
        return OverloadedError(timedelta(seconds=max(1.0, self._pending * self._seconds_per_job)))

    def _timed(self, job: Callable[[], T]) -> T:
        begin = time.monotonic()
        try:
            return job()
        finally:
            seconds = time.monotonic() - begin
            weight = _SMOOTHING if self._seconds_per_job else 1.0
            self._seconds_per_job += weight * (seconds - self._seconds_per_job)


def _lower_priority() -> None:
    """Let validations go first; only Linux gives a thread a priority of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), THREAD_NICENESS)
