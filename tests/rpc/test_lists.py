"""ListUsers lists every user exactly once, also while others are created and deleted."""

import asyncio
from itertools import count
from typing import Any

import pytest

from tests.dynamodb import Tables
from tests.engines import Engine
from tests.rpc.conftest import Proxied, Shared
from tests.support import ADMIN_EMAIL, Client, failure

MANY = 10_000
BATCH = 25
"""Maximum number of writes of one BatchWriteItem."""


def put_users(tables: Tables, user_ids: list[str]) -> None:
    """Write many rows, as another program does."""
    for some in (user_ids[at : at + BATCH] for at in range(0, len(user_ids), BATCH)):
        items = [
            {"user_id": {"S": each}, "email": {"S": f"{each}@example.com"}, "role": {"S": "user"}} for each in some
        ]
        tables.dynamodb.batch_write_item(RequestItems={tables.users: [{"PutRequest": {"Item": i}} for i in items]})


async def pages(client: Client, page_size: int) -> list[list[Any]]:
    found, page_token = [], ""
    while True:
        page = await client.list_users(page_size, page_token)
        found.append(list(page.users))
        page_token = page.next_page_token
        if not page_token:
            return found


async def test_every_user_is_on_one_page(anywhere: Client) -> None:
    made = [await anywhere.create_user(f"user{n}@example.com", role=f"role-{n}") for n in range(6)]
    await anywhere.update_user(made[0].user_id, is_active=False)
    made[0] = await anywhere.get_user(user_id=made[0].user_id)
    made.append(await anywhere.get_user(email=ADMIN_EMAIL))
    for page_size in (1, 3, 7, 1000):
        found = await pages(anywhere, page_size)
        assert max(map(len, found)) <= page_size
        users = [user for page in found for user in page]
        assert sorted(users, key=lambda user: user.email) == sorted(made, key=lambda user: user.email)


@pytest.mark.engines
async def test_ten_thousand_users_are_each_listed_once(proxied: Proxied) -> None:
    """Other users are created and deleted between the pages."""
    staying = [f"staying-{n:05}" for n in range(MANY - 1)]
    going = [f"going-{n:03}" for n in range(500)]
    await asyncio.to_thread(put_users, proxied.tables, [*staying, *going])
    proxied.proxy.forget()
    listed: list[str] = []
    page_token, names = "", count()
    largest = 0
    while True:
        page = await proxied.client.list_users(2000, page_token)
        largest = max(largest, len(page.users))
        listed += [user.user_id for user in page.users]
        for user_id in [going.pop() for _ in range(min(20, len(going)))]:
            proxied.tables.delete_user(user_id)
        put_users(proxied.tables, [f"coming-{next(names)}" for _ in range(BATCH)])
        page_token = page.next_page_token
        if not page_token:
            break
    assert len(listed) == len(set(listed))
    assert set(staying) < set(listed)
    assert largest == 1000
    # A page costs one store call, however many users it has.
    assert proxied.proxy.requests["Scan"] <= (MANY + 500 + 500) // 1000 + 1
    assert proxied.proxy.requests["Query"] == 0


async def test_the_default_page_has_fifty(proxied: Proxied) -> None:
    put_users(proxied.tables, [f"user-{n}" for n in range(60)])
    assert len((await proxied.client.list_users()).users) == 50


@pytest.mark.parametrize("engine", ["dynoxide", "moto"], indirect=True)
async def test_broken_rows_are_left_out(shared: Shared, engine: Engine) -> None:
    put_users(shared.tables, ["carol", "dave"])
    broken: dict[str, dict[str, Any]] = {
        "no-email": {},
        "role-5": {"email": "x@example.com", "role": {"N": "5"}},
        "active-text": {"email": "y@example.com", "is_active": {"S": "yes"}},
        "expires-soon": {"email": "z@example.com", "temporary_password_expires_at": {"S": "soon"}},
        "nanoseconds": {"email": "w@example.com", "temporary_password_expires_at": {"N": "1795383174123456789"}},
    }
    for user_id, attributes in broken.items():
        shared.tables.put_user(user_id, **attributes)
    for page_size in (1, 50):
        users = [user for page in await pages(shared.client, page_size) for user in page]
        admin = await shared.client.get_user(email=ADMIN_EMAIL)
        assert {user.user_id for user in users} == {"carol", "dave", admin.user_id}
        assert len(users) == 3


@pytest.mark.parametrize("engine", ["dynoxide"], indirect=True)
async def test_a_page_may_end_with_any_user_id(shared: Shared, engine: Engine) -> None:
    """Other programs' ids are as long as DynamoDB allows; those that no request can name are left out."""
    ids = {"\0", " ", "-", "a b/c#\U0001f600", "ü" * 128}
    too_long = {"u" * 2048, "u" * 1025, "ü" * 1024, "u" * 257}
    for number, user_id in enumerate(ids | too_long):
        shared.tables.put_user(user_id, f"user{number}@example.com")
    listed = {user.user_id for page in await pages(shared.client, 1) for user in page}
    assert ids < listed
    assert not too_long & listed


async def test_a_wrong_field_is_named(anywhere: Client) -> None:
    for page_size in (-1, -(2**31)):
        refused = await failure(anywhere.list_users(page_size))
        assert (refused.reason, refused.field) == ("INVALID_FIELD", "page_size")
    # Well-formed, but longer than any key, so it must not reach the store.
    long = "MTp4" + "eHh4" * 1000
    for page_token in ("x", "garbage", "\0", "MTo=", "dXNlcg==", long):
        refused = await failure(anywhere.list_users(0, page_token))
        assert (refused.reason, refused.field) == ("INVALID_FIELD", "page_token")


async def test_a_page_goes_on_after_a_user_who_is_gone(anywhere: Client) -> None:
    for number in range(3):
        await anywhere.create_user(f"user{number}@example.com")
    first = await anywhere.list_users(2)
    for user in first.users:
        if user.email != ADMIN_EMAIL:
            await anywhere.delete_user(user.user_id)
    rest = await anywhere.list_users(50, first.next_page_token)
    listed = {user.email for user in (*first.users, *rest.users)}
    assert listed == {ADMIN_EMAIL, "user0@example.com", "user1@example.com", "user2@example.com"}
    assert not {user.email for user in rest.users} & {user.email for user in first.users}
