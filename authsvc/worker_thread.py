"""A thread for work that blocks, which makes progress beside a saturated event loop."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

PAUSE_INTERVAL_SECONDS = 0.01
PAUSE_SECONDS = 0.00005
"""While work is pending, the event loop sleeps so long in every interval.

A saturated loop gives the interpreter's lock up only for moments. Where the process has one core, the thread is never
scheduled in such a moment: writes to SQLite then took longer than the 2.5 s of a store call.
"""

T = TypeVar("T")


class WorkerThread:
    """One thread, which does one piece of work after the other.

    Args:
        name: Of the thread.
        niceness: Added to the process's own, on Linux alone: only there a thread has a priority of its own.
    """

    def __init__(self, name: str, niceness: int = 0) -> None:
        self._executor = ThreadPoolExecutor(1, name, initializer=_lower_priority, initargs=(niceness,))
        self._pending = 0
        self._pause_timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Drop waiting work, finish the running one."""
        self._executor.shutdown(cancel_futures=True)

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of the work, or raise its error."""
        loop = asyncio.get_running_loop()
        self._pending += 1
        self._pause_timer = self._pause_timer or loop.call_later(PAUSE_INTERVAL_SECONDS, self._pause)
        try:
            return await loop.run_in_executor(self._executor, work)
        finally:
            self._pending -= 1

    def _pause(self) -> None:
        self._pause_timer = None
        if self._pending:
            time.sleep(PAUSE_SECONDS)
            self._pause_timer = asyncio.get_running_loop().call_later(PAUSE_INTERVAL_SECONDS, self._pause)


def _lower_priority(niceness: int) -> None:
    if niceness and sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
