"""The guide's service config in a Go client: grpc-go counts failures and pushbacks by rules of its own."""

import asyncio
import base64
import json
import re
from asyncio.subprocess import PIPE
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from authsvc import errors
from authsvc.server.app import PRODUCTION_LIMITS
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests import tools
from tests.rpc.conftest import Proxied
from tests.rpc.test_middleware import ON_THE_WIRE, raising, served
from tests.rpc.test_retries import (
    CALLS_A_SECOND,
    CALLS_OF_300_MS,
    LOGINS,
    RETRIED,
    SERVICE_CONFIG,
    SOON,
    VALIDATIONS,
    failing_first,
    outage,
    store_unavailable,
)
from tests.support import WITNESS, Client

pytestmark = pytest.mark.engines
AS_FAST_AS_IT_CAN = 100_000
RETRY_BUDGET = json.loads(SERVICE_CONFIG)["retryThrottling"]["maxTokens"] // 2
"""Failures after which a client retries nothing more."""


@pytest.fixture(scope="session")
def go_client() -> Path:
    """The path of the Go client."""
    return tools.required_or_skip(tools.go_client)


@dataclass(frozen=True)
class Job:
    """Calls of one method with one request; the names are those of the program."""

    Method: str
    Request: Message
    Calls: int = 1
    CallsASecond: int = AS_FAST_AS_IT_CAN

    def encoded(self) -> bytes:
        request = base64.b64encode(self.Request.SerializeToString()).decode()
        return json.dumps(
            {**vars(self), "Method": f"/authsvc.v1.AuthService/{self.Method}", "Request": request}
        ).encode()


GUESS = auth_pb2.AuthenticateRequest(email="alice@example.com", password="a wrong password", client_address="192.0.2.7")
VALIDATION = Job("ValidateToken", auth_pb2.ValidateTokenRequest(token="x"))
LOGIN = Job("Authenticate", GUESS)


async def run(program: Path, address: str, *jobs: Job) -> list[dict[str, int]]:
    """Run the jobs one after the other on one connection, and return how many calls of each ended with each code."""
    process = await asyncio.create_subprocess_exec(program, address, SERVICE_CONFIG, stdin=PIPE, stdout=PIPE)
    output, _ = await process.communicate(b"".join(job.encoded() for job in jobs))
    return [json.loads(line) for line in output.splitlines()]


async def test_a_validation_is_retried_until_the_store_answers(go_client: Path) -> None:
    handler = failing_first(VALIDATIONS - 1, store_unavailable(), auth_pb2.ValidateTokenResponse())
    async with served(handler) as service:
        assert await run(go_client, service.address, VALIDATION) == [{"OK": 1}]
        assert len(service.servicer.requests) == VALIDATIONS


async def test_a_login_is_retried_until_the_queue_has_a_slot(go_client: Path) -> None:
    handler = failing_first(LOGINS - 1, errors.OverloadedError(SOON), auth_pb2.AuthenticateResponse())
    async with served(handler) as service:
        assert await run(go_client, service.address, LOGIN) == [{"OK": 1}]
        assert len(service.servicer.requests) == LOGINS


@pytest.mark.parametrize(
    "error", [row[0] for row in ON_THE_WIRE if not isinstance(row[0], RETRIED)], ids=lambda error: type(error).__name__
)
async def test_what_a_retry_cannot_help_is_tried_once(go_client: Path, error: errors.AuthsvcError) -> None:
    async with served(raising(error)) as service:
        for job in (VALIDATION, LOGIN):
            service.servicer.requests.clear()
            (ends,) = await run(go_client, service.address, job)
            assert "OK" not in ends
            assert len(service.servicer.requests) == 1


async def test_refused_passwords_use_up_no_retries(go_client: Path) -> None:
    """grpc-go counts a pushback of -1 against the budget, whatever the code."""
    wrong_password = errors.InvalidCredentialsError("wrong_password")
    logins = replace(LOGIN, Calls=RETRY_BUDGET + 100)

    async def handler(request: Any, context: Any) -> Any:
        is_login = isinstance(request, auth_pb2.AuthenticateRequest)
        return await (raising(wrong_password) if is_login else validation)(request, context)

    validation = failing_first(1, store_unavailable(), auth_pb2.ValidateTokenResponse())
    async with served(handler) as service:
        ends = await run(go_client, service.address, logins, VALIDATION)
        assert ends == [{"Unauthenticated": logins.Calls}, {"OK": 1}]


async def test_a_full_queue_meets_no_storm_of_retries(go_client: Path) -> None:
    calls = 400
    async with served(raising(errors.OverloadedError(SOON))) as service:
        ends = await run(go_client, service.address, replace(LOGIN, Calls=calls))
        assert ends == [{"ResourceExhausted": calls}]
        assert calls < len(service.servicer.requests) <= calls + RETRY_BUDGET


async def test_a_flood_of_guesses_is_not_retried(go_client: Path, client: Client) -> None:
    await client.create_user()
    before = Counter(events())
    # So slowly that none is OVERLOADED on a busy machine, for those are retried.
    ends = await run(go_client, client.address, replace(LOGIN, Calls=30, CallsASecond=25))
    assert ends == [{"Unauthenticated": 10, "ResourceExhausted": 20}]
    assert Counter(events()) - before == {"login_refused": 10, "login_throttled": 20}


def events() -> list[str]:
    return re.findall(r'"event": "(login_\w+)"', WITNESS.lines.getvalue())


@pytest.mark.limits(PRODUCTION_LIMITS)
async def test_a_short_outage_of_the_store_fails_no_validation(go_client: Path, proxied: Proxied) -> None:
    await proxied.client.create_user()
    request = auth_pb2.ValidateTokenRequest(token=await proxied.client.access_token())
    calls = 3 * CALLS_OF_300_MS
    job = Job("ValidateToken", request, calls, CALLS_A_SECOND)
    proxied.proxy.forget()
    running = asyncio.ensure_future(run(go_client, proxied.client.address, job))
    while not proxied.proxy.requests:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.001)
    async with outage(proxied):
        await asyncio.sleep(0.3)
    assert await running == [{"OK": calls}]
