"""What the service asks of its store: the Store protocol, with what is atomic and who loses a race.

Any method can raise StoreUnavailableError: the store cannot answer by the request's deadline. A write that ends so may
or may not have happened. Reads are strongly consistent unless they say otherwise.

A store is opened with `wrote`, which it calls with the id of each user whose row it changed or deleted, or may have,
before the method returns.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from authsvc.errors import CorruptItemError
from authsvc.models import Email, AttemptCount, Counter, CounterUpdate, Finding, Session, User, UserState

MAX_REVOKED_SESSIONS = 100
"""Living entries of revoked_sessions, which keep a user within DynamoDB's 4 KiB read unit."""
OPTIMISTIC_LOCK_FIELDS = ("email", "role", "is_active", "password_hash", "token_generation")
"""Fields of a user on which changes rest."""
REQUEST_ID_TTL = timedelta(hours=24)
"""How long a request id makes a retry of CreateUser safe."""

OnUserChanged: TypeAlias = Callable[[str], None]
"""Whom a store tells which users' rows it changes."""


def ignore(_: str) -> None:
    """Do nothing, where nobody remembers what the store said."""


@dataclass(frozen=True, slots=True)
class EmailOwner:
    """The user who owns an address.

    Args:
        is_claimed: False where only the row itself says so: it was written by another program and nobody has claimed
            the address yet.
    """

    user: User
    is_claimed: bool


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some sessions of a user, in the store's own order.

    Args:
        last_session_id: Where the next page goes on; None on the last page.
    """

    sessions: Sequence[Session]
    last_session_id: str | None


@dataclass(frozen=True, slots=True)
class UserPage:
    """Some users, in the store's own order.

    Args:
        last_user_id: Where the next page goes on; None on the last page.
        broken: What is wrong with the rows that are left out.
    """

    users: Sequence[User]
    last_user_id: str | None
    broken: Sequence[CorruptItemError] = ()


@dataclass(frozen=True, slots=True)
class ClaimPage:
    """Some claims of addresses, in the store's own order.

    Args:
        user_ids: Whom the claims name, by the address in normal form; an empty text where that is unreadable.
        last_key: Where the next page goes on; None on the last page.
    """

    user_ids: Mapping[str, str]
    last_key: str | None


class Store(Protocol):
    """The service's memory. Opened once per process and shared by all its requests."""

    async def ping(self) -> datetime | None:
        """Make the store answer once.

        Returns:
            What time of day it is there; None where the store has no clock of its own.
        """
        ...

    async def create_user(
        self, user: User, now: datetime, request_digest: bytes | None = None, email: Email | None = None
    ) -> User:
        """Add a user, claim the address and remember the request, all or nothing.

        Of concurrent calls for one address one wins. A call that wins without learning of it (its response was lost)
        recognises its own write.

        Args:
            user: With a new user id and an address in normal form.
            now: Decides whether an earlier request with the same id still counts.
            request_digest: SHA-256 of the request id. For 24 hours the same digest and address again returns the user
                of the first call, as stored now.
            email: The user's address with its typed form, which rows of other programs may hold; None: the normal
                form alone.

        Returns:
            The user as stored.

        Raises:
            EmailAlreadyExistsError: The address is taken, by a claim or by any row that the index knows.
            InvalidFieldError: The request id was used with another address.
            UserNotFoundError: The user of the first call with this request id is gone.
            CorruptItemError: The user of the first call with this request id is unreadable.
        """
        ...

    async def get_user(self, user_id: str) -> User:
        """Return a user.

        Raises:
            UserNotFoundError: There is none.
            CorruptItemError: The row cannot be read.
        """
        ...

    async def get_user_states(self, user_ids: Collection[str]) -> Mapping[str, UserState | Exception | None]:
        """Return what validations need to know of users, read after this call began, together where that is cheaper.

        Returns:
            For each user id, at most 100 of them: the standing, None where there is no such user, or why it cannot be
            told, StoreUnavailableError or CorruptItemError for instance. Nothing is raised, for one user's row must not
            spoil another's answer.
        """
        ...

    async def get_user_by_email(self, email: Email) -> EmailOwner:
        """Return the user who owns an address: by a live claim, else as the only row that has it.

        Makes the same store calls whether or not the address is known. The row is read strongly; a row that another
        program has just written may not be found yet.

        Raises:
            UserNotFoundError: Nobody owns it; or several rows have it and none has a claim.
            CorruptItemError: The row cannot be read.
        """
        ...

    async def claim_email(self, user: User) -> bool:
        """Make an address the user's own, atomically with a check that the row still has it.

        Returns:
            Whether the address is now the user's; False where another was first, or the row has changed.
        """
        ...

    async def list_users(self, limit: int, after_user_id: str | None) -> UserPage:
        """Return at most `limit` users, leaving out unreadable rows, which are logged. Eventually consistent."""
        ...

    async def list_claims(self, limit: int, after_key: str | None) -> ClaimPage:
        """Return at most `limit` claims of addresses, dead ones included. Eventually consistent."""
        ...

    async def update_user(self, expected: User, new: User, new_email: Email | None = None) -> None:
        """Change a user, provided that nothing that matters has changed since it was read.

        Atomic with the claims where the address changes: the new one is claimed and the old one given up. Attributes
        that are the same in both are not written, so concurrent changes of revoked_sessions are kept. Of concurrent
        calls with one expectation one wins; a call that wins without learning of it recognises its own write.

        Args:
            expected: As read: address, role, is_active, password_hash and token_generation must still be these.
            new: As it shall be, with the same user id.
            new_email: A new address with its typed form, which rows of other programs may hold; None: the normal form
                alone.

        Raises:
            UserChangedError: The user is another one by now, or gone.
            EmailAlreadyExistsError: The new address is taken.
        """
        ...

    async def delete_user(self, user: User) -> None:
        """Delete a user together with the claim of the address, and the user's sessions thereafter.

        Args:
            user: As read: the address must still be this one.

        Raises:
            UserChangedError: The user has another address by now.
        """
        ...

    async def create_session(self, session: Session) -> None:
        """Add a session, under a new random session id."""
        ...

    async def get_session(self, user_id: str, session_id: str) -> Session | None:
        """Return a session, None where there is none; ended and expired ones are returned while they are there."""
        ...

    async def rotate_refresh_token(self, expected: Session, new: Session) -> bool:
        """Replace the current rotating part, provided that it is still the expected one and the session lives.

        Args:
            expected: As read.
            new: The same session with its new rotating part, nonce, times.

        Returns:
            Whether the session is now as in `new`. Of concurrent calls with one expectation one wins; a call that
            wins without learning of it recognises its own write.
        """
        ...

    async def end_session(
        self, user_id: str, session_id: str, now: datetime, revoke_until_if_missing: datetime | None
    ) -> bool:
        """End a session: it can be refreshed no more, and its access tokens are dead.

        One transaction marks the session and adds it to the user's revoked_sessions until its last token is over;
        entries whose time has passed are removed. A user who has MAX_REVOKED_SESSIONS living entries gets a new token
        generation instead, which ends all of the user's sessions. Does nothing for a user who is gone.

        Args:
            user_id: Whose.
            session_id: Which.
            now: Decides which entries are over.
            revoke_until_if_missing: Until when to remember a session of which there is no row; None: then nothing is done.

        Returns:
            False where it had ended before this call, or there is none.
        """
        ...

    async def list_sessions(self, user_id: str, limit: int, after_session_id: str | None) -> SessionPage:
        """Return at most `limit` sessions of a user, ended and expired ones included."""
        ...

    async def get_attempt_counts(self, keys: Sequence[str], now: datetime) -> Mapping[str, AttemptCount]:
        """Return what is stored under keys of throttle.Target, leaving out what has expired.

        Each key is read strongly, though not all at one moment.
        """
        ...

    async def reserve_attempt(self, attempt_id: str, counters: Sequence[Counter], now: datetime) -> bool:
        """Put a try into each of its counters, or into none.

        Each counter takes it atomically: none ever holds more than its limit, however many calls there are at once. A
        counter that has expired or holds nothing begins anew, with the try as its first. A counter holds a try once,
        so a call that is repeated because its response was lost counts nothing twice. A call that raises may have
        put the try into some of them.

        Args:
            attempt_id: New and random.
            counters: In the order in which they are tried; those before a full one are given back.
            now: Decides which have expired.

        Returns:
            Whether they hold it; False where one was full, or kept changing.
        """
        ...

    async def settle_attempt(self, attempt_id: str, settlement: CounterUpdate) -> None:
        """Take a try out of some counters, empty others, and remember that a source is known.

        Each key by itself is atomic. A try is taken out of the counter that it was put into, never out of one that has
        begun anew since. Repeating it changes nothing more.
        """
        ...

    async def create_tables(self) -> Sequence[str]:
        """Make what is missing for the store to work, and leave what is there.

        Returns:
            What was done, a line each.

        Raises:
            StoreSetupError: Something is there that cannot be used.
        """
        ...

    async def check_tables(self) -> Sequence[Finding]:
        """Compare what is there with what must be there."""
        ...
