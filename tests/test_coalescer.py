"""The coalescer's contract, on a clock that jumps from timer to timer, so that all times are exact."""

import asyncio
import gc
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authsvc import request_context
from authsvc.coalescer import IDLE_FLUSH_SECONDS, MAX_IN_FLIGHT, MAX_KEYS, MAX_WAIT_SECONDS, Coalescer
from authsvc.errors import RetryableStoreError, StoreUnavailableError
from authsvc.request_context import DEFAULT_DEADLINE_SECONDS
from authsvc.server.app import PRODUCTION_LIMITS
from tests.virtual_clock import jumping, now

MAX_READ_SECONDS = 1.0
MAX_ATTEMPTS = 4
PAUSE_SECONDS = 0.05
MOMENT_SECONDS = IDLE_FLUSH_SECONDS / 100
"""Long enough for everything that needs no timer."""
HUNDRED = [f"k{number}" for number in range(MAX_KEYS)]
pytestmark = pytest.mark.limits(PRODUCTION_LIMITS)
_tracer: ContextVar[str] = ContextVar("tracer")


class Batch:
    """A batch in flight, whose result the test sets.

    Args:
        keys: In order.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = list(keys)
        self.at = now()
        """When it was sent."""
        self.result: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()

    def answer(self, *keys: str, value: str = "value") -> None:
        """Answer all keys, or those named."""
        self.result.set_result(dict.fromkeys(keys or self.keys, value))

    def fail(self, error: Exception) -> None:
        self.result.set_exception(error)


class Reads:
    """All batches, in the order of their sending."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.respond: Callable[[Batch], None] | None = None
        """Sets the result of each batch at once; without it, the test does."""

    async def __call__(self, keys: Sequence[str]) -> Mapping[str, str]:
        batch = Batch(keys)
        self.batches.append(batch)
        if self.respond:
            self.respond(batch)
        return await batch.result

    @property
    def keys(self) -> list[list[str]]:
        return [batch.keys for batch in self.batches]


@pytest.fixture
def reads() -> Reads:
    return Reads()


@pytest.fixture
def coalescer(reads: Reads) -> Coalescer[str]:
    return Coalescer(reads, MAX_ATTEMPTS, lambda attempts: PAUSE_SECONDS * attempts)


Asked = asyncio.Task[Mapping[str, str | Exception]]


@pytest.fixture
def ask(coalescer: Coalescer[str]) -> Callable[..., Asked]:
    """Call get for keys, without awaiting it."""

    def ask(*keys: str, deadline_seconds: float | None = None) -> Asked:
        with request_context.time_limit(
            request_context.DEFAULT_DEADLINE_SECONDS if deadline_seconds is None else deadline_seconds
        ):
            return asyncio.ensure_future(coalescer.get(keys))

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
    assert await coalescer.get([]) == {}
    assert reads.batches == []


@jumping
async def test_company_goes_together_in_order_and_once(reads: Reads, ask: Callable[..., Asked]) -> None:
    first = ask("first")
    others = [ask("c"), ask("a", "b"), ask("c"), ask("b", "d")]
    await moment()
    assert reads.keys == [["first"]]
    reads.batches[0].answer()
    await moment()
    assert reads.keys == [["first"], ["c", "a", "b", "d"]]
    reads.batches[1].answer(value="other")
    assert await first == {"first": "value"}
    assert [list(answer) for answer in await asyncio.gather(*others)] == [["c"], ["a", "b"], ["c"], ["b", "d"]]


@jumping
async def test_a_key_under_way_is_read_again_for_whoever_asks_later(reads: Reads, ask: Callable[..., Asked]) -> None:
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


async def expect_more(reads: Reads, ask: Callable[..., Asked]) -> None:
    """Run a batch of two, after which further keys are expected."""
    asked = ask("x", "y")
    await moment()
    reads.batches[0].answer()
    await asked
    reads.batches.clear()


