"""Coalescing: what is sent together, who shares an answer, and that no caller harms another."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authsvc.client import Identity, InvalidTokenError, UnavailableError
from authsvc.client.stats import Counts
from authsvc.client.validation.batches import (
    MAX_IN_FLIGHT,
    MAX_TOKENS,
    MAX_WAIT_SECONDS,
    SLOT_SECONDS,
    Batcher,
    Question,
    give_up,
)
from authsvc.client.validation.cache import Answer, Cache
from tests.client.doubles import Service, identity, loop_clock, question
from tests.virtual_clock import jumping, now

WAIT = MAX_WAIT_SECONDS


@dataclass
class Rig:
    """A batcher on a virtual clock."""

    service: Service = field(default_factory=Service)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.cache = Cache(100, loop_clock())
        self.batcher = Batcher(self.service.send, self.cache, loop_clock(), self.counts)

    async def ask(
        self, token: str, budget: float = 0.0, timeout: float = 2.5, stale: float = 0.0, after: float = 0.0
    ) -> Answer:
        if after:
            await asyncio.sleep(after)
        return await self.batcher.ask(question(token, stale), budget, timeout)

    async def ask_all(self, *tokens: str) -> Sequence[Answer]:
        return await asyncio.gather(*map(self.ask, tokens))


@jumping
async def test_a_lone_call_is_sent_at_once() -> None:
    rig = Rig()
    await asyncio.sleep(1)
    assert await rig.ask("a") == identity("a")
    assert rig.service.times == [1.0]
    assert rig.counts.batches == 0


@jumping
async def test_what_is_asked_meanwhile_goes_together_when_the_request_returns() -> None:
    rig = Rig()
    assert await rig.ask_all("a", "b", "c") == [identity("a"), identity("b"), identity("c")]
    assert rig.service.batches == [["a"], ["b", "c"]]
    assert rig.service.times == [0.0, 0.001]
    assert rig.counts.batches == 1


@jumping
async def test_callers_that_return_at_once_join_the_next_batch() -> None:
    """So that 64 loops settle into batches of 64, not into 1 and 63."""
    rig = Rig()

    async def loop(name: str) -> None:
        for _ in range(4):
            await rig.ask(name)

    await asyncio.gather(*map(loop, "abcd"))
    assert [sorted(batch) for batch in rig.service.batches] == [["a"], *[["a", "b", "c", "d"]] * 3, ["b", "c", "d"]]


@jumping
async def test_nothing_waits_longer_than_its_share() -> None:
    rig = Rig(Service(seconds=1.0))
    await asyncio.gather(rig.ask("a"), rig.ask("b", after=0.1))
    assert rig.service.times == [0.0, pytest.approx(0.1 + WAIT)]


@jumping
async def test_a_full_batch_waits_for_nothing() -> None:
    rig = Rig(Service(seconds=1.0))
    await rig.ask_all(*map(str, range(2 * MAX_TOKENS + 2)))
    assert [len(batch) for batch in rig.service.batches] == [1, MAX_TOKENS, MAX_TOKENS, 1]
    assert rig.service.times == [0.0, 0.0, 0.0, pytest.approx(WAIT)]


@jumping
async def test_few_requests_are_in_flight_until_one_is_slow() -> None:
    rig = Rig(Service(seconds=10.0))
    calls = asyncio.gather(*(rig.ask(str(number), timeout=20) for number in range(MAX_TOKENS * (MAX_IN_FLIGHT + 1))))
    await asyncio.sleep(SLOT_SECONDS - 0.01)
    assert len(rig.service.batches) == MAX_IN_FLIGHT
    await asyncio.sleep(0.02)
    assert len(rig.service.batches) == MAX_IN_FLIGHT + 2  # the rest of the tokens
    await calls


@jumping
async def test_equal_questions_share_an_answer() -> None:
    rig = Rig()
    await rig.ask_all("a", "b", "b", "b")
    assert rig.service.batches == [["a"], ["b"]]
    assert rig.counts.coalesced == 2


@jumping
async def test_another_stale_if_error_is_another_question() -> None:
    rig = Rig()
    await asyncio.gather(rig.ask("a"), rig.ask("b"), rig.ask("b", stale=1.0), rig.ask("b", stale=1.0))
    assert rig.service.batches == [["a"], ["b", "b"]]


@jumping
async def test_a_fresh_call_joins_no_request_in_flight() -> None:
    rig = Rig(Service(seconds=1.0))
    await asyncio.gather(rig.ask("a"), rig.ask("a"), rig.ask("a", after=0.5))
    assert rig.service.batches == [["a"], ["a"], ["a"]]


@pytest.mark.parametrize(("budget", "joins"), [(0.1, True), (0.099, False)])
def test_a_call_with_a_budget_joins_a_request_sent_within_it(budget: float, joins: bool) -> None:
    @jumping
    async def run() -> None:
        rig = Rig(Service(seconds=1.0))
        await asyncio.gather(rig.ask("a"), rig.ask("a", budget=budget, after=0.1))
        assert len(rig.service.batches) == (1 if joins else 2)

    run()


@jumping
async def test_nobody_joins_a_request_that_began_before_a_drop() -> None:
    rig = Rig(Service(seconds=0.1))
    first = asyncio.create_task(rig.ask("a"))
    await asyncio.sleep(0.01)
    rig.cache.drop_user("another")
    await rig.ask("a", budget=60)
    assert len(rig.service.batches) == 2
    await first


@jumping
async def test_nobody_joins_a_request_that_ends_too_early_for_it() -> None:
    rig = Rig(Service(seconds=1.0))
    await asyncio.gather(rig.ask("a", timeout=2), rig.ask("a", budget=60, timeout=5, after=0.1))
    assert len(rig.service.batches) == 2


@jumping
async def test_a_cancelled_caller_harms_no_other() -> None:
    rig = Rig()
    tasks = [asyncio.create_task(rig.ask(token)) for token in ("a", "b", "b", "c")]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[1].cancel()
    tasks[3].cancel()
    assert await tasks[2] == identity("b")
    assert rig.service.batches == [["a"], ["b"]]  # nobody waits for c


@jumping
async def test_a_batch_that_nobody_waits_for_is_not_sent() -> None:
    rig = Rig()
    tasks = [asyncio.create_task(rig.ask(token)) for token in ("a", "b")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await tasks[0]
    assert await rig.ask("c") == identity("c")
    assert rig.service.batches == [["a"], ["c"]]


@jumping
async def test_a_caller_out_of_time_harms_no_other() -> None:
    rig = Rig(Service(seconds=0.35))
    first, second = await asyncio.gather(rig.ask("a", timeout=0.2), rig.ask("a", budget=60, timeout=0.3, after=0.1))
    assert isinstance(first, UnavailableError)
    assert first.cause == "no answer within 0.2 s"
    assert second == identity("a")
    assert len(rig.service.batches) == 1


@jumping
async def test_an_error_of_one_item_reaches_its_callers_alone() -> None:
    answers: dict[str, Answer] = {"b": UnavailableError(cause="b"), "c": InvalidTokenError("EXPIRED")}
    rig = Rig(Service(answer=lambda token: answers.get(token) or identity(token)))
    found = await rig.ask_all("a", "b", "c", "d")
    assert found == [identity("a"), answers["b"], answers["c"], identity("d")]


@pytest.mark.parametrize(
    ("raised", "cause"),
    [(UnavailableError(cause="gone"), "gone"), (asyncio.CancelledError(), "the client was closed")],
)
def test_an_error_of_a_request_reaches_all_its_callers(raised: BaseException, cause: str) -> None:
    class Failing(Service):
        async def send(self, questions: Sequence[Question], timeout: float) -> Sequence[Answer]:
            raise raised

    @jumping
    async def run() -> None:
        found = await Rig(Failing()).ask_all("a", "b", "b")
        assert [answer.cause for answer in found if isinstance(answer, UnavailableError)] == [cause] * 3

    run()


@jumping
async def test_renewals_travel_with_calls_and_give_way_to_them() -> None:
    rig = Rig()
    call = asyncio.create_task(rig.ask("a"))
    await asyncio.sleep(0)
    rig.batcher.renew([question(f"r{number}") for number in range(MAX_TOKENS - 1)], 2.5)
    await asyncio.gather(call, rig.ask("b"), rig.ask("c"))
    await rig.batcher.close()
    assert [len(batch) for batch in rig.service.batches] == [1, MAX_TOKENS, 1]
    assert rig.service.batches[1][:2] == ["b", "r0"]
    assert rig.service.batches[2][0] == "c"


@jumping
async def test_a_call_takes_over_a_renewal_that_waits() -> None:
    rig = Rig()
    calls = [asyncio.create_task(rig.ask("a"))]
    await asyncio.sleep(0)
    rig.batcher.renew([question("b")], 2.5)
    calls.append(asyncio.create_task(rig.ask("b")))
    await asyncio.sleep(0)
    rig.batcher.renew([question("b")], 2.5)
    await asyncio.gather(*calls)
    assert rig.service.batches == [["a"], ["b"]]


@jumping
async def test_a_renewal_is_sent_even_if_its_caller_left() -> None:
    rig = Rig()
    calls = [asyncio.create_task(rig.ask("a"))]
    await asyncio.sleep(0)
    rig.batcher.renew([question("b")], 2.5)
    calls.append(asyncio.create_task(rig.ask("b")))
    await asyncio.sleep(0)
    calls[1].cancel()
    await calls[0]
    await rig.batcher.close()
    assert rig.service.batches == [["a"], ["b"]]


@jumping
async def test_a_storm_of_cancellations_leaves_nothing_behind() -> None:
    rig = Rig(Service(seconds=0.05))
    chance = random.Random(4)  # noqa: S311 - a test

    async def caller(number: int) -> Answer:
        return await rig.ask(str(number % 50), budget=chance.choice([0.0, 1.0]), after=chance.uniform(0, 0.2))

    tasks = [asyncio.create_task(caller(number)) for number in range(2000)]
    for task in tasks:
        if chance.random() < 0.5:
            asyncio.get_running_loop().call_later(chance.uniform(0, 0.3), task.cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Identity | asyncio.CancelledError) for result in results)
    assert sum(isinstance(result, Identity) for result in results) > 900
    await rig.batcher.close()
    leftovers = (rig.batcher._waiting, rig.batcher._sent, rig.batcher._tasks, rig.batcher._slots)  # noqa: SLF001
    assert not any(leftovers)


def test_time_that_is_up_changes_no_answer() -> None:
    @jumping
    async def run() -> None:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        answered.set_result(identity())
        give_up(answered, 1.0)
        assert answered.result() == identity()

    run()


@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 5),  # token
            st.sampled_from([0.0, 0.002, 1.0]),  # budget
            st.sampled_from([0.0, 5.0]),  # stale_if_error
            st.floats(0, 0.02),  # when
            st.sampled_from([0.004, 2.5]),  # timeout
        ),
        max_size=60,
    ),
    seconds=st.sampled_from([0.0, 0.001, 0.01]),
)
@settings(max_examples=60)
def test_any_calls(calls: list[tuple[int, float, float, float, float]], seconds: float) -> None:
    """Each call gets the answer to its own question, from a request that began within its budget."""

    @jumping
    async def run() -> None:
        sent: list[tuple[float, str, float]] = []

        class Stamping(Service):
            async def send(self, questions: Sequence[Question], timeout: float) -> Sequence[Answer]:
                assert 1 <= len(questions) <= MAX_TOKENS
                assert max(Counter(each.key for each in questions).values()) == 1
                number = len(sent)
                sent.extend((each.began, each.token, each.stale_if_error) for each in questions)
                await asyncio.sleep(self.seconds)
                return [identity(str(number + place)) for place in range(len(questions))]

        rig = Rig(Stamping(seconds=seconds))

        async def call(token: int, budget: float, stale: float, at: float, timeout: float) -> None:
            await asyncio.sleep(at)
            begin = now()
            answer = await rig.ask(str(token), budget, timeout, stale)
            if isinstance(answer, Identity):
                began, asked, asked_stale = sent[int(answer.token_id)]
                assert (asked, asked_stale) == (str(token), stale)
                assert began >= begin - budget
            else:
                assert timeout < 2.5
            assert now() <= begin + timeout

        await asyncio.gather(*(call(*each) for each in calls))

    run()
