"""What a failed DynamoDB call means."""

import asyncio
import json
import socket
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from botocore.exceptions import ClientError, ParamValidationError

from authsvc.dynamodb_calls import MAX_ATTEMPTS, ConditionFailedError, DynamoDBCalls, open_calls
from authsvc.errors import ConfigError, NoAnswerError, StoreSetupError, StoreUnavailableError
from tests.engines import Engine
from tests.support import use_engine


class Client:
    """A DynamoDB client whose operation fails in a given way."""

    def __init__(self, error: Exception) -> None:
        self.meta = SimpleNamespace(
            endpoint_url="http://127.0.0.1", region_name="us-east-1", events=SimpleNamespace(register=lambda *_: None)
        )
        self.calls = 0
        self._error = error

    async def operation(self) -> None:
        self.calls += 1
        raise self._error


def refusal(code: str, status: int = 400, reasons: list[str] | None = None) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}}
    if reasons is not None:
        response["CancellationReasons"] = [{"Code": reason} for reason in reasons]
    return ClientError(response, "operation")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("authsvc.dynamodb_calls.BACKOFF_BASE_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("error", "expected", "calls"),
    [
        (refusal("ConditionalCheckFailedException"), ConditionFailedError, 1),
        (refusal("TransactionCanceledException", reasons=["None", "ConditionalCheckFailed"]), ConditionFailedError, 1),
        (
            refusal("TransactionCanceledException", reasons=["TransactionConflict", "ConditionalCheckFailed"]),
            ConditionFailedError,
            1,
        ),
        (
            refusal("TransactionCanceledException", reasons=["None", "TransactionConflict"]),
            StoreUnavailableError,
            MAX_ATTEMPTS,
        ),
        (
            refusal("TransactionCanceledException", reasons=["ThrottlingError", "ProvisionedThroughputExceeded"]),
            StoreUnavailableError,
            MAX_ATTEMPTS,
        ),
        (refusal("TransactionCanceledException", reasons=["ValidationError"]), StoreSetupError, 1),
        (refusal("TransactionCanceledException", reasons=[]), StoreSetupError, 1),
        (refusal("TransactionInProgressException"), StoreUnavailableError, MAX_ATTEMPTS),
        (refusal("ThrottlingException"), StoreUnavailableError, MAX_ATTEMPTS),
        (refusal("Whatever", status=500), StoreUnavailableError, MAX_ATTEMPTS),
        (refusal("ResourceNotFoundException"), StoreUnavailableError, 1),
        (refusal("AccessDeniedException"), StoreUnavailableError, 1),
        (refusal("ValidationException"), StoreSetupError, 1),
        (ConnectionResetError(), StoreUnavailableError, MAX_ATTEMPTS),
        (ParamValidationError(report="a mistake of ours"), ParamValidationError, 1),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_each_failure_is_tried_again_or_means_something(
    error: Exception, expected: type[Exception], calls: int
) -> None:
    client = Client(error)
    with pytest.raises(expected):
        await DynamoDBCalls(client, None)("operation")
    assert client.calls == calls


async def test_a_refusal_does_not_tell_what_was_asked() -> None:
    error = refusal("ValidationException")
    error.response["Error"]["Message"] = "secret"
    with pytest.raises(StoreSetupError) as caught:
        await DynamoDBCalls(Client(error), None)("operation")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Take variables from the environment, and what AWS's files say with them."""

    def forget(*names: str) -> None:
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in names:
            monkeypatch.delenv(name, raising=False)

    return forget


async def test_without_credentials_the_store_is_unavailable(
    moto: Engine, monkeypatch: pytest.MonkeyPatch, forget: Callable[..., None]
) -> None:
    use_engine(moto, monkeypatch)
    forget("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    async with open_calls() as calls:
        with pytest.raises(StoreUnavailableError, match="no AWS credentials"):
            await calls("list_tables")


async def test_a_region_is_needed(forget: Callable[..., None]) -> None:
    forget("AWS_REGION", "AWS_DEFAULT_REGION")
    with pytest.raises(ConfigError, match="AWS_REGION"):
        async with open_calls():
            pass


async def test_the_region_may_be_the_default_one(
    moto: Engine, monkeypatch: pytest.MonkeyPatch, forget: Callable[..., None]
) -> None:
    use_engine(moto, monkeypatch)
    forget("AWS_REGION")
    async with open_calls() as calls:
        await calls("list_tables")


class Answer:
    """What a server says to whatever it is asked."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"{}"
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[Mapping[str, str], bytes]] = []

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        self.asked.append((request.headers, await request.content.read()))
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@pytest.fixture
async def answer(moto: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Answer]:
    answer = Answer()
    server = web.Server(answer)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    use_engine(moto, monkeypatch, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    yield answer
    listener.close()
    await server.shutdown(1)


@pytest.fixture
async def calls(answer: Answer) -> AsyncIterator[DynamoDBCalls]:
    async with open_calls() as calls:
        yield calls


async def test_a_request_is_sent_as_it_is_and_signed(calls: DynamoDBCalls, answer: Answer) -> None:
    answer.body = b'{"Item":{}}'
    answer.headers["x-amz-crc32"] = str(zlib.crc32(answer.body))
    assert await calls.send("GetItem", b'{"TableName":"users"}') == answer.body
    ((headers, body),) = answer.asked
    assert body == b'{"TableName":"users"}'
    assert headers["X-Amz-Target"] == "DynamoDB_20120810.GetItem"
    assert headers["Content-Type"] == "application/x-amz-json-1.0"
    assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=")
    assert "x-amz-target" in headers["Authorization"]


def refused(code: str) -> bytes:
    return json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "secret"}).encode()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, refused("ProvisionedThroughputExceededException"), NoAnswerError),
        (400, refused("ThrottlingException"), NoAnswerError),
        (400, refused("ExpiredTokenException"), NoAnswerError),
        (500, refused("InternalServerError"), NoAnswerError),
        (503, b"<html>secret</html>", NoAnswerError),
        (500, b"[]", NoAnswerError),
        (500, b'{"message":"secret"}', NoAnswerError),
        (400, refused("ResourceNotFoundException"), StoreUnavailableError),
        (400, refused("UnrecognizedClientException"), StoreUnavailableError),
        (400, refused("ValidationException"), StoreSetupError),
        (403, b"<html>secret</html>", StoreSetupError),
    ],
    ids=repr,
)
async def test_a_refusal_means_what_it_means_elsewhere(
    calls: DynamoDBCalls, answer: Answer, status: int, body: bytes, expected: type[Exception]
) -> None:
    """And it is one attempt, whatever comes of it."""
    answer.status, answer.body = status, body
    with pytest.raises(expected) as caught:
        await calls.send("BatchGetItem", b"{}")
    assert type(caught.value) is expected
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert len(answer.asked) == 1


async def test_a_body_that_does_not_match_its_checksum_is_no_answer(calls: DynamoDBCalls, answer: Answer) -> None:
    answer.headers["x-amz-crc32"] = str(zlib.crc32(b"another body"))
    with pytest.raises(NoAnswerError, match="UnreadableResponseError"):
        await calls.send("BatchGetItem", b"{}")


async def test_a_server_that_is_not_there_is_no_answer(moto: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:  # has the port, and does not listen
        nobody.bind(("127.0.0.1", 0))
        use_engine(moto, monkeypatch, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        async with open_calls() as calls:
            with pytest.raises(NoAnswerError, match="EndpointConnectionError"):
                await calls.send("BatchGetItem", b"{}")


async def test_without_credentials_nothing_is_sent(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, forget: Callable[..., None]
) -> None:
    forget("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    async with open_calls() as calls:
        with pytest.raises(StoreUnavailableError, match="no AWS credentials"):
            await calls.send("BatchGetItem", b"{}")
    assert answer.asked == []
