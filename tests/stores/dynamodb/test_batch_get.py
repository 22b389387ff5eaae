"""The answer of a BatchGetItem: what it says, and that less than a whole one says nothing."""

import json
from typing import Any

import pytest

from authsvc.errors import RetryableStoreError
from authsvc.stores.dynamodb.batch_get import USER_STATE_ATTRIBUTES, BatchGet

ALICE = {"user_id": {"S": "alice"}, "role": {"S": "user"}}


class Calls:
    """Gives one answer, and keeps what it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[str, Any]] = []

    async def send(self, operation: str, body: bytes) -> Any:
        self.asked.append((operation, json.loads(body)))
        return self.answer


def reads(calls: Calls) -> BatchGet:
    return BatchGet(calls, "users", "user_id", USER_STATE_ATTRIBUTES)  # type: ignore[arg-type]  # the one method that is needed


def answer(rows: object, *left_out: str) -> dict[str, Any]:
    unprocessed = {"users": {"Keys": [{"user_id": {"S": user_id}} for user_id in left_out]}} if left_out else {}
    return {"Responses": {"users": rows}, "UnprocessedKeys": unprocessed}


async def test_rows_are_told_by_key_and_who_is_not_there() -> None:
    assert await reads(Calls(answer([ALICE])))(["nobody", "alice"]) == {"nobody": None, "alice": ALICE}


async def test_what_was_left_out_is_missing() -> None:
    assert await reads(Calls(answer([ALICE], "bob")))(["alice", "bob", "carol"]) == {"alice": ALICE, "carol": None}


async def test_an_answer_may_be_silent_about_capacity() -> None:
    told = {"Responses": {"users": [ALICE]}, "UnprocessedKeys": {}, "ConsumedCapacity": [{}]}
    assert await reads(Calls(told))(["alice"]) == {"alice": ALICE}


async def test_the_read_is_strong_and_of_what_a_validation_needs() -> None:
    calls = Calls(answer([]))
    await reads(calls)(["alice", 'b"ob'])
    ((operation, request),) = calls.asked
    assert operation == "BatchGetItem"
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
        answer("alice"),
        answer(["alice"]),
        answer([{"role": {"S": "user"}}]),
        answer([{"user_id": "alice"}]),
        answer([{"user_id": {"S": []}}]),
        answer([{"user_id": {"S": "mallory"}}]),
        answer([], "mallory"),
    ],
    ids=repr,
)
async def test_less_than_a_whole_answer_is_none(unreadable: Any) -> None:
    with pytest.raises(RetryableStoreError, match="unreadable"):
        await reads(Calls(unreadable))(["alice"])
