"""The SQLite file: its lock, its schema version, damage, and permissions."""

import errno
import functools
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from authsvc import fields, request_context
from authsvc.errors import EmailAlreadyExistsError, StoreSetupError, StoreUnavailableError, UserNotFoundError
from authsvc.models import Email, UserState
from authsvc.stores.sqlite import SQLiteStore, open_sqlite_store
from tests.stores.contract.test_attempts import counter
from tests.stores.contract.test_store import DIGEST, NOW, new_user


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "authsvc.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    async with open_sqlite_store(path) as store:
        await store.create_tables()
        yield store


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock, as another process does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def test_a_locked_file_is_unavailable_for_writing_alone(store: SQLiteStore, path: Path) -> None:
    user = await store.create_user(new_user(), NOW)
    with locked(path):
        assert await store.get_user(user.user_id) == user
        with request_context.time_limit(0.1), pytest.raises(StoreUnavailableError):
            await store.create_user(new_user("bob@example.com"), NOW)


async def test_a_write_waits_for_another_process(store: SQLiteStore, path: Path) -> None:
    with locked(path):
        writing = store.create_user(new_user(), NOW)
    assert (await writing).email == "alice@example.com"


async def test_a_file_of_another_version_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    async with open_sqlite_store(path) as store:
        with pytest.raises(StoreSetupError, match="schema version 99, not 3"):
            await store.create_tables()


async def test_a_file_of_an_earlier_version_is_brought_up_to_date(store: SQLiteStore, path: Path) -> None:
    """Its rows are kept."""
    user = await store.create_user(new_user(), NOW)
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE login_attempts")
        other.execute("PRAGMA user_version = 1")
    async with open_sqlite_store(path) as again:
        (finding, _) = await again.check_tables()
        assert str(finding) == "WRONG schema version 3: is 1. Remedy: authsvc tables create"
        assert await again.create_tables() == ["upgraded the schema from version 1 to version 3"]
        assert await again.get_user(user.user_id) == user
        assert await again.reserve_attempt("attempt", [counter()], NOW)
        assert await again.create_tables() == []


ADDRESSES = {
    "alice": "alice@example.com",
    "eve": "eve@\uff45xample.com",
    "josef": "josef@xn--exmple-cua.de",
    "mia": "mia@xn--exmple-cua.de",
    "mia-2": "mia@exämple.de",
    "nina": "nina@\uff45xample.com",
    "nina-2": "nina@ex\u00adample.com",
    "long": "o@" + ".".join(["xn--fiq" + "a" * 39] * 3),  # 362 bytes in Unicode
}
"""Addresses as an earlier version stored them, by user id."""


@pytest.fixture
async def earlier(store: SQLiteStore, path: Path) -> SQLiteStore:
    """The store on a file that an earlier version wrote."""
    for number, user_id in enumerate(ADDRESSES):
        await store.create_user(new_user(f"user{number}@example.com", user_id=user_id), NOW)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.executemany("UPDATE users SET email = ? WHERE user_id = ?", [(e, u) for u, e in ADDRESSES.items()])
        other.execute("PRAGMA user_version = 2")
    return store


async def test_an_upgrade_brings_addresses_into_normal_form_and_names_those_that_users_share(
    earlier: SQLiteStore,
) -> None:
    upgraded, *shared = await earlier.create_tables()
    assert upgraded == "upgraded the schema from version 2 to version 3"
    assert [line.partition("; ")[0] for line in shared] == [
        "users mia, mia-2 have one address, mia@exämple.de, in several spellings: mia-2 alone logs in by it",
        "users nina, nina-2 have one address, nina@example.com, in several spellings: none of them can log in by it",
    ]
    stored = {user.user_id: user.email for user in (await earlier.list_users(100, None)).users}
    assert stored == ADDRESSES | {"eve": "eve@example.com", "josef": "josef@exämple.de"}
    assert (await earlier.get_user_by_email(fields.parse_email("eve@example.com"))).user.user_id == "eve"
    assert (await earlier.get_user_by_email(fields.parse_email("mia@xn--exmple-cua.de"))).user.user_id == "mia-2"
    assert await earlier.create_tables() == []


async def test_a_file_that_is_not_upgraded_yet_gives_no_mailbox_two_users(earlier: SQLiteStore) -> None:
    for typed in ("josef@exämple.de", "Josef@XN--EXMPLE-CUA.DE"):
        assert (await earlier.get_user_by_email(fields.parse_email(typed))).user.user_id == "josef"
    josef = fields.parse_email("josef@exämple.de")
    with pytest.raises(EmailAlreadyExistsError):
        await earlier.create_user(new_user(josef.normal), NOW, email=josef)
    alice = await earlier.get_user("alice")
    with pytest.raises(EmailAlreadyExistsError):
        await earlier.update_user(alice, replace(alice, email=josef.normal), josef)
    assert await earlier.get_user("alice") == alice


