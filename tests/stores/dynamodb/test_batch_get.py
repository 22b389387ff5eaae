"""The response of a BatchGetItem: its rows, and the rejection of an incomplete one."""

import json
from typing import Any

import pytest

from authsvc.errors import RetryableStoreError
from authsvc.stores.dynamodb.batch_get import USER_STATE_ATTRIBUTES, BatchGet

ALICE = {"user_id": {"S": "alice"}, "role": {"S": "user"}}


class FakeRequests:
    """Returns one response, and records requests."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self.sent: list[Any] = []

    async def send(self, body: bytes) -> Any:
        self.sent.append(json.loads(body))
        return self.response


def reads(requests: FakeRequests) -> BatchGet:
    return BatchGet(requests, "users", "user_id", USER_STATE_ATTRIBUTES)  # type: ignore[arg-type]  # it needs one method


def response(rows: object, *left_out: str) -> dict[str, Any]:
    unprocessed = {"users": {"Keys": [{"user_id": {"S": user_id}} for user_id in left_out]}} if left_out else {}
    return {"Responses": {"users": rows}, "UnprocessedKeys": unprocessed}


async def test_rows_are_told_by_key_and_who_is_not_there() -> None:
    assert await reads(FakeRequests(response([ALICE])))(["missing", "alice"]) == {"missing": None, "alice": ALICE}


async def test_what_was_left_out_is_missing() -> None:
    assert await reads(FakeRequests(response([ALICE], "bob")))(["alice", "bob", "carol"]) == {
        "alice": ALICE,
        "carol": None,
    }


async def test_an_answer_may_be_silent_about_capacity() -> None:
    silent = {
        "Responses": {"users": [ALICE]},
        "UnprocessedKeys": {},
        "ConsumedCapacity": [{}, {"CapacityUnits": "many"}],
    }
    assert await reads(FakeRequests(silent))(["alice"]) == {"alice": ALICE}


async def test_the_read_is_strong_and_of_what_a_validation_needs() -> None:
    requests = FakeRequests(response([]))
    await reads(requests)(["alice", 'b"ob'])
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
    with pytest.raises(RetryableStoreError, match="BatchGetItem: UnreadableResponseError"):
        await reads(FakeRequests(unreadable))(["alice"])
