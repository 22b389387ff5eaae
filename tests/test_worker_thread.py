import asyncio
import ctypes
import os
import platform
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest

from authsvc import worker_thread
from authsvc.worker_thread import WorkerThread

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a thread a priority of its own")
SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
PRINT_NICENESS = """
import asyncio, contextlib, os, sys, threading
from authsvc.worker_thread import WorkerThread

async def main():
    with contextlib.closing(WorkerThread("test", 5)) as thread:
        print(await thread.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))

os.nice(int(sys.argv[1]))
if os.getuid() == 0:
    os.setuid(65534)  # root may raise a priority
asyncio.run(main())
"""


@pytest.fixture
def thread() -> Iterator[WorkerThread]:
    with closing(WorkerThread("test")) as thread:
        yield thread


async def test_work_runs_in_one_thread_in_order(thread: WorkerThread) -> None:
    done: list[int] = []
    threads = {await thread.run(threading.get_ident) for _ in range(3)}
    await asyncio.gather(*(thread.run(lambda number=number: done.append(number)) for number in range(3)))  # type: ignore[misc]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert done == [0, 1, 2]


async def test_an_error_reaches_the_caller(thread: WorkerThread) -> None:
    def fail() -> None:
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        await thread.run(fail)
    assert await thread.run(lambda: "next") == "next"


async def test_closing_finishes_what_runs_and_drops_what_waits(thread: WorkerThread) -> None:
    entered, opened = threading.Event(), threading.Event()

    def block() -> bool:
        entered.set()
        return opened.wait()

    running = asyncio.create_task(thread.run(block))
    waiting = asyncio.create_task(thread.run(lambda: pytest.fail("ran")))
    await asyncio.to_thread(entered.wait)
    closed = asyncio.create_task(asyncio.to_thread(thread.close))
    await asyncio.wait([waiting])
    opened.set()
    await closed
    assert await running
    assert waiting.cancelled()


async def test_the_loop_pauses_only_while_work_is_pending(
    thread: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a saturated loop on one core the thread would not get the interpreter's lock for seconds."""
    pauses: list[float] = []
    opened = threading.Event()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            opened.set()

    monkeypatch.setattr(worker_thread, "time", SimpleNamespace(sleep=pause))
    monkeypatch.setattr(worker_thread, "PAUSE_INTERVAL_SECONDS", 0.0)
    work = [asyncio.create_task(thread.run(opened.wait)) for _ in range(2)]
    await asyncio.gather(*work)
    seen = len(pauses)
    assert pauses == [worker_thread.PAUSE_SECONDS] * seen
    await asyncio.sleep(0.001)
    assert len(pauses) == seen
    await thread.run(lambda: None)


async def test_elsewhere_than_on_linux_the_thread_is_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("would change the priority of the whole process")

    monkeypatch.setattr(worker_thread, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(os, "setpriority", refuse)
    with closing(WorkerThread("test", niceness=5)) as thread:
        assert await thread.run(lambda: "done") == "done"


@on_linux
@pytest.mark.parametrize(("own", "of_thread"), [(0, 5), (10, 15), (18, 19)])
def test_the_thread_of_a_process_of_low_priority_has_a_lower_one(own: int, of_thread: int) -> None:
    command = [sys.executable, "-c", PRINT_NICENESS, str(own)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(printed) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + of_thread)


@on_linux
@pytest.mark.skipif(platform.machine() not in SCHED_GETATTR, reason="has other numbers of system calls")
async def test_a_thread_of_low_priority_has_long_time_slices() -> None:
    own = time_slice_nanoseconds()
    with closing(WorkerThread("test", niceness=5)) as thread:
        lengthened = await thread.run(time_slice_nanoseconds)
    if not lengthened:
        pytest.skip("this kernel gives threads no time slices of their own")
    assert lengthened > own
    assert time_slice_nanoseconds() == own


def time_slice_nanoseconds() -> int:
    """Return the time slice of this thread; 0 where the kernel knows none."""
    attributes = ctypes.create_string_buffer(48)
    number = ctypes.c_long(SCHED_GETATTR[platform.machine()])
    assert ctypes.CDLL(None).syscall(number, 0, attributes, len(attributes), 0) == 0
    return int(struct.unpack("=IIQiIQQQ", attributes)[5])


@on_linux
async def test_elsewhere_than_on_x64_and_arm64_slices_are_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with closing(WorkerThread("test", niceness=5)) as thread:
        assert await thread.run(lambda: "done") == "done"
