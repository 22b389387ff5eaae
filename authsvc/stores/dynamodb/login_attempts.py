"""Counters of login attempts, in the table login-attempts.

An item holds the ids of its attempts as a set, not their number: repeating a write whose response was lost counts
nothing twice, and an attempt is removed only from the window that it was added to. Each write is a conditional update
of one item: unlike transactions, a thousand concurrent ones do not cancel each other.
"""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from authsvc.coalescer import Coalescer
from authsvc.models import AttemptCount, Counter, CounterUpdate
from authsvc.stores.dynamodb.batch_get import BatchGet, read_rows
from authsvc.stores.dynamodb.client import DynamoDBClient
from authsvc.stores.dynamodb.items import attempt_count_from_item, item_of
from authsvc.stores.dynamodb.responses import ConditionFailedError

_ROUNDS = 2
"""The second round adds to a window that another attempt started between the two writes of the first."""


class LoginAttempts:
    """The counters in one table."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table
        self._reads = Coalescer(BatchGet(client.direct, client.timeouts, table, "attempt_key"))

    async def get(self, keys: Sequence[str], now: datetime) -> dict[str, AttemptCount]:
        """See Store.get_attempt_counts."""
        rows = await read_rows(self._reads, keys)
        found = {key: attempt_count_from_item(row) for key, row in rows.items() if row is not None}
        # TTL deletes items days late.
        return {key: stored for key, stored in found.items() if stored.expire_time > now}

    async def reserve(self, attempt_id: str, counters: Sequence[Counter], now: datetime) -> bool:
        """See Store.reserve_attempt."""
        for number, counter in enumerate(counters):
            if not await self._add(counter, attempt_id, now):
                await self._remove(attempt_id, (earlier.key for earlier in counters[:number]))
                return False
        return True

    async def _add(self, counter: Counter, attempt_id: str, now: datetime) -> bool:
        # The likelier one first: a failed condition costs as much as a write.
        orders = (
            (self._add_to_counter, self._start_counter)
            if counter.is_running
            else (self._start_counter, self._add_to_counter)
        )
        for add in orders * _ROUNDS:
            if await add(counter, attempt_id, now):
                return True
        return False

    async def _start_counter(self, counter: Counter, attempt_id: str, now: datetime) -> bool:
        """Start a window with this attempt, provided that the counter has expired or is empty."""
        return await self._has_updated(
            counter.key,
            "SET attempts = :attempt, expires_at = :end",
            "attribute_not_exists(attempts) OR expires_at <= :now",
            attempt=frozenset({attempt_id}),
            end=int(counter.expire_time.timestamp()),
            now=int(now.timestamp()),
        )

    async def _add_to_counter(self, counter: Counter, attempt_id: str, now: datetime) -> bool:
        """Add an attempt to the running window, unless the counter is full."""
        return await self._has_updated(
            counter.key,
            "ADD attempts :attempt",
            "expires_at > :now AND (size(attempts) < :limit OR contains(attempts, :id))",
            attempt=frozenset({attempt_id}),
            id=attempt_id,
            limit=counter.limit,
            now=int(now.timestamp()),
        )

    async def _has_updated(self, key: str, expression: str, condition: str, **values: object) -> bool:
        request: dict[str, Any] = {
            "TableName": self._table,
            "Key": item_of(attempt_key=key),
            "UpdateExpression": expression,
            "ConditionExpression": condition,
            "ExpressionAttributeValues": item_of(**{f":{name}": value for name, value in values.items()}),
        }
        try:
            await self._client.call(self._client.direct.update_item, **request)
        except ConditionFailedError:
            return False
        return True

    async def _remove(self, attempt_id: str, keys: Iterable[str]) -> None:
        attempt = frozenset({attempt_id})
        changes = (
            self._has_updated(key, "DELETE attempts :attempt", "attribute_exists(attempts)", attempt=attempt)
            for key in keys
        )
        await asyncio.gather(*changes)

    async def settle(self, attempt_id: str, update: CounterUpdate) -> None:
        """See Store.settle_attempt."""
        changes = [self._remove(attempt_id, update.released), *map(self._clear, update.cleared)]
        if update.known is not None:
            changes.append(self._mark_known(*update.known))
        await asyncio.gather(*changes)

    async def _clear(self, key: str) -> None:
        await self._client.call(self._client.api.delete_item, TableName=self._table, Key=item_of(attempt_key=key))

    async def _mark_known(self, key: str, expire_time: datetime) -> None:
        item = item_of(attempt_key=key, expires_at=int(expire_time.timestamp()))
        await self._client.call(self._client.api.put_item, TableName=self._table, Item=item)
