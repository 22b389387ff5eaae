"""One DynamoDB call: its retries, its deadline, and what its failures mean."""

import asyncio
import os
import random
import uuid
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import aioboto3
import orjson
from aiobotocore.config import AioConfig
from botocore import xform_name
from botocore.awsrequest import AWSResponse
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError
from botocore.session import Session as BotocoreSession

from authsvc import deadline, metrics
from authsvc.dynamodb_signing import Signer
from authsvc.errors import ConfigError, NoAnswerError, StoreSetupError, StoreUnavailableError

MAX_ATTEMPTS = 6
BACKOFF_BASE_SECONDS = 0.025  # doubled at each attempt, with full jitter
CONNECT_TIMEOUT_SECONDS = 0.3
READ_TIMEOUT_SECONDS = 0.5
POOL_CONNECTIONS = 100

BACKUPS_NOT_READY = "ContinuousBackupsUnavailableException"
"""What DynamoDB says for some seconds after it has made a table."""
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
        # Credentials that ran out are fetched anew by botocore before the next attempt.
        "ExpiredTokenException",
    }
)
_OUTAGES = frozenset(
    {
        "AccessDeniedException",
        BACKUPS_NOT_READY,
        "IncompleteSignature",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "ResourceNotFoundException",
        "UnrecognizedClientException",
    }
)
_API = "DynamoDB_20120810"
_METERED = {
    "get_item": "read",
    "query": "read",
    "scan": "read",
    "delete_item": "write",
    "put_item": "write",
    "transact_write_items": "write",
    "update_item": "write",
}
"""Operations that consume capacity, and of which kind."""
_jitter = random.SystemRandom()


class ConditionFailedError(Exception):
    """A conditional write or a transaction was refused by one of its conditions, and changed nothing."""


