"""Answers of earlier validations: identities, and refusals in an LRU of their own, so that garbage evicts no identity.

- A key is the SHA-256 of a token, never its text.
- An identity is returned while its age is within the caller's budget, and never at or beyond its expire_time. The age
  counts from the start of the request that brought it.
- A refusal that no later write can undo is returned for REFUSAL_SECONDS, whatever the budget, zero included.
- Any other refusal is never returned; it only keeps answers of earlier requests away.
- An answer replaces another only if its request began later. A degraded answer is not stored, nor is one whose request
  began before a drop.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from authsvc.client.clock import Clock
from authsvc.client.errors import AuthsvcError, InvalidTokenError
from authsvc.client.identity import Identity

REFUSALS_SIZE = 1000
REFUSAL_SECONDS = 60.0
FINAL_REASONS = frozenset({"MALFORMED", "WRONG_TYPE", "WRONG_ISSUER", "WRONG_AUDIENCE", "EXPIRED", "SESSION_REVOKED"})
"""No later write can undo them."""
USER_REASONS = frozenset({"USER_NOT_FOUND", "USER_DISABLED"})
"""A later write can undo them, so they are returned within the caller's budget alone."""

T = TypeVar("T")
Answer: TypeAlias = Identity | AuthsvcError
"""What a validation ends with; an InvalidTokenError or an error that leaves the question open."""


class Entry:
    """A stored identity.

    Args:
        identity: The answer.
        began: When its request began, in seconds of the monotonic clock.
    """

    __slots__ = ("began", "expires", "identity", "is_due", "is_renewing")

    def __init__(self, identity: Identity, began: float) -> None:
        self.identity = identity
        self.began = began
        self.expires = identity.expire_time.timestamp()
        self.is_due = False
        """Whether it was used in the second half of a budget and no renewal has begun."""
        self.is_renewing = False


class Refusal:
    """A stored refusal: its reason, for an exception would keep the frames it was raised through."""

    __slots__ = ("began", "reason")

    def __init__(self, reason: str, began: float) -> None:
        self.reason = reason
        self.began = began


class Cache:
    """Answers by token digest. Several threads may use it.

    Args:
        size: The most identities that it keeps.
        clock: Its monotonic clock for ages, and the time of day.
    """

    def __init__(self, size: int, clock: Clock) -> None:
        self._size = size
        self._monotonic = clock.monotonic
        self._wall = clock.wall
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._refusals: OrderedDict[bytes, Refusal] = OrderedDict()
        self._lock = threading.Lock()
        self.epoch = 0
        """Changes with each drop: a request of an earlier epoch may have read what the drop made obsolete."""

    def __len__(self) -> int:
        return len(self._entries) + len(self._refusals)

    def get(self, digest: bytes, budget: float) -> Entry | None:
        """Return the identity that answers within a budget.

        Args:
            digest: Key of the token.
            budget: Greatest age in seconds; zero: no identity is young enough.

        Raises:
            InvalidTokenError: A stored refusal answers.
        """
        if budget > 0 and (entry := self._entries.get(digest)) is not None:
            age = self._monotonic() - entry.began
            if age <= budget and self._wall() < entry.expires:
                try:  # noqa: SIM105 - contextlib.suppress takes a fifth of the time of a hit
                    self._entries.move_to_end(digest)
                except KeyError:  # another thread has just dropped it
                    pass
                if 2 * age > budget and not entry.is_renewing:
                    entry.is_due = True
                return entry
        elif self._refusals and (refusal := self._refusals.get(digest)) is not None:
            self._raise_if_kept(digest, refusal, budget)
        return None

    def get_stale(self, digest: bytes, stale_if_error: float) -> Entry | None:
        """Return the identity that may answer while the service cannot: its age is at most that many seconds."""
        if stale_if_error <= 0 or (entry := self._entries.get(digest)) is None:
            return None
        is_young = self._monotonic() - entry.began <= stale_if_error
        return entry if is_young and self._wall() < entry.expires else None

    def release_renewal(self, digest: bytes) -> None:
        """Let the next call renew an entry again, for a renewal brought nothing to store."""
        if (entry := self._entries.get(digest)) is not None:
            entry.is_renewing = False

    def store(self, digest: bytes, answer: Answer, began: float, epoch: int) -> None:
        """Store an answer if it is newer than the one stored.

        Args:
            digest: Key of the token.
            answer: Errors that leave the question open are not stored, nor degraded answers.
            began: When the request began, in seconds of the monotonic clock.
            epoch: The cache's at that time.
        """
        if not isinstance(answer, Identity | InvalidTokenError) or answer.degraded:
            return
        with self._lock:
            previous = self._entries.get(digest) or self._refusals.get(digest)
            if epoch != self.epoch or (previous is not None and previous.began >= began):
                return
            if previous is not None:
                self._remove(digest)
            if isinstance(answer, Identity):
                _put(self._entries, digest, Entry(answer, began), self._size)
            else:
                _put(self._refusals, digest, Refusal(answer.reason, began), REFUSALS_SIZE)

    def drop_token(self, digest: bytes) -> None:
        """Drop the answer for a token."""
        with self._lock:
            self.epoch += 1
            self._remove(digest)

    def drop_session(self, session_id: str) -> None:
        """Drop the identities of a session."""
        self._drop(lambda identity: identity.session_id == session_id)

    def drop_user(self, user_id: str) -> None:
        """Drop the identities of a user, and every refusal that a change of the user may have undone."""
        self._drop(lambda identity: identity.user_id == user_id)

    def clear(self) -> None:
        """Drop every answer."""
        with self._lock:
            self.epoch += 1
            self._entries.clear()
            self._refusals.clear()

    def abandon(self) -> None:
        """Forget every answer in the child of a fork, where another thread may hold the lock for ever."""
        self._lock = threading.Lock()
        self.clear()

    def _drop(self, is_concerned: Callable[[Identity], bool]) -> None:
        with self._lock:
            self.epoch += 1
            for digest in [key for key, entry in self._entries.items() if is_concerned(entry.identity)]:
                del self._entries[digest]
            for digest in [key for key, refusal in self._refusals.items() if refusal.reason in USER_REASONS]:
                del self._refusals[digest]

    def _raise_if_kept(self, digest: bytes, refusal: Refusal, budget: float) -> None:
        if refusal.reason in FINAL_REASONS:
            budget = REFUSAL_SECONDS
        elif refusal.reason not in USER_REASONS:
            return
        if 0 < budget >= self._monotonic() - refusal.began:
            with contextlib.suppress(KeyError):  # another thread has just dropped it
                self._refusals.move_to_end(digest)
            raise InvalidTokenError(refusal.reason)

    def _remove(self, digest: bytes) -> None:
        self._entries.pop(digest, None)
        self._refusals.pop(digest, None)


def _put(answers: OrderedDict[bytes, T], digest: bytes, answer: T, size: int) -> None:
    answers[digest] = answer
    if len(answers) > size:
        answers.popitem(last=False)
