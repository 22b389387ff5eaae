"""The store on SQLite: the embedded default, one durable file, safe with several processes on one host.

Writes run in one thread, each in a BEGIN IMMEDIATE transaction on disk before it is acknowledged. Reads are key
look-ups of some microseconds and run on the event loop: in WAL mode no writer makes them wait.
"""

import asyncio
import dataclasses
import json
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import structlog

from authsvc import fields, request_context
from authsvc.errors import (
    EmailAlreadyExistsError,
    InvalidFieldError,
    StoreSetupError,
    StoreUnavailableError,
    UserChangedError,
    UserNotFoundError,
)
from authsvc.models import (
    AttemptCount,
    Counter,
    CounterUpdate,
    Email,
    Finding,
    Session,
    User,
    UserState,
    revocation_entry,
)
from authsvc.stores.interface import (
    MAX_REVOKED_SESSIONS,
    OPTIMISTIC_LOCK_FIELDS,
    REQUEST_ID_TTL,
    ClaimPage,
    EmailOwner,
    OnUserChanged,
    SessionPage,
    UserPage,
    ignore,
)
from authsvc.telemetry import metrics
from authsvc.worker_thread import WorkerThread

SCHEMA_VERSION = 3
WRITE_LOCK_SECONDS = 2.0
READ_LOCK_SECONDS = 0.1
_WAL_POLL_SECONDS = 0.01
_LOCAL = "it must be on a local file system with locks and shared memory, not on SMB or NFS"
_REMEDIES = {
    sqlite3.SQLITE_IOERR: _LOCAL,
    sqlite3.SQLITE_PROTOCOL: _LOCAL,
    sqlite3.SQLITE_CORRUPT: "restore it from a backup",
    sqlite3.SQLITE_NOTADB: "restore it from a backup",
}
"""Where a file cannot be opened, by SQLite's kind of error."""

_VERSION_1 = """
CREATE TABLE users (
    user_id TEXT PRIMARY KEY,
    email TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    password_hash TEXT,
    is_active INTEGER NOT NULL,
    token_generation INTEGER NOT NULL,
    revoked_sessions TEXT NOT NULL,
    password_change_required INTEGER NOT NULL,
    temporary_password_expire_time TEXT,
    create_time TEXT,
    update_time TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE requests (
    request_digest BLOB PRIMARY KEY,
    user_id TEXT NOT NULL,
    email TEXT NOT NULL,
    expire_time TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (
    user_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    token_generation INTEGER NOT NULL,
    session_part_sha256 BLOB NOT NULL,
    rotating_part_sha256 BLOB NOT NULL,
    previous_part_sha256 BLOB,
    rotation_nonce BLOB,
    create_time TEXT NOT NULL,
    last_refresh_time TEXT,
    expire_time TEXT NOT NULL,
    max_expire_time TEXT NOT NULL,
    last_token_expire_time TEXT NOT NULL,
    end_time TEXT,
    client_label TEXT NOT NULL,
    client_address TEXT NOT NULL,
    PRIMARY KEY (user_id, session_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_by_expire_time ON requests (expire_time);
CREATE INDEX sessions_by_expire_time ON sessions (expire_time);
"""
_VERSION_2 = """
CREATE TABLE login_attempts (
    attempt_key TEXT PRIMARY KEY,
    attempts TEXT NOT NULL,
    expire_time TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX login_attempts_by_expire_time ON login_attempts (expire_time);
"""
_VERSION_3 = ""  # the schema of version 2, with addresses in another normal form
_UPGRADES = (_VERSION_1, _VERSION_2, _VERSION_3)
"""Upgrades of the schema: each takes a file to the next version."""

_INSERT_USER = """
INSERT INTO users VALUES (:user_id, :email, :role, :password_hash, :is_active, :token_generation,
    :revoked_sessions, :password_change_required, :temporary_password_expire_time, :create_time,
    :update_time)
"""
_INSERT_SESSION = """
INSERT INTO sessions VALUES (:user_id, :session_id, :token_generation, :session_part_sha256,
    :rotating_part_sha256, :previous_part_sha256, :rotation_nonce, :create_time,
    :last_refresh_time, :expire_time, :max_expire_time, :last_token_expire_time, :end_time,
    :client_label, :client_address)
"""