@jumping
async def test_where_company_is_expected_a_quiet_moment_is_waited_for(reads: Reads, ask: Callable[..., Asked]) -> None:
    await expect_more(reads, ask)
    begun = now()
    _ = ask("a")
    await asyncio.sleep(IDLE_FLUSH_SECONDS / 2)
    _ = ask("b")
    await asyncio.sleep(IDLE_FLUSH_SECONDS * 2)
    (batch,) = reads.batches
    assert batch.keys == ["a", "b"]
    # A key arrived during the first idle interval, and none during the second.
    assert batch.at == pytest.approx(begun + 2 * IDLE_FLUSH_SECONDS)


@jumping
async def test_a_batch_of_one_ends_the_expectation(reads: Reads, ask: Callable[..., Asked]) -> None:
    await expect_more(reads, ask)
    alone = ask("a")
    await asyncio.sleep(IDLE_FLUSH_SECONDS * 2)
    reads.batches[0].answer()
    await alone
    begun = now()
    _ = ask("b")
    await moment()
    assert reads.batches[1].at == begun


@jumping
async def test_new_keys_put_a_batch_off_to_a_limit(reads: Reads, ask: Callable[..., Asked]) -> None:
    await expect_more(reads, ask)
    begun = now()
    for number in range(20):
        _ = ask(f"k{number}")
        await asyncio.sleep(IDLE_FLUSH_SECONDS / 2)
    assert reads.batches[0].at == pytest.approx(begun + MAX_WAIT_SECONDS)
    assert len(reads.batches[0].keys) == pytest.approx(MAX_WAIT_SECONDS / IDLE_FLUSH_SECONDS * 2, abs=1)


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
async def test_a_full_batch_goes_at_once_beside_one_under_way(reads: Reads, ask: Callable[..., Asked]) -> None:
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
async def test_the_batches_under_way_are_bounded(reads: Reads, ask: Callable[..., Asked]) -> None:
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
    assert [batch.keys[0] for batch in reads.batches[MAX_IN_FLIGHT:]] == ["16-k0", "17-k0"]


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
async def test_whoever_leaves_a_batch_under_way_takes_nothing_from_others(
    reads: Reads, ask: Callable[..., Asked]
) -> None:
    await expect_more(reads, ask)
    leaving, staying = ask("a"), ask("a")
    await asyncio.sleep(3 * IDLE_FLUSH_SECONDS)
    leaving.cancel()
    await moment()
    reads.batches[0].answer()
    assert await staying == {"a": "value"}


@jumping
async def test_each_has_its_own_deadline(reads: Reads, ask: Callable[..., Asked]) -> None:
    await expect_more(reads, ask)
    begun = now()
    short, long = ask("a", deadline_seconds=0.2), ask("a")
    outcome = (await short)["a"]
    assert isinstance(outcome, StoreUnavailableError)
    assert outcome.cause == "no answer in time"
    assert now() == pytest.approx(begun + 0.2)
    assert not long.done()
    reads.batches[0].answer()
    assert await long == {"a": "value"}


@jumping
async def test_who_is_out_of_time_already_is_told_so_at_once(reads: Reads, ask: Callable[..., Asked]) -> None:
    _ = ask("first")
    begun = now()
    late = ask("a", deadline_seconds=-1.0)
    assert isinstance((await late)["a"], StoreUnavailableError)
    assert now() == begun
    reads.batches[0].answer()
    await moment()
    assert reads.keys == [["first"]]


@jumping
async def test_what_was_answered_is_told_at_once_and_the_rest_asked_for_again(
    reads: Reads, ask: Callable[..., Asked]
) -> None:
    await expect_more(reads, ask)
    answered, left_out = ask("a", "b"), ask("c")
    await asyncio.sleep(3 * IDLE_FLUSH_SECONDS)
    reads.batches[0].answer("a", "b")
    await moment()
    assert answered.done()
    assert not left_out.done()
    await asyncio.sleep(PAUSE_SECONDS - IDLE_FLUSH_SECONDS)
    assert len(reads.batches) == 1
    await asyncio.sleep(3 * IDLE_FLUSH_SECONDS)
    assert reads.keys == [["a", "b", "c"], ["c"]]
    reads.batches[1].answer()
    assert await left_out == {"c": "value"}


