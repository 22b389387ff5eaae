"""The load of one process on an SQLite file to which others write concurrently."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from authsvc.errors import EmailAlreadyExistsError, StoreUnavailableError
from authsvc.models import User
from authsvc.stores.interface import Store
from authsvc.stores.sqlite import open_sqlite_store
from tests.stores.contract.test_store import NOW, new_session, new_user, rotated

ROUNDS = 12
SESSIONS = 3


def email_of(number: int) -> str:
    return f"user{number}@example.com"


def hammer(path: Path, worker: int, shared: User) -> Sequence[str]:
    """Open the file, then create, refresh and revoke concurrently with others; return the races that it won."""
    return asyncio.run(_hammer(path, worker, shared))


async def _hammer(path: Path, worker: int, shared: User) -> Sequence[str]:
    won: list[str] = []
    async with open_sqlite_store(path) as store:
        await store.create_tables()
        for number in range(ROUNDS):
            await asyncio.gather(
                _create(store, worker, number, won),
                _refresh(store, worker, number, shared, won),
                _revoke(store, worker, number, shared),
            )
    return won


async def _create(store: Store, worker: int, number: int, won: list[str]) -> None:
    user = replace(new_user(email_of(number)), user_id=f"user-{worker}-{number}")
    try:
        await store.create_user(user, NOW)
    except EmailAlreadyExistsError:
        return
    won.append(user.user_id)


async def _refresh(store: Store, worker: int, number: int, shared: User, won: list[str]) -> None:
    session = new_session(shared, f"shared-{number}")
    if await store.rotate_refresh_token(session, rotated(session, worker + 1)):
        won.append(f"{session.session_id}:{worker + 1}")


async def _revoke(store: Store, worker: int, number: int, shared: User) -> None:
    session = new_session(shared, f"own-{worker}-{number}")
    await store.create_session(session)
    if number < SESSIONS:
        await store.end_session(shared.user_id, session.session_id, NOW, None)


def open_and_close(path: Path, times: int) -> int:
    """Open and close a file repeatedly; return how often it could not be read or written."""
    return asyncio.run(_open_and_close(path, times))


async def _open_and_close(path: Path, times: int) -> int:
    failures = 0
    for _ in range(times):
        async with open_sqlite_store(path) as store:
            try:
                await store.create_tables()
                await store.ping()
            except StoreUnavailableError:
                failures += 1
    return failures
