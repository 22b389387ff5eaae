"""Creating tables while responses are lost or DynamoDB is not ready yet."""

import pytest

from authsvc.stores.dynamodb import tables as dynamodb_tables
from authsvc.stores.dynamodb.store import open_dynamodb_store
from tests.dynamodb import tables_of
from tests.engines import Engine
from tests.faults import FaultyProxy, Reset, Throttle
from tests.support import use_engine

NOT_READY = Throttle("ContinuousBackupsUnavailableException")


@pytest.mark.parametrize("operation", ["CreateTable", "UpdateTable", "UpdateTimeToLive"])
async def test_a_lost_answer_is_no_failure(
    concurrent_engine: Engine, table_prefix: str, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Not on moto, which fails at a second index of one name."""
    engine = concurrent_engine
    tables = tables_of(engine, table_prefix)
    if operation == "UpdateTable":  # creates the index of a table that has none
        tables.dynamodb.create_table(
            TableName=tables.users,
            AttributeDefinitions=[{"AttributeName": "user_id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "user_id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
    async with FaultyProxy(engine.endpoint_url) as proxy:
        use_engine(engine, monkeypatch, proxy.endpoint_url)
        async with open_dynamodb_store(table_prefix) as store:
            with proxy.fault(Reset(applied=True), operations={operation}, times=1) as lost:
                await store.create_tables()
            assert lost.hits == 1
            assert await store.create_tables() == []


async def test_point_in_time_recovery_is_waited_for(
    moto: Engine, table_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DynamoDB refuses it during the first seconds of a table."""
    monkeypatch.setattr(dynamodb_tables, "_ACTIVE_POLL_SECONDS", 0.0)
    async with FaultyProxy(moto.endpoint_url) as proxy:
        use_engine(moto, monkeypatch, proxy.endpoint_url)
        async with open_dynamodb_store(table_prefix) as store:
            with proxy.fault(NOT_READY, operations={"UpdateContinuousBackups"}, times=20):
                done = await store.create_tables()
            assert f"enabled point-in-time recovery on {table_prefix}users" in done
            assert not any(finding.problem for finding in await store.check_tables())
