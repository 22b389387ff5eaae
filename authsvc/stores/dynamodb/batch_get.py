"""The batched, strongly consistent reads by key that decide validations and login attempts."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from authsvc.coalescer import Coalescer
from authsvc.errors import RetryableStoreError
from authsvc.stores.dynamodb.client import DynamoDBClient, count_consumed
from authsvc.stores.dynamodb.items import Item
from authsvc.telemetry import metrics

USER_STATE_ATTRIBUTES = ("user_id", "email", "role", "is_active", "token_generation", "revoked_sessions")
"""What a validation reads."""


class BatchGet:
    """Reads rows of one table, up to 100 in one request.

    Args:
        client: Makes the requests.
        table: Name of the table.
        key_name: Name of the attribute that is the whole key.
        attributes: What is read, the key included; empty: everything.
    """

    def __init__(self, client: DynamoDBClient, table: str, key_name: str, attributes: Sequence[str] = ()) -> None:
        self._client = client
        self._table = table
        self._key_name = key_name
        self._options: dict[str, Any] = {"ConsistentRead": True}
        if attributes:
            self._options["ProjectionExpression"] = ",".join(f"#{name}" for name in attributes)
            self._options["ExpressionAttributeNames"] = {f"#{name}": name for name in attributes}

    async def __call__(self, keys: Sequence[str]) -> Mapping[str, Item | None]:
        """Make one attempt to read rows.

        Returns:
            The row of each key, None where there is none. Keys that DynamoDB left unprocessed are missing.

        Raises:
            RetryableStoreError: The attempt failed, and another one may succeed.
            StoreUnavailableError: DynamoDB cannot answer.
            StoreSetupError: DynamoDB refuses the request itself.
        """
        items = {self._table: {"Keys": [{self._key_name: {"S": key}} for key in keys], **self._options}}
        body = orjson.dumps({"RequestItems": items, "ReturnConsumedCapacity": "TOTAL"})
        metrics.KEY_READS_BATCH_SIZE.observe(len(keys))
        with metrics.store_call("batch_get_item"):
            response = await self._client.send("BatchGetItem", body)
        try:
            count_consumed(response, "read")
            return self._rows(response, keys)
        except (ValueError, KeyError, TypeError, AttributeError):
            metrics.UNREADABLE_RESPONSES.inc()
            # An incomplete answer must never read as "no such row".
            raise RetryableStoreError("BatchGetItem: unreadable response") from None

    def _rows(self, response: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Item | None]:
        found = {item[self._key_name]["S"]: item for item in response["Responses"][self._table]}
        unprocessed = response["UnprocessedKeys"].get(self._table, {"Keys": ()})
        left_out = {key[self._key_name]["S"] for key in unprocessed["Keys"]}
        if not found.keys() | left_out <= set(keys):
            raise ValueError("rows that were not requested")
        return {key: found.get(key) for key in keys if key not in left_out}


def coalesced_reads(
    client: DynamoDBClient, table: str, key_name: str, attributes: Sequence[str] = ()
) -> Coalescer[Item | None]:
    """Return a coalescer of concurrent reads of a table. The arguments are those of BatchGet."""
    timeouts = client.timeouts
    reads = BatchGet(client, table, key_name, attributes)
    return Coalescer(reads, timeouts.max_attempts, client.pause_seconds, timeouts.batch_seconds)
