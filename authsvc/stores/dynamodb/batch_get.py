"""The reads that decide validations and tries: rows by key, strongly, many in one request, and only what is needed."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from authsvc.coalescer import Coalescer
from authsvc.errors import RetryableStoreError
from authsvc.stores.dynamodb.client import DynamoDBClient, count_consumed
from authsvc.stores.dynamodb.items import Item
from authsvc.telemetry import metrics

USER_STATE_ATTRIBUTES = ("user_id", "email", "role", "is_active", "token_generation", "revoked_sessions")
"""What a validation needs."""


class BatchGet:
    """Reads rows of one table.

    Args:
        table: Its name.
        key_name: Of the attribute that is its whole key.
        attributes: What is read, the key among it; empty: all there are.
    """

    def __init__(self, calls: DynamoDBClient, table: str, key_name: str, attributes: Sequence[str] = ()) -> None:
        self._calls = calls
        self._table = table
        self._key_name = key_name
        self._options: dict[str, Any] = {"ConsistentRead": True}
        if attributes:
            self._options["ProjectionExpression"] = ",".join(f"#{name}" for name in attributes)
            self._options["ExpressionAttributeNames"] = {f"#{name}": name for name in attributes}

    async def __call__(self, keys: Sequence[str]) -> Mapping[str, Item | None]:
        """Return the row of each key, None where there is none; what DynamoDB did not come to is missing.

        Raises:
            RetryableStoreError: There is no good answer, and trying again may help.
            StoreUnavailableError: DynamoDB cannot answer.
            StoreSetupError: DynamoDB refuses the request itself.
        """
        items = {self._table: {"Keys": [{self._key_name: {"S": key}} for key in keys], **self._options}}
        body = orjson.dumps({"RequestItems": items, "ReturnConsumedCapacity": "TOTAL"})
        metrics.KEY_READS_BATCH_SIZE.observe(len(keys))
        with metrics.store_call("batch_get_item"):
            response = await self._calls.send("BatchGetItem", body)
        try:
            count_consumed(response, "read")
            return self._rows(response, keys)
        except (ValueError, KeyError, TypeError, AttributeError):
            metrics.UNREADABLE_RESPONSES.inc()
            # Less than a whole answer must never read as "no such row".
            raise RetryableStoreError("BatchGetItem: unreadable response") from None

    def _rows(self, response: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Item | None]:
        found = {item[self._key_name]["S"]: item for item in response["Responses"][self._table]}
        unprocessed = response["UnprocessedKeys"].get(self._table, {"Keys": ()})
        left_out = {key[self._key_name]["S"] for key in unprocessed["Keys"]}
        if not found.keys() | left_out <= set(keys):
            raise ValueError("somebody else's rows")
        return {key: found.get(key) for key in keys if key not in left_out}


def coalesced_reads(
    client: DynamoDBClient, table: str, key_name: str, attributes: Sequence[str] = ()
) -> Coalescer[Item | None]:
    """Return what joins concurrent reads of a table into batches. The arguments are those of BatchGet."""
    timeouts = client.timeouts
    reads = BatchGet(client, table, key_name, attributes)
    return Coalescer(reads, timeouts.max_attempts, client.pause_seconds, timeouts.batch_seconds)