async def test_of_two_spellings_of_which_none_is_normal_nobody_is_found(earlier: SQLiteStore) -> None:
    email = Email("mia@normal.example", ascii=ADDRESSES["mia"], unmapped=ADDRESSES["mia-2"])
    with pytest.raises(UserNotFoundError):
        await earlier.get_user_by_email(email)


async def test_a_request_of_an_earlier_version_is_recognized(store: SQLiteStore, path: Path) -> None:
    email = fields.parse_email("josef@xn--exmple-cua.de")
    first = await store.create_user(new_user(email.normal), NOW, DIGEST, email)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE requests SET email = ?", (email.ascii,))
    assert await store.create_user(new_user(email.normal), NOW, DIGEST, email) == first


async def test_counters_that_have_expired_are_removed(store: SQLiteStore, path: Path) -> None:
    await store.reserve_attempt("old", [counter("old")], NOW)
    await store.reserve_attempt("new", [counter("new", span=timedelta(hours=1))], NOW + timedelta(minutes=16))
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT attempt_key FROM login_attempts").fetchall() == [("new",)]


@pytest.mark.parametrize(("column", "value"), [("revoked_sessions", "["), ("create_time", "yesterday")])
async def test_a_damaged_row_is_unavailable_and_fails_no_other(
    store: SQLiteStore, path: Path, column: str, value: str
) -> None:
    damaged = await store.create_user(new_user(), NOW)
    other = await store.create_user(new_user("bob@example.com"), NOW)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"UPDATE users SET {column} = ? WHERE user_id = ?", (value, damaged.user_id))  # noqa: S608
    with pytest.raises(StoreUnavailableError, match="sqlite: a row is damaged"):
        await store.get_user(damaged.user_id)
    states = await store.get_user_states([damaged.user_id, other.user_id])
    assert isinstance(states[other.user_id], UserState)
    assert isinstance(states[damaged.user_id], StoreUnavailableError) == (column == "revoked_sessions")


async def test_a_file_without_tables_is_unavailable(path: Path) -> None:
    async with open_sqlite_store(path) as store:
        with pytest.raises(StoreUnavailableError, match="no such table"):
            await store.ping()


@pytest.fixture
def _no_database(path: Path) -> None:
    path.write_text("not a database, but long enough to be parsed as one" * 10)


@pytest.mark.usefixtures("_no_database")
async def test_what_is_no_database_cannot_be_opened(path: Path) -> None:
    with pytest.raises(StoreSetupError, match="cannot open the SQLite file"):
        async with open_sqlite_store(path):
            pass


async def test_a_folder_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StoreSetupError, match=r"cannot open the SQLite file .+: Is a directory$"):
        async with open_sqlite_store(tmp_path):
            pass


async def test_only_its_owner_may_read_the_file(store: SQLiteStore, path: Path) -> None:
    await store.create_user(new_user(), NOW)
    assert {file.stat().st_mode & 0o777 for file in path.parent.glob("authsvc.db*")} == {0o600}


class Connection(sqlite3.Connection):
    """A connection to a file on a file system that lacks something."""

    journal_mode = "delete"
    error: sqlite3.Error | None = None

    def execute(self, *_: Any) -> Any:
        if self.error is not None:
            raise self.error
        return super().execute(f"SELECT '{self.journal_mode}'")


def operational_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("fails")
    error.sqlite_errorcode = code
    return error


NOT_HERE = "it must be on a local file system with locks and shared memory, not on SMB or NFS"


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (None, f"cannot open the SQLite file PATH: journal mode delete instead of WAL; {NOT_HERE}"),
        (operational_error(sqlite3.SQLITE_IOERR_LOCK), f"cannot open the SQLite file PATH: fails; {NOT_HERE}"),
        (operational_error(sqlite3.SQLITE_PROTOCOL), f"cannot open the SQLite file PATH: fails; {NOT_HERE}"),
        (operational_error(sqlite3.SQLITE_CANTOPEN), "cannot open the SQLite file PATH: fails"),
        (sqlite3.DatabaseError("fails"), "cannot open the SQLite file PATH: fails"),
    ],
)
async def test_a_file_system_on_which_sqlite_cannot_work_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: sqlite3.Error | None, reported: str
) -> None:
    monkeypatch.setattr(Connection, "error", error)
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Connection))
    with pytest.raises(StoreSetupError, match=f"^{re.escape(reported.replace('PATH', str(path)))}$"):
        async with open_sqlite_store(path):
            pass


async def test_a_file_of_another_user_is_named_with_a_remedy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may open every file, so the test fakes the refusal."""

    def refuse(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreSetupError, match=r"Permission denied; run this as the file's owner$"):
        async with open_sqlite_store(path):
            pass
