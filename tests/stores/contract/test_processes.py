"""Several processes on one SQLite file."""

import multiprocessing
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from authsvc.errors import StoreSetupError
from authsvc.stores import sqlite
from authsvc.stores.sqlite import open_sqlite_store
from tests.stores.contract import hammer
from tests.stores.contract.test_store import NOW, new_session, new_user, rotated

WORKERS = 4


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


async def test_one_wins_and_nothing_is_lost(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    path = tmp_path / "authsvc.db"
    async with open_sqlite_store(path) as store:
        await store.create_tables()
        shared = await store.create_user(new_user(), NOW)
        for number in range(hammer.ROUNDS):
            await store.create_session(new_session(shared, f"shared-{number}"))

    working = [processes.submit(hammer.hammer, path, worker, shared) for worker in range(WORKERS)]
    won = [each for worker in working for each in worker.result()]

    async with open_sqlite_store(path) as store:
        made = {user.user_id for user in (await store.list_users(1000, None)).users} - {shared.user_id}
        assert len(made) == hammer.ROUNDS
        sessions = {}
        for number in range(hammer.ROUNDS):
            session = new_session(shared, f"shared-{number}")
            kept = await store.get_session(shared.user_id, session.session_id)
            (winner,) = [n for n in range(1, WORKERS + 1) if kept == rotated(session, n)]
            sessions[f"{session.session_id}:{winner}"] = kept
        assert sorted(won) == sorted([*made, *sessions])
        after = await store.get_user(shared.user_id)
        page = await store.list_sessions(shared.user_id, 1000, None)
    assert len(page.sessions) == hammer.ROUNDS * (WORKERS + 1)
    ended = {f"own-{worker}-{number}" for worker in range(WORKERS) for number in range(hammer.SESSIONS)}
    assert {session.session_id for session in page.sessions if session.end_time} == ended
    assert all(after.has_revoked(session_id) for session_id in ended)


def test_a_file_is_opened_by_several_at_once(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / f"authsvc{number}.db"
        opening = [processes.submit(hammer.open_and_close, path, 10) for _ in range(WORKERS)]
        assert [each.result() for each in opening] == [0] * WORKERS


async def test_a_file_that_stays_locked_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "WRITE_LOCK_SECONDS", 0.1)
    times = iter((0.0, 0.0, 1.0))  # at the start, after the first attempt, after the second
    monkeypatch.setattr(sqlite, "time", SimpleNamespace(monotonic=lambda: next(times), sleep=lambda _: None))
    path = tmp_path / "authsvc.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreSetupError, match="database is locked"):
            async with sqlite.open_sqlite_store(path):
                pass
