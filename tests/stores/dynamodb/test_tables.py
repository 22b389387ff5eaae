"""Waiting for tables: local engines create them at once, AWS within seconds."""

from typing import Any, cast

import pytest

from authsvc.errors import StoreSetupError, StoreUnavailableError
from authsvc.stores.dynamodb import tables
from authsvc.stores.dynamodb.client import DynamoDBClient
from authsvc.stores.dynamodb.responses import BACKUPS_NOT_READY
from authsvc.stores.dynamodb.tables import Tables, check_tables, create_tables


class Names:
    """Has each operation's name in place of the operation."""

    def __getattr__(self, name: str) -> str:
        return name


class SlowDynamoDB:
    """Creates tables that are ready only after a number of DescribeTable calls."""

    api = Names()

    def __init__(self, describe_calls: int) -> None:
        self._describe_calls = describe_calls
        self._left: dict[str, int] = {}
        self._definitions: dict[str, dict[str, Any]] = {}

    async def call(self, operation: str, *, TableName: str, **request: Any) -> Any:  # noqa: N803 - as AWS has it
        match operation:
            case "create_table":
                self._left[TableName] = self._describe_calls
                self._definitions[TableName] = request
            case "describe_table" if TableName not in self._left:
                raise StoreUnavailableError("ResourceNotFoundException")
            case "describe_table":
                self._left[TableName] -= 1
                if self._left[TableName] == self._describe_calls - 1:
                    raise StoreUnavailableError("ResourceNotFoundException")
                status = "CREATING" if self._left[TableName] > 0 else "ACTIVE"
                return {"Table": {**self._definitions[TableName], "TableName": TableName, "TableStatus": status}}
            case "describe_time_to_live":
                return {"TimeToLiveDescription": {"TimeToLiveStatus": "DISABLED"}}
            case "describe_continuous_backups":
                return {"ContinuousBackupsDescription": {}}
        return {}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_ACTIVE_POLL_SECONDS", 0.0)


async def test_tables_are_waited_for() -> None:
    done = await create_tables(cast("DynamoDBClient", SlowDynamoDB(3)), Tables("auth-"))
    assert "created table auth-users" in done
    assert "enabled TTL on auth-sessions" in done


class RefusingDynamoDB(SlowDynamoDB):
    """Refuses one operation."""

    def __init__(self, refused: str, error: Exception | None = None) -> None:
        super().__init__(describe_calls=2)
        self._refused = refused
        self._error = error or StoreSetupError(f"DynamoDB refuses a request: {refused}")

    async def call(self, operation: str, **request: Any) -> Any:
        if operation == self._refused:
            raise self._error
        return await super().call(operation, **request)


@pytest.mark.parametrize("operation", ["create_table", "update_time_to_live"])
async def test_what_cannot_be_created_is_reported(operation: str) -> None:
    with pytest.raises(StoreSetupError, match=operation):
        await create_tables(cast("DynamoDBClient", RefusingDynamoDB(operation)), Tables("auth-"))


async def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_ACTIVE_WAIT_SECONDS", 0.05)
    with pytest.raises(StoreSetupError, match="auth-users is still being created or changed"):
        await create_tables(cast("DynamoDBClient", SlowDynamoDB(10**9)), Tables("auth-"))


async def test_a_second_run_waits_for_what_the_first_one_began(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = cast("DynamoDBClient", SlowDynamoDB(5))
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_ACTIVE_WAIT_SECONDS", 0.0)
        with pytest.raises(StoreSetupError, match="auth-users is still being created or changed"):
            await create_tables(slow, Tables("auth-"))
    [finding] = [finding for finding in await check_tables(slow, Tables("auth-")) if "CREATING" in finding.problem]
    assert str(finding) == (
        "WRONG table auth-users: is CREATING. Remedy: authsvc tables create, which waits until it is ACTIVE"
    )
    assert "created table auth-users" not in await create_tables(slow, Tables("auth-"))
    assert not any("CREATING" in finding.problem for finding in await check_tables(slow, Tables("auth-")))


async def test_point_in_time_recovery_that_stays_off_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_ACTIVE_WAIT_SECONDS", 0.5)
    unready = RefusingDynamoDB("update_continuous_backups", StoreUnavailableError(BACKUPS_NOT_READY))
    with pytest.raises(StoreSetupError, match="auth-users has no point-in-time recovery yet: authsvc tables check"):
        await create_tables(cast("DynamoDBClient", unready), Tables("auth-"))


async def test_an_outage_is_not_waited_for() -> None:
    down = RefusingDynamoDB("update_continuous_backups", StoreUnavailableError("no answer in time"))
    with pytest.raises(StoreUnavailableError):
        await create_tables(cast("DynamoDBClient", down), Tables("auth-"))
