"""Store failures of every kind: none makes a token active or inactive (F1 to F7, F10)."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest

from authsvc.server.app import PRODUCTION_LIMITS
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.faults import GARBAGE, WRONG_TYPES, Conflict, Delay, ExpiredToken, Fault, Hang, Reset, ServerError, Throttle
from tests.rpc.conftest import Proxied
from tests.rpc.test_foreign_rows import hash_of
from tests.support import PASSWORD, Client, failure, failure_of

pytestmark = pytest.mark.limits(PRODUCTION_LIMITS)
LIMIT_SECONDS = 10.0
"""Every RPC ends by then, whatever fault the store has, on a busy machine too."""
UNREADABLE = [fault for fault in GARBAGE if fault != WRONG_TYPES]
LASTING = [
    Throttle(),
    Throttle("ThrottlingException"),
    Throttle("RequestLimitExceeded"),
    ServerError(500),
    ServerError(503),
    ServerError(500, html=True),
    Reset(),
    Hang(),
    Delay(2.0),
    *UNREADABLE,
]


async def every_rpc(client: Client, user_id: str, token: str) -> list[Any]:
    """Call every RPC that needs the store, each within LIMIT_SECONDS."""

    def in_time(call: Awaitable[object]) -> Awaitable[object]:
        return asyncio.wait_for(call, LIMIT_SECONDS)

    calls = (
        client.validate(token),
        client.log_in(),
        client.create_user("new@example.com"),
        client.get_user(user_id=user_id),
        client.get_user(email="alice@example.com"),
    )
    return await asyncio.gather(*map(in_time, calls), return_exceptions=True)


def reasons(outcomes: list[Any]) -> set[str]:
    assert all(isinstance(outcome, grpc.aio.AioRpcError) for outcome in outcomes), outcomes
    failures = [failure_of(outcome) for outcome in outcomes]
    assert all(f.retry_seconds for f in failures if f.reason == "STORE_UNAVAILABLE")
    return {f"{f.code.name} {f.reason}" for f in failures}


@pytest.mark.parametrize("fault", LASTING, ids=repr)
async def test_a_store_that_fails_is_unavailable_and_nothing_else(proxied: Proxied, fault: Fault) -> None:
    alice = await proxied.client.create_user()
    token = await proxied.client.access_token()
    with proxied.proxy.fault(fault):
        assert reasons(await every_rpc(proxied.client, alice.user_id, token)) == {"UNAVAILABLE STORE_UNAVAILABLE"}
    assert (await proxied.client.validate(token)).state == auth_pb2.TOKEN_STATE_ACTIVE
    assert await proxied.client.access_token()


async def test_attributes_of_wrong_types_decide_nothing(proxied: Proxied) -> None:
    alice = await proxied.client.create_user()
    token = await proxied.client.access_token()
    proxied.tables.forget_attempts()
    with proxied.proxy.fault(WRONG_TYPES, operations={"GetItem", "BatchGetItem"}):
        outcomes = reasons(await every_rpc(proxied.client, alice.user_id, token))
    # Neither a login nor a validation (an admin's too) can match such rows to what it asked for.
    assert outcomes == {"UNAVAILABLE STORE_UNAVAILABLE"}


async def test_refused_connections_are_an_outage_and_over_with_the_store_back(proxied: Proxied) -> None:
    alice = await proxied.client.create_user()
    token = await proxied.client.access_token()
    with proxied.proxy.down():
        assert reasons(await every_rpc(proxied.client, alice.user_id, token)) == {"UNAVAILABLE STORE_UNAVAILABLE"}
    assert (await proxied.client.validate(token)).state == auth_pb2.TOKEN_STATE_ACTIVE


async def test_what_needs_no_store_works_without_it(proxied: Proxied) -> None:
    with proxied.proxy.down():
        assert (await proxied.client.validate("garbage")).reason == auth_pb2.INACTIVE_REASON_MALFORMED
        assert (await proxied.client.auth.GetJwks(auth_pb2.GetJwksRequest())).jwks


async def test_an_outage_ends_before_the_client_gives_up(proxied: Proxied) -> None:
    """A client with its own deadline receives STORE_UNAVAILABLE, not gRPC's DEADLINE_EXCEEDED."""
    await proxied.client.create_user()
    token = await proxied.client.access_token()
    with proxied.proxy.fault(Hang()):
        refused = await failure(
            proxied.client.auth.ValidateToken(auth_pb2.ValidateTokenRequest(token=token), timeout=1.0)
        )
    assert refused.reason == "STORE_UNAVAILABLE"


