"""A thread for work that blocks, which makes progress beside a saturated event loop."""

import asyncio
import ctypes
import os
import platform
import struct
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

TIME_SLICE_NANOSECONDS = 100_000_000
"""Linux's longest. A waking event loop takes the core at once from a thread whose slices are longer than its own."""
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""Numbers of the system call; the C library has a function for it since glibc 2.41 alone."""
_KEEP_POLICY = 0x08
_MAX_NICENESS = 19

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
    """Give this thread a lower priority than the process has, and longer time slices."""
    if not niceness or sys.platform != "linux":
        return
    thread = threading.get_native_id()
    niceness = min(os.getpriority(os.PRIO_PROCESS, thread) + niceness, _MAX_NICENESS)
    os.setpriority(os.PRIO_PROCESS, thread, niceness)
    if (number := _SCHED_SETATTR.get(platform.machine())) is not None:
        # Linux before 6.12 ignores the slice, and a sandbox may refuse the call: then wake-ups take longer, no more.
        attributes = struct.pack("=IIQiIQQQ", 48, 0, _KEEP_POLICY, niceness, 0, TIME_SLICE_NANOSECONDS, 0, 0)
        ctypes.CDLL(None).syscall(ctypes.c_long(number), 0, attributes, 0)
