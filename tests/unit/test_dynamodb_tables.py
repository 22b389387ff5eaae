"""Waiting for tables, which local engines have at once and AWS after some seconds."""

from typing import Any, cast

import pytest

from authsvc import dynamodb_tables
from authsvc.dynamodb_calls import DynamoDBCalls
from authsvc.dynamodb_tables import Tables, create_tables
from authsvc.errors import StoreSetupError, StoreUnavailableError


class SlowDynamoDB:
    """Makes tables that are ready only when they have been asked for a number of times."""

    def __init__(self, questions: int) -> None:
        self._questions = questions
        self._left: dict[str, int] = {}

    async def __call__(self, operation: str, *, TableName: str, **_: Any) -> Any:  # noqa: N803 - as AWS has it
        match operation:
            case "create_table":
                self._left[TableName] = self._questions
            case "describe_table" if TableName not in self._left:
                raise StoreUnavailableError("ResourceNotFoundException")
            case "describe_table":
                self._left[TableName] -= 1
                if self._left[TableName] == self._questions - 1:
                    raise StoreUnavailableError("ResourceNotFoundException")
                return {"Table": {"TableStatus": "CREATING" if self._left[TableName] > 0 else "ACTIVE"}}
            case "describe_time_to_live":
                return {"TimeToLiveDescription": {"TimeToLiveStatus": "DISABLED"}}
        return {}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamodb_tables, "_ACTIVE_POLL_SECONDS", 0.0)


async def test_tables_are_waited_for() -> None:
    done = await create_tables(cast("DynamoDBCalls", SlowDynamoDB(3)), Tables("auth-"))
    assert "created table auth-users" in done
    assert "enabled TTL on auth-sessions" in done


class RefusingDynamoDB(SlowDynamoDB):
    """Makes nothing of one kind."""

    def __init__(self, refused: str) -> None:
        super().__init__(questions=2)
        self._refused = refused

    async def __call__(self, operation: str, **request: Any) -> Any:
        if operation == self._refused:
            raise StoreSetupError(f"DynamoDB refuses a request: {operation}")
        return await super().__call__(operation, **request)


@pytest.mark.parametrize("operation", ["create_table", "update_time_to_live"])
async def test_what_cannot_be_made_is_told(operation: str) -> None:
    with pytest.raises(StoreSetupError, match=operation):
        await create_tables(cast("DynamoDBCalls", RefusingDynamoDB(operation)), Tables("auth-"))


async def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamodb_tables, "_ACTIVE_WAIT_SECONDS", 0.05)
    with pytest.raises(StoreSetupError, match="auth-users is still being made"):
        await create_tables(cast("DynamoDBCalls", SlowDynamoDB(10**9)), Tables("auth-"))
