"""DynamoDB calls: requests as sent, and the classification of failures."""

import asyncio
import json
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from botocore.exceptions import ParamValidationError

from authsvc.errors import ConfigError, RetryableStoreError, StoreSetupError, StoreUnavailableError
from authsvc.stores.dynamodb.batch_get import BatchGet
from authsvc.stores.dynamodb.client import DynamoDBClient, open_client
from authsvc.stores.dynamodb.responses import ConditionFailedError
from authsvc.stores.dynamodb.store import DynamoDBStore
from authsvc.stores.dynamodb.tables import Tables
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.stores.interface import ignore
from tests.engines import Engine
from tests.support import use_engine


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Unset environment variables, and hide AWS's configuration files."""

    def forget(*names: str) -> None:
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in names:
            monkeypatch.delenv(name, raising=False)

    return forget


async def test_without_credentials_the_store_is_unavailable(
    dynoxide: Engine, monkeypatch: pytest.MonkeyPatch, forget: Callable[..., None]
) -> None:
    use_engine(dynoxide, monkeypatch)
    forget("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    async with open_client(DynamoDBTimeouts(backoff_seconds=0.0)) as client:
        with pytest.raises(StoreUnavailableError, match="no AWS credentials"):
            await client.call(client.api.list_tables)


async def test_a_region_is_needed(forget: Callable[..., None]) -> None:
    forget("AWS_REGION", "AWS_DEFAULT_REGION")
    with pytest.raises(ConfigError, match="AWS_REGION"):
        async with open_client(DynamoDBTimeouts(backoff_seconds=0.0)):
            pass


async def test_the_region_may_be_the_default_one(
    dynoxide: Engine, monkeypatch: pytest.MonkeyPatch, forget: Callable[..., None]
) -> None:
    use_engine(dynoxide, monkeypatch)
    forget("AWS_REGION")
    async with open_client(DynamoDBTimeouts(backoff_seconds=0.0)) as client:
        await client.call(client.api.list_tables)


class Answer:
    """The response of a server to every request."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"{}"
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[Mapping[str, str], bytes]] = []

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        self.requests.append((request.headers, await request.content.read()))
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@pytest.fixture
async def answer(dynoxide: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Answer]:
    answer = Answer()
    server = web.Server(answer)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    use_engine(dynoxide, monkeypatch, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    yield answer
    listener.close()
    await server.shutdown(1)


@pytest.fixture
async def client(answer: Answer) -> AsyncIterator[DynamoDBClient]:
    async with open_client(DynamoDBTimeouts(backoff_seconds=0.0)) as client:
        yield client


async def read_alice(client: DynamoDBClient) -> object:
    """Make the read that bypasses botocore's request pipeline."""
    async for rows in BatchGet(client.direct, client.timeouts, "users", "user_id")(["alice"]):
        if isinstance(rows.get("alice"), Exception):
            raise rows["alice"]  # type: ignore[misc]  # mypy does not narrow items
    return rows


async def write(client: DynamoDBClient) -> None:
    await client.transact({"Delete": {"TableName": "users", "Key": {"user_id": {"S": "alice"}}}})


async def test_the_hot_read_is_signed(client: DynamoDBClient, answer: Answer) -> None:
    answer.body = b'{"Responses":{"users":[]},"UnprocessedKeys":{}}'
    answer.headers["x-amz-crc32"] = str(zlib.crc32(answer.body))
    assert await read_alice(client) == {"alice": None}
    ((headers, body),) = answer.requests
    assert json.loads(body)["RequestItems"]["users"]["Keys"] == [{"user_id": {"S": "alice"}}]
    assert headers["X-Amz-Target"] == "DynamoDB_20120810.BatchGetItem"
    assert headers["Content-Type"] == "application/x-amz-json-1.0"
    assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=")
    assert "x-amz-target" in headers["Authorization"]


def refused(code: str, *reasons: str) -> bytes:
    answer: dict[str, Any] = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "secret"}
    if code == "TransactionCanceledException":
        answer["CancellationReasons"] = [{"Code": reason} for reason in reasons]
    return json.dumps(answer).encode()


