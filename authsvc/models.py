"""The things that the service keeps: users, sessions, and what a verified token says."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

ADMIN_ROLE = "admin"
"""The one role that the service itself knows: it may call UserService."""

LEEWAY = timedelta(seconds=30)
"""Difference between the clocks of issuing and verifying hosts that is forgiven."""
REVOCATION_MARGIN = LEEWAY + timedelta(seconds=60)
"""How long a revocation is remembered after the session's last token: the leeway, and a minute."""
ACCESS_TOKEN_MAX_LIFETIME = timedelta(hours=24)
"""A constant beside the setting, so that a shorter setting refuses no living token."""


class Clock(Protocol):
    """Tells the time of day, in UTC. Injected, so that tests decide what time it is."""

    def __call__(self) -> datetime:
        """Return the time now, aware, in UTC."""
        ...


def utc_now() -> datetime:
    """Return the time of day in UTC: the clock of production."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserState:
    """What a validation needs to know of a user.

    Args:
        email: In normal form for users made here; as found for rows of other programs.
        token_generation: Copied into sessions and tokens; a token of an older generation is dead.
        revoked_sessions: Entries `session_id:second`; the second is when the last token of the session is over.
    """

    user_id: str
    email: str
    role: str
    is_active: bool = True
    token_generation: int = 0
    revoked_sessions: frozenset[str] = frozenset()

    def has_revoked(self, session_id: str) -> bool:
        """Tell whether a session of this user was ended."""
        return any(entry.partition(":")[0] == session_id for entry in self.revoked_sessions)


@dataclass(frozen=True, slots=True, kw_only=True)
class User(UserState):
    """A user as stored.

    Args:
        password_hash: None for a user who cannot log in with a password.
        create_time: None in rows of other programs that do not record it; update_time likewise.
        temporary_password_expire_time: None where the password is not a temporary one.
    """

    password_hash: str | None = field(default=None, repr=False)
    password_change_required: bool = False
    temporary_password_expire_time: datetime | None = None
    create_time: datetime | None = None
    update_time: datetime | None = None

    def has_ended_session(self, session_id: str, session: "Session | None") -> bool:
        """Tell whether a session of this user is at its end; the session itself may be gone."""
        if session is None:
            return self.has_revoked(session_id)
        return session.end_time is not None or session.token_generation != self.token_generation

    def expired_revocations(self, now: datetime) -> frozenset[str]:
        """Return the entries of revoked_sessions whose time has passed."""
        ends = {entry: entry.rpartition(":")[2] for entry in self.revoked_sessions}
        return frozenset(entry for entry, end in ends.items() if end.isdecimal() and int(end) < now.timestamp())


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A login and all that follows from it, until it ends.

    Args:
        token_generation: The user's when the login began.
        session_part_sha256: Of the constant part of its refresh tokens (32 bytes).
        rotating_part_sha256: Of the rotating part that is current (32 bytes).
        previous_part_sha256: Of the one before; None until the first rotation. rotation_nonce and
            last_refresh_time likewise.
        expire_time: When the refresh token is over unless used: idle limit, at most max_expire_time.
        max_expire_time: When the session is over, however much it is used. The times of expiry are whole seconds.
        last_token_expire_time: The latest expiry of any access token that it issued.
        end_time: When it was ended before its time; None while it lives.
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
    """Return the entry of revoked_sessions by which a session's tokens are dead until the last one is over."""
    return f"{session_id}:{int((last_token_expire_time + REVOCATION_MARGIN).timestamp())}"


@dataclass(frozen=True, slots=True)
class Budget:
    """How many failures are let through in a span that begins with the first."""

    failures: int
    span: timedelta


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter that a try goes into.

    Args:
        name: Which budget it is, for the log.
        key: Names it in the store.
        limit: How many tries it holds.
        expire_time: When it is over if this try is its first; whole seconds.
        is_running: Whether there were others before.
    """

    name: str
    key: str
    limit: int
    expire_time: datetime
    is_running: bool = False


@dataclass(frozen=True, slots=True)
class AttemptCount:
    """What is stored under a key and has not expired: the tries of a counter, or that a source is known (no tries)."""

    count: int
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class CounterUpdate:
    """What becomes of a try's counters once its outcome is known.

    Args:
        given_back: Keys of counters from which the try itself is taken.
        cleared: Keys of counters that are emptied.
        known: Key and new expiry of the source's being known; None: as it is.
    """

    released: tuple[str, ...] = ()
    cleared: tuple[str, ...] = ()
    known: tuple[str, datetime] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check that an operator asked for.

    Args:
        subject: What was looked at, for instance `table auth-users`.
        problem: What is wrong with it; empty where all is well.
        remedy: What to do about the problem.
    """

    subject: str
    problem: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        """Return the line."""
        if not self.problem:
            return f"ok    {self.subject}"
        return f"WRONG {self.subject}: {self.problem}. Remedy: {self.remedy}"
