"""The coalescer's contract, on a clock that jumps from timer to timer, so that all times are exact."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authsvc.coalescer import GATHER_SECONDS, MAX_GATHER_SECONDS, MAX_IN_FLIGHT, MAX_KEYS, MAX_WAIT_SECONDS, Coalescer
from tests.virtual_clock import jumping, now

MOMENT_SECONDS = MAX_WAIT_SECONDS / 1000
"""Long enough for everything that needs no timer."""
PATIENCE_SECONDS = 1_000.0
HUNDRED = [f"k{number}" for number in range(MAX_KEYS)]
_tracer: ContextVar[str] = ContextVar("tracer")


class Batch:
    """A batch in flight, whose values the test gives.

    Args:
        keys: In order.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = list(keys)
        self.at = now()
        """When it was sent."""
        self._outcomes: asyncio.Queue[Mapping[str, str] | Exception | None] = asyncio.Queue()

    def answer(self, *keys: str, value: str = "value") -> None:
        """Give the values of all keys and end, or those of the keys that are named."""
        self._outcomes.put_nowait(dict.fromkeys(keys or self.keys, value))
        if not keys:
            self.end()

    def fail(self, error: Exception) -> None:
        self._outcomes.put_nowait(error)

    def end(self) -> None:
        self._outcomes.put_nowait(None)

    async def values(self) -> AsyncIterator[Mapping[str, str]]:
        while (outcome := await self._outcomes.get()) is not None:
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome


