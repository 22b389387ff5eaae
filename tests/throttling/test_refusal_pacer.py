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
    """The event loop's time, which a test advances."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = 1000.0
        self._loop = loop
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, asyncio.TimerHandle, Callable[..., object], tuple[Any, ...]]] = []

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self._loop)
        heapq.heappush(self._due, (when, next(self._numbers), handle, callback, args))
        return handle

    async def advance(self, seconds: float) -> None:
        """Advance the time, and run each due callback at its time."""
        end = self.now + seconds
        await settled()
        while self._due and self._due[0][0] <= end:
            self.run_next()
            await settled()
        self.now = end

    def run_next(self) -> None:
        """Run the next callback, before any task continues."""
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
def pacer() -> RefusalPacer:
    return RefusalPacer()


class Crowd:
    """Clients whose refusals wait, and how long each has waited."""

    def __init__(self, pacer: RefusalPacer, clock: Clock) -> None:
        self._pacer = pacer
        self._clock = clock
        self.waits: list[float] = []

    async def refuse(self) -> None:
        begin = self._clock.now
        await self._pacer.wait()
        self.waits.append(self._clock.now - begin)

    async def refuse_repeatedly(self) -> None:
        while True:
            await self.refuse()

    def gather(self, number: int) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.refuse()) for _ in range(number)]


@pytest.fixture
def crowd(pacer: RefusalPacer, clock: Clock) -> Crowd:
    return Crowd(pacer, clock)


async def test_one_alone_does_not_wait(crowd: Crowd, clock: Clock) -> None:
    for _ in range(3):
        await crowd.refuse()
        await clock.advance(INTERVAL_SECONDS)
    assert crowd.waits == [0.0, 0.0, 0.0]


async def test_those_who_come_together_leave_one_after_another(crowd: Crowd, clock: Clock) -> None:
    crowd.gather(40)
    await clock.advance(1.0)
    assert crowd.waits == pytest.approx([number * INTERVAL_SECONDS for number in range(40)])
    await crowd.refuse()
    assert crowd.waits[-1] == 0


async def test_a_loop_that_was_late_does_not_let_them_out_together(crowd: Crowd, clock: Clock) -> None:
    crowd.gather(40)
    await settled()
    clock.now += 10 * INTERVAL_SECONDS
    await clock.advance(INTERVAL_SECONDS / 2)
    assert len(crowd.waits) <= 3


async def test_most_of_40_without_a_pause_wait_less_than_50_milliseconds(crowd: Crowd, clock: Clock) -> None:
    tasks = [asyncio.create_task(crowd.refuse_repeatedly()) for _ in range(40)]
    await clock.advance(5.0)
    for task in tasks:
        task.cancel()
    assert median(crowd.waits) < 0.04  # which leaves time for the call itself
    # Some time out, in addition.
    assert 5.0 / INTERVAL_SECONDS <= len(crowd.waits) < 1.3 * 5.0 / INTERVAL_SECONDS


async def test_who_comes_later_is_mostly_next_but_not_always(pacer: RefusalPacer, clock: Clock) -> None:
    order: list[int] = []

    async def refuse(number: int) -> None:
        await pacer.wait()
        order.append(number)

    tasks = [asyncio.create_task(refuse(number)) for number in range(40)]
    await clock.advance(1.0)
    await asyncio.gather(*tasks)
    assert sorted(order) == list(range(40))
    assert order != [0, *range(39, 0, -1)]
    assert median(order[1:11]) > median(order[30:])


async def test_nobody_waits_for_longer_than_a_second(crowd: Crowd, clock: Clock) -> None:
    number = 2 * int(MAX_WAIT_SECONDS / INTERVAL_SECONDS)
    crowd.gather(number)
    await clock.advance(MAX_WAIT_SECONDS)
    assert len(crowd.waits) == number
    assert max(crowd.waits) <= MAX_WAIT_SECONDS


async def test_who_came_together_do_not_give_up_together(crowd: Crowd, clock: Clock) -> None:
    """Otherwise clients would retry together, and block the event loop each time."""
    crowd.gather(1000)
    await clock.advance(2.0)
    given_up = Counter(round(wait / MAX_WAIT_SECONDS, 1) for wait in crowd.waits)
    assert given_up.keys() >= {0.6, 0.7, 0.8, 0.9}
    assert max(given_up.values()) < 300


async def test_nobody_waits_beyond_their_deadline(crowd: Crowd, clock: Clock) -> None:
    with request_context.time_limit(0.1):
        crowd.gather(500)
        await clock.advance(1.0)
    assert len(crowd.waits) == 500
    assert max(crowd.waits) == pytest.approx(0.1)


async def test_who_goes_away_takes_nobodys_turn(crowd: Crowd, clock: Clock) -> None:
    tasks = crowd.gather(40)
    await settled()
    for task in tasks[1:36]:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await clock.advance(1.0)
    assert crowd.waits == pytest.approx([number * INTERVAL_SECONDS for number in range(5)])
    await crowd.refuse()
    assert crowd.waits[-1] == 0


async def test_a_turn_goes_to_somebody_who_is_still_there(crowd: Crowd, clock: Clock) -> None:
    tasks = crowd.gather(40)
    await settled()
    for task in tasks[2:]:
        task.cancel()
    clock.run_next()
    await settled()
    assert crowd.waits == pytest.approx([0.0, INTERVAL_SECONDS])


async def test_all_may_go_away(crowd: Crowd, clock: Clock) -> None:
    for task in crowd.gather(3)[1:]:
        await settled()
        task.cancel()
    await settled()
    crowd.gather(2)  # before the timer of the cancelled ones
    await clock.advance(1.0)
    await crowd.refuse()
    assert crowd.waits == pytest.approx([0.0, INTERVAL_SECONDS, 2 * INTERVAL_SECONDS, 0.0])
