"""The counters of tries at passwords, in the table of login attempts.

An item holds the ids of its tries as a set, not their number. So a write that is repeated because its response was lost
counts nothing twice, and a try is taken out of the very counter that it was put into. Each write is a conditional
update of one item: unlike transactions, these do not fail each other when a thousand guesses meet at one item.
"""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from authsvc.models import AttemptCount, Counter, CounterUpdate
from authsvc.stores.dynamodb.batch_get import coalesced_reads
from authsvc.stores.dynamodb.client import ConditionFailedError, DynamoDBClient
from authsvc.stores.dynamodb.items import attempt_count_from_item, item_of

_ROUNDS = 2
"""A counter that another try began between two writes is joined in the second round."""


class LoginAttempts:
    """The counters in one table."""

    def __init__(self, calls: DynamoDBClient, table: str) -> None:
        self._calls = calls
        self._table = table
        self._reads = coalesced_reads(calls, table, "attempt_key")

    async def get(self, keys: Sequence[str], now: datetime) -> dict[str, AttemptCount]:
        """See Store.get_attempt_counts."""
        found: dict[str, AttemptCount] = {}
        for key, item in (await self._reads.get(keys)).items():
            if isinstance(item, Exception):
                raise item
            if item is not None:
                found[key] = attempt_count_from_item(item)
        # TTL deletes days late.
        return {key: tries for key, tries in found.items() if tries.expire_time > now}

    async def reserve(self, attempt_id: str, counters: Sequence[Counter], now: datetime) -> bool:
        """See Store.reserve_attempt."""
        for number, counter in enumerate(counters):
            if not await self._put_into(counter, attempt_id, now):
                await self._take_out(attempt_id, (earlier.key for earlier in counters[:number]))
                return False
        return True

    async def _put_into(self, counter: Counter, attempt_id: str, now: datetime) -> bool:
        # The likelier one first: a condition that fails costs as much as a write.
        ways = (self._join, self._begin) if counter.is_running else (self._begin, self._join)
        for put in ways * _ROUNDS:
            if await put(counter, attempt_id, now):
                return True
        return False

    async def _begin(self, counter: Counter, attempt_id: str, now: datetime) -> bool:
        """Begin a counter anew, where it has expired or holds nothing."""
        return await self._has_updated(
            counter.key,
            "SET attempts = :attempt, expires_at = :end",
            "attribute_not_exists(attempts) OR expires_at <= :now",
            attempt=frozenset({attempt_id}),
            end=int(counter.expire_time.timestamp()),
            now=int(now.timestamp()),
        )

    async def _join(self, counter: Counter, attempt_id: str, now: datetime) -> bool:
        """Put a try into a counter that runs, unless it is full."""
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
            await self._calls("UpdateItem", **request)
        except ConditionFailedError:
            return False
        return True

    async def _take_out(self, attempt_id: str, keys: Iterable[str]) -> None:
        attempt = frozenset({attempt_id})
        changes = (
            self._has_updated(key, "DELETE attempts :attempt", "attribute_exists(attempts)", attempt=attempt)
            for key in keys
        )
        await asyncio.gather(*changes)

    async def settle(self, attempt_id: str, settlement: CounterUpdate) -> None:
        """See Store.settle_attempt."""
        changes = [self._take_out(attempt_id, settlement.released), *map(self._clear, settlement.cleared)]
        if settlement.known is not None:
            changes.append(self._remember(*settlement.known))
        await asyncio.gather(*changes)

    async def _clear(self, key: str) -> None:
        await self._calls("DeleteItem", TableName=self._table, Key=item_of(attempt_key=key))

    async def _remember(self, key: str, expire_time: datetime) -> None:
        item = item_of(attempt_key=key, expires_at=int(expire_time.timestamp()))
        await self._calls("PutItem", TableName=self._table, Item=item)
