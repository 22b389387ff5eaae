"""The batched read: its rows, the rejection of an incomplete response, and retries."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from authsvc.coalescer import MAX_IN_FLIGHT, Coalescer
from authsvc.errors import RetryableStoreError, StoreSetupError, StoreUnavailableError
from authsvc.request_context import STORE_DEADLINE_SECONDS
from authsvc.server.app import PRODUCTION_LIMITS
from authsvc.stores.dynamodb.batch_get import USER_STATE_ATTRIBUTES, BatchGet
from authsvc.stores.dynamodb.responses import UnreadableResponseError
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from tests.virtual_clock import jumping, now

ALICE = {"user_id": {"S": "alice"}, "role": {"S": "user"}}


class FakeRequests:
    """Returns one response, and records requests."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self.sent: list[Any] = []

    async def batch_get_item(self, **request: Any) -> Any:
        self.sent.append(request)
        return self.response


async def read_once(requests: FakeRequests, *keys: str) -> dict[str, Any]:
    timeouts = DynamoDBTimeouts(max_attempts=1)
    reads = BatchGet(requests, timeouts, "users", "user_id", USER_STATE_ATTRIBUTES)  # type: ignore[arg-type]  # it needs one method
    return {key: value async for values in reads(keys) for key, value in values.items()}


def response(rows: object, *left_out: str) -> dict[str, Any]:
    unprocessed = {"users": {"Keys": [{"user_id": {"S": user_id}} for user_id in left_out]}} if left_out else {}
    return {"Responses": {"users": rows}, "UnprocessedKeys": unprocessed}


async def test_rows_are_returned_by_key_and_missing_ones_are_none() -> None:
    assert await read_once(FakeRequests(response([ALICE])), "missing", "alice") == {"missing": None, "alice": ALICE}


async def test_what_was_left_out_is_an_outage() -> None:
    answered = await read_once(FakeRequests(response([ALICE], "bob")), "alice", "bob", "carol")
    assert isinstance(answered.pop("bob"), StoreUnavailableError)
    assert answered == {"alice": ALICE, "carol": None}


async def test_an_answer_may_be_silent_about_capacity() -> None:
    silent = {
        "Responses": {"users": [ALICE]},
        "UnprocessedKeys": {},
        "ConsumedCapacity": [{}, {"CapacityUnits": "many"}],
    }
    assert await read_once(FakeRequests(silent), "alice") == {"alice": ALICE}


async def test_the_read_is_strong_and_of_what_a_validation_needs() -> None:
    requests = FakeRequests(response([]))
    await read_once(requests, "alice", 'b"ob')
    (request,) = requests.sent
    assert request["RequestItems"].keys() == {"users"}
    read = request["RequestItems"]["users"]
    assert read["Keys"] == [{"user_id": {"S": "alice"}}, {"user_id": {"S": 'b"ob'}}]
    assert read["ConsistentRead"] is True
    projected = {read["ExpressionAttributeNames"][name] for name in read["ProjectionExpression"].split(",")}
    assert projected == set(USER_STATE_ATTRIBUTES)
    assert "password_hash" not in projected


@pytest.mark.parametrize(
    "unreadable",
    [
        {},
        {"Responses": {"users": []}},
        {"Responses": {}, "UnprocessedKeys": {}},
        {"Responses": {"users": None}, "UnprocessedKeys": {}},
        {"Responses": {"users": []}, "UnprocessedKeys": []},
        response("alice"),
        response(["alice"]),
        response([{"role": {"S": "user"}}]),
        response([{"user_id": "alice"}]),
        response([{"user_id": {"S": []}}]),
        response([{"user_id": {"S": "mallory"}}]),
        response([], "mallory"),
    ],
    ids=repr,
)
async def test_less_than_a_whole_answer_is_none(unreadable: Any) -> None:
    assert causes(await read_once(FakeRequests(unreadable), "alice")) == {
        "alice": "BatchGetItem: UnreadableResponseError"
    }


# Retries, on a clock that jumps from timer to timer

TIMEOUTS = DynamoDBTimeouts(max_attempts=4, backoff_seconds=0.1)
LONGEST_SECONDS = 0.1 * 2**3
"""The bound of the longest pause."""
Respond = Callable[[list[str]], object]


