"""Which processes run on which cores, and their CPU time and memory as Linux counts them."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ALL = sorted(os.sched_getaffinity(0))
SERVER = ALL[:1]
"""For each server with one worker, so that a figure is that of one core."""
REST = ALL[1:] or ALL
"""For the load generator, the engine and the proxies."""
_CPU_CLOCK_OF_PROCESS = 2


@contextmanager
def on(cores: Sequence[int]) -> Iterator[None]:
    """Pin the processes that are started inside to some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def describe() -> str:
    """Return a description of which process runs on which core."""
    if len(ALL) == 1:
        return "1 core: servers, engine and load generator share it"
    return (
        f"{len(ALL)} cores: servers of one process run on core {SERVER[0]}, "
        f"engine and load generator on {REST}; `workers-2` and `unpinned` run on all"
    )


def processes(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # gRPC's threads come and go
            for child in (task / "children").read_text().split():
                yield from processes(int(child))


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process and its descendants, ended threads included."""
    # The id of another process's CPU clock, as clock_getcpuclockid(3) computes it: /proc counts only in steps of 10 ms.
    return sum(time.clock_gettime(~each << 3 | _CPU_CLOCK_OF_PROCESS) for each in processes(pid))


def rss_mib(pid: int) -> float:
    """Return the resident memory of the largest of a process and its descendants."""
    return max(_resident_pages(each) for each in processes(pid)) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _resident_pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
