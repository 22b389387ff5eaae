import asyncio

import pytest

from authsvc import deadline
from authsvc.pace import GAP_SECONDS, MAX_WAIT_SECONDS, Pace


class Clock:
    """The loop's time, which stands still until it is told otherwise, and what was slept."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock.now)
    return clock


async def test_one_alone_does_not_wait(clock: Clock) -> None:
    pace = Pace()
    for _ in range(3):
        await pace.turn()
        clock.now += GAP_SECONDS
    assert clock.waits == [0.0, 0.0, 0.0]


async def test_those_who_come_together_leave_one_after_another(clock: Clock) -> None:
    pace = Pace()
    for _ in range(40):
        await pace.turn()
    assert clock.waits == pytest.approx([number * GAP_SECONDS for number in range(40)])
    assert clock.waits[-1] < 0.05
    clock.now += 1
    await pace.turn()
    assert clock.waits[-1] == 0


async def test_nobody_waits_for_longer_than_a_second(clock: Clock) -> None:
    pace = Pace()
    for _ in range(10_000):
        await pace.turn()
    assert clock.waits[-1] == max(clock.waits) == MAX_WAIT_SECONDS


async def test_nobody_waits_beyond_their_deadline(clock: Clock) -> None:
    pace = Pace()
    for _ in range(500):
        await pace.turn()
    with deadline.within(0.1):
        await pace.turn()
    assert clock.waits[-1] == pytest.approx(0.1)
