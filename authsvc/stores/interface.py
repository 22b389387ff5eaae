"""The Store contract: what the service asks of an engine, what is atomic, and what the loser of a race gets.

Every method can raise StoreUnavailableError: the store did not answer by the request's deadline. A write that ends so
may or may not have happened. Reads are strongly consistent unless they say otherwise.

A store is opened with `on_user_changed`, which it calls with the id of each user whose row it changed or deleted, or
may have, before the method returns.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from authsvc.errors import CorruptItemError
from authsvc.models import AttemptCount, Counter, CounterUpdate, Email, Finding, Session, User, UserState

MAX_REVOKED_SESSIONS = 100
"""Entries of revoked_sessions that are in force: more would exceed DynamoDB's 4 KiB read unit."""
OPTIMISTIC_LOCK_FIELDS = ("email", "role", "is_active", "password_hash", "token_generation")
"""The fields of a user that must be unchanged since the read for a write to succeed."""
REQUEST_ID_TTL = timedelta(hours=24)
"""How long a request id makes a retry of CreateUser safe."""

OnUserChanged: TypeAlias = Callable[[str], None]
"""Receives the id of each user whose row changed."""


def ignore(_: str) -> None:
    """Ignore a change: the on_user_changed of a process without a cache."""


@dataclass(frozen=True, slots=True)
class EmailOwner:
    """The user who owns an address.

    Args:
        is_claimed: False for a row of another program whose address is not claimed yet.
    """

    user: User
    is_claimed: bool


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some sessions of a user, in the store's own order.

    Args:
        last_session_id: Where the next page continues; None on the last page.
    """

    sessions: Sequence[Session]
    last_session_id: str | None


@dataclass(frozen=True, slots=True)
class UserPage:
    """Some users, in the store's own order.

    Args:
        last_user_id: Where the next page continues; None on the last page.
        corrupt: Errors of the rows that are left out.
    """

    users: Sequence[User]
    last_user_id: str | None
    corrupt: Sequence[CorruptItemError] = ()


@dataclass(frozen=True, slots=True)
class ClaimPage:
    """Some claims of addresses, in the store's own order.

    Args:
        user_ids: The user id that each claim names, by address in normal form; empty where it is unreadable.
        last_key: Where the next page continues; None on the last page.
    """

    user_ids: Mapping[str, str]
    last_key: str | None


class Store(Protocol):
    """The service's storage. Opened once per process and shared by all its requests."""

    async def ping(self) -> datetime | None:
        """Make the store answer once.

        Returns:
            The store's time of day; None where it has no clock of its own.
        """
        ...

    async def create_user(
        self, user: User, now: datetime, request_digest: bytes | None = None, email: Email | None = None
    ) -> User:
        """Create a user, claim the address and record the request, all or nothing.

        Of concurrent calls for one address one wins. A call that won but lost its response recognizes its own write.

        Args:
            user: With a new user id and an address in normal form.
            now: Decides whether an earlier request with the same id has expired.
            request_digest: SHA-256 of the request id. For 24 hours the same digest and address return the user of the
                first call, as stored now.
            email: The user's address with its typed form, which rows of other programs may hold; None: the normal
                form alone.

        Returns:
            The user as stored.

        Raises:
            EmailAlreadyExistsError: The address is claimed, or a row that the index knows has it.
            InvalidFieldError: The request id was used with another address.
            UserNotFoundError: The user of the first call with this request id is gone.
            CorruptItemError: The user of the first call with this request id cannot be read.
        """
        ...

    async def get_user(self, user_id: str) -> User:
        """Return a user.

        Raises:
            UserNotFoundError: There is no such user.
            CorruptItemError: The row cannot be read.
        """
        ...

    async def get_user_states(self, user_ids: Collection[str]) -> Mapping[str, UserState | Exception | None]:
        """Return the states of at most 100 users, read after this call began, in batches where that is cheaper.

        Returns:
            For each user id the state; None where there is no such user; or the error of that user alone,
            StoreUnavailableError or CorruptItemError for instance. Nothing is raised: one corrupt row must not fail
            other users' validations.
        """
        ...

    async def get_user_by_email(self, email: Email) -> EmailOwner:
        """Return the user who owns an address: by a live claim, else as the only row that has it.

        Makes the same store calls whether or not the address is known. The row is read strongly, but one that another
        program has just written may not be found yet.

        Raises:
            UserNotFoundError: No user owns it; or several rows have it and no claim decides.
            CorruptItemError: The row cannot be read.
        """
        ...

    async def claim_email(self, user: User) -> bool:
        """Claim a user's address, atomically with a check that the row still has it.

        Returns:
            Whether the user owns the address now; False where another user was first, or the row has changed.
        """
        ...

    async def list_users(self, limit: int, after_user_id: str | None) -> UserPage:
        """Return at most `limit` users without corrupt rows, which are logged. Eventually consistent."""
        ...

    async def list_claims(self, limit: int, after_key: str | None) -> ClaimPage:
        """Return at most `limit` claims of addresses, stale ones included. Eventually consistent."""
        ...

    async def update_user(self, expected: User, new: User, new_email: Email | None = None) -> None:
        """Change a user under an optimistic lock.

        Atomic with the claims where the address changes: the new one is claimed and the old one released. Attributes
        that are equal in both users are not written, so concurrent changes of revoked_sessions are kept. Of concurrent
        calls with one expectation one wins. A call that won but lost its response recognizes its own write.

        Args:
            expected: As read; OPTIMISTIC_LOCK_FIELDS must be unchanged.
            new: As it shall be, with the same user id.
            new_email: A new address with its typed form, which rows of other programs may hold; None: the normal form
                alone.

        Raises:
            UserChangedError: The user has changed since it was read, or is gone.
            EmailAlreadyExistsError: Another user has the new address.
        """
        ...

    async def delete_user(self, user: User) -> None:
        """Delete a user together with the claim of the address, then the user's sessions.

        Args:
            user: As read; the address must be unchanged.

        Raises:
            UserChangedError: The user has another address now.
        """
        ...

    async def create_session(self, session: Session) -> None:
        """Create a session under a new random session id."""
        ...

    async def get_session(self, user_id: str, session_id: str) -> Session | None:
        """Return a session; None where there is none. Ended and expired ones are returned while their rows exist."""
        ...

    async def rotate_refresh_token(self, expected: Session, new: Session) -> bool:
        """Replace the rotating part, provided that it is the expected one and the session has not ended.

        Args:
            expected: As read.
            new: The same session with its new rotating part, nonce and times.

        Returns:
            Whether the session is now as in `new`. Of concurrent calls with one expectation one wins. A call that won
            but lost its response recognizes its own write.
        """
        ...

    async def end_session(
        self, user_id: str, session_id: str, now: datetime, revoke_until_if_missing: datetime | None
    ) -> bool:
        """End a session: its refresh tokens and its access tokens become invalid.

        One transaction marks the session as ended and adds it to the user's revoked_sessions until its last token has
        expired; expired entries are removed. A user with MAX_REVOKED_SESSIONS entries in force gets a new token
        generation instead, which ends all sessions of the user. Does nothing for a user who is gone.

        Args:
            user_id: Of the session.
            session_id: Of the session.
            now: Decides which entries have expired.
            revoke_until_if_missing: Until when to revoke a session whose row is gone; None: then do nothing.

        Returns:
            False where the session had ended before this call, or there is none.
        """
        ...

    async def list_sessions(self, user_id: str, limit: int, after_session_id: str | None) -> SessionPage:
        """Return at most `limit` sessions of a user, ended and expired ones included."""
        ...

    async def get_attempt_counts(self, keys: Sequence[str], now: datetime) -> Mapping[str, AttemptCount]:
        """Return what is stored under keys of throttling.budgets.AttemptKeys, without expired entries.

        Each key is read strongly, but not all at one moment.
        """
        ...

    async def reserve_attempt(self, attempt_id: str, counters: Sequence[Counter], now: datetime) -> bool:
        """Add an attempt to each of its counters, or to none.

        Each counter is changed atomically: it never exceeds its limit, however many calls run at once. An expired or
        empty counter starts a new window with this attempt. A counter holds an attempt id once, so repeating a call
        whose response was lost counts nothing twice. A call that raises may have added the attempt to some counters.

        Args:
            attempt_id: New and random.
            counters: In order; where one is full, the attempt is removed from those before it.
            now: Decides which counters have expired.

        Returns:
            Whether all counters hold the attempt; False where one was full, or kept changing.
        """
        ...

    async def settle_attempt(self, attempt_id: str, update: CounterUpdate) -> None:
        """Remove an attempt from some counters, clear others, and mark its source as known.

        Atomic per key. An attempt is removed only from the window that it was added to. Repeating the call changes
        nothing more.
        """
        ...

    async def create_tables(self) -> Sequence[str]:
        """Create what is missing for the store to work; leave what is there.

        Returns:
            What was done, one line each.

        Raises:
            StoreSetupError: Something that exists cannot be used.
        """
        ...

    async def check_tables(self) -> Sequence[Finding]:
        """Compare what exists with what is needed."""
        ...
