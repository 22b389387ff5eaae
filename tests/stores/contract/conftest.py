"""The contract tests' stores, one on each engine."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

from authsvc.passwords.hash_queue import HashQueue
from authsvc.stores.dynamodb.store import DynamoDBStore, open_dynamodb_store
from authsvc.stores.interface import Store
from authsvc.stores.sqlite import open_sqlite_store
from tests.dynamodb import Tables, tables_of
from tests.engines import CONCURRENT_ENGINES, ENGINES, Engine
from tests.faults import WRITES, Conflict, FaultyProxy, Reset, Throttle
from tests.stores.contract.use_cases import UseCases, key_ring
from tests.support import PATIENT_LIMITS, TEST_COST, FakeClock, use_engine

FAILING = "failing"
"""Dynoxide behind a proxy that loses responses, conflicts transactions, and throttles."""
FAULTS = ((Reset(applied=True), WRITES), (Conflict(), {"TransactWriteItems"}), (Throttle(), None))


@pytest.fixture(params=["sqlite", *ENGINES])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, table_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Store]:
    """A store with its tables, on each engine."""
    async with _opened(request, tmp_path, table_prefix, monkeypatch) as opened:
        yield opened


@pytest.fixture(params=["sqlite", *CONCURRENT_ENGINES])
async def concurrent_store(
    request: pytest.FixtureRequest, tmp_path: Path, table_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Store]:
    """The same, on each engine that is correct under concurrent writes."""
    async with _opened(request, tmp_path, table_prefix, monkeypatch) as opened:
        yield opened


@pytest.fixture
def hash_queue() -> Iterator[HashQueue]:
    with closing(HashQueue(TEST_COST)) as hash_queue:
        yield hash_queue


@pytest.fixture
def use_cases(
    request: pytest.FixtureRequest,
    concurrent_store: Store,
    table_prefix: str,
    signing_keys: Path,
    clock: FakeClock,
    hash_queue: HashQueue,
) -> UseCases:
    """The use cases on concurrent_store."""
    name = request.node.callspec.params["concurrent_store"]
    tables = None if name == "sqlite" else tables_of(_engine(request, name), table_prefix)
    return UseCases(concurrent_store, key_ring(signing_keys, clock), clock, hash_queue, tables)


@asynccontextmanager
async def _opened(
    request: pytest.FixtureRequest, folder: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Store]:
    if request.param == "sqlite":
        async with open_sqlite_store(folder / "authsvc.db") as store:
            await store.create_tables()
            yield store
        return
    async with AsyncExitStack() as stack:
        engine = _engine(request, request.param)
        endpoint_url = await stack.enter_async_context(_failing(engine)) if request.param == FAILING else ""
        use_engine(engine, monkeypatch, endpoint_url)
        dynamodb = await stack.enter_async_context(open_dynamodb_store(prefix, timeouts=PATIENT_LIMITS.dynamodb))
        await dynamodb.create_tables()
        yield dynamodb


@asynccontextmanager
async def _failing(engine: Engine) -> AsyncIterator[str]:
    """Put a proxy before an engine that fails some of its calls; return its URL."""
    async with FaultyProxy(engine.endpoint_url) as proxy:
        with ExitStack() as faults:
            for fault, operations in FAULTS:
                faults.enter_context(proxy.fault(fault, operations=operations, probability=0.05))
            yield proxy.endpoint_url


def _engine(request: pytest.FixtureRequest, name: str) -> Engine:
    engine: Engine = request.getfixturevalue("dynoxide" if name == FAILING else name)
    return engine


@pytest.fixture
def tables(engine: Engine, table_prefix: str) -> Tables:
    """The tables of dynamodb_store, as another program uses them."""
    return tables_of(engine, table_prefix)


@pytest.fixture
async def dynamodb_store(
    engine: Engine, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[DynamoDBStore]:
    """A store on a users table that another program created."""
    tables.create_users_table()
    use_engine(engine, monkeypatch)
    async with open_dynamodb_store(tables.prefix, timeouts=PATIENT_LIMITS.dynamodb) as store:
        await store.create_tables()
        yield store
