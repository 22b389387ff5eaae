"""The batched, strongly consistent reads by key that decide validations and login attempts.

They alone bypass botocore's request pipeline, which takes three quarters of their CPU time.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from aiobotocore.httpsession import AIOHTTPSession
from botocore.awsrequest import AWSPreparedRequest

from authsvc.coalescer import Coalescer
from authsvc.stores.dynamodb.items import Item
from authsvc.stores.dynamodb.responses import UnreadableResponseError, count_consumed, one_attempt, read_response
from authsvc.stores.dynamodb.signing import Signer
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.telemetry import metrics

USER_STATE_ATTRIBUTES = ("user_id", "email", "role", "is_active", "token_generation", "revoked_sessions")
"""What a validation reads."""
_OPERATION = "batch_get_item"
_TARGET = "DynamoDB_20120810.BatchGetItem"


class BatchGetRequests:
    """Sends BatchGetItem requests.

    Args:
        http: An entered session.
        endpoint_url: DynamoDB's.
        region: Of the endpoint.
        credentials: Botocore's.
    """

    def __init__(self, http: AIOHTTPSession, endpoint_url: str, region: str, credentials: Any) -> None:  # noqa: ANN401 - without stubs
        self._http: Any = http  # its stubs name the other library's requests
        self._url = endpoint_url
        self._credentials = credentials
        self._signer = Signer(endpoint_url, region)

    async def send(self, body: bytes) -> dict[str, Any]:
        """Make one attempt of a request in JSON; return and raise as read_response, or raise a library's error."""
        frozen = await self._credentials.get_frozen_credentials()
        headers: Any = self._signer.headers(_TARGET, body, frozen, datetime.now(UTC))
        response = await self._http.send(AWSPreparedRequest("POST", self._url, headers, body, stream_output=False))
        return read_response(response.status_code, response.headers, await response.content)


class BatchGet:
    """Reads rows of one table, up to 100 in one request.

    Args:
        requests: Sends the requests.
        table: Name of the table.
        key_name: Name of the attribute that is the whole key.
        attributes: What is read, the key included; empty: everything.
    """

    def __init__(self, requests: BatchGetRequests, table: str, key_name: str, attributes: Sequence[str] = ()) -> None:
        self._requests = requests
        self._table = table
        self._key_name = key_name
        self._options: dict[str, Any] = {"ConsistentRead": True}
        if attributes:
            self._options["ProjectionExpression"] = ",".join(f"#{name}" for name in attributes)
            self._options["ExpressionAttributeNames"] = {f"#{name}": name for name in attributes}

    async def __call__(self, keys: Sequence[str]) -> Mapping[str, Item | None]:
        """Make one attempt to read rows.

        Returns:
            The row of each key, None where there is none. Keys that DynamoDB left unprocessed are missing.

        Raises:
            RetryableStoreError: The attempt failed, and another one may succeed.
            StoreUnavailableError: DynamoDB cannot answer.
            StoreSetupError: DynamoDB refuses the request itself.
        """
        items = {self._table: {"Keys": [{self._key_name: {"S": key}} for key in keys], **self._options}}
        body = orjson.dumps({"RequestItems": items, "ReturnConsumedCapacity": "TOTAL"})
        metrics.KEY_READS_BATCH_SIZE.observe(len(keys))
        with metrics.store_call(_OPERATION), one_attempt(_OPERATION):
            response = await self._requests.send(body)
            count_consumed(response, "read")
            return self._rows(response, keys)

    def _rows(self, response: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Item | None]:
        """Account for each key: an incomplete response must never read as "no such row"."""
        try:
            found = {item[self._key_name]["S"]: item for item in response["Responses"][self._table]}
            unprocessed = response["UnprocessedKeys"].get(self._table, {"Keys": ()})
            left_out = {key[self._key_name]["S"] for key in unprocessed["Keys"]}
        except (KeyError, TypeError, AttributeError):
            raise UnreadableResponseError("rows without keys") from None
        if not found.keys() | left_out <= set(keys):
            raise UnreadableResponseError("rows that were not requested")
        return {key: found.get(key) for key in keys if key not in left_out}


def coalesced_reads(
    requests: BatchGetRequests,
    timeouts: DynamoDBTimeouts,
    table: str,
    key_name: str,
    attributes: Sequence[str] = (),
) -> Coalescer[Item | None]:
    """Return a coalescer of concurrent reads of a table. The other arguments are those of BatchGet."""
    reads = BatchGet(requests, table, key_name, attributes)
    return Coalescer(reads, timeouts.max_attempts, timeouts.pause_seconds, timeouts.batch_seconds)
