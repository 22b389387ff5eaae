import asyncio
import re
from contextvars import copy_context
from types import SimpleNamespace

import pytest

from authsvc import request_context
from authsvc.request_context import DEFAULT_DEADLINE_SECONDS, Trace, remaining_seconds, start_deadline, time_limit
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


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


def trace_of(*traceparents: str) -> Trace:
    """Return the trace of a call with these headers among others."""
    metadata: tuple[tuple[str, str | bytes], ...]
    metadata = (("user-agent", "grpc"), *(("traceparent", text) for text in traceparents), ("x-bin", b"\xff"))
    return Trace(lambda: metadata)


@pytest.mark.parametrize(
    ("text", "is_sampled"),
    [
        (TRACEPARENT, True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f"00-{TRACE_ID}-{SPAN_ID}-02", False),  # the random flag of level 2
        (f"00-{TRACE_ID}-{SPAN_ID}-03", True),
        (f"00-{TRACE_ID}-{SPAN_ID}-ff", True),
        (f"01-{TRACE_ID}-{SPAN_ID}-01", True),  # later versions may have more fields
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-will-be-like", True),
        (f"cc-{TRACE_ID}-{SPAN_ID}-00-", False),
    ],
)
def test_a_valid_traceparent_is_taken_up(text: str, is_sampled: bool) -> None:  # noqa: FBT001 - expected
    trace = trace_of(text)
    assert trace.trace_id == TRACE_ID
    assert trace.parent is not None
    assert (trace.parent.span_id, trace.parent.is_sampled) == (SPAN_ID, is_sampled)
    assert trace.span_id != SPAN_ID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "its own",
        TRACE_ID,
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID.upper()}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-0G",
        f"00-{TRACE_ID}-{SPAN_ID}-1",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{TRACE_ID[1:]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID[1:]}-01",
        f"00-{TRACE_ID}0-{SPAN_ID}-01",
        f"0-{TRACE_ID}-{SPAN_ID}-01",
        f"00_{TRACE_ID}_{SPAN_ID}_01",
        f"{TRACEPARENT}-",
        f"{TRACEPARENT}-more",
        f"{TRACEPARENT}00",
        f"cc-{TRACE_ID}-{SPAN_ID}-01more",
        f" {TRACEPARENT}",
        f"{TRACEPARENT} ",
        f"{TRACEPARENT}\n",
        f"{TRACEPARENT},{TRACEPARENT}",
        f"00-{'٤' * 32}-{SPAN_ID}-01",  # digits, but not ASCII
    ],
)
def test_without_a_valid_traceparent_the_trace_id_is_our_own(text: str) -> None:
    trace = trace_of(text)
    assert trace.parent is None
    assert trace.trace_id not in text
    assert re.fullmatch("[0-9a-f]{32}", trace.trace_id)


@pytest.mark.parametrize("traceparents", [(), (TRACEPARENT, TRACEPARENT), (TRACEPARENT, ""), ("", TRACEPARENT)])
def test_without_exactly_one_traceparent_the_trace_id_is_our_own(traceparents: tuple[str, ...]) -> None:
    assert trace_of(*traceparents).parent is None
    assert trace_of(*traceparents).trace_id != TRACE_ID
    assert Trace(lambda: None).parent is None


def test_the_identifiers_of_a_request_stay_and_are_no_others() -> None:
    traces = [Trace() for _ in range(1000)]
    identifiers = [(trace.trace_id, trace.span_id) for trace in traces]
    assert [(trace.trace_id, trace.span_id) for trace in traces] == identifiers
    assert len({trace_id for trace_id, _ in identifiers}) == len({span_id for _, span_id in identifiers}) == 1000
    assert all(re.fullmatch("[0-9a-f]{32} [0-9a-f]{16}", " ".join(pair)) for pair in identifiers)


def test_metadata_are_read_once() -> None:
    reads: list[None] = []
    trace = Trace(lambda: reads.append(None))
    assert (trace.metadata, trace.parent, len(trace.trace_id)) == ((), None, 32)
    assert reads == [None]