class Requests:
    """Answers each attempt as `respond` says of its keys: those that are answered, an exception, or None for never."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.attempts: list[tuple[float, list[str]]] = []

    async def batch_get_item(self, **request: Any) -> Any:
        keys = [key["user_id"]["S"] for key in request["RequestItems"]["users"]["Keys"]]
        self.attempts.append((now(), keys))
        answered: Any = self.respond(keys)
        if answered is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(answered, Exception):
            raise answered
        return response([{"user_id": {"S": key}} for key in answered], *(key for key in keys if key not in answered))


def retried(requests: Requests) -> BatchGet:
    return BatchGet(requests, TIMEOUTS, "users", "user_id")  # type: ignore[arg-type]  # it needs one method


async def collect(reads: BatchGet, *keys: str) -> list[Mapping[str, Any]]:
    return [values async for values in reads(keys) if values]


def causes(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: error.cause for key, error in values.items()}


@jumping
async def test_what_was_answered_is_given_at_once_and_the_rest_read_again() -> None:
    requests = Requests(lambda keys: keys[:1])
    begun = now()
    values = [(now(), [*values]) async for values in retried(requests)(["a", "b", "c"])]
    assert [keys for _, keys in values] == [["a"], ["b"], ["c"]]
    assert [keys for _, keys in requests.attempts] == [["a", "b", "c"], ["b", "c"], ["c"]]
    assert values[0][0] == begun < values[1][0] < values[2][0]


@jumping
async def test_a_key_that_fails_whatever_it_is_read_with_fails_alone() -> None:
    requests = Requests(lambda keys: RetryableStoreError("poison") if "k3" in keys else keys)
    *rows, errors = await collect(retried(requests), *(f"k{number}" for number in range(4)))
    assert {key for values in rows for key in values} == {f"k{number}" for number in range(4)} - {"k3"}
    assert causes(errors) == {"k3": "BatchGetItem: poison"}


@jumping
async def test_a_key_that_is_always_left_out_is_given_up() -> None:
    requests = Requests(lambda keys: [key for key in keys if key == "a"])
    rows, errors = await collect(retried(requests), "a", "b")
    assert [*rows] == ["a"]
    assert causes(errors) == {"b": "keys were left out"}
    assert [keys for _, keys in requests.attempts] == [["a", "b"], *[["b"]] * 3]


@pytest.mark.parametrize("error", [RetryableStoreError("throttled"), UnreadableResponseError("half of it")], ids=repr)
@jumping
async def test_a_failure_is_made_up_for(error: Exception) -> None:
    outcomes: list[Any] = [error, error, ["a"]]
    requests = Requests(lambda _: outcomes.pop(0))
    (rows,) = await collect(retried(requests), "a")
    assert [*rows] == ["a"]


@jumping
async def test_a_lasting_failure_names_its_cause() -> None:
    requests = Requests(lambda _: RetryableStoreError("throttled"))
    (errors,) = await collect(retried(requests), "a", "b")
    assert causes(errors) == dict.fromkeys("ab", "BatchGetItem: throttled")
    assert [len(keys) for _, keys in requests.attempts] == [2, 2, *[1, 1] * 2]


@pytest.mark.parametrize("error", [StoreUnavailableError("no such table"), StoreSetupError("x"), ZeroDivisionError()])
@jumping
async def test_any_other_error_is_final(error: Exception) -> None:
    requests = Requests(lambda _: error)
    with pytest.raises(type(error)) as raised:
        await collect(retried(requests), "a")
    assert raised.value is error
    assert len(requests.attempts) == 1


@pytest.mark.limits(PRODUCTION_LIMITS)
@jumping
async def test_a_response_that_never_ends_is_cut_off_and_the_deadline_kept() -> None:
    requests = Requests(lambda _: None)
    begun = now()
    (errors,) = await collect(retried(requests), "a")
    assert causes(errors) == {"a": "no answer in time"}
    assert now() - begun <= STORE_DEADLINE_SECONDS
    # The pauses are short: two attempts that are cut off, and one that the deadline ends.
    assert len(requests.attempts) == 3


@jumping
async def test_an_outage_is_no_storm_and_its_end_is_noticed() -> None:
    requests = Requests(lambda _: RetryableStoreError("down"))
    coalescer = Coalescer(retried(requests))

    async def ask(key: str) -> Any:
        return (await coalescer.get([key], now() + 2.5))[key]

    asked = []
    for number in range(1_000):
        asked.append(asyncio.ensure_future(ask(f"k{number}")))
        await asyncio.sleep(0.01)
    # At first each batch in flight; in the long run one, in at most two halves, after half the longest pause.
    assert len(requests.attempts) <= MAX_IN_FLIGHT + 2 * 10.0 / (LONGEST_SECONDS / 2) * 1.5
    given_up = [each.result() for each in asked if each.done()]
    assert len(given_up) > 700
    assert {type(error) for error in given_up} <= {StoreUnavailableError, TimeoutError}

    requests.respond = lambda keys: keys
    begun = now()
    assert await ask("fresh") == {"user_id": {"S": "fresh"}}
    assert now() - begun < LONGEST_SECONDS
    await asyncio.wait(asked)
    await asyncio.sleep(LONGEST_SECONDS)
    # The outage leaves no state: a lone key is answered at once.
    begun = now()
    await ask("alone")
    assert now() == begun
