"""The queue between the service and its standard error: a reader that stalls costs log lines, never a call."""

import atexit
import functools
import os
import select
import sys
import threading
from collections import deque
from enum import StrEnum
from queue import SimpleQueue

from authsvc.telemetry import metrics

MAX_LINES = 1000
"""Of each kind that wait to be written; further ones are dropped."""
FLUSH_SECONDS = 1.0
"""How long the end of the process waits for lines to be written."""
_STDERR = 2
_CLOSED = -1


class Kind(StrEnum):
    """The kinds of lines, in the order in which waiting lines are written."""

    AUDIT = "audit"
    EVENT = "event"
    REFUSAL = "refusal"
    """Audit lines that anybody can cause in any number."""


COUNT_DROPPED = {kind: metrics.LOG_LINES_DROPPED.labels(kind.value).inc for kind in Kind}
"""Count a line, or a number of lines, that could not be written."""


class LogQueue:
    """Writes lines in a thread of its own, and keeps their order within a kind.

    deque and SimpleQueue need no lock of ours, so a destructor may log in the middle of `put`.

    Args:
        descriptor: The file. It stays in blocking mode, which other processes share with it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = {kind: deque[bytes]() for kind in Kind}
        self._wake_ups = SimpleQueue[threading.Event | None]()
        # A daemon: the process ends while a write stalls.
        threading.Thread(target=self._run, name="log-queue", daemon=True).start()

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads the lines."""
        return os.isatty(self._descriptor)

    def put(self, kind: Kind, line: str) -> None:
        """Queue a line; drop and count it where too many wait."""
        waiting = self._waiting[kind]
        if len(waiting) >= MAX_LINES:
            COUNT_DROPPED[kind]()
            return
        waiting.append(line.encode(errors="backslashreplace") + b"\n")
        if self._wake_ups.empty():
            self._wake_ups.put(None)

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Wait until the queued lines are written; drop and count them where that takes longer."""
        is_written = threading.Event()
        self._wake_ups.put(is_written)
        if not is_written.wait(seconds):
            for kind in Kind:
                COUNT_DROPPED[kind](len(self._waiting[kind]))
                self._waiting[kind].clear()

    def _run(self) -> None:
        while True:
            is_written = self._wake_ups.get()
            for kind, lines in iter(self._next_lines, None):
                if not self._write(b"".join(lines)):
                    COUNT_DROPPED[kind](len(lines))
            if is_written is not None:
                is_written.set()

    def _next_lines(self) -> tuple[Kind, list[bytes]] | None:
        """Take the next lines of the first kind that has any: as many as a pipe keeps together, at least one.

        Several processes write to one pipe, which may mix what is longer than PIPE_BUF.
        """
        for kind, waiting in self._waiting.items():
            lines: list[bytes] = []
            size = 0
            while waiting and (not lines or size + len(waiting[0]) <= select.PIPE_BUF):
                lines.append(waiting.popleft())
                size += len(lines[-1])
            if lines:
                return kind, lines
        return None

    def _write(self, data: bytes) -> bool:
        """Write all of it, however long that takes; return whether that was possible."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # a process that shares the file has made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True


@functools.cache
def stderr_queue() -> LogQueue:
    """Return the process's queue to standard error, which is flushed when the process ends."""
    # Where it was closed before the start, its number may be that of another file by now.
    queue = LogQueue(_CLOSED if sys.__stderr__ is None else _STDERR)
    atexit.register(queue.flush)
    return queue