class UnreadableResponseError(Exception):
    """A response is not what DynamoDB sends: its body is cut, altered, or somebody else's."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What aiobotocore's HTTP session sends."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"
    stream_output: bool = False


class DynamoDBCalls:
    """DynamoDB's operations, each within the request's deadline.

    Args:
        client: An entered aiobotocore client that makes no retries of its own.
        credentials: Those of its session; None where there are none.
    """

    def __init__(self, client: Any, credentials: Any) -> None:  # noqa: ANN401 - their methods are made at run time
        self._client = client
        self._credentials = credentials
        self._signer = Signer(client.meta.endpoint_url, client.meta.region_name)
        client.meta.events.register("before-parse.dynamodb", _refuse_unreadable)

    async def __call__(self, operation: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - any argument of any operation
        """Call an operation, trying again after failures that pass.

        Args:
            operation: Name of the client's method, for instance `get_item`.
            request: Its arguments.

        Returns:
            The parsed response.

        Raises:
            ConditionFailedError: A condition did not hold.
            StoreUnavailableError: No good answer came by the deadline, or within the attempts.
            StoreSetupError: DynamoDB refuses the request itself.
        """
        with metrics.store_call(operation):
            if operation not in _METERED:
                return await self._attempts(operation, request)
            response = await self._attempts(operation, {**request, "ReturnConsumedCapacity": "TOTAL"})
            count_consumed(response, _METERED[operation])
            return response

    async def _attempts(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        method = getattr(self._client, operation)
        cause = "no answer in time"
        try:
            async with asyncio.timeout_at(deadline.at()):
                for attempt in range(MAX_ATTEMPTS):
                    try:
                        return await method(**request)  # type: ignore[no-any-return]
                    except Exception as error:  # noqa: BLE001 - a garbled answer makes botocore raise anything
                        cause = _cause_to_retry(error)
                    metrics.STORE_FAILED_ATTEMPTS.labels(operation, cause).inc()
                    await asyncio.sleep(pause_seconds(attempt + 1))
        except TimeoutError:
            pass
        raise StoreUnavailableError(f"{operation}: {cause}")

    async def get(self, table: str, **key: str) -> Mapping[str, Mapping[str, Any]] | None:
        """Read an item strongly, by its key; None where there is none."""
        names = {name: {"S": value} for name, value in key.items()}
        response = await self("get_item", TableName=table, Key=names, ConsistentRead=True)
        item: Mapping[str, Mapping[str, Any]] | None = response.get("Item")
        return item

    async def transact(self, *actions: Mapping[str, Any]) -> None:
        """Write all or nothing; one token for all tries, so that a repeated one changes nothing more."""
        await self("transact_write_items", TransactItems=actions, ClientRequestToken=str(uuid.uuid4()))

    async def send(self, operation: str, body: bytes) -> bytes:
        """Make one attempt of an operation past botocore's pipeline, which costs twice as much as all the rest.

        It goes over the client's own connections, with its time-outs, proxies and certificates.

        Args:
            operation: Name as in DynamoDB's API, for instance `BatchGetItem`.
            body: The request, in JSON.

        Returns:
            The body of a good response.

        Raises:
            NoAnswerError: It failed, and trying again may help.
            StoreUnavailableError: It failed, and trying again will not help.
            StoreSetupError: DynamoDB refuses the request itself.
        """
        try:
            if self._credentials is None:
                raise NoCredentialsError  # noqa: TRY301 - told as botocore's own are
            # They are refreshed before they run out.
            frozen = await self._credentials.get_frozen_credentials()
            headers = self._signer.headers(f"{_API}.{operation}", body, frozen, datetime.now(UTC))
            request = _Request(self._client.meta.endpoint_url, headers, body)
            response = await self._client._endpoint.http_session.send(request)  # noqa: SLF001 - no other way
            content: bytes = await response.content
            _check_response(operation, response, content)
        except Exception as error:  # noqa: BLE001 - a garbled answer makes libraries raise anything
            cause = _cause_to_retry(error)
            metrics.STORE_FAILED_ATTEMPTS.labels(xform_name(operation), cause).inc()
            raise NoAnswerError(f"{operation}: {cause}") from None
        return content


def pause_seconds(attempts: int) -> float:
    """Return how long to wait after so many attempts: full jitter, with a ceiling that doubles."""
    return _jitter.uniform(0, BACKOFF_BASE_SECONDS * 2 ** (attempts - 1))


def _check_response(operation: str, response: AWSResponse, content: bytes) -> None:
    """Raise what botocore would make of an error's response; one that is not DynamoDB's has no code."""
    status = response.status_code
    if status == HTTPStatus.OK:
        _check_sum(response.headers, content)
        return
    try:
        code = str(orjson.loads(content)["__type"]).rpartition("#")[2]
    except (ValueError, TypeError, KeyError):
        code = "no code"
    parsed: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    raise ClientError(parsed, operation)


def count_consumed(response: Mapping[str, Any], kind: str) -> None:
    """Count the capacity of which a response tells, if it does, `kind` being read or write."""
    consumed = response.get("ConsumedCapacity", [])
    for each in consumed if isinstance(consumed, list) else [consumed]:
        metrics.CONSUMED_UNITS.labels(each.get("TableName", ""), kind).inc(each.get("CapacityUnits", 0.0))


def _cause_to_retry(error: Exception) -> str:
    """Return why a call failed, where another attempt can help; else raise what it means."""
    match error:
        case ParamValidationError():
            raise error
        case NoCredentialsError():
            raise StoreUnavailableError("no AWS credentials are configured") from None
        case ClientError(response=response):
            return _cause_in(response, response["ResponseMetadata"].get("HTTPStatusCode", 0))
        case BotoCoreError() | OSError():
            pass  # no answer came
        case _:
            metrics.UNREADABLE_RESPONSES.inc()
    return f"{type(error).__name__}"


def _cause_in(response: Mapping[str, Any], status: int) -> str:
    code = str(response["Error"].get("Code", ""))
    if code == "ConditionalCheckFailedException":
        raise ConditionFailedError from None
    if code == "TransactionCanceledException":
        return _cause_of_cancellation(response)
    if code in _OUTAGES:
        raise StoreUnavailableError(code) from None
    if code in _TRANSIENT or status >= 500:  # noqa: PLR2004 - HTTP's server errors
        return code
    raise StoreSetupError(f"DynamoDB refuses a request: {code}") from None


def _cause_of_cancellation(response: Mapping[str, Any]) -> str:
    codes = [str(r.get("Code", "None")) for r in response.get("CancellationReasons", [])]
    if "ConditionalCheckFailed" in codes:
        raise ConditionFailedError from None
    failures = [code for code in codes if code != "None"]
    if failures and all(f in _TRANSIENT or f == "ProvisionedThroughputExceeded" for f in failures):
        return failures[0]
    raise StoreSetupError(f"DynamoDB refuses a transaction: {', '.join(failures)}") from None


def _refuse_unreadable(response_dict: Mapping[str, Any], **_: object) -> None:
    """Refuse a body that is no JSON object or does not match its checksum.

    botocore reads such a body as an empty response, and an empty response means "no such item".
    """
    if response_dict["status_code"] >= 500:  # noqa: PLR2004 - HTTP's server errors, whose body says nothing
        return
    _check_sum(response_dict["headers"], response_dict["body"])
    try:
        is_object = isinstance(orjson.loads(response_dict["body"]), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise UnreadableResponseError("no JSON object")


def _check_sum(headers: Mapping[str, str], body: bytes) -> None:
    expected = headers.get("x-amz-crc32")
    if expected is not None and expected != str(zlib.crc32(body)):
        raise UnreadableResponseError("wrong checksum")


@asynccontextmanager
async def open_calls() -> AsyncIterator[DynamoDBCalls]:
    """Open the process's one client, configured by AWS's own variables and files.

    Raises:
        ConfigError: No region is configured, or AWS's settings are not what they must be.
    """
    config = AioConfig(
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        retries={"total_max_attempts": 1},
        max_pool_connections=POOL_CONNECTIONS,
    )
    async with AsyncExitStack() as stack:
        try:
            session = aioboto3.Session()
            client = await stack.enter_async_context(session.client("dynamodb", region_name=_region(), config=config))
        except (BotoCoreError, ValueError) as error:
            raise ConfigError([f"AWS's settings: {error}"]) from None
        credentials: Any = session.get_credentials()  # a coroutine here, whatever its type says
        yield DynamoDBCalls(client, await credentials)


def _region() -> str:
    """Return the region: AWS_REGION (which botocore does not read), else as botocore finds it."""
    region = os.environ.get("AWS_REGION") or BotocoreSession().get_config_variable("region")
    if not region:
        raise ConfigError(["AWS_REGION: must be set for the DynamoDB store"])
    return str(region)
