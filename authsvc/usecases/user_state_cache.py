"""The cache behind max_staleness and stale_if_error, and the reads of user states through it."""

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from authsvc import request_context
from authsvc.errors import StoreUnavailableError
from authsvc.models import UserState
from authsvc.stores.interface import Store
from authsvc.telemetry import metrics

MAX_USERS = 16_384
"""About 10 MiB."""
STALE_FALLBACK_TIMEOUT_SECONDS = 0.5

_count_misses = metrics.CACHE_MISSES.labels("user_states").inc


@dataclass(frozen=True, slots=True)
class StalenessLimits:
    """How old the deciding read may be.

    Args:
        max_staleness: Upper limit of a check's max_staleness.
        max_stale_if_error: Upper limit of a check's stale_if_error.
        fallback_timeout: How long the store is waited for where an older read may answer instead.
    """

    max_staleness: timedelta
    max_stale_if_error: timedelta
    fallback_timeout: timedelta = timedelta(seconds=STALE_FALLBACK_TIMEOUT_SECONDS)


class Wanted(NamedTuple):
    """A user whose state is wanted.

    Args:
        user_id: Of the user.
        max_staleness: Maximum age of the read; zero: it begins now.
        stale_if_error: Maximum age of a read that may answer while the store cannot; zero: none may.
    """

    user_id: str
    max_staleness: timedelta
    stale_if_error: timedelta


class CachedRead(NamedTuple):
    """What one read of the store returned.

    Args:
        user_state: None where there was no such user.
        checked_time: When the read began.
        degraded: Whether it answers in place of a read that failed.
    """

    user_state: UserState | None
    checked_time: datetime
    degraded: bool = False


class ReadStart(NamedTuple):
    """When a read began.

    Args:
        number: Its place in the order of all reads and writes.
        seconds: By the monotonic clock.
    """

    number: int
    seconds: float


class _Entry(NamedTuple):
    start: ReadStart
    read: CachedRead | None  # None: invalidated


class UserStateCache:
    """The reads of one worker, bounded; the least recently read user is evicted.

    Args:
        monotonic: Monotonic clock in seconds; a change of the time of day changes no age.
        max_users: How many users are kept.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, max_users: int = MAX_USERS) -> None:
        self._monotonic = monotonic
        self._max_users = max_users
        self._numbers = itertools.count()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def start_read(self) -> ReadStart:
        """Return the start of a read that begins now."""
        return ReadStart(next(self._numbers), self._monotonic())

    def put(self, user_id: str, start: ReadStart, read: CachedRead) -> None:
        """Keep what a read returned, unless the user was read or written after it began."""
        self._put(user_id, _Entry(start, read))

    def invalidate(self, user_id: str) -> None:
        """Drop a user who was just written, and whatever reads in flight will return of it."""
        self._put(user_id, _Entry(self.start_read(), None))

    def _put(self, user_id: str, entry: _Entry) -> None:
        known = self._entries.get(user_id)
        if known is not None:
            if known.start.number > entry.start.number:
                return
            self._entries.move_to_end(user_id)
        elif len(self._entries) >= self._max_users:
            self._entries.popitem(last=False)
        self._entries[user_id] = entry

    def get(self, user_id: str, max_age: timedelta) -> CachedRead | None:
        """Return what a read that began at most `max_age` ago returned; None where no read is that young."""
        if not max_age:  # even a read of this very moment began before
            return None
        entry = self._entries.get(user_id)
        if entry is None or self._monotonic() - entry.start.seconds > max_age.total_seconds():
            return None
        return entry.read

    def __len__(self) -> int:
        return len(self._entries)


class UserStates:
    """The states of users: from the cache where an older read is allowed, else from the store.

    Args:
        store: Where they are read.
        cache: Of those reads.
        limits: Of what a caller may allow.
    """

    def __init__(self, store: Store, cache: UserStateCache, limits: StalenessLimits) -> None:
        self._store = store
        self._cache = cache
        self._limits = limits

    async def get(self, wanted: Wanted, now: datetime) -> CachedRead | Exception:
        """Return the deciding read of a user, or the error that prevented it."""
        cached = self._cached(wanted)
        if cached is not None:
            return cached
        use_full_timeout = self._stale(wanted) is None
        (answer,) = (await self._read((wanted.user_id,), now, use_full_timeout=use_full_timeout)).values()
        return self._or_stale(answer, wanted)

    async def get_all(self, wanted: Sequence[Wanted], now: datetime) -> list[CachedRead | Exception]:
        """Return the deciding read of each user, in order, from the cache or from one read of the store."""
        cached = [self._cached(each) for each in wanted]
        missing = [each for each, read in zip(wanted, cached, strict=True) if read is None]
        use_full_timeout = any(self._stale(each) is None for each in missing)
        answers = await self._read({each.user_id for each in missing}, now, use_full_timeout=use_full_timeout)
        return [r or self._or_stale(answers[w.user_id], w) for w, r in zip(wanted, cached, strict=True)]

    async def _read(
        self, user_ids: Collection[str], now: datetime, *, use_full_timeout: bool
    ) -> Mapping[str, CachedRead | Exception]:
        """Read from the store and fill the cache; without the full timeout, give up early for a stale fallback."""
        start = self._cache.start_read()
        _count_misses(len(user_ids))
        if use_full_timeout:
            states = await self._store.get_user_states(user_ids)
        else:
            timeout_seconds = self._limits.fallback_timeout.total_seconds()
            with request_context.time_limit(min(timeout_seconds, request_context.remaining_seconds())):
                states = await self._store.get_user_states(user_ids)
        reads: dict[str, CachedRead | Exception] = {}
        for user_id, state in states.items():
            if isinstance(state, Exception):
                reads[user_id] = state
            else:
                reads[user_id] = read = CachedRead(state, now)
                self._cache.put(user_id, start, read)
        return reads

    def _cached(self, wanted: Wanted) -> CachedRead | None:
        """Return a read within max_staleness."""
        if not wanted.max_staleness:
            return None
        return self._cache.get(wanted.user_id, min(wanted.max_staleness, self._limits.max_staleness))

    def _stale(self, wanted: Wanted) -> CachedRead | None:
        """Return a read within stale_if_error."""
        if not wanted.stale_if_error:
            return None
        return self._cache.get(wanted.user_id, min(wanted.stale_if_error, self._limits.max_stale_if_error))

    def _or_stale(self, answer: CachedRead | Exception, wanted: Wanted) -> CachedRead | Exception:
        """Return the store's answer; for an outage a stale read, where it is allowed and there."""
        if not isinstance(answer, StoreUnavailableError):
            return answer
        stale = self._stale(wanted)
        return answer if stale is None else stale._replace(degraded=True)
