"""The cache behind max_staleness and stale_if_error: the last read of each user's state, with its age."""

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from authsvc.models import UserState

MAX_USERS = 16_384
"""About 10 MiB."""


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
        monotonic: Tells ages, in seconds, whatever happens to the time of day.
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
