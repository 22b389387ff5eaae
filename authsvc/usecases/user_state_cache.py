"""What a worker remembers of the standing of users: each as read last, and when, within a bound."""

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from authsvc.models import UserState

MAX_USERS = 16_384
"""Some 10 MiB."""


class CachedRead(NamedTuple):
    """What the store said of a user.

    Args:
        standing: None where there was no such user.
        checked_time: When the read began.
        degraded: Whether it stands in for one that failed.
    """

    standing: UserState | None
    checked_time: datetime
    degraded: bool = False


class UserStateCache:
    """The readings of one worker.

    Args:
        monotonic: Tells ages, in seconds, whatever happens to the time of day.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._tickets = itertools.count()
        self._readings: OrderedDict[str, tuple[int, float, CachedRead | None]] = OrderedDict()

    def begin(self) -> tuple[int, float]:
        """Return what stands for a read that begins now: its place in the order of all, and the time."""
        return next(self._tickets), self._monotonic()

    def put(self, user_id: str, begun: tuple[int, float], reading: CachedRead | None) -> None:
        """Remember what a read brought, unless a later one is remembered already."""
        known = self._readings.get(user_id)
        if known is not None:
            if known[0] > begun[0]:
                return
            self._readings.move_to_end(user_id)
        elif len(self._readings) >= MAX_USERS:
            self._readings.popitem(last=False)
        self._readings[user_id] = (*begun, reading)

    def invalidate(self, user_id: str) -> None:
        """Forget a user who has just been written, and whatever reads under way will bring."""
        self.put(user_id, self.begin(), None)

    def get(self, user_id: str, max_age: timedelta) -> CachedRead | None:
        """Return what a read that began at most that long ago brought; None where nothing is that young."""
        if not max_age:  # nor is a read of this very moment, which began before
            return None
        _, begun, reading = self._readings.get(user_id, (0, 0.0, None))
        return reading if self._monotonic() - begun <= max_age.total_seconds() else None

    def __len__(self) -> int:
        return len(self._readings)