@jumping
async def test_a_key_that_is_always_left_out_is_given_up(
    reads: Reads, coalescer: Coalescer[str], ask: Callable[..., Asked]
) -> None:
    reads.respond = lambda batch: batch.answer("a")
    asked = await ask("a", "b")
    assert asked["a"] == "value"
    assert isinstance(asked["b"], StoreUnavailableError)
    assert asked["b"].cause == "keys were left out"
    assert reads.keys == [["a", "b"], *[["b"]] * (MAX_ATTEMPTS - 1)]
    # Each pause is longer than the one before.
    pauses = [later.at - earlier.at for earlier, later in pairwise(reads.batches)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= PAUSE_SECONDS
    await asyncio.sleep(MAX_ATTEMPTS * PAUSE_SECONDS)
    assert_empty(coalescer)


@jumping
async def test_whoever_joins_a_key_left_out_has_all_attempts(reads: Reads, ask: Callable[..., Asked]) -> None:
    """Regardless of the attempts that were made for earlier callers."""
    reads.respond = lambda batch: batch.answer("other")
    early = ask("other", "a")
    while len(reads.batches) < MAX_ATTEMPTS - 1:
        await moment()
    # The last attempt for the first caller waits behind MAX_IN_FLIGHT batches.
    reads.respond = None
    blocking = [ask(*(f"{number}-{key}" for key in HUNDRED)) for number in range(MAX_IN_FLIGHT)]
    await asyncio.sleep(MAX_ATTEMPTS * PAUSE_SECONDS)
    late = ask("a")
    await moment()
    reads.respond = lambda batch: batch.answer("other")
    for batch in reads.batches[-MAX_IN_FLIGHT:]:
        batch.answer()
    assert isinstance((await early)["a"], StoreUnavailableError)
    assert isinstance((await late)["a"], StoreUnavailableError)
    assert reads.keys.count(["a"]) == 2 * MAX_ATTEMPTS - 2
    assert all(asked.done() for asked in blocking)


@jumping
async def test_a_key_left_out_joins_whoever_asked_meanwhile(reads: Reads, ask: Callable[..., Asked]) -> None:
    early = ask("other", "a")
    await moment()
    reads.batches[0].answer("other")
    await asyncio.sleep(PAUSE_SECONDS - IDLE_FLUSH_SECONDS / 2)
    late = ask("a")
    await asyncio.sleep(2 * IDLE_FLUSH_SECONDS)
    assert reads.keys == [["other", "a"], ["a"]]
    reads.batches[1].answer()
    assert await late == {"a": "value"}
    assert (await early)["a"] == "value"


async def outage(ask: Callable[..., Asked], seconds: float) -> list[Asked]:
    """Ask for a new key every 10 ms."""
    end = now() + seconds
    asked: list[Asked] = []
    while now() < end:
        asked.append(ask(f"k{len(asked)}"))
        await asyncio.sleep(0.01)
    return asked


@jumping
async def test_an_outage_is_no_storm_and_its_end_is_noticed(
    reads: Reads, coalescer: Coalescer[str], ask: Callable[..., Asked]
) -> None:
    reads.respond = lambda batch: batch.fail(RetryableStoreError("down"))
    asked = await outage(ask, 10.0)
    # One batch after each pause; the longest pause follows MAX_ATTEMPTS failures.
    longest = PAUSE_SECONDS * MAX_ATTEMPTS
    assert 40 <= len(reads.batches) <= 10.0 / longest + MAX_ATTEMPTS
    given_up = [each.result() for each in asked if each.done()]
    assert len(given_up) > 900
    assert {str(outcome) for answer in given_up for outcome in answer.values()} == {"the store cannot answer: down"}

    reads.respond = lambda batch: batch.answer()
    before = now()
    waiting = [each for each in asked if not each.done()]
    fresh = ask("fresh")
    assert await fresh == {"fresh": "value"}
    assert now() - before < longest + 2 * IDLE_FLUSH_SECONDS
    assert {outcome for answer in await asyncio.gather(*waiting) for outcome in answer.values()} == {"value"}
    # The outage leaves no state: a lone key is sent at once again.
    await ask("alone")
    await asyncio.sleep(1.0)
    begun = now()
    await ask("alone")
    assert now() == begun
    assert_empty(coalescer)


@jumping
async def test_of_batches_that_fail_together_one_counts(reads: Reads, ask: Callable[..., Asked]) -> None:
    asked = [ask(*(f"{number}-{key}" for key in HUNDRED)) for number in range(MAX_IN_FLIGHT)]
    await moment()
    for pause in (PAUSE_SECONDS, 2 * PAUSE_SECONDS):
        failed = now()
        for batch in reads.batches:
            batch.fail(RetryableStoreError("reset"))
        reads.batches.clear()
        await asyncio.sleep(pause + MOMENT_SECONDS)
        assert reads.batches
        assert all(batch.at == pytest.approx(failed + pause) for batch in reads.batches)
    for batch in reads.batches:
        batch.answer()
    reads.respond = lambda batch: batch.answer()
    await asyncio.gather(*asked)


@jumping
async def test_a_batch_under_way_may_end_well_while_all_pause(reads: Reads, ask: Callable[..., Asked]) -> None:
    good = ask("a")
    await moment()
    bad = ask("b")
    await asyncio.sleep(MAX_WAIT_SECONDS + MOMENT_SECONDS)
    reads.batches[1].fail(RetryableStoreError("reset"))
    await moment()
    waiting = ask("c")
    await moment()
    reads.batches[0].answer()
    assert await good == {"a": "value"}
    await asyncio.sleep(PAUSE_SECONDS / 2)
    assert reads.keys == [["a"], ["b"]]
    reads.respond = lambda batch: batch.answer()
    assert [await bad, await waiting] == [{"b": "value"}, {"c": "value"}]


@jumping
async def test_the_quiet_is_not_broken_by_a_pause(reads: Reads, ask: Callable[..., Asked]) -> None:
    """A key that waited for further keys when the pause began is sent after the pause."""
    _ = ask("a")
    await moment()
    second = ask("b", "c")
    await asyncio.sleep(MAX_WAIT_SECONDS + MOMENT_SECONDS)
    reads.batches[1].answer()
    await second
    third = ask("d")
    await moment()
    reads.batches[0].fail(RetryableStoreError("reset"))
    reads.respond = lambda batch: batch.answer()
    begun = now()
    assert await third == {"d": "value"}
    assert now() - begun >= PAUSE_SECONDS


@pytest.mark.parametrize("error", [StoreUnavailableError("no such table"), ValueError("a bug")], ids=repr)
@jumping
async def test_any_other_error_is_final(reads: Reads, ask: Callable[..., Asked], error: Exception) -> None:
    reads.respond = lambda batch: batch.fail(error)
    assert await ask("a", "b") == {"a": error, "b": error}
    assert len(reads.batches) == 1
    # Nor does sending pause: the error is not retryable.
    reads.respond = lambda batch: batch.answer()
    begun = now()
    assert await ask("c") == {"c": "value"}
    assert now() - begun <= 2 * IDLE_FLUSH_SECONDS


@jumping
async def test_a_read_that_trickles_is_cut_and_made_again(reads: Reads, ask: Callable[..., Asked]) -> None:
    asked = ask("a")
    await asyncio.sleep(MAX_READ_SECONDS + PAUSE_SECONDS + MOMENT_SECONDS)
    assert reads.batches[0].result.cancelled()
    assert reads.keys == [["a"], ["a"]]
    reads.batches[1].answer()
    assert await asked == {"a": "value"}


@jumping
async def test_a_read_that_always_trickles_is_given_up(
    reads: Reads,
) -> None:
    hurried = Coalescer(reads, MAX_ATTEMPTS, lambda attempts: PAUSE_SECONDS * attempts, max_read_seconds=0.1)
    outcome = (await hurried.get(["a"]))["a"]
    assert isinstance(outcome, StoreUnavailableError)
    assert outcome.cause == "no answer in time"
    assert now() < DEFAULT_DEADLINE_SECONDS
    assert len(reads.batches) == MAX_ATTEMPTS


@jumping
async def test_a_read_belongs_to_no_request() -> None:
    seen = []

    async def read(keys: Sequence[str]) -> Mapping[str, str]:
        seen.append((_tracer.get("none"), request_context.remaining_seconds()))
        return dict.fromkeys(keys, "value")

    _tracer.set("request")
    with request_context.time_limit(0.5):
        await Coalescer(read, MAX_ATTEMPTS, lambda _: 0.0).get(["a"])
    assert seen == [("none", DEFAULT_DEADLINE_SECONDS)]


def pending_futures() -> set["asyncio.Future[object]"]:
    """Return all pending futures of the process, those of other tests included."""
    gc.collect()
    return {each for each in gc.get_objects() if isinstance(each, asyncio.Future) and not each.done()}


@jumping
async def test_a_storm_of_the_impatient_leaves_nothing_behind_and_harms_nobody() -> None:
    """Callers are cancelled or time out at random moments; some batches fail or leave keys out."""
    chance = random.Random(20300101)  # noqa: S311 - repeatable, not secret

    async def read(keys: Sequence[str]) -> Mapping[str, str]:
        await asyncio.sleep(chance.uniform(0, 0.02))
        if chance.random() < 0.1:
            raise RetryableStoreError("throttled")
        return {key: key for key in keys if chance.random() < 0.8}

    coalescer = Coalescer(read, 50, lambda _: chance.uniform(0, 0.01))
    before = pending_futures()

    async def impatient(number: int) -> None:
        await asyncio.sleep(chance.uniform(0, 0.2))
        with request_context.time_limit(chance.uniform(-0.01, 0.02)):
            asked = asyncio.ensure_future(coalescer.get([f"k{number % 150}", f"i{number}"]))
        await asyncio.sleep(chance.uniform(0, 0.02))
        if number % 2:
            asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    async def patient(number: int) -> None:
        await asyncio.sleep(chance.uniform(0, 0.2))
        keys = [f"k{(number + more) % 150}" for more in range(3)]
        assert await coalescer.get(keys) == {key: key for key in keys}

    with request_context.time_limit(1_000.0):
        await asyncio.gather(*map(impatient, range(1_000)), *map(patient, range(200)))
    await asyncio.sleep(1.0)
    assert_empty(coalescer)
    assert pending_futures() - before == set()


SECONDS = st.floats(0.0, 0.02)
KEYS = st.sampled_from(HUNDRED[:5])


@settings(deadline=None)
@given(
    asks=st.lists(st.tuples(SECONDS, st.sets(KEYS, min_size=1)), min_size=1, max_size=30),
    reads=st.lists(st.tuples(SECONDS, SECONDS, st.sets(KEYS), st.booleans()), min_size=1, max_size=10),
    write_seconds=st.floats(0.0005, 0.01),
)
@jumping
async def test_no_answer_is_older_than_its_question(
    asks: Collection[tuple[float, set[str]]], reads: Sequence[tuple[float, float, set[str], bool]], write_seconds: float
) -> None:
    """For any order and duration of reads, failures, and keys left out, while a writer counts up."""
    written, numbers = 0, count()

    async def write() -> None:
        nonlocal written
        while True:
            written += 1
            await asyncio.sleep(write_seconds)

    async def read(keys: Sequence[str]) -> Mapping[str, int]:
        before, after, left_out, fails = reads[next(numbers) % len(reads)]
        await asyncio.sleep(before)
        value = written
        await asyncio.sleep(after)
        if fails:
            raise RetryableStoreError("throttled")
        return {key: value for key in keys if key not in left_out}

    coalescer = Coalescer(read, MAX_ATTEMPTS, lambda attempts: PAUSE_SECONDS * attempts)

    async def ask(seconds: float, keys: set[str]) -> None:
        await asyncio.sleep(seconds)
        asked_at = written
        for outcome in (await coalescer.get(keys)).values():
            if isinstance(outcome, Exception):
                assert isinstance(outcome, StoreUnavailableError)
            else:
                assert outcome >= asked_at

    writer = asyncio.ensure_future(write())
    await asyncio.gather(*(ask(seconds, keys) for seconds, keys in asks))
    writer.cancel()
