"""DynamoDB calls: one client per process, retries within the deadline, and the classification of errors."""

import asyncio
import json
import random
import uuid
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import orjson
from aiobotocore.config import AioConfig
from botocore import xform_name
from botocore.awsrequest import AWSResponse
from botocore.exceptions import BotoCoreError, ClientError

from authsvc import aws, request_context
from authsvc.errors import ConfigError, RetryableStoreError, StoreSetupError, StoreUnavailableError
from authsvc.stores.dynamodb.signing import Signer
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.telemetry import metrics

POOL_CONNECTIONS = 100

BACKUPS_NOT_READY = "ContinuousBackupsUnavailableException"
"""DynamoDB's error for some seconds after it has created a table."""
_TRANSIENT = frozenset(
    {
        "InternalServerError",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "ThrottlingError",
        "ThrottlingException",
        "Throttling",
        "TransactionConflict",
        "TransactionConflictException",
        "TransactionInProgressException",
        # botocore refreshes expired credentials before the next attempt.
        "ExpiredTokenException",
    }
)
_WRONG_SIGNATURE = frozenset(
    {
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_NOT_RETRYABLE = frozenset({"AccessDeniedException", BACKUPS_NOT_READY, "ResourceNotFoundException"})
_API = "DynamoDB_20120810"
_METERED = {
    "GetItem": "read",
    "Query": "read",
    "Scan": "read",
    "DeleteItem": "write",
    "PutItem": "write",
    "TransactWriteItems": "write",
    "UpdateItem": "write",
}
"""Operations that consume capacity units, and their kind."""
_ITEMS = ("Item", "Items")
_MAPS = (*_ITEMS, "CancellationReasons", "ConsumedCapacity")
"""Members of a response that must be maps or lists of maps."""
_jitter = random.SystemRandom()


class ConditionFailedError(Exception):
    """A condition of a write or transaction did not hold; nothing was changed."""


class UnreadableResponseError(Exception):
    """A response is malformed: its body is truncated, altered, or not DynamoDB's."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What aiobotocore's HTTP session sends."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"
    stream_output: bool = False


class DynamoDBClient:
    """DynamoDB's operations, each within the request's deadline.

    Uses the connections of an aiobotocore client with its time-outs, proxies and certificates, but bypasses botocore's
    request pipeline, which costs three times as much as everything else.

    Args:
        client: An entered aiobotocore client.
        credentials: Those of its session.
        timeouts: Of each attempt, and how many there are.
    """

    def __init__(self, client: Any, credentials: Any, timeouts: DynamoDBTimeouts) -> None:  # noqa: ANN401 - made at run time
        self.timeouts = timeouts
        self._client = client
        self._credentials = credentials
        self._signer = Signer(client.meta.endpoint_url, client.meta.region_name)
        self.last_date = ""
        """The Date header of the last response; empty where it had none."""

    async def __call__(self, operation: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - any argument of any operation
        """Call an operation, with retries of transient failures.

        Args:
            operation: Name as in DynamoDB's API, for instance `GetItem`.
            request: Its arguments as in DynamoDB's API.

        Returns:
            The response.

        Raises:
            ConditionFailedError: A condition did not hold.
            StoreUnavailableError: No attempt succeeded by the deadline.
            StoreSetupError: DynamoDB refuses the request itself.
        """
        kind = _METERED.get(operation)
        if kind is not None:
            request["ReturnConsumedCapacity"] = "TOTAL"
        with metrics.store_call(xform_name(operation)):
            # Not orjson: values that other programs wrote may hold lone surrogates.
            response = await self._send_with_retries(operation, json.dumps(request).encode())
        if kind is not None:
            count_consumed(response, kind)
        return response

    async def _send_with_retries(self, operation: str, body: bytes) -> dict[str, Any]:
        cause = f"{operation}: no answer in time"
        with suppress(TimeoutError):
            async with asyncio.timeout_at(request_context.store_deadline()):
                for attempt in range(self.timeouts.max_attempts):
                    try:
                        return await self.send(operation, body)
                    except RetryableStoreError as error:
                        cause = error.cause
                    await asyncio.sleep(self.pause_seconds(attempt + 1))
        raise StoreUnavailableError(cause)

    def pause_seconds(self, attempts: int) -> float:
        """Return the pause after a number of attempts: full jitter below a bound that doubles."""
        return _jitter.uniform(0, self.timeouts.backoff_seconds * 2 ** (attempts - 1))

    async def get(self, table: str, **key: str) -> Mapping[str, Mapping[str, Any]] | None:
        """Read an item strongly by its key; None where there is none."""
        names = {name: {"S": value} for name, value in key.items()}
        response = await self("GetItem", TableName=table, Key=names, ConsistentRead=True)
        item: Mapping[str, Mapping[str, Any]] | None = response.get("Item")
        return item

    async def transact(self, *actions: Mapping[str, Any]) -> None:
        """Write all or nothing. One idempotency token for all attempts: a repeated one changes nothing more."""
        await self("TransactWriteItems", TransactItems=actions, ClientRequestToken=str(uuid.uuid4()))

    async def send(self, operation: str, body: bytes) -> dict[str, Any]:
        """Make one attempt of an operation.

        Args:
            operation: Name as in DynamoDB's API.
            body: The request, in JSON.

        Returns:
            The response.

        Raises:
            RetryableStoreError: The attempt failed, and another one may succeed.
            ConditionFailedError: A condition did not hold.
            StoreUnavailableError: The attempt failed, and another one will not succeed.
            StoreSetupError: DynamoDB refuses the request itself.
        """
        try:
            frozen = await self._credentials.get_frozen_credentials()
            headers = self._signer.headers(f"{_API}.{operation}", body, frozen, datetime.now(UTC))
            request = _Request(self._client.meta.endpoint_url, headers, body)
            response = await self._client._endpoint.http_session.send(request)  # noqa: SLF001 - not available otherwise
            content = await response.content
            self.last_date = response.headers.get("date", "")
            return _read_response(operation, response, content)
        except Exception as error:  # noqa: BLE001 - libraries raise anything for a malformed answer
            cause = _classify_error(error)
            metrics.STORE_FAILED_ATTEMPTS.labels(xform_name(operation), cause).inc()
            raise RetryableStoreError(f"{operation}: {cause}") from None


def _read_response(operation: str, response: AWSResponse, content: bytes) -> dict[str, Any]:
    """Return the content of a response; raise an error response as botocore would."""
    status = response.status_code
    try:
        answer = _parse_body(response.headers, content)
    except UnreadableResponseError:
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        answer = {}  # a failing server, or a proxy in front of it
    if status == HTTPStatus.OK:
        return answer
    error = {"Code": str(answer.get("__type", status)).rpartition("#")[2]}
    parsed: Any = {
        **answer,
        "Error": error,
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": response.headers},
    }
    raise ClientError(parsed, operation)


def _parse_body(headers: Mapping[str, str], content: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; anything else could read as an empty one, which means "no such item"."""
    expected = headers.get("x-amz-crc32")
    if expected is not None and expected != str(zlib.crc32(content)):
        raise UnreadableResponseError("wrong checksum")
    try:
        answer = _parse_json(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise UnreadableResponseError("not a JSON object")
    for name in _MAPS:
        members = answer.get(name, [])
        for member in members if isinstance(members, list) else [members]:
            if not isinstance(member, dict):
                raise UnreadableResponseError(f"{name} without a map")
            if name in _ITEMS and not all(isinstance(attribute, dict) for attribute in member.values()):
                raise UnreadableResponseError("an attribute is not a map")
    return answer


def _parse_json(content: bytes) -> Any:  # noqa: ANN401 - JSON
    """Parse JSON; a row with a lone surrogate, which orjson refuses, must not fail the others."""
    try:
        return orjson.loads(content)
    except ValueError:
        return json.loads(content)


def count_consumed(response: Mapping[str, Any], kind: str) -> None:
    """Count the capacity units that a response reports, as `kind`: read or write."""
    consumed = response.get("ConsumedCapacity", [])
    for each in consumed if isinstance(consumed, list) else [consumed]:
        metrics.CONSUMED_UNITS.labels(each.get("TableName", ""), kind).inc(each.get("CapacityUnits") or 0.0)


def _classify_error(error: Exception) -> str:
    """Return the cause of a retryable failure; raise the store's own error for any other."""
    match error:
        case StoreUnavailableError():
            raise error
        case ClientError(response=response):
            return _classify_code(response, response["ResponseMetadata"].get("HTTPStatusCode", 0))
        case BotoCoreError() | OSError():
            pass  # no answer
        case _:
            metrics.UNREADABLE_RESPONSES.inc()
    return type(error).__name__


def _classify_code(response: Mapping[str, Any], status: int) -> str:
    code = str(response["Error"].get("Code", ""))
    if code == "ConditionalCheckFailedException":
        raise ConditionFailedError from None
    if code == "TransactionCanceledException":
        return _classify_cancellation(response)
    if code in _WRONG_SIGNATURE:
        headers = response["ResponseMetadata"].get("HTTPHeaders", {})
        raise StoreUnavailableError(aws.describe_refusal(code, headers)) from None
    if code in _NOT_RETRYABLE:
        raise StoreUnavailableError(code) from None
    if code in _TRANSIENT or status >= 500:  # noqa: PLR2004 - HTTP's server errors
        return code
    raise StoreSetupError(f"DynamoDB refuses a request: {code}") from None


def _classify_cancellation(response: Mapping[str, Any]) -> str:
    codes = [str(r.get("Code", "None")) for r in response.get("CancellationReasons", [])]
    if "ConditionalCheckFailed" in codes:
        raise ConditionFailedError from None
    failures = [code for code in codes if code != "None"]
    if failures and all(f in _TRANSIENT or f == "ProvisionedThroughputExceeded" for f in failures):
        return failures[0]
    raise StoreSetupError(f"DynamoDB refuses a transaction: {', '.join(failures)}") from None


@asynccontextmanager
async def open_client(timeouts: DynamoDBTimeouts) -> AsyncIterator[DynamoDBClient]:
    """Open the process's one client, configured by AWS's own variables and files.

    Raises:
        ConfigError: No region is configured, or AWS's settings are malformed.
    """
    config = AioConfig(
        connect_timeout=timeouts.connect_seconds,
        read_timeout=timeouts.read_seconds,
        max_pool_connections=POOL_CONNECTIONS,
    )
    region = aws.region()
    async with aws.open_session() as session, AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(session.client("dynamodb", region_name=region, config=config))
        except (BotoCoreError, ValueError) as error:
            raise ConfigError([f"AWS's settings: {error}"]) from None
        credentials: Any = session.get_credentials()  # a coroutine here, whatever its type says
        yield DynamoDBClient(client, await credentials, timeouts)
