"""The use cases on users: concurrent creations of one address, ids, and walking over all users."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from authsvc import request_context
from authsvc.config import ServeSettings
from authsvc.errors import OverloadedError, StoreUnavailableError
from authsvc.models import Email, User
from authsvc.passwords.hash_queue import HashQueue
from authsvc.stores.interface import EmailOwner, Store
from authsvc.usecases import users
from tests.stores.contract.test_store import NOW, new_user
from tests.support import TEST_COST, FakeClock

EMAIL = "user@example.com"
PASSWORD = "correct horse battery staple"


@pytest.fixture
def use_cases(settings: ServeSettings, store: Store, clock: FakeClock) -> Iterator[users.Users]:
    with closing(HashQueue(TEST_COST)) as hash_queue:
        yield users.Users(store, hash_queue, clock, settings.password_min_length)


async def test_a_creation_that_fails_leaves_the_address_to_the_next_one(
    use_cases: users.Users, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = store.create_user
    failures = [StoreUnavailableError("no answer in time")]

    async def fail_once(user: User, *args: Any) -> User:
        if failures:
            raise failures.pop()
        return await create(user, *args)

    monkeypatch.setattr(store, "create_user", fail_once)
    calls = [use_cases.create_user(email=EMAIL, role="", password=PASSWORD) for _ in range(2)]
    failed, created = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(failed, StoreUnavailableError)
    assert isinstance(created, User)


async def test_a_creation_waits_for_another_one_until_its_deadline(
    use_cases: users.Users, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, answers = store.get_user_by_email, asyncio.Event()

    async def answer_late(email: Email) -> EmailOwner:
        await answers.wait()
        return await find(email)

    monkeypatch.setattr(store, "get_user_by_email", answer_late)
    first = asyncio.create_task(use_cases.create_user(email=EMAIL, role="", password=PASSWORD))
    await asyncio.sleep(0)
    with request_context.time_limit(0.02), pytest.raises(OverloadedError):
        await use_cases.create_user(email=EMAIL, role="", password=PASSWORD)
    answers.set()
    assert (await first).email == EMAIL


async def test_every_user_is_met_over_many_pages(store: Store) -> None:
    made = [await store.create_user(new_user(f"user{n}@example.com"), NOW) for n in range(5)]
    met = [user async for user in users.iterate_users(store, page_size=2)]
    assert sorted(user.email for user in met) == sorted(user.email for user in made)


async def test_no_new_user_has_an_id_that_begins_with_a_dash(settings: ServeSettings, clock: FakeClock) -> None:
    """One random id in 64 would, and a command would take it for an option."""
    ids = []

    class Store:
        async def create_user(self, user: User, *_: object) -> User:
            ids.append(user.user_id)
            return user

    use_cases = users.Users(Store(), None, clock, settings.password_min_length)  # type: ignore[arg-type]
    password_hash = "$2b$12$" + "." * 53
    for number in range(1000):
        await use_cases.import_user(email=f"u{number}@example.com", role="", password_hash=password_hash)
    assert len(set(ids)) == 1000
    assert not [user_id for user_id in ids if user_id.startswith("-")]
