"""DynamoDB's responses: reading them strictly, and what each failure means for its call."""

import json
import zlib
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

import orjson
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.exceptions import HTTPClientError

from authsvc import aws
from authsvc.errors import AuthsvcError, RetryableStoreError, StoreSetupError, StoreUnavailableError
from authsvc.telemetry import metrics

BACKUPS_NOT_READY = "ContinuousBackupsUnavailableException"
"""DynamoDB's error for some seconds after it has created a table."""
_TRANSIENT = frozenset(
    {
        "InternalServerError",
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "ThrottlingError",
        "ThrottlingException",
        "Throttling",
        "TransactionConflict",
        "TransactionConflictException",
        "TransactionInProgressException",
        # The next attempt is signed with the credentials of its time.
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
_TRANSIENT_STATUSES = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
"""Beside those of a failing server: AWS has several codes for each."""
_ITEMS = ("Item", "Items")
_LISTING = frozenset({"Query", "Scan"})
_MAPS = (*_ITEMS, "CancellationReasons", "ConsumedCapacity")
"""Members of a response that must be maps or lists of maps."""


class ConditionFailedError(Exception):
    """A condition of a write or transaction did not hold; nothing was changed."""


class UnreadableResponseError(Exception):
    """A response is malformed: its body is truncated, altered, or not DynamoDB's."""


FAILURES = (RetryableStoreError, UnreadableResponseError, NoConnectionError, HTTPClientError)
"""What an attempt raises where another one may succeed. Not every BotoCoreError: a malformed request is a bug."""


def failed_attempt(operation: str, error: Exception) -> RetryableStoreError:
    """Count a failed attempt, and return its error with operation and cause.

    Args:
        operation: Name of the client's method, for instance `get_item`.
        error: One of FAILURES.
    """
    if isinstance(error, UnreadableResponseError):
        metrics.UNREADABLE_RESPONSES.inc()
    cause = error.cause if isinstance(error, RetryableStoreError) else type(error).__name__
    metrics.STORE_FAILED_ATTEMPTS.labels(operation, cause).inc()
    return RetryableStoreError(f"{api_name(operation)}: {cause}")


def api_name(operation: str) -> str:
    """Return the name of an operation in DynamoDB's API, for instance `GetItem` for `get_item`."""
    return operation.title().replace("_", "")


def read_response(operation: str, status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Return the content of a response.

    Args:
        operation: For instance GetItem.
        status: Of HTTP.
        headers: With names in lower case.
        body: JSON.

    Raises:
        UnreadableResponseError: The response is malformed.
        RetryableStoreError: The attempt failed, and another one may succeed.
        ConditionFailedError: A condition did not hold.
        StoreUnavailableError: The attempt failed, and another one will not succeed.
        StoreSetupError: DynamoDB refuses the request itself.
    """
    try:
        content = _parse_body(headers, body)
    except UnreadableResponseError:
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        content = {}  # a failing server, or a proxy in front of it
    if status == HTTPStatus.OK:
        if operation in _LISTING and "Items" not in content:
            raise UnreadableResponseError("a page without items")
        return content
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(content.get("__type"), str):
        raise UnreadableResponseError("an error without a code: not DynamoDB's")
    code = str(content.get("__type", status)).rpartition("#")[2]
    if code in _WRONG_SIGNATURE:
        raise StoreUnavailableError(aws.describe_refusal(code, headers))
    reasons = [str(reason.get("Code", "None")) for reason in content.get("CancellationReasons", [])]
    raise _classify(code, status, reasons)


def _classify(code: str, status: int, reasons: Collection[str]) -> ConditionFailedError | AuthsvcError:
    """Return what an error response means, as the error that its call raises.

    Args:
        code: DynamoDB's.
        status: Of HTTP.
        reasons: A cancelled transaction's codes, one for each action.
    """
    causes = [reason for reason in reasons if reason != "None"] or [code]
    if {"ConditionalCheckFailedException", "ConditionalCheckFailed"} & {*causes}:
        return ConditionFailedError()
    if _TRANSIENT.issuperset(causes):
        return RetryableStoreError(causes[0])
    if not _NOT_RETRYABLE.isdisjoint(causes) or status == HTTPStatus.FORBIDDEN:
        return StoreUnavailableError(code)
    if status in _TRANSIENT_STATUSES or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return RetryableStoreError(causes[0])
    return StoreSetupError(f"DynamoDB refuses a request: {', '.join(causes)}")


def _parse_body(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; anything else could read as an empty one, which means "no such item"."""
    expected = headers.get("x-amz-crc32")
    if expected is not None and expected != str(zlib.crc32(body)):
        raise UnreadableResponseError("wrong checksum")
    try:
        content = _parse_json(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UnreadableResponseError("not a JSON object")
    for name in _MAPS:
        members = content.get(name, [])
        for member in members if isinstance(members, list) else [members]:
            if not isinstance(member, dict):
                raise UnreadableResponseError(f"{name} without a map")
            if name in _ITEMS and not all(isinstance(attribute, dict) for attribute in member.values()):
                raise UnreadableResponseError("an attribute is not a map")
    return content


def _parse_json(body: bytes) -> Any:  # noqa: ANN401 - JSON
    """Parse JSON; a row with a lone surrogate, which orjson refuses, must not fail the others."""
    try:
        return orjson.loads(body)
    except ValueError:
        return json.loads(body)


def count_consumed(response: Mapping[str, Any], kind: str) -> None:
    """Count the capacity units that a response reports, as `kind`: read or write."""
    consumed = response.get("ConsumedCapacity", [])
    for each in consumed if isinstance(consumed, list) else [consumed]:
        units = each.get("CapacityUnits")
        metrics.CONSUMED_UNITS.labels(each.get("TableName", ""), kind).inc(units if isinstance(units, float) else 0.0)
