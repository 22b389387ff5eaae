"""The guide's service config in a Python client: it retries what may be retried, and nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from authsvc import errors
from authsvc.server.app import PRODUCTION_LIMITS
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.rpc.conftest import Proxied
from tests.rpc.test_middleware import ON_THE_WIRE, raising, served
from tests.support import WITNESS, failure

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
SERVICE_CONFIG = GUIDE.read_text().partition("\n## Retries\n")[2].partition("```json\n")[2].partition("```")[0]
VALIDATIONS, LOGINS = (config["retryPolicy"]["maxAttempts"] for config in json.loads(SERVICE_CONFIG)["methodConfig"])
SOON = timedelta(milliseconds=10)
RETRIED = (errors.StoreUnavailableError, errors.OverloadedError)
CALLS_A_SECOND = 500
CALLS_OF_300_MS = 150

Handler = Callable[[Any, Any], Awaitable[Any]]


def store_unavailable() -> errors.StoreUnavailableError:
    error = errors.StoreUnavailableError("down")
    error.retry_delay = SOON
    return error


def failing_first(times: int, error: Exception, answer: object) -> Handler:
    """Raise the error so many times before answering."""
    left = iter([error] * times)

    async def handler(_request: Any, _context: Any) -> Any:
        for failed in left:
            raise failed
        return answer

    return handler


@asynccontextmanager
async def retrying(address: str) -> AsyncIterator[Any]:
    options = [("grpc.service_config", SERVICE_CONFIG)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield auth_grpc.AuthServiceStub(channel)


async def test_a_validation_is_retried_until_the_store_answers() -> None:
    handler = failing_first(VALIDATIONS - 1, store_unavailable(), auth_pb2.ValidateTokenResponse(user_id="user-1"))
    async with served(handler) as service, retrying(service.address) as stub:
        assert (await stub.ValidateToken(auth_pb2.ValidateTokenRequest(token="x"))).user_id == "user-1"
        assert len(service.servicer.requests) == VALIDATIONS


async def test_a_login_is_retried_until_the_queue_has_a_slot() -> None:
    handler = failing_first(LOGINS - 1, errors.OverloadedError(SOON), auth_pb2.AuthenticateResponse())
    async with served(handler) as service, retrying(service.address) as stub:
        assert await stub.Authenticate(auth_pb2.AuthenticateRequest()) == auth_pb2.AuthenticateResponse()
        assert len(service.servicer.requests) == LOGINS


@pytest.mark.parametrize(
    "error", [row[0] for row in ON_THE_WIRE if not isinstance(row[0], RETRIED)], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("method", ["ValidateToken", "Authenticate"])
async def test_what_a_retry_cannot_help_is_tried_once(error: errors.AuthsvcError, method: str) -> None:
    async with served(raising(error)) as service, retrying(service.address) as stub:
        await failure(getattr(stub, method)(getattr(auth_pb2, f"{method}Request")()))
        assert len(service.servicer.requests) == 1


async def test_a_change_of_password_is_tried_once() -> None:
    """After a write whose answer was lost, a retry would be refused with the old password."""
    async with served(raising(store_unavailable())) as service, retrying(service.address) as stub:
        await failure(stub.ChangePassword(auth_pb2.ChangePasswordRequest()))
        assert len(service.servicer.requests) == 1


def store_refusals() -> int:
    """How many calls have ended as STORE_UNAVAILABLE in the whole run."""
    return WITNESS.lines.getvalue().count('"event": "store_unavailable"')


@asynccontextmanager
async def outage(proxied: Proxied) -> AsyncIterator[None]:
    """Stop the store for the body, and on until the service itself has given up on some call."""
    before = store_refusals()
    with proxied.proxy.down():
        yield
        while store_refusals() == before:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


@pytest.mark.limits(PRODUCTION_LIMITS)
async def test_a_short_outage_of_the_store_fails_no_validation(proxied: Proxied) -> None:
    await proxied.client.create_user()
    request = auth_pb2.ValidateTokenRequest(token=await proxied.client.access_token())
    calls = []
    async with retrying(proxied.client.address) as stub:
        async with outage(proxied):
            for _ in range(CALLS_OF_300_MS):
                calls.append(asyncio.ensure_future(stub.ValidateToken(request)))
                await asyncio.sleep(1 / CALLS_A_SECOND)
        answers = await asyncio.gather(*calls)
    assert {answer.state for answer in answers} == {auth_pb2.TOKEN_STATE_ACTIVE}
