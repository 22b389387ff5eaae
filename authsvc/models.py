"""What the service keeps: users, sessions, counts of login attempts. Frozen dataclasses without I/O."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Protocol

ADMIN_ROLE = "admin"
"""The one role that the service itself knows: it may call UserService."""

LEEWAY = timedelta(seconds=30)
"""Tolerated difference between the clocks of the issuing and the verifying host."""
REVOCATION_MARGIN = LEEWAY + timedelta(seconds=60)
"""How long a revocation is kept after the session's last token expires: the leeway and a minute."""
ACCESS_TOKEN_MAX_LIFETIME = timedelta(hours=24)
"""A constant beside the setting, so that a shorter setting does not refuse valid tokens."""


class Clock(Protocol):
    """Returns the time of day. Injected, so that tests set it."""

    def __call__(self) -> datetime:
        """Return the current time, aware, in UTC."""
        ...


def utc_now() -> datetime:
    """Return the current time in UTC: the clock of production."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Email:
    """An address that is looked up or given to a user. An empty spelling is the same as the normal form.

    Args:
        normal: In normal form.
        typed: As it was typed; rows of other programs may hold it so.
        ascii: With the domain in A-labels (`xn--…`); rows of other programs may hold it so.
        unmapped: NFC and lower case alone, which was the normal form of earlier versions.
    """

    normal: str
    typed: str = ""
    ascii: str = ""
    unmapped: str = ""

    @property
    def spellings(self) -> tuple[str, ...]:
        """The distinct texts under which rows may hold the address, the normal form first."""
        return _distinct(self.normal, self.typed, self.ascii, self.unmapped)

    @property
    def claimed_spellings(self) -> tuple[str, ...]:
        """The distinct texts under which this version and earlier ones claim the address, the normal form first."""
        return _distinct(self.normal, self.ascii, self.unmapped)


def _distinct(*texts: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, texts)))


@dataclass(frozen=True, slots=True, kw_only=True)
class UserState:
    """What a validation reads of a user.

    Args:
        email: In normal form; in rows of other programs as they wrote it.
        token_generation: Copied into sessions and tokens; a token of an older generation is revoked.
        revoked_sessions: Entries `session_id:second`; the Unix second is when the session's last token expires.
    """

    user_id: str
    email: str
    role: str
    is_active: bool = True
    token_generation: int = 0
    revoked_sessions: frozenset[str] = frozenset()

    def has_revoked(self, session_id: str) -> bool:
        """Return whether a session is in revoked_sessions."""
        return any(entry.partition(":")[0] == session_id for entry in self.revoked_sessions)


@dataclass(frozen=True, slots=True, kw_only=True)
class User(UserState):
    """A user as stored.

    Args:
        password_hash: None for a user who cannot log in with a password.
        temporary_password_expire_time: None unless the password is a temporary one.
        create_time: None in rows of other programs that do not record it.
        update_time: None likewise.
    """

    password_hash: str | None = field(default=None, repr=False)
    password_change_required: bool = False
    temporary_password_expire_time: datetime | None = None
    create_time: datetime | None = None
    update_time: datetime | None = None

    def has_ended_session(self, session_id: str, session: "Session | None") -> bool:
        """Return whether a session has ended.

        Args:
            session_id: Of the session.
            session: Its row; None where the row is gone.
        """
        if session is None:
            return self.has_revoked(session_id)
        return session.end_time is not None or session.token_generation != self.token_generation

    def expired_revocations(self, now: datetime) -> frozenset[str]:
        """Return the entries of revoked_sessions that are no longer needed."""
        ends = {entry: entry.rpartition(":")[2] for entry in self.revoked_sessions}
        return frozenset(entry for entry, end in ends.items() if end.isdecimal() and Decimal(end) < now.timestamp())

    def with_sessions_ended(self) -> "User":
        """Return the user in a new token generation, which revokes every session and token."""
        return replace(self, token_generation=self.token_generation + 1, revoked_sessions=frozenset())


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session, from its login to its end. Times of expiry are whole seconds.

    Args:
        token_generation: The user's when the login began.
        session_part_sha256: Of the constant part of its refresh tokens (32 bytes).
        rotating_part_sha256: Of the current rotating part (32 bytes).
        previous_part_sha256: Of the rotating part before it; None until the first rotation.
        rotation_nonce: Of the last rotation; None until the first rotation.
        last_refresh_time: None until the first rotation.
        expire_time: When the refresh token expires unless used: the idle limit, at most max_expire_time.
        max_expire_time: When the session expires, however often it is refreshed.
        last_token_expire_time: The latest expiry of any access token that it issued.
        end_time: When it was revoked; None while it lives.
    """

    user_id: str
    session_id: str
    token_generation: int
    session_part_sha256: bytes = field(repr=False)
    rotating_part_sha256: bytes = field(repr=False)
    previous_part_sha256: bytes | None = field(default=None, repr=False)
    rotation_nonce: bytes | None = field(default=None, repr=False)
    create_time: datetime
    last_refresh_time: datetime | None = None
    expire_time: datetime
    max_expire_time: datetime
    last_token_expire_time: datetime
    end_time: datetime | None = None
    client_label: str = ""
    client_address: str = ""


def revocation_entry(session_id: str, last_token_expire_time: datetime) -> str:
    """Return the entry of revoked_sessions that revokes a session's tokens until the last one has expired."""
    return f"{session_id}:{int((last_token_expire_time + REVOCATION_MARGIN).timestamp())}"


@dataclass(frozen=True, slots=True)
class Budget:
    """How many failed logins a window admits; it starts with the first one."""

    failures: int
    window: timedelta


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter to which an attempt is added.

    Args:
        name: Of its budget, for the log.
        key: In the store.
        limit: How many attempts it holds.
        expire_time: End of the window if this attempt starts one; whole seconds.
        is_running: Whether a window has started already.
    """

    name: str
    key: str
    limit: int
    expire_time: datetime
    is_running: bool = False


@dataclass(frozen=True, slots=True)
class AttemptCount:
    """What is stored under a key: the attempts of a counter, or 0 for the mark of a known source."""

    count: int
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class CounterUpdate:
    """How an attempt's outcome changes the counters.

    Args:
        released: Keys of counters from which the attempt is removed.
        cleared: Keys of counters that are deleted.
        known: Key and new expiry of the mark of a known source; None: unchanged.
    """

    released: tuple[str, ...] = ()
    cleared: tuple[str, ...] = ()
    known: tuple[str, datetime] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of an operator's check.

    Args:
        subject: What was checked, for instance `table auth-users`.
        problem: What is wrong with it; empty where nothing is.
        remedy: How to repair it.
        is_warning: Whether the service works nevertheless.
    """

    subject: str
    problem: str = ""
    remedy: str = ""
    is_warning: bool = False

    def __str__(self) -> str:
        """Return the line."""
        if not self.problem:
            return f"ok    {self.subject}"
        return f"{'WARN ' if self.is_warning else 'WRONG'} {self.subject}: {self.problem}. Remedy: {self.remedy}"
