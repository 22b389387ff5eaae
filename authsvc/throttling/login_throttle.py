"""Login throttling: every attempt gets a slot in the hashing queue and is counted before it is evaluated.

Otherwise 1,000 parallel guesses would all reach the hash. Refusals of a flood are cached, so that they need no store
call.
"""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from cachetools import TLRUCache

from authsvc import request_context
from authsvc.errors import StoreUnavailableError, TooManyAttemptsError
from authsvc.models import AttemptCount, Clock, Counter, CounterUpdate
from authsvc.passwords.hash_queue import HashQueue, QueueSlot
from authsvc.stores.interface import Store
from authsvc.throttling import budgets
from authsvc.throttling.budgets import AttemptKeys, Budgets

ATTEMPT_ID_BYTES = 6
"""Enough to distinguish the attempts of one counter, few enough to keep the counter small."""
MAX_RESERVATIONS = 3
"""How often an attempt is reserved again after a concurrent attempt filled a counter."""
CACHE_SECONDS = 10.0
"""Longest time that a refusal is cached: a counter that another worker has cleared counts here until then.

The shortest is half of it: what a flood put into the cache at once must not expire at once.
"""
CACHE_CAPACITY = 10_000
"""Refusals; and unknown sources."""
MIN_RETRY_DELAY = timedelta(seconds=1)
_random = random.SystemRandom()

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Attempt:
    """A reserved login attempt.

    Args:
        slot: In the hashing queue.
        is_evaluated: Whether the password is being evaluated, or was: from then on the attempt counts as a failure,
            unless the password is right.
        is_right: Whether the password is right.
    """

    slot: QueueSlot
    is_evaluated: bool = False
    is_right: bool = False

    def start_evaluation(self) -> None:
        """Note that the password is being evaluated."""
        self.is_evaluated = True


@dataclass(frozen=True, slots=True)
class CounterSnapshot:
    """The stored counts of an attempt's keys at a time, and the counters that the attempt is added to.

    Args:
        attempt_id: Under which the attempt is added.
    """

    keys: AttemptKeys
    time: datetime
    stored: Mapping[str, AttemptCount]
    counters: Sequence[Counter]
    attempt_id: str

    @property
    def is_from_unknown_source(self) -> bool:
        """Whether the account has had no login from the source."""
        return self.keys.known_key not in self.stored


