"""The read that decides validations: rows of users by key, strongly, many in one request, and only what is needed."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from authsvc import metrics
from authsvc.dynamodb_calls import DynamoDBCalls, count_consumed
from authsvc.dynamodb_items import Item
from authsvc.errors import NoAnswerError

ATTRIBUTES = ("user_id", "email", "role", "is_active", "token_generation", "revoked_sessions")
"""What a validation needs."""


class UserReads:
    """Reads rows of the users table.

    Args:
        table: Its name.
    """

    def __init__(self, calls: DynamoDBCalls, table: str) -> None:
        self._calls = calls
        self._table = table
        self._options = {
            "ConsistentRead": True,
            "ProjectionExpression": ",".join(f"#{name}" for name in ATTRIBUTES),
            "ExpressionAttributeNames": {f"#{name}": name for name in ATTRIBUTES},
        }

    async def __call__(self, user_ids: Sequence[str]) -> Mapping[str, Item | None]:
        """Return the row of each user, None where there is none; what DynamoDB did not come to is missing.

        Raises:
            NoAnswerError: There is no good answer, and trying again may help.
            StoreUnavailableError: DynamoDB cannot answer.
            StoreSetupError: DynamoDB refuses the request itself.
        """
        keys = [{"user_id": {"S": user_id}} for user_id in user_ids]
        items = {self._table: {"Keys": keys, **self._options}}
        body = orjson.dumps({"RequestItems": items, "ReturnConsumedCapacity": "TOTAL"})
        metrics.KEY_READS_BATCH_SIZE.observe(len(user_ids))
        with metrics.store_call("batch_get_item"):
            content = await self._calls.send("BatchGetItem", body)
        try:
            response = _parsed(content)
            count_consumed(response, "read")
            return self._rows(response, user_ids)
        except (ValueError, KeyError, TypeError, AttributeError):
            metrics.UNREADABLE_RESPONSES.inc()
            # Less than a whole answer must never read as "no such user".
            raise NoAnswerError("BatchGetItem: unreadable response") from None

    def _rows(self, response: Mapping[str, Any], user_ids: Sequence[str]) -> dict[str, Item | None]:
        found = {item["user_id"]["S"]: item for item in response["Responses"][self._table]}
        unprocessed = response["UnprocessedKeys"].get(self._table, {"Keys": ()})
        left_out = {key["user_id"]["S"] for key in unprocessed["Keys"]}
        if not found.keys() | left_out <= set(user_ids):
            raise ValueError("somebody else's rows")
        return {user_id: found.get(user_id) for user_id in user_ids if user_id not in left_out}


def _parsed(content: bytes) -> Any:  # noqa: ANN401 - JSON
    """Return what a body says; one row with a lone surrogate, which orjson refuses, must not spoil all others."""
    try:
        return orjson.loads(content)
    except ValueError:
        return json.loads(content)
