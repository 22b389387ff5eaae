"""The operations of validations and login attempts, which bypass botocore's request pipeline.

The pipeline takes three quarters of a call's CPU time, in one piece in which the event loop does nothing else: under a
flood of logins, validations waited for it.
"""

from datetime import UTC, datetime
from typing import Any

import orjson
from aiobotocore.httpsession import AIOHTTPSession
from botocore.awsrequest import AWSPreparedRequest

from authsvc.errors import StoreUnavailableError
from authsvc.stores.dynamodb.responses import read_response
from authsvc.stores.dynamodb.signing import Signer

_TARGET = "DynamoDB_20120810."


class DirectApi:
    """Operations of DynamoDB's API. Each is one attempt, and raises as read_response, or a library's error.

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
        self._is_closed = False

    def close(self) -> None:
        """Send nothing more: the HTTP session is about to close, and a later request would open it again."""
        self._is_closed = True

    async def batch_get_item(self, **request: object) -> dict[str, Any]:
        """Read items by their keys."""
        return await self._send("BatchGetItem", request)

    async def query(self, **request: object) -> dict[str, Any]:
        """Read items by a key of an index."""
        return await self._send("Query", request)

    async def update_item(self, **request: object) -> dict[str, Any]:
        """Write an item, if its condition holds."""
        return await self._send("UpdateItem", request)

    async def _send(self, operation: str, request: dict[str, object]) -> dict[str, Any]:
        body = orjson.dumps(request)
        frozen = await self._credentials.get_frozen_credentials()
        if self._is_closed:
            raise StoreUnavailableError("the client is closed")
        headers: Any = self._signer.headers(_TARGET + operation, body, frozen, datetime.now(UTC))
        response = await self._http.send(AWSPreparedRequest("POST", self._url, headers, body, stream_output=False))
        return read_response(operation, response.status_code, response.headers, await response.content)