class LoginThrottle:
    """Counts attempts in the store, which all workers share.

    Args:
        store: Holds the counters.
        hash_queue: Its slots are reserved here.
        budgets: How many failures are admitted.
        clock: Tells the time of day.
        cache_capacity: Of the refusal cache, and of the unknown-source cache.
    """

    def __init__(
        self, store: Store, hash_queue: HashQueue, budgets: Budgets, clock: Clock, cache_capacity: int = CACHE_CAPACITY
    ) -> None:
        self._store = store
        self._hash_queue = hash_queue
        self._budgets = budgets
        self._clock = clock
        self._refusal_cache: TLRUCache[str, Counter] = TLRUCache(cache_capacity, _cache_until, self._timer)
        self._unknown_source_cache: TLRUCache[str, None] = TLRUCache(cache_capacity, _cache_until, self._timer)
        self._settling: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Finish the settlements in progress."""
        await asyncio.gather(*self._settling)

    @asynccontextmanager
    async def reserve(self, email: str, client_address: str) -> AsyncIterator[Attempt]:
        """Reserve an attempt for the body, which is a login if it ends without an error.

        An attempt that was not evaluated (no time, a client that disconnected), or whose password was right, is
        refunded. Any other that ends in an error stays counted.

        Args:
            email: In normal form.
            client_address: In canonical form; empty where it is unknown or not trusted.

        Raises:
            TooManyAttemptsError: A counter is full.
            OverloadedError: The hashing queue is full.
        """
        keys = AttemptKeys.of(email, client_address)
        self._raise_cached_refusal(keys)
        async with AsyncExitStack() as stack:
            snapshot, slot = await self._queue(keys, stack)
            snapshot = await self._count(snapshot)
            attempt = Attempt(slot)
            try:
                yield attempt
            except BaseException:
                if attempt.is_right or not attempt.is_evaluated:
                    await self._refund(snapshot)
                raise
        update = budgets.update_after_login(keys, snapshot.counters, snapshot.stored, self._clock())
        await self._settle(snapshot, update)
        self._refusal_cache.pop(keys.pair_key, None)
        self._unknown_source_cache.pop(keys.pair_key, None)

    def _timer(self) -> float:
        return self._clock().timestamp()

    def _raise_cached_refusal(self, keys: AttemptKeys) -> None:
        for key in (keys.pair_key, keys.source_key):
            full = self._refusal_cache.get(key)
            if full is not None:
                raise _refusal(full, self._clock())

    async def _queue(self, keys: AttemptKeys, stack: AsyncExitStack) -> tuple[CounterSnapshot, QueueSlot]:
        """Reserve a slot and wait until it is near the front; return the counters as they are then."""
        snapshot, slot = await self._reserve_slot(keys, stack)
        has_waited = await stack.enter_async_context(self._hash_queue.prepare(slot))
        if snapshot is None or has_waited:
            snapshot = await self._take_snapshot(keys)
        return snapshot, slot

    async def _reserve_slot(self, keys: AttemptKeys, stack: AsyncExitStack) -> tuple[CounterSnapshot | None, QueueSlot]:
        """Reserve a slot of the source's priority; a source that is cached as unknown needs no store call."""
        if keys.pair_key in self._unknown_source_cache:
            return None, stack.enter_context(self._hash_queue.reserve_slot(is_unknown_source=True))
        self._hash_queue.require_capacity()
        snapshot = await self._take_snapshot(keys)
        slot = self._hash_queue.reserve_slot(is_unknown_source=snapshot.is_from_unknown_source)
        return snapshot, stack.enter_context(slot)

    async def _take_snapshot(self, keys: AttemptKeys) -> CounterSnapshot:
        """Read the counters.

        Raises:
            TooManyAttemptsError: One is full.
        """
        now = self._clock()
        stored = await self._store.get_attempt_counts(keys.all, now)
        counters = budgets.counters_for(keys, stored, self._budgets, now)
        full = budgets.find_full_counter(counters, stored)
        if full is not None:
            # An account's counter refuses only unknown sources, so its refusal is cached per source.
            key = keys.source_key if full.key == keys.source_key else keys.pair_key
            self._refusal_cache[key] = full
            raise _refusal(full, now)
        snapshot = CounterSnapshot(keys, now, stored, counters, secrets.token_urlsafe(ATTEMPT_ID_BYTES))
        if snapshot.is_from_unknown_source:
            self._unknown_source_cache[keys.pair_key] = None
        return snapshot

    async def _count(self, snapshot: CounterSnapshot) -> CounterSnapshot:
        """Add an attempt to its counters; return the snapshot on which that rests."""
        for _ in range(MAX_RESERVATIONS):
            if await self._try_count(snapshot):
                return snapshot
            snapshot = await self._take_snapshot(snapshot.keys)
        raise TooManyAttemptsError("contended", MIN_RETRY_DELAY)

    async def _try_count(self, snapshot: CounterSnapshot) -> bool:
        try:
            return await self._store.reserve_attempt(snapshot.attempt_id, snapshot.counters, snapshot.time)
        except BaseException:
            await self._refund(snapshot)  # some counters may hold it
            raise

    async def _refund(self, snapshot: CounterSnapshot) -> None:
        await self._settle(snapshot, budgets.update_after_refund(snapshot.counters))

    async def _settle(self, snapshot: CounterSnapshot, update: CounterUpdate) -> None:
        """Settle an attempt, even if its client is gone or its deadline has passed: then in the background."""
        task = asyncio.create_task(self._write(snapshot.attempt_id, update))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.wait({task}, timeout=max(0.0, request_context.remaining_seconds()))

    async def _write(self, attempt_id: str, update: CounterUpdate) -> None:
        request_context.start_deadline(None)
        try:
            await self._store.settle_attempt(attempt_id, update)
        except StoreUnavailableError as error:  # the attempt stays counted until its counters expire
            _log.warning("attempt_not_settled", cause=error.cause)


def _cache_until(_key: str, full: Counter | None, now: float) -> float:
    expire_time = now + _random.uniform(CACHE_SECONDS / 2, CACHE_SECONDS)
    return expire_time if full is None else min(full.expire_time.timestamp(), expire_time)


def _refusal(full: Counter, now: datetime) -> TooManyAttemptsError:
    return TooManyAttemptsError(full.name, max(full.expire_time - now, MIN_RETRY_DELAY))