class Reads:
    """All batches, in the order of their sending."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(self, keys: Sequence[str]) -> AsyncIterator[Mapping[str, str]]:
        self.batches.append(Batch(keys))
        return self.batches[-1].values()

    @property
    def keys(self) -> list[list[str]]:
        return [batch.keys for batch in self.batches]


@pytest.fixture
def reads() -> Reads:
    return Reads()


@pytest.fixture
def coalescer(reads: Reads) -> Coalescer[str]:
    return Coalescer(reads)


Asked = asyncio.Task[Mapping[str, str | Exception]]


@pytest.fixture
def ask(coalescer: Coalescer[str]) -> Callable[..., Asked]:
    """Call get for keys, without awaiting it."""

    def ask(*keys: str, seconds: float = PATIENCE_SECONDS) -> Asked:
        return asyncio.ensure_future(coalescer.get(keys, now() + seconds))

    return ask


async def moment() -> None:
    await asyncio.sleep(MOMENT_SECONDS)


def assert_empty(coalescer: Coalescer[Any]) -> None:
    """Require that no other task and no key is left."""
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not coalescer._waiting  # noqa: SLF001 - a leak is not visible otherwise
    assert not coalescer._in_flight  # noqa: SLF001 - the same


@jumping
async def test_a_lone_read_goes_at_once(reads: Reads, ask: Callable[..., Asked]) -> None:
    for number in range(3):
        begun = now()
        asked = ask("a")
        await moment()
        assert reads.batches[number].at == begun
        reads.batches[number].answer(value=str(number))
        assert await asked == {"a": str(number)}
    assert reads.keys == [["a"]] * 3


@jumping
async def test_nothing_is_asked_for_nothing(reads: Reads, coalescer: Coalescer[str]) -> None:
    assert await coalescer.get([], now()) == {}
    assert reads.batches == []


@jumping
async def test_company_goes_together_in_order_and_once(reads: Reads, ask: Callable[..., Asked]) -> None:
    first = ask("first")
    others = [ask("c"), ask("a", "b"), ask("c"), ask("b", "d")]
    await moment()
    assert reads.keys == [["first"]]
    begun = now()
    reads.batches[0].answer()
    await moment()
    assert reads.keys == [["first"], ["c", "a", "b", "d"]]
    assert reads.batches[1].at == begun
    reads.batches[1].answer(value="other")
    assert await first == {"first": "value"}
    assert [list(answer) for answer in await asyncio.gather(*others)] == [["c"], ["a", "b"], ["c"], ["b", "d"]]


async def return_two(reads: Reads, ask: Callable[..., Asked]) -> None:
    """Let a batch of two keys return, after which the next one is gathered."""
    _ = ask("a", "b")
    await moment()
    reads.batches[0].answer()
    await moment()


@jumping
async def test_after_a_batch_of_several_the_next_one_gathers_while_keys_come(
    reads: Reads, ask: Callable[..., Asked]
) -> None:
    await return_two(reads, ask)
    for key in ("c", "d", "e"):
        _ = ask(key)
        await asyncio.sleep(GATHER_SECONDS * 0.9)
    await asyncio.sleep(2 * GATHER_SECONDS)
    assert reads.keys == [["a", "b"], ["c", "d", "e"]]
    reads.batches[1].answer()
    await asyncio.sleep(3 * GATHER_SECONDS)  # nobody comes
    _ = ask("f")
    await moment()
    assert reads.keys[2:] == [["f"]]


@jumping
async def test_gathering_ends_with_a_full_batch_and_in_a_steady_stream_of_keys(
    reads: Reads, ask: Callable[..., Asked]
) -> None:
    await return_two(reads, ask)
    _ = ask(*HUNDRED)
    await moment()
    assert reads.keys[1:] == [HUNDRED]
    reads.batches[1].answer()
    await moment()
    begun = now()
    keys = count()
    while len(reads.batches) == 2:
        _ = ask(f"more {next(keys)}")
        await asyncio.sleep(GATHER_SECONDS / 2)
    assert reads.batches[2].at == pytest.approx(begun + MAX_GATHER_SECONDS, rel=0.01)


@jumping
async def test_batches_that_return_while_keys_are_gathered(reads: Reads, ask: Callable[..., Asked]) -> None:
    _ = ask("a", "b")
    _ = ask(*HUNDRED)
    await moment()
    for batch in reads.batches[:2]:
        batch.answer()
    await moment()
    _ = ask("c")
    await asyncio.sleep(3 * GATHER_SECONDS)
    assert [batch.keys for batch in reads.batches[2:]] == [["c"]]


@jumping
async def test_a_key_in_flight_is_read_again_for_whoever_asks_later(reads: Reads, ask: Callable[..., Asked]) -> None:
    early = ask("a")
    await moment()
    late = ask("a")
    await moment()
    reads.batches[0].answer(value="old")
    assert await early == {"a": "old"}
    assert not late.done()
    await moment()
    reads.batches[1].answer(value="new")
    assert await late == {"a": "new"}


@jumping
async def test_a_second_batch_goes_though_the_first_never_ends(reads: Reads, ask: Callable[..., Asked]) -> None:
    hanging = ask("a")
    begun = now()
    other = ask("b")
    await asyncio.sleep(MAX_WAIT_SECONDS / 2)
    _ = ask("c")
    await asyncio.sleep(MAX_WAIT_SECONDS)
    assert reads.keys == [["a"], ["b", "c"]]
    assert reads.batches[1].at == pytest.approx(begun + MAX_WAIT_SECONDS)
    reads.batches[1].answer()
    assert await other == {"b": "value"}
    assert not hanging.done()
    begun = now()
    _ = ask("d")
    await asyncio.sleep(MAX_WAIT_SECONDS + MOMENT_SECONDS)
    assert reads.batches[2].at == pytest.approx(begun + MAX_WAIT_SECONDS)


@jumping
async def test_a_full_batch_goes_at_once_beside_one_in_flight(reads: Reads, ask: Callable[..., Asked]) -> None:
    _ = ask("a")
    _ = ask(*HUNDRED[1:])
    await asyncio.sleep(MAX_WAIT_SECONDS / 2)
    assert len(reads.batches) == 1
    begun = now()
    _ = ask(HUNDRED[0], "left")
    await asyncio.sleep(MAX_WAIT_SECONDS + MOMENT_SECONDS)
    assert reads.keys == [["a"], [*HUNDRED[1:], HUNDRED[0]], ["left"]]
    assert reads.batches[1].at == begun
    assert reads.batches[2].at == pytest.approx(begun + MAX_WAIT_SECONDS)


@jumping
async def test_the_batches_in_flight_are_bounded(reads: Reads, ask: Callable[..., Asked]) -> None:
    asked = [ask(*(f"{number}-{key}" for key in HUNDRED)) for number in range(MAX_IN_FLIGHT + 2)]
    await asyncio.sleep(10 * MAX_WAIT_SECONDS)
    assert len(reads.batches) == MAX_IN_FLIGHT
    reads.batches[3].answer()
    await asyncio.sleep(10 * MAX_WAIT_SECONDS)
    assert asked[3].done()
    assert len(reads.batches) == MAX_IN_FLIGHT + 1
    for batch in reads.batches[4:]:
        batch.answer()
    await moment()
    expected = [f"{number}-k0" for number in (MAX_IN_FLIGHT, MAX_IN_FLIGHT + 1)]
    assert [batch.keys[0] for batch in reads.batches[MAX_IN_FLIGHT:]] == expected


@jumping
async def test_a_key_for_which_nobody_waits_is_not_sent(reads: Reads, ask: Callable[..., Asked]) -> None:
    _ = ask("first")
    leaving, staying, alone = ask("a"), ask("a", "b"), ask("c")
    await moment()
    for each in (leaving, alone):
        each.cancel()
    await moment()
    reads.batches[0].answer()
    await moment()
    assert reads.keys == [["first"], ["a", "b"]]
    reads.batches[1].answer()
    assert await staying == {"a": "value", "b": "value"}


@jumping
async def test_no_batch_goes_where_all_have_left(
    reads: Reads, coalescer: Coalescer[str], ask: Callable[..., Asked]
) -> None:
    first, leaving = ask("first"), ask("a", "b")
    await moment()
    leaving.cancel()
    await moment()
    reads.batches[0].answer()
    await first
    await moment()
    assert reads.keys == [["first"]]
    assert_empty(coalescer)


@jumping
async def test_whoever_leaves_a_batch_in_flight_takes_nothing_from_others(
    reads: Reads, ask: Callable[..., Asked]
) -> None:
    _ = ask("first")
    leaving, staying = ask("a"), ask("a")
    await asyncio.sleep(2 * MAX_WAIT_SECONDS)
    leaving.cancel()
    await moment()
    reads.batches[1].answer()
    assert await staying == {"a": "value"}


@jumping
async def test_each_caller_has_its_own_deadline_and_what_came_by_then(reads: Reads, ask: Callable[..., Asked]) -> None:
    begun = now()
    short, long = ask("a", "b", seconds=0.2), ask("a", "b")
    await asyncio.sleep(2 * MAX_WAIT_SECONDS)
    reads.batches[0].answer("b")
    outcome = await short
    assert isinstance(outcome["a"], TimeoutError)
    assert outcome["b"] == "value"
    assert now() == pytest.approx(begun + 0.2)
    assert not long.done()
    reads.batches[0].answer("a")
    reads.batches[1].answer()
    assert await long == {"a": "value", "b": "value"}


@jumping
async def test_a_caller_whose_time_is_up_fails_at_once(reads: Reads, ask: Callable[..., Asked]) -> None:
    _ = ask("first")
    begun = now()
    late = ask("a", seconds=-1.0)
    assert isinstance((await late)["a"], TimeoutError)
    assert now() == begun
    reads.batches[0].answer()
    await moment()
    assert reads.keys == [["first"]]


@jumping
async def test_each_value_is_given_as_it_comes(reads: Reads, ask: Callable[..., Asked]) -> None:
    _ = ask("first")
    early, late = ask("a", "b"), ask("c")
    await asyncio.sleep(2 * MAX_WAIT_SECONDS)
    reads.batches[1].answer("a", "b")
    assert await early == {"a": "value", "b": "value"}
    assert not late.done()
    reads.batches[1].answer("c")
    assert await late == {"c": "value"}


@jumping
async def test_an_error_is_that_of_every_key_without_a_value(reads: Reads, ask: Callable[..., Asked]) -> None:
    error = ZeroDivisionError()
    asked = ask("a", "b")
    await moment()
    reads.batches[0].answer("a")
    reads.batches[0].fail(error)
    assert await asked == {"a": "value", "b": error}
    # The error leaves no state.
    again = ask("b")
    await asyncio.sleep(3 * GATHER_SECONDS)
    reads.batches[1].answer()
    assert await again == {"b": "value"}


@jumping
async def test_a_read_that_ends_early_leaves_nobody_waiting(reads: Reads, ask: Callable[..., Asked]) -> None:
    asked = ask("a")
    await moment()
    reads.batches[0].end()
    assert isinstance((await asked)["a"], LookupError)


@jumping
async def test_a_read_belongs_to_no_request() -> None:
    seen = []

    async def read(keys: Sequence[str]) -> AsyncIterator[Mapping[str, str]]:
        seen.append(_tracer.get("none"))
        yield dict.fromkeys(keys, "value")

    _tracer.set("request")
    await Coalescer(read).get(["a"], now() + 1)
    assert seen == ["none"]


def pending_futures() -> set["asyncio.Future[object]"]:
    """Return all pending futures of the process, those of other tests included."""
    gc.collect()
    # By type: isinstance asks lazy objects of Django for the class of what they stand for.
    return {each for each in gc.get_objects() if issubclass(type(each), asyncio.Future) and not each.done()}


@jumping
async def test_a_storm_of_the_impatient_leaves_nothing_behind_and_harms_nobody() -> None:
    """Callers are cancelled or time out at random moments; the values of a batch come one after another."""
    chance = random.Random(20300101)  # noqa: S311 - repeatable, not secret

    async def read(keys: Sequence[str]) -> AsyncIterator[Mapping[str, str]]:
        for key in keys:
            if chance.random() < 0.1:
                await asyncio.sleep(chance.uniform(0, 0.02))
            yield {key: key}

    coalescer = Coalescer(read)
    before = pending_futures()

    async def impatient(number: int) -> None:
        await asyncio.sleep(chance.uniform(0, 0.2))
        deadline = now() + chance.uniform(-0.01, 0.02)
        asked = asyncio.ensure_future(coalescer.get([f"k{number % 150}", f"i{number}"], deadline))
        await asyncio.sleep(chance.uniform(0, 0.02))
        if number % 2:
            asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    async def patient(number: int) -> None:
        await asyncio.sleep(chance.uniform(0, 0.2))
        keys = [f"k{(number + more) % 150}" for more in range(3)]
        assert await coalescer.get(keys, now() + PATIENCE_SECONDS) == {key: key for key in keys}

    await asyncio.gather(*map(impatient, range(1_000)), *map(patient, range(200)))
    await asyncio.sleep(1.0)
    assert_empty(coalescer)
    assert pending_futures() - before == set()


SECONDS = st.floats(0.0, 0.02)
KEYS = st.sampled_from(HUNDRED[:5])


@settings(deadline=None)
@given(
    asks=st.lists(st.tuples(SECONDS, st.sets(KEYS, min_size=1)), min_size=1, max_size=30),
    reads=st.lists(st.tuples(SECONDS, SECONDS, st.sets(KEYS)), min_size=1, max_size=10),
    write_seconds=st.floats(0.0005, 0.01),
)
@jumping
async def test_no_answer_is_older_than_its_question(
    asks: Collection[tuple[float, set[str]]], reads: Sequence[tuple[float, float, set[str]]], write_seconds: float
) -> None:
    """For any order and duration of reads, and keys whose value comes later, while a writer counts up."""
    written, numbers = 0, count()

    async def write() -> None:
        nonlocal written
        while True:
            written += 1
            await asyncio.sleep(write_seconds)

    async def read(keys: Sequence[str]) -> AsyncIterator[Mapping[str, int]]:
        before, after, late = reads[next(numbers) % len(reads)]
        await asyncio.sleep(before)
        value = written
        await asyncio.sleep(after)
        yield {key: value for key in keys if key not in late}
        await asyncio.sleep(after)
        yield {key: value for key in keys if key in late}

    coalescer = Coalescer(read)

    async def ask(seconds: float, keys: set[str]) -> None:
        await asyncio.sleep(seconds)
        asked_at = written
        for outcome in (await coalescer.get(keys, now() + PATIENCE_SECONDS)).values():
            assert not isinstance(outcome, Exception)
            assert outcome >= asked_at

    writer = asyncio.ensure_future(write())
    await asyncio.gather(*(ask(seconds, keys) for seconds, keys in asks))
    writer.cancel()