def cancelled(*reasons: str) -> bytes:
    return refused("TransactionCanceledException", *reasons)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, refused("ProvisionedThroughputExceededException"), RetryableStoreError),
        (400, refused("ThrottlingException"), RetryableStoreError),
        (400, refused("ExpiredTokenException"), RetryableStoreError),
        (403, refused("ExpiredTokenException"), RetryableStoreError),
        (400, refused("TransactionInProgressException"), RetryableStoreError),
        (500, refused("InternalServerError"), RetryableStoreError),
        (500, refused("Whatever"), RetryableStoreError),
        (503, b"<html>secret</html>", RetryableStoreError),
        (500, b"[]", RetryableStoreError),
        (500, b'{"message":"secret"}', RetryableStoreError),
        (408, refused("RequestTimeoutException"), RetryableStoreError),
        (429, refused("Whatever"), RetryableStoreError),
        # JSON of something between the service and DynamoDB.
        *((status, b'{"message":"secret"}', RetryableStoreError) for status in (301, 400, 403, 404, 429)),
        (400, b'{"__type":5}', RetryableStoreError),
        (403, b"<html>secret</html>", RetryableStoreError),
        (400, b"[]", RetryableStoreError),
        (200, b"", RetryableStoreError),
        (200, b"[]", RetryableStoreError),
        (200, b"null", RetryableStoreError),
        pytest.param(200, b"[" * 100_000, RetryableStoreError, id="deep"),
        (200, b"<html>secret</html>", RetryableStoreError),
        (200, b'{"Item":{"user_id"', RetryableStoreError),
        (200, b'{"Item":null}', RetryableStoreError),
        (200, b'{"Item":{"user_id":"secret"}}', RetryableStoreError),
        (200, b'{"Items":["secret"]}', RetryableStoreError),
        (200, b'{"Items":5}', RetryableStoreError),
        (200, b'{"ConsumedCapacity":null}', RetryableStoreError),
        (200, b'{"ConsumedCapacity":["secret"]}', RetryableStoreError),
        (400, b'{"__type":"TransactionCanceledException","CancellationReasons":null}', RetryableStoreError),
        (400, refused("ResourceNotFoundException"), StoreUnavailableError),
        (400, refused("UnrecognizedClientException"), StoreUnavailableError),
        (400, refused("AccessDeniedException"), StoreUnavailableError),
        (403, refused("OptInRequired"), StoreUnavailableError),
        (400, refused("ValidationException"), StoreSetupError),
        (400, refused("ConditionalCheckFailedException"), ConditionFailedError),
        (400, cancelled("None", "ConditionalCheckFailed"), ConditionFailedError),
        (400, cancelled("TransactionConflict", "ConditionalCheckFailed"), ConditionFailedError),
        (400, cancelled("None", "TransactionConflict"), RetryableStoreError),
        (400, cancelled("ThrottlingError", "ProvisionedThroughputExceeded"), RetryableStoreError),
        (400, cancelled("ValidationError"), StoreSetupError),
        (400, cancelled(), StoreSetupError),
    ],
    ids=repr,
)
async def test_each_failure_is_tried_again_or_means_something(
    client: DynamoDBClient, answer: Answer, status: int, body: bytes, expected: type[Exception]
) -> None:
    """The error does not contain the request or the response."""
    answer.status, answer.body = status, body
    attempts = DynamoDBTimeouts().max_attempts if expected is RetryableStoreError else 1
    for call in (read_alice, write):
        answer.requests.clear()
        with pytest.raises(StoreUnavailableError if expected is RetryableStoreError else expected) as caught:
            await call(client)
        assert len(answer.requests) == attempts
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None


async def test_a_malformed_request_is_a_bug_and_no_outage(client: DynamoDBClient, answer: Answer) -> None:
    number: Any = 5
    with pytest.raises(ParamValidationError):
        await client.get("users", user_id=number)
    with pytest.raises(TypeError):
        await anext(BatchGet(client.direct, client.timeouts, "users", "user_id")([number, object()]))  # type: ignore[list-item]
    assert answer.requests == []


async def test_a_call_takes_and_gives_what_dynamodb_has(client: DynamoDBClient, answer: Answer) -> None:
    answer.body = b'{"Item":{"email":{"S":"\\ud800"}},"ConsumedCapacity":{"TableName":"users","CapacityUnits":1.0}}'
    assert await client.get("users", user_id="\ud800") == {"email": {"S": "\ud800"}}
    ((_, body),) = answer.requests
    request = {"TableName": "users", "Key": {"user_id": {"S": "\ud800"}}, "ReturnConsumedCapacity": "TOTAL"}
    assert json.loads(body) == {**request, "ConsistentRead": True}


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Wed, 25 Nov 2026 00:00:00 GMT", datetime(2026, 11, 25, tzinfo=UTC)),
        ("the day after", None),
    ],
)
async def test_a_ping_returns_the_time_of_its_own_response(
    client: DynamoDBClient, answer: Answer, date: str, expected: datetime | None
) -> None:
    answer.headers["Date"] = date
    assert await DynamoDBStore(client, Tables("auth-"), ignore).ping() == expected


async def test_a_batch_that_outlives_the_client_sends_nothing_more(answer: Answer) -> None:
    answer.body = b'{"Responses":{"users":[]},"UnprocessedKeys":{}}'
    async with open_client(DynamoDBTimeouts(backoff_seconds=0.0)) as client:
        await read_alice(client)
    answer.requests.clear()
    with pytest.raises(StoreUnavailableError, match="the client is closed"):
        await read_alice(client)
    assert answer.requests == []


async def test_a_page_without_items_is_no_answer(client: DynamoDBClient) -> None:
    with pytest.raises(StoreUnavailableError, match="Scan: UnreadableResponseError"):
        await DynamoDBStore(client, Tables("auth-"), ignore).list_users(10, None)


@pytest.mark.parametrize("call", [read_alice, write])
async def test_a_body_that_does_not_match_its_checksum_is_no_answer(
    client: DynamoDBClient, answer: Answer, call: Callable[[DynamoDBClient], Awaitable[object]]
) -> None:
    answer.headers["x-amz-crc32"] = str(zlib.crc32(b"another body"))
    with pytest.raises(StoreUnavailableError, match="UnreadableResponseError"):
        await call(client)


@pytest.mark.parametrize("call", [read_alice, write])
async def test_a_server_that_is_not_there_is_no_answer(
    dynoxide: Engine, monkeypatch: pytest.MonkeyPatch, call: Callable[[DynamoDBClient], Awaitable[object]]
) -> None:
    with socket.socket() as deaf:  # bound, but not listening
        deaf.bind(("127.0.0.1", 0))
        use_engine(dynoxide, monkeypatch, f"http://127.0.0.1:{deaf.getsockname()[1]}")
        async with open_client(DynamoDBTimeouts(backoff_seconds=0.0)) as client:
            with pytest.raises(StoreUnavailableError, match="EndpointConnectionError"):
                await call(client)


@pytest.mark.parametrize("call", [read_alice, write])
async def test_without_credentials_nothing_is_sent(
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
    forget: Callable[..., None],
    call: Callable[[DynamoDBClient], Awaitable[object]],
) -> None:
    forget("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    async with open_client(DynamoDBTimeouts(backoff_seconds=0.0)) as client:
        with pytest.raises(StoreUnavailableError, match="no AWS credentials"):
            await call(client)
    assert answer.requests == []