_SELECT_USER_STATE = """
SELECT user_id, email, role, is_active, token_generation, revoked_sessions FROM users WHERE user_id = ?
"""

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class SQLiteStore:
    """Store on one SQLite file. Opened by open_sqlite_store."""

    def __init__(self, reader: sqlite3.Connection, writer: sqlite3.Connection, on_user_changed: OnUserChanged) -> None:
        self._reader = reader
        self._writer = writer
        self._on_user_changed = on_user_changed
        self._thread = WorkerThread("sqlite-writer")

    def close(self) -> None:
        """Finish the write in flight and close the file."""
        self._thread.close()
        self._reader.close()
        self._writer.close()

    async def ping(self) -> datetime | None:
        """See Store."""
        self._read("SELECT 1 FROM users LIMIT 1")
        return None

    async def create_user(
        self,
        user: User,
        now: datetime,
        request_digest: bytes | None = None,
        email: Email | None = None,
    ) -> User:
        """See Store."""
        return await self._write(lambda db: _create_user(db, user, now, request_digest, email))

    async def get_user(self, user_id: str) -> User:
        """See Store."""
        return _one_user(self._read("SELECT * FROM users WHERE user_id = ?", user_id))

    async def get_user_states(self, user_ids: Collection[str]) -> Mapping[str, UserState | Exception | None]:
        """See Store."""
        return {user_id: self._user_state(user_id) for user_id in user_ids}

    def _user_state(self, user_id: str) -> UserState | Exception | None:
        try:
            rows = self._read(_SELECT_USER_STATE, user_id)
            return _user_state(rows[0]) if rows else None
        except StoreUnavailableError as error:
            return error

    async def get_user_by_email(self, email: Email) -> EmailOwner:
        """See Store: only this service writes the file, so every address is in a normal form."""
        condition, spellings = _has_email(email)
        rows = self._read(f"SELECT * FROM users WHERE {condition}", *spellings)  # noqa: S608 - marks
        owners = [row for row in rows if row["email"] == email.normal] or rows
        return EmailOwner(_one_user(owners if len(owners) == 1 else []), is_claimed=True)

    async def claim_email(self, user: User) -> bool:
        """See Store: a row's unique address is its claim."""
        query = "SELECT 1 FROM users WHERE user_id = ? AND email = ?"
        return bool(self._read(query, user.user_id, user.email))

    async def list_users(self, limit: int, after_user_id: str | None) -> UserPage:
        """See Store."""
        query = "SELECT * FROM users WHERE user_id > ? ORDER BY user_id LIMIT ?"
        users = [_user(row) for row in self._read(query, after_user_id or "", limit)]
        return UserPage(users, users[-1].user_id if len(users) == limit else None)

    async def list_claims(self, limit: int, after_key: str | None) -> ClaimPage:
        """See Store: a row's unique address is its claim."""
        query = "SELECT email, user_id FROM users WHERE email > ? ORDER BY email LIMIT ?"
        rows = self._read(query, after_key or "", limit)
        user_ids = {row["email"]: row["user_id"] for row in rows}
        return ClaimPage(user_ids, rows[-1]["email"] if len(rows) == limit else None)

    async def update_user(self, expected: User, new: User, new_email: Email | None = None) -> None:
        """See Store."""
        await self._write_user(new.user_id, lambda db: _update_user(db, expected, new, new_email))

    async def delete_user(self, user: User) -> None:
        """See Store."""

        def delete(db: sqlite3.Connection) -> None:
            current = _user_or_none(db, user.user_id)
            if current is not None and current.email != user.email:
                raise UserChangedError
            db.execute("DELETE FROM users WHERE user_id = ?", (user.user_id,))
            db.execute("DELETE FROM sessions WHERE user_id = ?", (user.user_id,))

        await self._write_user(user.user_id, delete)

    async def create_session(self, session: Session) -> None:
        """See Store."""

        def create(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM sessions WHERE expire_time <= ?", (_text(session.create_time),))
            db.execute(_INSERT_SESSION, _columns(session))

        await self._write(create)

    async def get_session(self, user_id: str, session_id: str) -> Session | None:
        """See Store."""
        rows = self._read("SELECT * FROM sessions WHERE user_id = ? AND session_id = ?", user_id, session_id)
        return _session(rows[0]) if rows else None

    async def rotate_refresh_token(self, expected: Session, new: Session) -> bool:
        """See Store."""
        return await self._write(lambda db: _replace_session(db, expected, new))

    async def list_sessions(self, user_id: str, limit: int, after_session_id: str | None) -> SessionPage:
        """See Store."""
        query = "SELECT * FROM sessions WHERE user_id = ? AND session_id > ? ORDER BY session_id LIMIT ?"
        sessions = [_session(row) for row in self._read(query, user_id, after_session_id or "", limit)]
        return SessionPage(sessions, sessions[-1].session_id if len(sessions) == limit else None)

    async def end_session(
        self, user_id: str, session_id: str, now: datetime, revoke_until_if_missing: datetime | None
    ) -> bool:
        """See Store."""
        return await self._write_user(
            user_id, lambda db: _end_session(db, user_id, session_id, now, revoke_until_if_missing)
        )

    async def get_attempt_counts(self, keys: Sequence[str], now: datetime) -> Mapping[str, AttemptCount]:
        """See Store."""
        marks = ", ".join("?" * len(keys))
        query = f"SELECT * FROM login_attempts WHERE attempt_key IN ({marks}) AND expire_time > ?"  # noqa: S608 - marks
        rows = self._read(query, *keys, _text(now))
        return {row["attempt_key"]: AttemptCount(len(_attempt_ids(row)), _expiry(row)) for row in rows}

    async def reserve_attempt(self, attempt_id: str, counters: Sequence[Counter], now: datetime) -> bool:
        """See Store."""
        return await self._write(lambda db: _reserve_attempt(db, attempt_id, counters, now))

    async def settle_attempt(self, attempt_id: str, update: CounterUpdate) -> None:
        """See Store."""
        await self._write(lambda db: _settle_attempt(db, attempt_id, update))

    async def create_tables(self) -> list[str]:
        """See Store."""
        return await self._write(_create_schema)

    async def check_tables(self) -> list[Finding]:
        """See Store."""
        version = _schema_version(self._reader)
        is_intact = self._read("PRAGMA integrity_check(1)")[0][0] == "ok"
        return [
            Finding(
                f"schema version {SCHEMA_VERSION}",
                "" if version == SCHEMA_VERSION else f"is {version}",
                "authsvc tables create" if version < SCHEMA_VERSION else "use the authsvc that wrote the file",
            ),
            Finding("file integrity", "" if is_intact else "is damaged", "restore it from a backup"),
        ]

    def _read(self, query: str, *values: object) -> list[sqlite3.Row]:
        with metrics.store_call("read"), _as_store_errors():
            return self._reader.execute(query, values).fetchall()

    async def _write_user(self, user_id: str, write: Callable[[sqlite3.Connection], T]) -> T:
        """Change a user's row, and report the change however the transaction ends."""
        try:
            return await self._write(write)
        finally:
            self._on_user_changed(user_id)

    async def _write(self, write: Callable[[sqlite3.Connection], T]) -> T:
        """Run a transaction in the writer's thread; an exception rolls it back."""

        def transact() -> T:
            with _as_store_errors(), _immediate(self._writer) as db:
                return write(db)

        with metrics.store_call("write"):
            try:
                async with asyncio.timeout_at(request_context.store_deadline()):
                    return await self._thread.run(transact)
            except TimeoutError:
                raise StoreUnavailableError("sqlite: no answer in time") from None


def _create_user(
    db: sqlite3.Connection, user: User, now: datetime, request_digest: bytes | None, email: Email | None
) -> User:
    if request_digest is not None:
        db.execute("DELETE FROM requests WHERE expire_time <= ?", (_text(now),))
        query = "SELECT * FROM requests WHERE request_digest = ?"
        earlier = db.execute(query, (request_digest,)).fetchone()
        if earlier is not None:
            return _find_user_of_request(db, earlier, user)
        values = (request_digest, user.user_id, user.email, now + REQUEST_ID_TTL)
        db.execute("INSERT INTO requests VALUES (?, ?, ?, ?)", [_plain(value) for value in values])
    _require_email_free(db, user, email)
    db.execute(_INSERT_USER, _columns(user))
    return user


def _has_email(email: Email) -> tuple[str, tuple[str, ...]]:
    """Return the condition that a row has an address, in the normal form of this version or an earlier one."""
    spellings = email.claimed_spellings
    return f"email IN ({', '.join('?' * len(spellings))})", spellings


def _require_email_free(db: sqlite3.Connection, user: User, email: Email | None) -> None:
    condition, spellings = _has_email(email or fields.parse_email(user.email))
    query = f"SELECT 1 FROM users WHERE {condition} AND user_id <> ?"  # noqa: S608 - marks
    if db.execute(query, (*spellings, user.user_id)).fetchone():
        raise EmailAlreadyExistsError


def _update_user(db: sqlite3.Connection, expected: User, new: User, new_email: Email | None = None) -> None:
    current = _user_or_none(db, new.user_id)
    if current is None or any(getattr(current, name) != getattr(expected, name) for name in OPTIMISTIC_LOCK_FIELDS):
        raise UserChangedError
    if new.email != expected.email:
        _require_email_free(db, new, new_email)
    changed = {name: value for name, value in _columns(new).items() if value != _plain(getattr(expected, name))}
    for name, value in changed.items():
        db.execute(f"UPDATE users SET {name} = ? WHERE user_id = ?", (value, new.user_id))  # noqa: S608 - a column


def _replace_session(db: sqlite3.Connection, expected: Session, new: Session) -> bool:
    """Replace a session that has not ended and has the expected rotating part; return whether it did."""
    query = (
        "DELETE FROM sessions WHERE user_id = ? AND session_id = ? AND rotating_part_sha256 = ? AND end_time IS NULL"
    )
    cursor = db.execute(query, (new.user_id, new.session_id, expected.rotating_part_sha256))
    if cursor.rowcount == 0:
        return False
    db.execute(_INSERT_SESSION, _columns(new))
    return True


def _end_session(
    db: sqlite3.Connection, user_id: str, session_id: str, now: datetime, revoke_until_if_missing: datetime | None
) -> bool:
    user = _user_or_none(db, user_id)
    query = "SELECT * FROM sessions WHERE user_id = ? AND session_id = ?"
    row = db.execute(query, (user_id, session_id)).fetchone()
    session = None if row is None else _session(row)
    until = revoke_until_if_missing if session is None else session.last_token_expire_time
    if user is None or until is None or user.has_ended_session(session_id, session):
        return False
    in_force = user.revoked_sessions - user.expired_revocations(now)
    ended = replace(user, revoked_sessions=in_force | {revocation_entry(session_id, until)})
    if len(in_force) >= MAX_REVOKED_SESSIONS:
        _log.warning("revocations_full", user_id=user_id, effect="all sessions of the user end")
        ended = user.with_sessions_ended()
    _update_user(db, user, ended)
    if session is not None:
        _replace_session(db, session, replace(session, end_time=now))
    return True


def _find_user_of_request(db: sqlite3.Connection, earlier: sqlite3.Row, user: User) -> User:
    if _normal_or_same(earlier["email"]) != user.email:
        raise InvalidFieldError("request_id", "was used with another email")
    query = "SELECT * FROM users WHERE user_id = ?"
    return _one_user(db.execute(query, (earlier["user_id"],)).fetchall())


def _reserve_attempt(db: sqlite3.Connection, attempt_id: str, counters: Sequence[Counter], now: datetime) -> bool:
    db.execute("DELETE FROM login_attempts WHERE expire_time <= ?", (_text(now),))
    query = "SELECT * FROM login_attempts WHERE attempt_key = ?"
    rows = [db.execute(query, (counter.key,)).fetchone() for counter in counters]
    held = [set() if row is None else _attempt_ids(row) for row in rows]
    if any(len(ids) >= counter.limit for ids, counter in zip(held, counters, strict=True)):
        return False
    for row, ids, counter in zip(rows, held, counters, strict=True):
        expire_time = _expiry(row) if ids else counter.expire_time
        _put_attempts(db, counter.key, {*ids, attempt_id}, expire_time)
    return True


def _settle_attempt(db: sqlite3.Connection, attempt_id: str, update: CounterUpdate) -> None:
    query = "SELECT * FROM login_attempts WHERE attempt_key = ?"
    for key in update.released:
        row = db.execute(query, (key,)).fetchone()
        if row is not None:
            _put_attempts(db, key, _attempt_ids(row) - {attempt_id}, _expiry(row))
    for key in update.cleared:
        db.execute("DELETE FROM login_attempts WHERE attempt_key = ?", (key,))
    if update.known is not None:
        key, expire_time = update.known
        _put_attempts(db, key, set(), expire_time)


def _put_attempts(db: sqlite3.Connection, key: str, attempt_ids: set[str], expire_time: datetime) -> None:
    values = (key, json.dumps(sorted(attempt_ids)), _text(expire_time))
    db.execute("INSERT OR REPLACE INTO login_attempts VALUES (?, ?, ?)", values)


def _attempt_ids(row: sqlite3.Row) -> set[str]:
    return set(_texts(row["attempts"]))


def _expiry(row: sqlite3.Row) -> datetime:
    return _required_time(row["expire_time"])


def _create_schema(db: sqlite3.Connection) -> list[str]:
    version = _schema_version(db)
    if version > SCHEMA_VERSION:
        raise StoreSetupError(
            f"the file has schema version {version}, not {SCHEMA_VERSION}: use the authsvc that wrote it"
        )
    if version == SCHEMA_VERSION:
        return []
    for upgrade in _UPGRADES[version:]:
        for statement in upgrade.split(";"):
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    done = "created the schema," if version == 0 else f"upgraded the schema from version {version} to"
    return [f"{done} version {SCHEMA_VERSION}", *_normalize_emails(db)]


def _normalize_emails(db: sqlite3.Connection) -> list[str]:
    """Bring the addresses of earlier versions into normal form; return a line for each that several users have."""
    by_address: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for user_id, email in db.execute("SELECT user_id, email FROM users ORDER BY user_id").fetchall():
        by_address[_normal_or_same(email)][email] = user_id
    shared = []
    for address, users in by_address.items():
        if len(users) > 1:
            effect = f"{users[address]} alone logs in by it" if address in users else "none of them can log in by it"
            shared.append(
                f"users {', '.join(users.values())} have one address, {address}, in several spellings: {effect}; "
                "give all but one another address, or delete them"
            )
        elif address not in users:
            db.execute("UPDATE users SET email = ? WHERE user_id = ?", (address, *users.values()))
    return shared


def _normal_or_same(email: str) -> str:
    try:
        return fields.normalize_email(email)
    except InvalidFieldError:  # an address of 254 bytes can be longer in Unicode
        return email


def _schema_version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def _user_or_none(db: sqlite3.Connection, user_id: str) -> User | None:
    row = db.execute("SELECT * FROM users WHERE user_id = ?", (user_id,)).fetchone()
    return None if row is None else _user(row)


def _one_user(rows: list[sqlite3.Row]) -> User:
    if not rows:
        raise UserNotFoundError
    return _user(rows[0])


def _user_state(row: sqlite3.Row) -> UserState:
    return UserState(**_user_state_values(row))


def _user_state_values(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "user_id": row["user_id"],
        "email": row["email"],
        "role": row["role"],
        "is_active": bool(row["is_active"]),
        "token_generation": row["token_generation"],
        "revoked_sessions": frozenset(_texts(row["revoked_sessions"])),
    }


def _user(row: sqlite3.Row) -> User:
    return User(
        **_user_state_values(row),
        password_hash=row["password_hash"],
        password_change_required=bool(row["password_change_required"]),
        temporary_password_expire_time=_time(row["temporary_password_expire_time"]),
        create_time=_time(row["create_time"]),
        update_time=_time(row["update_time"]),
    )


def _session(row: sqlite3.Row) -> Session:
    values = dict(row)
    times = {name: _time(value) for name, value in values.items() if name.endswith("_time")}
    return Session(**{**values, **times})


def _columns(model: User | Session) -> dict[str, object]:
    return {field.name: _plain(getattr(model, field.name)) for field in dataclasses.fields(model)}


def _plain(value: object) -> object:
    match value:
        case datetime():
            return _text(value)
        case frozenset():
            return json.dumps(sorted(value))
    return value


def _text(time: datetime) -> str:
    """Return a time in UTC, as text that sorts by time."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _time(text: str | None) -> datetime | None:
    return None if text is None else _required_time(text)


def _required_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise _damaged_row() from None


def _texts(text: str) -> Collection[str]:
    try:
        texts: list[str] = json.loads(text)
    except (TypeError, ValueError):
        raise _damaged_row() from None
    return texts


def _damaged_row() -> StoreUnavailableError:
    """Return the error for what only a damaged file can hold: SQLite notices the damage in pages, not in values."""
    return StoreUnavailableError("sqlite: a row is damaged")


@contextmanager
def _as_store_errors() -> Iterator[None]:
    """Raise SQLite's errors (locked, full, unreadable, no such table) as StoreUnavailableError."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailableError(f"sqlite: {error}") from None


@contextmanager
def _immediate(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Run a transaction that holds the write lock from its first statement."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        db.rollback()
        raise


def _use_wal(db: sqlite3.Connection) -> str:
    """Switch a new file to WAL; return the mode that it has then.

    SQLite does not wait for another process that switches at the same moment.
    """
    until = time.monotonic() + WRITE_LOCK_SECONDS
    while True:
        try:
            return str(db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(_WAL_POLL_SECONDS)


def _connect(path: Path, lock_seconds: float) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=lock_seconds, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    mode = _use_wal(db)
    if mode != "wal":  # without shared memory SQLite keeps another mode, in which readers and writers wait
        raise sqlite3.NotSupportedError(f"journal mode {mode} instead of WAL; {_LOCAL}")
    db.execute("PRAGMA synchronous = FULL")
    return db


def _reason(error: OSError | sqlite3.Error) -> str:
    """Return why a file cannot be opened, with the remedy where it is known."""
    if isinstance(error, PermissionError):
        return f"{error.strerror}; run this as the file's owner"
    if isinstance(error, OSError):
        return str(error.strerror)
    # The lowest byte is the kind of an extended code.
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    remedy = _REMEDIES.get(kind)
    return f"{error}; {remedy}" if remedy else str(error)


@asynccontextmanager
async def open_sqlite_store(path: Path, on_user_changed: OnUserChanged = ignore) -> AsyncIterator[SQLiteStore]:
    """Open the store in a file; create it where it is missing, readable by its owner alone.

    Args:
        path: The file.
        on_user_changed: See Store.

    Raises:
        StoreSetupError: The file cannot be opened, or is not an SQLite file.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        writer = _connect(path, WRITE_LOCK_SECONDS)
        reader = _connect(path, READ_LOCK_SECONDS)
    except (OSError, sqlite3.Error) as error:
        raise StoreSetupError(f"cannot open the SQLite file {path}: {_reason(error)}") from None
    store = SQLiteStore(reader, writer, on_user_changed)
    try:
        yield store
    finally:
        store.close()
