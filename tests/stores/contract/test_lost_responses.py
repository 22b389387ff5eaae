"""Writes whose response is lost, on an engine without idempotency tokens: the store recognizes its own write."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from authsvc.errors import EmailAlreadyExistsError
from authsvc.stores.dynamodb.store import DynamoDBStore, open_dynamodb_store
from tests.dynamodb import Tables, tables_of
from tests.engines import Engine
from tests.faults import FaultyProxy, Reset
from tests.stores.contract.test_store import NOW, new_user
from tests.support import use_engine

LOST = Reset(applied=True)


@pytest.fixture
async def proxy(moto: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FaultyProxy]:
    """A proxy before moto, which ignores ClientRequestToken."""
    async with FaultyProxy(moto.endpoint_url) as proxy:
        use_engine(moto, monkeypatch, proxy.endpoint_url)
        yield proxy


@pytest.fixture
async def store(proxy: FaultyProxy, table_prefix: str) -> AsyncIterator[DynamoDBStore]:
    async with open_dynamodb_store(table_prefix) as store:
        await store.create_tables()
        proxy.forget()
        yield store


@pytest.fixture
def tables(moto: Engine, table_prefix: str) -> Tables:
    return tables_of(moto, table_prefix)


async def test_of_creating_a_user(store: DynamoDBStore, proxy: FaultyProxy) -> None:
    user = new_user()
    with proxy.fault(LOST, operations={"TransactWriteItems"}, times=1):
        assert await store.create_user(user, NOW) == user
    with pytest.raises(EmailAlreadyExistsError):
        await store.create_user(new_user(), NOW)


async def test_of_updating_a_user(store: DynamoDBStore, proxy: FaultyProxy) -> None:
    user = await store.create_user(new_user(), NOW)
    disabled = replace(user, is_active=False)
    with proxy.fault(LOST, operations={"TransactWriteItems"}, times=1):
        await store.update_user(user, disabled)
    assert await store.get_user(user.user_id) == disabled


async def test_of_claiming_an_address(store: DynamoDBStore, proxy: FaultyProxy, tables: Tables) -> None:
    tables.put_user("carol", "carol@example.com")
    carol = await store.get_user("carol")
    with proxy.fault(LOST, operations={"TransactWriteItems"}, times=1):
        assert await store.claim_email(carol)
    assert tables.claim("carol@example.com") == "carol"