@pytest.mark.parametrize(
    "fault", [Throttle(), ServerError(500), Reset(), Hang(), Conflict(), ExpiredToken(), *UNREADABLE], ids=repr
)
async def test_a_failure_that_passes_is_not_noticed(proxied: Proxied, fault: Fault) -> None:
    with proxied.proxy.fault(fault, times=1) as hit:
        alice = await proxied.client.create_user()
    assert hit.hits == 1
    assert await proxied.client.get_user(user_id=alice.user_id) == alice


@pytest.mark.parametrize("operation", ["TransactWriteItems", "PutItem"])
@pytest.mark.parametrize("fault", [Throttle(), Conflict(), ServerError(503)], ids=repr)
async def test_a_write_is_tried_again(proxied: Proxied, fault: Fault, operation: str) -> None:
    with proxied.proxy.fault(fault, operations={operation}, times=3) as hit:
        alice = await proxied.client.create_user()
        assert (await proxied.client.log_in()).user.user_id == alice.user_id
    assert hit.hits == 3


async def test_a_call_is_tried_at_most_six_times(proxied: Proxied) -> None:
    await proxied.client.create_user()
    token = await proxied.client.access_token()
    proxied.proxy.forget()
    with proxied.proxy.fault(Throttle()):
        await failure(proxied.client.validate(token))
        assert proxied.proxy.requests == {"BatchGetItem": DynamoDBTimeouts().max_attempts}
        proxied.proxy.forget()
        await failure(proxied.client.log_in())
    assert proxied.proxy.requests == {"BatchGetItem": DynamoDBTimeouts().max_attempts}


LOST = [Reset(applied=True), Hang(applied=True), *UNREADABLE]


@pytest.mark.parametrize("fault", LOST, ids=repr)
async def test_a_create_whose_response_was_lost_recognises_its_own_write(proxied: Proxied, fault: Fault) -> None:
    """F5."""
    with proxied.proxy.fault(fault, operations={"TransactWriteItems"}, times=1) as hit:
        alice = await proxied.client.create_user()
    assert hit.hits == 1
    assert await proxied.client.get_user(email=alice.email) == alice
    assert len(proxied.tables.rows(proxied.tables.users)) == 2  # alice and the admin


async def test_the_same_request_after_a_lost_response_gives_the_same_user(proxied: Proxied) -> None:
    with proxied.proxy.fault(Hang(applied=True), operations={"TransactWriteItems"}):
        assert (await failure(proxied.client.create_user(request_id="once"))).reason == "STORE_UNAVAILABLE"
    alice = await proxied.client.create_user(request_id="once")
    assert await proxied.client.create_user(request_id="once") == alice
    assert (await failure(proxied.client.create_user("bob@example.com", request_id="once"))).field == "request_id"
    assert (await proxied.client.log_in()).user == alice


async def test_a_login_whose_session_write_lost_its_response_has_one_session(proxied: Proxied) -> None:
    await proxied.client.create_user()
    before = len(proxied.tables.rows(proxied.tables.sessions))
    with proxied.proxy.fault(Reset(applied=True), operations={"PutItem"}, times=1):
        login = await proxied.client.log_in()
    sessions = proxied.tables.rows(proxied.tables.sessions)
    assert len(sessions) == before + 1
    assert login.tokens.session_id in {row["session_id"]["S"] for row in sessions}
    assert (await proxied.client.validate(login.tokens.access_token)).state == auth_pb2.TOKEN_STATE_ACTIVE


async def test_the_first_login_of_a_row_survives_a_lost_response(proxied: Proxied) -> None:
    proxied.tables.put_user("carol", "carol@example.com", password_hash=hash_of(PASSWORD))
    with proxied.proxy.fault(Reset(applied=True), operations={"TransactWriteItems"}, times=1):
        assert (await proxied.client.log_in("carol@example.com")).user.user_id == "carol"
    assert proxied.tables.claim("carol@example.com") == "carol"


async def test_a_slow_store_is_served_without_a_pile_up(proxied: Proxied) -> None:
    """F3."""
    await proxied.client.create_user()
    token = await proxied.client.access_token()
    with proxied.proxy.fault(Delay(0.2)):
        answers = await asyncio.gather(*(proxied.client.validate(token) for _ in range(100)))
    assert {answer.state for answer in answers} == {auth_pb2.TOKEN_STATE_ACTIVE}


async def test_other_users_are_served_while_a_call_hangs(proxied: Proxied) -> None:
    await proxied.client.create_user()
    token = await proxied.client.access_token()
    with proxied.proxy.fault(Hang(), times=1):
        hanging = asyncio.ensure_future(proxied.client.validate(token))
        await asyncio.sleep(0)
        answers = await asyncio.gather(*(proxied.client.validate(token) for _ in range(20)))
        assert {answer.state for answer in answers} == {auth_pb2.TOKEN_STATE_ACTIVE}
        # The hanging attempt times out and is retried.
        assert (await hanging).state == auth_pb2.TOKEN_STATE_ACTIVE
