"""The store of the tests of use cases."""

from collections.abc import AsyncIterator

import pytest

from authsvc.config import ServeSettings
from authsvc.stores.interface import Store
from authsvc.stores.opening import open_store


@pytest.fixture
async def store(settings: ServeSettings) -> AsyncIterator[Store]:
    async with open_store(settings) as store:
        await store.create_tables()
        yield store
