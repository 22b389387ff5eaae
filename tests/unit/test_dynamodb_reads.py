"""The raw body of a BatchGetItem: what it says, and that less than a whole one says nothing."""

import json
from typing import Any

import pytest

from authsvc.dynamodb_reads import STANDING_ATTRIBUTES, KeyReads
from authsvc.errors import NoAnswerError

ALICE = {"user_id": {"S": "alice"}, "role": {"S": "user"}}


class Calls:
    """Answers with given bytes, and keeps what it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[tuple[str, Any]] = []

    async def send(self, operation: str, body: bytes) -> bytes:
        self.asked.append((operation, json.loads(body)))
        return self.content


def reads(calls: Calls) -> KeyReads:
    return KeyReads(calls, "users", "user_id", STANDING_ATTRIBUTES)  # type: ignore[arg-type]  # the one method that is needed


def content(rows: object, *left_out: str) -> bytes:
    unprocessed = {"users": {"Keys": [{"user_id": {"S": user_id}} for user_id in left_out]}} if left_out else {}
    return json.dumps({"Responses": {"users": rows}, "UnprocessedKeys": unprocessed}).encode()


async def test_rows_are_told_by_key_and_who_is_not_there() -> None:
    assert await reads(Calls(content([ALICE])))(["nobody", "alice"]) == {"nobody": None, "alice": ALICE}


async def test_what_was_left_out_is_missing() -> None:
    assert await reads(Calls(content([ALICE], "bob")))(["alice", "bob", "carol"]) == {"alice": ALICE, "carol": None}


async def test_a_row_with_a_lone_surrogate_spoils_no_other() -> None:
    broken = {"user_id": {"S": "bob"}, "role": {"S": "\ud800"}}
    rows = await reads(Calls(content([ALICE, broken])))(["alice", "bob"])
    assert rows == {"alice": ALICE, "bob": broken}


async def test_an_answer_may_be_silent_about_capacity() -> None:
    told = {"Responses": {"users": [ALICE]}, "UnprocessedKeys": {}, "ConsumedCapacity": [{}]}
    assert await reads(Calls(json.dumps(told).encode()))(["alice"]) == {"alice": ALICE}


async def test_the_read_is_strong_and_of_what_a_validation_needs() -> None:
    calls = Calls(content([]))
    await reads(calls)(["alice", 'b"ob'])
    ((operation, request),) = calls.asked
    assert operation == "BatchGetItem"
    assert request["RequestItems"].keys() == {"users"}
    read = request["RequestItems"]["users"]
    assert read["Keys"] == [{"user_id": {"S": "alice"}}, {"user_id": {"S": 'b"ob'}}]
    assert read["ConsistentRead"] is True
    projected = {read["ExpressionAttributeNames"][name] for name in read["ProjectionExpression"].split(",")}
    assert projected == set(STANDING_ATTRIBUTES)
    assert "password_hash" not in projected


@pytest.mark.parametrize(
    "unreadable",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"<html>",
        content([ALICE])[:-5],
        b'{"Responses":{"users":[]}}',
        b'{"Responses":{},"UnprocessedKeys":{}}',
        b'{"Responses":{"users":null},"UnprocessedKeys":{}}',
        b'{"Responses":{"users":[]},"UnprocessedKeys":[]}',
        content("alice"),
        content(["alice"]),
        content([{"role": {"S": "user"}}]),
        content([{"user_id": "alice"}]),
        content([{"user_id": {"S": []}}]),
        content([{"user_id": {"S": "mallory"}}]),
        content([], "mallory"),
    ],
    ids=lambda body: body.decode()[:50],
)
async def test_less_than_a_whole_answer_is_none(unreadable: bytes) -> None:
    with pytest.raises(NoAnswerError, match="unreadable"):
        await reads(Calls(unreadable))(["alice"])
