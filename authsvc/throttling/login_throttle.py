"""Login throttling: every attempt is counted before it is evaluated.

Otherwise 1,000 parallel guesses would all reach the hash. Refusals of a flood are cached, so that they need no store
call.
"""

import asyncio
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import structlog
from cachetools import TLRUCache

from authsvc import request_context
from authsvc.errors import InvalidCredentialsError, StoreUnavailableError, TooManyAttemptsError
from authsvc.models import AttemptCount, Clock, Counter, CounterUpdate
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
"""Cached refusals."""
MIN_RETRY_DELAY = timedelta(seconds=1)
_random = random.SystemRandom()

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CounterSnapshot:
    """The counters of an attempt, none of them full when it was taken.

    Args:
        keys: Under which the attempt is counted.
        stored: The stored counts of these keys.
        counters: To which the attempt is added.
    """

    keys: AttemptKeys
    stored: Mapping[str, AttemptCount]
    counters: Sequence[Counter]

    @property
    def is_known_source(self) -> bool:
        """Whether the account has had a login from the source."""
        return self.keys.known_key in self.stored


class LoginThrottle:
    """Counts attempts in the store, which all workers share.

    Args:
        store: Holds the counters.
        budgets: How many failures are admitted.
        clock: Returns the time of day.
        monotonic: Monotonic clock in seconds, for the age of cached refusals.
        cache_capacity: Of the refusal cache.
    """

    def __init__(
        self,
        store: Store,
        budgets: Budgets,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
        cache_capacity: int = CACHE_CAPACITY,
    ) -> None:
        self._store = store
        self._budgets = budgets
        self._clock = clock
        self._refusal_cache: TLRUCache[str, Counter] = TLRUCache(cache_capacity, self._cache_until, monotonic)
        self._settling: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Finish the settlements in progress."""
        await asyncio.gather(*self._settling)

    async def check(self, email: str, client_address: str) -> CounterSnapshot:
        """Return the counters of an attempt.

        Args:
            email: In normal form.
            client_address: In canonical form; empty where it is unknown or not trusted.

        Raises:
            TooManyAttemptsError: One is full.
        """
        keys = AttemptKeys.of(email, client_address)
        for key in (keys.pair_key, keys.source_key):
            if (full := self._refusal_cache.get(key)) is not None:
                raise _refusal(full, self._clock())
        return await self._take_snapshot(keys)

    async def attempt(self, snapshot: CounterSnapshot, evaluate: Callable[[], Awaitable[T]]) -> T:
        """Reserve an attempt, evaluate it, and settle it.

        It stays counted as a failure if the credentials are wrong. It clears counters if `evaluate` returns. On any
        other error, for instance when the store did not answer, it is refunded.

        Args:
            snapshot: As check returned it.
            evaluate: Verifies the credentials and begins the session.

        Raises:
            InvalidCredentialsError: As `evaluate`, which may raise other errors as well.
            TooManyAttemptsError: Concurrent attempts have filled a counter.
        """
        attempt_id = secrets.token_urlsafe(ATTEMPT_ID_BYTES)
        snapshot = await self._reserve(attempt_id, snapshot)
        try:
            result = await evaluate()
        except InvalidCredentialsError:
            raise
        except BaseException as error:
            await self._refund(attempt_id, snapshot, error)
            raise
        update = budgets.update_after_login(snapshot.keys, snapshot.counters, snapshot.stored, self._clock())
        await self._settle(attempt_id, update)
        self._refusal_cache.pop(snapshot.keys.pair_key, None)
        return result

    def _cache_until(self, _key: str, full: Counter, now: float) -> float:
        window_seconds = (full.expire_time - self._clock()).total_seconds()
        return now + min(window_seconds, _random.uniform(CACHE_SECONDS / 2, CACHE_SECONDS))

    async def _take_snapshot(self, keys: AttemptKeys) -> CounterSnapshot:
        now = self._clock()
        stored = await self._store.get_attempt_counts(keys.all, now)
        counters = budgets.counters_for(keys, stored, self._budgets, now)
        full = budgets.find_full_counter(counters, stored)
        if full is not None:
            # An account's counter refuses only unknown sources, so its refusal is cached per source.
            key = keys.source_key if full.key == keys.source_key else keys.pair_key
            self._refusal_cache[key] = full
            raise _refusal(full, now)
        return CounterSnapshot(keys, stored, counters)

    async def _reserve(self, attempt_id: str, snapshot: CounterSnapshot) -> CounterSnapshot:
        """Add an attempt to its counters; return the snapshot on which that rests."""
        for _ in range(MAX_RESERVATIONS):
            if await self._try_reserve(attempt_id, snapshot):
                return snapshot
            snapshot = await self._take_snapshot(snapshot.keys)
        raise TooManyAttemptsError("contended", MIN_RETRY_DELAY)

    async def _try_reserve(self, attempt_id: str, snapshot: CounterSnapshot) -> bool:
        try:
            return await self._store.reserve_attempt(attempt_id, snapshot.counters, self._clock())
        except BaseException as error:  # some counters may hold it
            await self._refund(attempt_id, snapshot, error)
            raise

    async def _refund(self, attempt_id: str, snapshot: CounterSnapshot, error: BaseException) -> None:
        """Settle an attempt that was not evaluated; in an outage the client does not wait for one more store call."""
        max_seconds = 0.0 if isinstance(error, StoreUnavailableError) else math.inf
        await self._settle(attempt_id, budgets.update_after_refund(snapshot.counters), max_seconds)

    async def _settle(self, attempt_id: str, update: CounterUpdate, max_seconds: float = math.inf) -> None:
        """Settle an attempt; in the background after so many seconds, or if the deadline has passed."""
        task = asyncio.create_task(self._write(attempt_id, update))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.wait({task}, timeout=max(0.0, min(max_seconds, request_context.remaining_seconds())))

    async def _write(self, attempt_id: str, update: CounterUpdate) -> None:
        request_context.start_deadline(None)
        try:
            await self._store.settle_attempt(attempt_id, update)
        except StoreUnavailableError as error:  # the attempt stays counted until its counters expire
            _log.warning("attempt_not_settled", cause=error.cause)


def _refusal(full: Counter, now: datetime) -> TooManyAttemptsError:
    return TooManyAttemptsError(full.name, max(full.expire_time - now, MIN_RETRY_DELAY))
