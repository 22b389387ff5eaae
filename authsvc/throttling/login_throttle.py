"""The tries at passwords: each has a place in the hashing queue and is put into its counters before it is looked at.

What refuses a flood is remembered, so that a refusal costs no call of the store.
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
"""Enough to tell the tries of one counter apart, few enough to keep it small."""
RESERVE_TRIES = 3
"""Looks at counters that others fill at the same time."""
MEMORY_SECONDS = 10.0
"""How long what the store said is remembered at most: what another worker has cleared counts here after that.

At least half of that: what a flood made remember at once must not be forgotten at once, and asked for again at once.
"""
MAX_REMEMBERED = 10_000
"""Refusals; and strangers."""
MIN_RETRY_DELAY = timedelta(seconds=1)
_jitter = random.SystemRandom()

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Attempt:
    """One try at a password, reserved.

    Args:
        place: For looking at it.
        is_evaluated: Whether the password is being looked at, or was: from then on the try counts, unless it is right.
        is_right: Whether the password was the right one.
    """

    place: QueueSlot
    is_evaluated: bool = False
    is_right: bool = False

    def begin(self) -> None:
        """Note that the password is being looked at."""
        self.is_evaluated = True


@dataclass(frozen=True, slots=True)
class _CounterSnapshot:
    """What the store had on a target at a time, and the counters that a try goes into by this.

    Args:
        attempt_id: Of the try, if it is reserved.
    """

    target: AttemptKeys
    time: datetime
    stored: Mapping[str, AttemptCount]
    counters: Sequence[Counter]
    attempt_id: str

    @property
    def is_from_unknown_source(self) -> bool:
        """Whether nobody has logged in to this account from there."""
        return self.target.known_key not in self.stored


class LoginThrottle:
    """Counts the tries, in a store that all workers share."""

    def __init__(self, store: Store, hashing: HashQueue, budgets: Budgets, clock: Clock) -> None:
        self._store = store
        self._hashing = hashing
        self._budgets = budgets
        self._clock = clock
        self._refusals: TLRUCache[str, Counter] = TLRUCache(MAX_REMEMBERED, _forget_time, self._time)
        self._strangers: TLRUCache[str, None] = TLRUCache(MAX_REMEMBERED, _forget_time, self._time)
        self._settling: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Finish what is being settled."""
        await asyncio.gather(*self._settling)

    @asynccontextmanager
    async def reserved(self, email: str, client_address: str) -> AsyncIterator[Attempt]:
        """Reserve a try for the body, which is a login if it ends without an error.

        A try that was not evaluated (no time, a client that went away) or was right is given back; any other that ends
        in an error stays counted.

        Args:
            email: In normal form.
            client_address: In canonical spelling; empty where it is not known, or not believed.

        Raises:
            TooManyAttemptsError: A counter is full.
            OverloadedError: Too many passwords wait to be looked at.
        """
        target = AttemptKeys.of(email, client_address)
        self._refuse_remembered(target)
        async with AsyncExitStack() as stack:
            look, place = await self._turn(target, stack)
            look = await self._reserve(look)
            attempt = Attempt(place)
            try:
                yield attempt
            except BaseException:
                if attempt.is_right or not attempt.is_evaluated:
                    await self._give_back(look)
                raise
        await self._settle(look, budgets.update_after_login(target, look.counters, look.stored, self._clock()))
        self._refusals.pop(target.pair_key, None)
        self._strangers.pop(target.pair_key, None)

    def _time(self) -> float:
        return self._clock().timestamp()

    def _refuse_remembered(self, target: AttemptKeys) -> None:
        for key in (target.pair_key, target.source_key):
            full = self._refusals.get(key)
            if full is not None:
                raise _refused(full, self._clock())

    async def _turn(self, target: AttemptKeys, stack: AsyncExitStack) -> tuple[_CounterSnapshot, QueueSlot]:
        """Take a place in the queue and wait until it is near the front; look at the counters as they are then."""
        look, place = await self._place(target, stack)
        has_waited = await stack.enter_async_context(self._hashing.turn(place))
        if look is None or has_waited:
            look = await self._look(target)
        return look, place

    async def _place(self, target: AttemptKeys, stack: AsyncExitStack) -> tuple[_CounterSnapshot | None, QueueSlot]:
        """Take a place in the queue; for whom is remembered as a stranger, without a look at the store."""
        if target.pair_key in self._strangers:
            return None, stack.enter_context(self._hashing.place(is_unknown_source=True))
        self._hashing.check_capacity()
        look = await self._look(target)
        return look, stack.enter_context(self._hashing.place(is_unknown_source=look.is_from_unknown_source))

    async def _look(self, target: AttemptKeys) -> _CounterSnapshot:
        """Return what a try rests on now, where the counters have room for it."""
        now = self._clock()
        stored = await self._store.get_attempt_counts(target.keys, now)
        counters = budgets.counters_for(target, stored, self._budgets, now)
        full = budgets.find_full_counter(counters, stored)
        if full is not None:
            # Whether an account's counter refuses depends on the source.
            key = target.source_key if full.key == target.source_key else target.pair_key
            self._refusals[key] = full
            raise _refused(full, now)
        look = _CounterSnapshot(target, now, stored, counters, secrets.token_urlsafe(ATTEMPT_ID_BYTES))
        if look.is_from_unknown_source:
            self._strangers[target.pair_key] = None
        return look

    async def _reserve(self, look: _CounterSnapshot) -> _CounterSnapshot:
        """Put a try into its counters; return the look that it rests on."""
        for _ in range(RESERVE_TRIES):
            if await self._has_reserved(look):
                return look
            look = await self._look(look.target)
        raise TooManyAttemptsError("contended", MIN_RETRY_DELAY)

    async def _has_reserved(self, look: _CounterSnapshot) -> bool:
        try:
            return await self._store.reserve_attempt(look.attempt_id, look.counters, look.time)
        except BaseException:
            await self._give_back(look)  # some of its counters may hold it
            raise

    async def _give_back(self, look: _CounterSnapshot) -> None:
        await self._settle(look, budgets.update_after_refund(look.counters))

    async def _settle(self, look: _CounterSnapshot, settlement: CounterUpdate) -> None:
        """Settle a try, though its client is gone or its time is up: then nobody waits for it."""
        task = asyncio.create_task(self._write(look.attempt_id, settlement))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.wait({task}, timeout=max(0.0, request_context.remaining_seconds()))

    async def _write(self, attempt_id: str, settlement: CounterUpdate) -> None:
        request_context.start_deadline(None)
        try:
            await self._store.settle_attempt(attempt_id, settlement)
        except StoreUnavailableError as error:  # the try stays counted until its counters are over
            _log.warning("attempt_not_settled", cause=error.cause)


def _forget_time(_key: str, full: Counter | None, now: float) -> float:
    forget_time = now + _jitter.uniform(MEMORY_SECONDS / 2, MEMORY_SECONDS)
    return forget_time if full is None else min(full.expire_time.timestamp(), forget_time)


def _refused(full: Counter, now: datetime) -> TooManyAttemptsError:
    return TooManyAttemptsError(full.name, max(full.expire_time - now, MIN_RETRY_DELAY))
