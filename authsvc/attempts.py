"""The tries at passwords: each is reserved in its counters before it is evaluated, and settled by what came of it."""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from authsvc import deadline, throttle
from authsvc.errors import StoreUnavailableError, TooManyAttemptsError
from authsvc.models import Clock
from authsvc.store import Store
from authsvc.throttle import Budgets, Counter, Settlement, Target, Tries

ATTEMPT_ID_BYTES = 6
"""Enough to tell the tries of one counter apart, few enough to keep it small."""
RESERVE_TRIES = 3
"""Looks at counters that others fill at the same time."""
REFUSAL_MEMORY = timedelta(seconds=10)
"""How long a refusal is remembered at most: what another worker has cleared counts here after that."""
MAX_REFUSALS = 10_000
MIN_RETRY_DELAY = timedelta(seconds=1)

_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One try at a password, reserved.

    Args:
        stored: What the store had on its target before, read at `time`.
        is_evaluated: Whether the password is being looked at, or was: from then on the try counts, unless it is right.
        is_right: Whether the password was the right one.
    """

    attempt_id: str
    target: Target
    stored: Mapping[str, Tries]
    counters: Sequence[Counter]
    time: datetime
    is_evaluated: bool = False
    is_right: bool = False

    @property
    def is_from_known_source(self) -> bool:
        """Whether somebody has logged in to this account from there."""
        return self.target.known_key in self.stored

    def begin(self) -> None:
        """Note that the password is being looked at."""
        self.is_evaluated = True


@dataclass(frozen=True, slots=True)
class _Refusal:
    counter: Counter
    forget_time: datetime


class Attempts:
    """Counts the tries, in a store that all workers share."""

    def __init__(self, store: Store, budgets: Budgets, clock: Clock) -> None:
        self._store = store
        self._budgets = budgets
        self._clock = clock
        self._refusals: OrderedDict[str, _Refusal] = OrderedDict()
        self._settling: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Finish what is being settled."""
        await asyncio.gather(*self._settling)

    @asynccontextmanager
    async def reserved(self, email: str, client_address: str) -> AsyncIterator[Attempt]:
        """Reserve a try for the body, which is a login if it ends without an error.

        A try that was not evaluated (no time, no place in the queue, a client that went away) or was right is given
        back; any other that ends in an error stays counted.

        Args:
            email: In normal form.
            client_address: In canonical spelling; empty where it is not known, or not believed.

        Raises:
            TooManyAttemptsError: A counter is full.
        """
        attempt = await self._reserve(Target.of(email, client_address))
        try:
            yield attempt
        except BaseException:
            if attempt.is_right or not attempt.is_evaluated:
                await self._give_back(attempt)
            raise
        settlement = throttle.settlement_of_login(attempt.target, attempt.counters, attempt.stored, self._clock())
        await self._settle(attempt, settlement)
        self._refusals.pop(attempt.target.pair_key, None)

    async def _reserve(self, target: Target) -> Attempt:
        self._refuse_remembered(target)
        for _ in range(RESERVE_TRIES):
            attempt = await self._look(target)
            if await self._has_reserved(attempt):
                return attempt
        raise TooManyAttemptsError("contended", MIN_RETRY_DELAY)

    async def _look(self, target: Target) -> Attempt:
        """Return a try that may be reserved, by what is stored now."""
        now = self._clock()
        stored = await self._store.get_attempts(target.keys, now)
        counters = throttle.counters_of(target, stored, self._budgets, now)
        full = throttle.full_counter(counters, stored)
        if full is not None:
            self._remember(full, target, now)
            raise _refused(full, now)
        identifier = secrets.token_urlsafe(ATTEMPT_ID_BYTES)
        return Attempt(attempt_id=identifier, target=target, stored=stored, counters=counters, time=now)

    async def _has_reserved(self, attempt: Attempt) -> bool:
        try:
            return await self._store.reserve_attempt(attempt.attempt_id, attempt.counters, attempt.time)
        except BaseException:
            await self._give_back(attempt)  # some of its counters may hold it
            raise

    def _refuse_remembered(self, target: Target) -> None:
        now = self._clock()
        for key in (target.pair_key, target.source_key):
            refusal = self._refusals.get(key)
            if refusal is not None and now < refusal.forget_time:
                raise _refused(refusal.counter, now)

    def _remember(self, full: Counter, target: Target, now: datetime) -> None:
        """Answer a flood from memory: it costs no call of the store."""
        # Whether an account's counter refuses depends on the source.
        key = target.source_key if full.key == target.source_key else target.pair_key
        self._refusals[key] = _Refusal(full, min(full.expire_time, now + REFUSAL_MEMORY))
        self._refusals.move_to_end(key)
        if len(self._refusals) > MAX_REFUSALS:
            self._refusals.popitem(last=False)

    async def _give_back(self, attempt: Attempt) -> None:
        await self._settle(attempt, throttle.settlement_of_nothing(attempt.counters))

    async def _settle(self, attempt: Attempt, settlement: Settlement) -> None:
        """Settle a try, though its client is gone or its time is up: then nobody waits for it."""
        task = asyncio.create_task(self._write(attempt.attempt_id, settlement))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.wait({task}, timeout=max(0.0, deadline.remaining_seconds()))

    async def _write(self, attempt_id: str, settlement: Settlement) -> None:
        deadline.begin(None)
        try:
            await self._store.settle_attempt(attempt_id, settlement)
        except StoreUnavailableError as error:  # the try stays counted until its counters are over
            _log.warning("attempt_not_settled", cause=error.cause)


def _refused(full: Counter, now: datetime) -> TooManyAttemptsError:
    return TooManyAttemptsError(full.name, max(full.expire_time - now, MIN_RETRY_DELAY))
