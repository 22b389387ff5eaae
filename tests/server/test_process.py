"""Signals of a serving process, and its limit of open files."""

import asyncio
import os
import resource
import signal

import pytest

from authsvc.server.process import OPEN_FILES, on_signals, raise_open_files_limit
from tests.support import WITNESS

UNLIMITED = resource.RLIM_INFINITY


class Recorder:
    """Counts the calls of each reaction."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[str] = asyncio.Queue()
        on_signals(lambda: self.calls.put_nowait("stop"), lambda: self.calls.put_nowait("reload"))

    async def reaction_to(self, number: signal.Signals) -> str:
        os.kill(os.getpid(), number)
        return await self.calls.get()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether the process has a terminal, which a test changes."""
    state = {"is_open": False}
    monkeypatch.setattr(os, "isatty", lambda _: state["is_open"])
    return state


async def test_each_signal_has_its_reaction(terminal: dict[str, bool]) -> None:
    recorder = Recorder()
    for number in (signal.SIGTERM, signal.SIGINT):
        assert await recorder.reaction_to(number) == "stop"
    assert await recorder.reaction_to(signal.SIGHUP) == "reload"


async def test_a_terminal_that_is_closed_ends_the_process(terminal: dict[str, bool]) -> None:
    """Nobody could end it by Ctrl-C any more, and it would keep its ports."""
    terminal["is_open"] = True
    recorder = Recorder()
    assert await recorder.reaction_to(signal.SIGHUP) == "reload", "somebody sent it"
    terminal["is_open"] = False
    assert await recorder.reaction_to(signal.SIGHUP) == "stop", "the kernel sent it"


@pytest.mark.parametrize(
    ("before", "after", "warns"),
    [
        ((256, 256), None, True),
        ((256, 1024), 1024, True),
        ((1024, 1_048_576), OPEN_FILES, False),
        ((1024, UNLIMITED), OPEN_FILES, False),
        ((100_000, 100_000), None, False),
        ((UNLIMITED, UNLIMITED), None, False),
    ],
)
def test_the_limit_of_open_files_is_raised_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: int | None, *, warns: bool
) -> None:
    changes: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: changes.append(limits))
    position = len(WITNESS.lines.getvalue())
    raise_open_files_limit()
    assert changes == ([] if after is None else [(after, before[1])])
    assert ('"event": "few_open_files"' in WITNESS.lines.getvalue()[position:]) is warns
