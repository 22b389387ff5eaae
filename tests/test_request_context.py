import asyncio
from contextvars import copy_context
from types import SimpleNamespace

import pytest

from authsvc import request_context
from authsvc.request_context import DEFAULT_DEADLINE_SECONDS, remaining_seconds, start_deadline, time_limit
from authsvc.server.app import PRODUCTION_LIMITS

pytestmark = pytest.mark.limits(PRODUCTION_LIMITS)


@pytest.fixture
def loop_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loop's clock, as a list of one."""
    now = [1000.0]

    loop = SimpleNamespace(time=lambda: now[0])
    monkeypatch.setattr(request_context, "asyncio", SimpleNamespace(get_running_loop=lambda: loop))
    return now


def test_without_a_request_there_is_a_full_budget(loop_time: list[float]) -> None:
    assert remaining_seconds() == DEFAULT_DEADLINE_SECONDS
    loop_time[0] += 5
    assert remaining_seconds() == DEFAULT_DEADLINE_SECONDS


@pytest.mark.parametrize(
    ("client_seconds", "expected"),
    [
        (None, DEFAULT_DEADLINE_SECONDS),
        (1.0, 0.9),
        (3600.0, DEFAULT_DEADLINE_SECONDS),
        (float("inf"), DEFAULT_DEADLINE_SECONDS),
        (0.0, 0.0),
        (-1.0, 0.0),
    ],
)
@pytest.mark.usefixtures("loop_time")
def test_the_earlier_deadline_counts_and_leaves_time_to_answer(client_seconds: float | None, expected: float) -> None:
    def ask() -> float:
        start_deadline(client_seconds)
        return remaining_seconds()

    assert copy_context().run(ask) == pytest.approx(expected)


def test_time_passes_until_the_deadline_and_beyond(loop_time: list[float]) -> None:
    with time_limit(2.5):
        at = request_context.deadline()
        loop_time[0] += 2.0
        assert remaining_seconds() == pytest.approx(0.5)
        loop_time[0] += 2.0
        assert remaining_seconds() == pytest.approx(-1.5)
        assert request_context.deadline() == at


@pytest.mark.usefixtures("loop_time")
def test_a_command_has_more_time() -> None:
    with time_limit(request_context.COMMAND_DEADLINE_SECONDS):
        assert remaining_seconds() == request_context.COMMAND_DEADLINE_SECONDS


@pytest.mark.usefixtures("loop_time")
def test_a_deadline_ends_with_its_request_even_a_failed_one() -> None:
    with pytest.raises(LookupError), time_limit(0.5):
        raise LookupError
    assert remaining_seconds() == DEFAULT_DEADLINE_SECONDS


@pytest.mark.usefixtures("loop_time")
async def test_requests_at_once_have_a_deadline_each() -> None:
    both_inside = asyncio.Barrier(2)

    async def request(client_seconds: float) -> float:
        start_deadline(client_seconds)
        await both_inside.wait()
        return request_context.deadline()

    sooner, later = await asyncio.gather(request(0.5), request(1.5))
    assert later - sooner == pytest.approx(0.9)


async def test_tasks_of_a_request_share_its_deadline() -> None:
    async def ask() -> float:
        return request_context.deadline()

    with time_limit(0.5):
        assert await asyncio.create_task(ask()) == request_context.deadline()
