"""DynamoDB calls through aioboto3's typed client: one per process, with retries within the request's deadline."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from aiobotocore.config import AioConfig
from botocore.model import OperationModel

from authsvc import aws, request_context
from authsvc.errors import StoreUnavailableError
from authsvc.stores.dynamodb.direct_api import DirectApi
from authsvc.stores.dynamodb.responses import (
    FAILURES,
    api_name,
    count_consumed,
    failed_attempt,
    read_response,
)
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.telemetry import metrics

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient as Api
    from types_aiobotocore_dynamodb.type_defs import TransactWriteItemTypeDef

POOL_CONNECTIONS = 100
_METERED = {
    "get_item": "read",
    "query": "read",
    "scan": "read",
    "delete_item": "write",
    "put_item": "write",
    "transact_write_items": "write",
    "update_item": "write",
}
"""Operations that consume capacity units, and their kind."""

P = ParamSpec("P")
R = TypeVar("R", bound=Mapping[str, Any])


class DynamoDBClient:
    """DynamoDB's operations with the retries of this service, each within the request's deadline.

    Args:
        api: The typed client, whose own retries are off.
        direct: The operations of validations and login attempts, at a quarter of the CPU time.
        timeouts: Of each attempt, and how many there are.
    """

    def __init__(self, api: "Api", direct: DirectApi, timeouts: DynamoDBTimeouts) -> None:
        self.api = api
        self.direct = direct
        self.timeouts = timeouts

    async def call(self, operation: Callable[P, Awaitable[R]], *args: P.args, **request: P.kwargs) -> R:
        """Call an operation, with retries of transient failures.

        Args:
            operation: Of `api` or `direct`.
            args: None.
            request: Its arguments as in DynamoDB's API.

        Returns:
            The response, with binary values in base64.

        Raises:
            ConditionFailedError: A condition did not hold.
            StoreUnavailableError: No attempt succeeded by the deadline.
            StoreSetupError: DynamoDB refuses the request itself.
        """
        name = operation.__name__
        kind = _METERED.get(name)
        if kind is not None:
            request["ReturnConsumedCapacity"] = "TOTAL"
        with metrics.store_call(name):
            response = await self._call_with_retries(name, lambda: operation(*args, **request))
        if kind is not None:
            count_consumed(response, kind)
        return response

    async def _call_with_retries(self, name: str, attempt: Callable[[], Awaitable[R]]) -> R:
        cause = f"{api_name(name)}: no answer in time"
        deadline = request_context.store_deadline()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                attempts = 0
                while not attempts or await self.timeouts.pause(attempts, deadline):
                    attempts += 1
                    try:
                        return await attempt()
                    except FAILURES as error:
                        cause = failed_attempt(name, error).cause
        raise StoreUnavailableError(cause)

    async def get(self, table: str, **key: str) -> Mapping[str, Mapping[str, Any]] | None:
        """Read an item strongly by its key; None where there is none."""
        names = {name: {"S": value} for name, value in key.items()}
        response = await self.call(self.api.get_item, TableName=table, Key=names, ConsistentRead=True)
        return response.get("Item")

    async def transact(self, *actions: Mapping[str, Any]) -> None:
        """Write all or nothing. One idempotency token for all attempts: a repeated one changes nothing more."""
        items = cast("Sequence[TransactWriteItemTypeDef]", actions)
        await self.call(self.api.transact_write_items, TransactItems=items, ClientRequestToken=str(uuid.uuid4()))


def _read_strictly(
    operation_model: OperationModel,
    response_dict: dict[str, Any],
    customized_response_dict: dict[str, Any],
    **_: object,
) -> None:
    """Read a response in place of botocore's parser, to which a truncated body is an empty one."""
    status, headers, body = (response_dict[name] for name in ("status_code", "headers", "body"))
    content = read_response(operation_model.name, status, headers, body)
    customized_response_dict.update(content)
    response_dict["body"] = b"{}"


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
        retries={"total_max_attempts": 1},
        # One endpoint for all requests.
        account_id_endpoint_mode="disabled",
        endpoint_discovery_enabled=False,
    )
    async with (
        aws.open_session() as session,
        aws.open_client(session, "dynamodb", config) as api,
        AsyncExitStack() as stack,
    ):
        api.meta.events.register("before-parse.dynamodb", _read_strictly)
        http = aws.http_session(
            api.meta.endpoint_url, timeouts.connect_seconds, timeouts.read_seconds, POOL_CONNECTIONS
        )
        await stack.enter_async_context(http)
        credentials: Any = session.get_credentials()  # a coroutine here, whatever its type says
        direct = DirectApi(http, api.meta.endpoint_url, api.meta.region_name, await credentials)
        stack.callback(direct.close)  # a batch outlives its callers, and may retry
        yield DynamoDBClient(api, direct, timeouts)
