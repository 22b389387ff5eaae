"""The queue to stderr: readers that stall, leave or share the file, and what is written first."""

import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client import REGISTRY

from authsvc.telemetry import audit, log_queue, logs
from authsvc.telemetry.audit import Event
from authsvc.telemetry.log_queue import MAX_LINES, Kind, LogQueue

NOBODY_WAITS = 0.0
PATIENT_SECONDS = 60.0


class Pipe:
    """A pipe that a queue writes to, full at first, so that the next write stalls."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._fill()

    def _fill(self) -> None:
        os.set_blocking(self.writer, False)
        self.filled = 0
        with suppress(BlockingIOError):
            while True:
                self.filled += os.write(self.writer, b"." * select.PIPE_BUF)
        os.set_blocking(self.writer, True)

    def drain(self) -> None:
        """Take out what it was filled with."""
        while self.filled:
            self.filled -= len(os.read(self.reader, self.filled))

    def lines(self, queue: LogQueue) -> list[str]:
        """Read all that the queue has, while it writes it."""
        self.drain()
        text = b""
        flush = threading.Thread(target=queue.flush, args=(PATIENT_SECONDS,))
        flush.start()
        os.set_blocking(self.reader, False)
        while flush.is_alive() or select.select([self.reader], [], [], 0)[0]:
            with suppress(BlockingIOError):
                text += os.read(self.reader, 1 << 20)
        flush.join()
        return text.decode().splitlines()

    def close(self) -> None:
        for descriptor in (self.reader, self.writer):
            with suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.drain()
    pipe.close()


@pytest.fixture
def stalled(pipe: Pipe) -> LogQueue:
    """A queue whose thread waits in a write."""
    queue = LogQueue(pipe.writer)
    queue.put(Kind.EVENT, "first")
    until(lambda: not queue._waiting[Kind.EVENT])  # noqa: SLF001 - nothing else shows that the write has begun
    return queue


def until(look: Callable[[], object]) -> None:
    while not look():
        pass


def dropped(kind: Kind) -> float:
    return REGISTRY.get_sample_value("authsvc_log_lines_dropped_total", {"kind": kind.value}) or 0.0


def test_every_kind_is_exposed_before_anything_is_dropped() -> None:
    names = {"audit", "event", "refusal"}
    assert {kind.value for kind in Kind} == names
    assert all(
        REGISTRY.get_sample_value("authsvc_log_lines_dropped_total", {"kind": name}) is not None for name in names
    )


def test_a_reader_that_stalls_costs_lines_and_nothing_else(pipe: Pipe, stalled: LogQueue) -> None:
    before = {kind: dropped(kind) for kind in Kind}
    for number in range(MAX_LINES + 5):
        stalled.put(Kind.REFUSAL, str(number))
    stalled.put(Kind.AUDIT, "login")
    assert {kind: dropped(kind) - before[kind] for kind in Kind} == {Kind.AUDIT: 0, Kind.EVENT: 0, Kind.REFUSAL: 5}
    assert pipe.lines(stalled) == ["first", "login", *map(str, range(MAX_LINES))]


def test_what_matters_most_is_written_first_and_in_order(pipe: Pipe, stalled: LogQueue) -> None:
    for number in range(3):
        for kind in (Kind.REFUSAL, Kind.EVENT, Kind.AUDIT):
            stalled.put(kind, f"{kind}{number}")
    in_order = [f"{kind}{number}" for kind in ("audit", "event", "refusal") for number in range(3)]
    assert pipe.lines(stalled) == ["first", *in_order]


@pytest.mark.parametrize("size", [select.PIPE_BUF - 1, select.PIPE_BUF, 1 << 20])
def test_a_line_of_any_length_arrives_whole(pipe: Pipe, stalled: LogQueue, size: int) -> None:
    stalled.put(Kind.EVENT, "x" * size)
    stalled.put(Kind.EVENT, "é\ud800")
    assert pipe.lines(stalled) == ["first", "x" * size, r"é\ud800"]


def test_a_file_that_others_made_non_blocking_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    queue = LogQueue(pipe.writer)
    lines = ["x" * 100_000, "y" * 100_000]
    for line in lines:
        queue.put(Kind.EVENT, line)
    assert pipe.lines(queue) == lines


def test_processes_that_share_a_pipe_do_not_mix_their_lines() -> None:
    """A pipe keeps a write of up to PIPE_BUF together."""
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with reader, writer:
        queue = LogQueue(writer.fileno())
        for number in range(100):
            queue.put(Kind.EVENT, f"{number:0200}")
        writes: list[bytes] = []
        while sum(write.count(b"\n") for write in writes) < 100:
            writes.append(reader.recv(1 << 20))
        queue.flush(PATIENT_SECONDS)
    assert all(len(write) <= select.PIPE_BUF and write.endswith(b"\n") for write in writes)
    assert len(b"".join(writes)) == 100 * 201


def test_lines_of_all_threads_arrive_once(pipe: Pipe) -> None:
    queue = LogQueue(pipe.writer)

    def put_all(own: int) -> None:
        for number in range(100):
            queue.put(Kind.EVENT, f"{own} {number}")

    threads = [threading.Thread(target=put_all, args=(own,)) for own in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = pipe.lines(queue)
    assert sorted(lines) == sorted(f"{own} {n}" for own in range(8) for n in range(100))
    assert [line for line in lines if line.startswith("3 ")] == [f"3 {n}" for n in range(100)]


def closed_reader(pipe: Pipe) -> None:
    os.close(pipe.reader)
    pipe.filled = 0


def closed_file(pipe: Pipe) -> None:
    os.close(pipe.writer)
    pipe.drain()


def full_disk(pipe: Pipe) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - as os.dup2 needs it
        os.dup2(full.fileno(), pipe.writer)


@pytest.mark.parametrize("fail", [closed_reader, closed_file, full_disk])
def test_what_cannot_be_written_is_counted_and_no_more(pipe: Pipe, fail: Callable[[Pipe], None]) -> None:
    """F17."""
    fail(pipe)
    queue = LogQueue(pipe.writer)
    before = dropped(Kind.AUDIT)
    for number in range(2):
        queue.put(Kind.AUDIT, "login")
        queue.flush(PATIENT_SECONDS)
        assert dropped(Kind.AUDIT) == before + number + 1


def test_the_end_waits_no_longer_than_it_may(stalled: LogQueue) -> None:
    before = dropped(Kind.AUDIT)
    stalled.put(Kind.AUDIT, "login")
    stalled.flush(NOBODY_WAITS)
    assert dropped(Kind.AUDIT) == before + 1


def test_without_a_stderr_at_the_start_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor may be a database by now."""
    monkeypatch.setattr(sys, "__stderr__", None)
    log_queue.stderr_queue.cache_clear()
    before = dropped(Kind.EVENT)
    log_queue.stderr_queue().put(Kind.EVENT, "lost")
    log_queue.stderr_queue().flush(PATIENT_SECONDS)
    log_queue.stderr_queue.cache_clear()
    assert dropped(Kind.EVENT) > before  # other tests may leave a line


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (Event.LOGIN, Kind.AUDIT),
        (Event.LOGIN_REFUSED, Kind.REFUSAL),
        (Event.LOGIN_THROTTLED, Kind.REFUSAL),
        (Event.REFRESH_REFUSED, Kind.REFUSAL),
        (Event.CALLER_REFUSED, Kind.REFUSAL),
        (Event.REFRESH_TOKEN_REUSE, Kind.AUDIT),
        (Event.KEYS_NOT_RELOADED, Kind.AUDIT),
    ],
)
def test_a_flood_of_refusals_pushes_out_no_other_audit_line(
    pipe: Pipe, stalled: LogQueue, event: Event, kind: Kind
) -> None:
    logs.configure("json", "info", stream=stalled)
    before = dropped(kind)
    for _ in range(MAX_LINES + 1):
        audit.record(event)
    assert dropped(kind) == before + 1
    audit.record(Event.USER_CREATED if kind is Kind.REFUSAL else Event.LOGIN_REFUSED)
    lines: list[Any] = pipe.lines(stalled)
    assert len(lines) == MAX_LINES + 2
    assert ('"user_created"' in lines[1]) is (kind is Kind.REFUSAL)
