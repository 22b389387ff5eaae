"""The batched, strongly consistent reads by key that decide validations and login attempts."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from authsvc import request_context
from authsvc.coalescer import Coalescer
from authsvc.errors import RetryableStoreError, StoreUnavailableError
from authsvc.stores.dynamodb.direct_api import DirectApi
from authsvc.stores.dynamodb.items import Item
from authsvc.stores.dynamodb.responses import (
    FAILURES,
    UnreadableResponseError,
    count_consumed,
    failed_attempt,
)
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.telemetry import metrics

USER_STATE_ATTRIBUTES = ("user_id", "email", "role", "is_active", "token_generation", "revoked_sessions")
"""What a validation reads."""
_OPERATION = "batch_get_item"


class BatchGet:
    """Reads rows of one table, up to 100 in one request; what a coalescer calls.

    Args:
        api: Sends the requests.
        timeouts: Of each attempt, and how many there are.
        table: Name of the table.
        key_name: Name of the attribute that is the whole key.
        attributes: What is read, the key included; empty: everything.
    """

    def __init__(
        self,
        api: DirectApi,
        timeouts: DynamoDBTimeouts,
        table: str,
        key_name: str,
        attributes: Sequence[str] = (),
    ) -> None:
        self._api = api
        self._timeouts = timeouts
        self._table = table
        self._key_name = key_name
        self._options: dict[str, Any] = {"ConsistentRead": True}
        if attributes:
            self._options["ProjectionExpression"] = ",".join(f"#{name}" for name in attributes)
            self._options["ExpressionAttributeNames"] = {f"#{name}": name for name in attributes}
        self._failures = 0
        """The most attempts that a batch has made since one was answered."""
        self._pausing = asyncio.Lock()

    async def __call__(self, keys: Sequence[str]) -> AsyncIterator[Mapping[str, Item | StoreUnavailableError | None]]:
        """Read rows, with retries, the later ones in halves: a key that fails in any batch must not fail the others.

        Yields:
            The row of each key, None where there is none: what an attempt answered, as soon as it has; at last an error
            for each key that no attempt answered.

        Raises:
            StoreUnavailableError: DynamoDB cannot answer.
            StoreSetupError: DynamoDB refuses the request itself.
        """
        deadline = request_context.store_deadline()
        parts = [keys]
        attempts = 0
        while True:
            attempts += 1
            causes: dict[str, str] = {}
            for part in parts:
                rows, cause = await self._attempt_in_time(part, deadline)
                yield rows
                causes |= {key: cause for key in part if key not in rows}
            self._failures = max(self._failures, attempts) if causes.keys() >= set(keys) else 0
            if not causes:
                return
            if not await self._pause(attempts, deadline):
                yield {key: StoreUnavailableError(cause) for key, cause in causes.items()}
                return
            keys = list(causes)
            # Not at once: in an outage halves are twice as many requests.
            is_late = attempts >= self._timeouts.max_attempts // 2
            middle = (len(keys) + 1) // 2 if is_late else len(keys)
            parts = [part for part in (keys[:middle], keys[middle:]) if part]

    async def _pause(self, attempts: int, deadline: float) -> bool:
        """Pause before the next attempt; while DynamoDB fails, one batch after another, so that it is not flooded."""
        if not self._failures:
            return await self._timeouts.pause(attempts, deadline)
        async with self._pausing:
            return await self._timeouts.pause(attempts, deadline, self._failures)

    async def _attempt_in_time(self, keys: Sequence[str], deadline: float) -> tuple[Mapping[str, Item | None], str]:
        """Make an attempt; return the rows that it answered, and why others are missing."""
        seconds = asyncio.get_running_loop().time() + self._timeouts.batch_seconds
        try:
            async with asyncio.timeout_at(min(deadline, seconds)):
                return await self._attempt(keys), "keys were left out"
        except RetryableStoreError as error:
            return {}, error.cause
        except TimeoutError:
            return {}, "no answer in time"

    async def _attempt(self, keys: Sequence[str]) -> Mapping[str, Item | None]:
        """Return the row of each key, None where there is none, without the keys that DynamoDB left unprocessed."""
        items = {self._table: {"Keys": [{self._key_name: {"S": key}} for key in keys], **self._options}}
        metrics.KEY_READS_BATCH_SIZE.observe(len(keys))
        with metrics.store_call(_OPERATION):
            try:
                response = await self._api.batch_get_item(RequestItems=items, ReturnConsumedCapacity="TOTAL")
                count_consumed(response, "read")
                return self._rows(response, keys)
            except FAILURES as error:
                raise failed_attempt(_OPERATION, error) from None

    def _rows(self, response: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Item | None]:
        """Account for each key: an incomplete response must never read as "no such row"."""
        try:
            found = {item[self._key_name]["S"]: item for item in response["Responses"][self._table]}
            unprocessed = response["UnprocessedKeys"].get(self._table, {"Keys": ()})
            left_out = {key[self._key_name]["S"] for key in unprocessed["Keys"]}
        except (KeyError, TypeError, AttributeError):
            raise UnreadableResponseError("rows without keys") from None
        if not found.keys() | left_out <= set(keys):
            raise UnreadableResponseError("rows that were not requested")
        return {key: found.get(key) for key in keys if key not in left_out}


async def read_rows(
    reads: Coalescer[Item | StoreUnavailableError | None], keys: Collection[str]
) -> dict[str, Item | None]:
    """Return the row of each key, None where there is none, by the request's deadline.

    Args:
        reads: Calls a BatchGet.
        keys: In any order.

    Raises:
        StoreUnavailableError: A row could not be read.
        StoreSetupError: DynamoDB refuses the request itself.
    """
    rows: dict[str, Item | None] = {}
    for key, row in (await reads.get(keys, request_context.store_deadline())).items():
        if isinstance(row, TimeoutError):
            raise StoreUnavailableError("no answer in time")
        if isinstance(row, Exception):
            raise row
        rows[key] = row
    return rows
