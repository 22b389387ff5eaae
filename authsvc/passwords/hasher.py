"""Hashes and verifies passwords in threads of lower priority, so that validations go on beside a hash."""

import time
from collections.abc import Sequence

from authsvc.passwords import hashes
from authsvc.passwords.hashes import StoredHash
from authsvc.worker_thread import WorkerThread

THREAD_NICENESS = 5
"""Validations come first, but on a host whose cores are all busy the thread still gets a share."""
BACKLOG_NICENESS = 10
"""Of a flood of guesses: it keeps validations waiting less, and still progresses on a busy host."""
SLOW_HASH_SECONDS = 5.0
"""Half of what a request that hashes has: from here on a change of a password, which takes two hashes, fails."""
PROBE_COST = 8
PROBES = 3
"""The fastest one counts: the others were disturbed."""


class Hasher:
    """Makes and verifies password hashes: one at a time, and beside it one of a backlog.

    Args:
        cost: bcrypt's, of new hashes and of every failed attempt.
    """

    def __init__(self, cost: int) -> None:
        self.cost = cost
        self.seconds_per_hash = estimate_seconds(cost)
        self._thread = WorkerThread("hashing", THREAD_NICENESS)
        self._backlog_thread = WorkerThread("hashing-backlog", BACKLOG_NICENESS)

    def close(self) -> None:
        """Drop waiting hashes, finish the running one."""
        self._thread.close()
        self._backlog_thread.close()

    async def hash(self, password: str) -> str:
        """Return the hash under which a password is stored."""
        return await self._thread.run(lambda: hashes.hash_password(password, self.cost))

    async def verify(
        self, passwords: Sequence[str], stored: StoredHash | None, *, is_backlog: bool = False
    ) -> str | None:
        """Return which spelling of a password is the stored one; None, at the same cost whatever is stored, if none is.

        Args:
            passwords: As fields.password_spellings returns them.
            stored: None where there is no readable hash.
            is_backlog: Whether the still lower priority applies.
        """
        thread = self._backlog_thread if is_backlog else self._thread
        return await thread.run(lambda: hashes.find_password(passwords, stored, self.cost))


def estimate_seconds(cost: int) -> float:
    """Return the estimated CPU seconds of a hash, which other programs on the host do not prolong.

    Args:
        cost: bcrypt's, of that hash.
    """
    probe_cost = min(cost, PROBE_COST)
    return min(_probe_seconds(probe_cost) for _ in range(PROBES)) * (1 << (cost - probe_cost))


def _probe_seconds(cost: int) -> float:
    begin = time.thread_time()
    hashes.dummy_hash(cost)
    return time.thread_time() - begin
