import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from statistics import median
from typing import Any

import pytest

from authsvc import request_context
from authsvc.throttling.refusal_pacer import INTERVAL_SECONDS, MAX_WAIT_SECONDS, RefusalPacer


class Clock:
    """The loop's time, which goes on as it is told."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = 1000.0
        self._loop = loop
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, asyncio.TimerHandle, Callable[..., object], tuple[Any, ...]]] = []

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self._loop)
        heapq.heappush(self._due, (when, next(self._numbers), handle, callback, args))
        return handle

    async def go_on(self, seconds: float) -> None:
        """Do what is due in that time, each when it is due."""
        end = self.now + seconds
        await settled()
        while self._due and self._due[0][0] <= end:
            self.strike()
            await settled()
        self.now = end

    def strike(self) -> None:
        """Do what is due next, before any task goes on."""
        when, _, handle, callback, args = heapq.heappop(self._due)
        self.now = max(self.now, when)
        if not handle.cancelled():
            callback(*args)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    loop = asyncio.get_running_loop()
    clock = Clock(loop)
    monkeypatch.setattr(loop, "time", lambda: clock.now)
    monkeypatch.setattr(loop, "call_at", clock.call_at)
    return clock


@pytest.fixture
def pace() -> RefusalPacer:
    return RefusalPacer()


class Crowd:
    """Clients that ask for a turn, and how long each has waited."""

    def __init__(self, pace: RefusalPacer, clock: Clock) -> None:
        self._pace = pace
        self._clock = clock
        self.waits: list[float] = []

    async def come(self) -> None:
        begin = self._clock.now
        await self._pace.wait()
        self.waits.append(self._clock.now - begin)

    async def come_again_and_again(self) -> None:
        while True:
            await self.come()

    def gather(self, number: int) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.come()) for _ in range(number)]


@pytest.fixture
def crowd(pace: RefusalPacer, clock: Clock) -> Crowd:
    return Crowd(pace, clock)


async def test_one_alone_does_not_wait(crowd: Crowd, clock: Clock) -> None:
    for _ in range(3):
        await crowd.come()
        await clock.go_on(INTERVAL_SECONDS)
    assert crowd.waits == [0.0, 0.0, 0.0]


async def test_those_who_come_together_leave_one_after_another(crowd: Crowd, clock: Clock) -> None:
    crowd.gather(40)
    await clock.go_on(1.0)
    assert crowd.waits == pytest.approx([number * INTERVAL_SECONDS for number in range(40)])
    await crowd.come()
    assert crowd.waits[-1] == 0


async def test_a_loop_that_was_late_does_not_let_them_out_together(crowd: Crowd, clock: Clock) -> None:
    crowd.gather(40)
    await settled()
    clock.now += 10 * INTERVAL_SECONDS
    await clock.go_on(INTERVAL_SECONDS / 2)
    assert len(crowd.waits) <= 3


async def test_most_of_40_without_a_pause_wait_less_than_50_milliseconds(crowd: Crowd, clock: Clock) -> None:
    tasks = [asyncio.create_task(crowd.come_again_and_again()) for _ in range(40)]
    await clock.go_on(5.0)
    for task in tasks:
        task.cancel()
    assert median(crowd.waits) < 0.04  # which leaves some for the call itself
    # Besides, there are those whose patience ends.
    assert 5.0 / INTERVAL_SECONDS <= len(crowd.waits) < 1.3 * 5.0 / INTERVAL_SECONDS


async def test_who_comes_later_is_mostly_next_but_not_always(pace: RefusalPacer, clock: Clock) -> None:
    order: list[int] = []

    async def come(number: int) -> None:
        await pace.wait()
        order.append(number)

    tasks = [asyncio.create_task(come(number)) for number in range(40)]
    await clock.go_on(1.0)
    await asyncio.gather(*tasks)
    assert sorted(order) == list(range(40))
    assert order != [0, *range(39, 0, -1)]
    assert median(order[1:11]) > median(order[30:])


async def test_nobody_waits_for_longer_than_a_second(crowd: Crowd, clock: Clock) -> None:
    number = 2 * int(MAX_WAIT_SECONDS / INTERVAL_SECONDS)
    crowd.gather(number)
    await clock.go_on(MAX_WAIT_SECONDS)
    assert len(crowd.waits) == number
    assert max(crowd.waits) <= MAX_WAIT_SECONDS


async def test_who_came_together_do_not_give_up_together(crowd: Crowd, clock: Clock) -> None:
    """Or a crowd would come back as one, and keep the loop from others at each of its returns."""
    crowd.gather(1000)
    await clock.go_on(2.0)
    given_up = Counter(round(wait / MAX_WAIT_SECONDS, 1) for wait in crowd.waits)
    assert given_up.keys() >= {0.6, 0.7, 0.8, 0.9}
    assert max(given_up.values()) < 300


async def test_nobody_waits_beyond_their_deadline(crowd: Crowd, clock: Clock) -> None:
    with request_context.time_limit(0.1):
        crowd.gather(500)
        await clock.go_on(1.0)
    assert len(crowd.waits) == 500
    assert max(crowd.waits) == pytest.approx(0.1)


async def test_who_goes_away_takes_nobodys_turn(crowd: Crowd, clock: Clock) -> None:
    tasks = crowd.gather(40)
    await settled()
    for task in tasks[1:36]:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await clock.go_on(1.0)
    assert crowd.waits == pytest.approx([number * INTERVAL_SECONDS for number in range(5)])
    await crowd.come()
    assert crowd.waits[-1] == 0


async def test_a_turn_goes_to_somebody_who_is_still_there(crowd: Crowd, clock: Clock) -> None:
    tasks = crowd.gather(40)
    await settled()
    for task in tasks[2:]:
        task.cancel()
    clock.strike()
    await settled()
    assert crowd.waits == pytest.approx([0.0, INTERVAL_SECONDS])


async def test_all_may_go_away(crowd: Crowd, clock: Clock) -> None:
    for task in crowd.gather(3)[1:]:
        await settled()
        task.cancel()
    await settled()
    crowd.gather(2)  # before the time of those who are gone
    await clock.go_on(1.0)
    await crowd.come()
    assert crowd.waits == pytest.approx([0.0, INTERVAL_SECONDS, 2 * INTERVAL_SECONDS, 0.0])
