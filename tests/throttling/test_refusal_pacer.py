import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from authsvc import request_context
from authsvc.throttling.refusal_pacer import INTERVAL_SECONDS, MAX_WAIT_SECONDS, RefusalPacer


class Clock:
    """The loop's time, which a test advances."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = 1000.0
        self._loop = loop
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, asyncio.TimerHandle, Callable[..., object], tuple[Any, ...]]] = []

    def call_at(self, when: float, callback: Callable[..., object], *args: object, **_options: Any) -> Any:
        handle = asyncio.TimerHandle(when, callback, args, self._loop)
        heapq.heappush(self._due, (when, next(self._numbers), handle, callback, args))
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: object, **_options: Any) -> Any:
        return self.call_at(self.now + delay, callback, *args)

    async def advance(self, seconds: float) -> None:
        """Run what is due in that time, each at its time."""
        end = self.now + seconds
        await settled()
        while self._due and self._due[0][0] <= end:
            when, _, handle, callback, args = heapq.heappop(self._due)
            self.now = max(self.now, when)
            if not handle.cancelled():
                callback(*args)
            await settled()
        self.now = end


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    loop = asyncio.get_running_loop()
    clock = Clock(loop)
    monkeypatch.setattr(loop, "time", lambda: clock.now)
    monkeypatch.setattr(loop, "call_at", clock.call_at)
    monkeypatch.setattr(loop, "call_later", clock.call_later)
    return clock


class Crowd:
    """Clients that are refused, and how long each answer took."""

    def __init__(self, clock: Clock) -> None:
        self._pacer = RefusalPacer()
        self._clock = clock
        self.waits: list[float] = []

    async def arrive(self) -> float:
        begin = self._clock.now
        await self._pacer.wait()
        self.waits.append(self._clock.now - begin)
        return self.waits[-1]

    async def retry_without_pause(self) -> None:
        while True:
            await self.arrive()

    def gather(self, number: int) -> list[asyncio.Task[float]]:
        return [asyncio.ensure_future(self.arrive()) for _ in range(number)]


@pytest.fixture
def crowd(clock: Clock) -> Crowd:
    return Crowd(clock)


async def test_a_lone_refusal_is_answered_at_once(crowd: Crowd, clock: Clock) -> None:
    for _ in range(3):
        crowd.gather(1)
        await clock.advance(INTERVAL_SECONDS)
    assert crowd.waits == pytest.approx([0.0] * 3)


async def test_refusals_that_arrive_together_are_answered_one_by_one(crowd: Crowd, clock: Clock) -> None:
    crowd.gather(40)
    await clock.advance(40 * INTERVAL_SECONDS)
    assert crowd.waits == pytest.approx([number * INTERVAL_SECONDS for number in range(40)])


async def test_clients_that_retry_without_pause_get_no_faster_answers(crowd: Crowd, clock: Clock) -> None:
    """However many they are, as long as none waits for the longest time."""
    tasks = [asyncio.ensure_future(crowd.retry_without_pause()) for _ in range(40)]
    await clock.advance(5.0)
    for task in tasks:
        task.cancel()
    assert len(crowd.waits) == pytest.approx(5.0 / INTERVAL_SECONDS, rel=0.01)


FULL = int(MAX_WAIT_SECONDS / INTERVAL_SECONDS)
"""Refusals that arrive together and are all answered one by one."""


async def test_no_refusal_waits_longer_than_the_longest_wait(crowd: Crowd, clock: Clock) -> None:
    crowd.gather(2 * FULL)
    await clock.advance(MAX_WAIT_SECONDS)
    assert len(crowd.waits) == 2 * FULL
    assert max(crowd.waits) <= MAX_WAIT_SECONDS


async def test_what_the_bucket_does_not_hold_is_not_answered_at_once_or_together(crowd: Crowd, clock: Clock) -> None:
    """Clients that are answered together retry together."""
    tasks = crowd.gather(2 * FULL)
    await clock.advance(MAX_WAIT_SECONDS)
    waits = [task.result() for task in tasks]
    assert waits[:FULL] == pytest.approx([number * INTERVAL_SECONDS for number in range(FULL)])
    drawn = waits[FULL:]
    assert min(drawn) >= MAX_WAIT_SECONDS / 2
    windows = Counter(int(wait / (MAX_WAIT_SECONDS / 10)) for wait in drawn)
    assert max(windows.values()) < FULL / 2


async def test_after_a_flood_a_lone_refusal_is_answered_at_once_again(crowd: Crowd, clock: Clock) -> None:
    crowd.gather(1000)
    await clock.advance(MAX_WAIT_SECONDS + INTERVAL_SECONDS)
    crowd.waits.clear()
    crowd.gather(1)
    await clock.advance(0.0)
    assert crowd.waits == pytest.approx([0.0])


async def test_a_refusal_is_answered_before_its_deadline(crowd: Crowd, clock: Clock) -> None:
    """At the deadline the client would learn nothing of the refusal."""
    crowd.gather(FULL)
    with request_context.time_limit(0.1):
        (late,) = crowd.gather(1)
    await clock.advance(0.05)
    assert late.done()


async def test_a_refusal_whose_deadline_has_passed_is_answered_at_once(crowd: Crowd, clock: Clock) -> None:
    crowd.gather(FULL)
    with request_context.time_limit(-1.0):
        (late,) = crowd.gather(1)
    await clock.advance(0.0)
    assert late.done()


async def test_a_client_that_disconnects_harms_no_other(crowd: Crowd, clock: Clock) -> None:
    first, *others = crowd.gather(5)
    await clock.advance(0.0)
    others[0].cancel()
    await clock.advance(1.0)
    assert first.done()
    assert len(crowd.waits) == 4
