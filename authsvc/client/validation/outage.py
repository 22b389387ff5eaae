"""Whether the service answers, so that callers with an older answer need not find out one by one."""

from collections.abc import Callable

FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 1.0


class Outage:
    """Knows of failures; lets one probe at a time ask, with a backoff.

    Args:
        monotonic: Monotonic clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._backoff = FIRST_BACKOFF_SECONDS
        self._next_probe = 0.0
        self._is_probing = False
        self.is_on = False

    def fail(self) -> None:
        """Record that the service could not answer."""
        if not self.is_on:
            self.is_on = True
            self._backoff = FIRST_BACKOFF_SECONDS
            self._next_probe = self._monotonic() + self._backoff

    def recover(self) -> None:
        """Record that the service answered."""
        self.is_on = False

    def begin_probe(self) -> bool:
        """Return whether a probe is due and none is in flight; then the caller sends one, and ends it."""
        if self._is_probing or self._monotonic() < self._next_probe:
            return False
        self._is_probing = True
        return True

    def end_probe(self) -> None:
        """Let the next probe wait twice as long as this one."""
        self._is_probing = False
        self._backoff = min(2 * self._backoff, MAX_BACKOFF_SECONDS)
        self._next_probe = self._monotonic() + self._backoff
