"""BatchValidateTokens: one result for each request, the same as that of ValidateToken."""

from datetime import datetime
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from authsvc.tokens.verification import AccessToken, InactiveReason
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import errors_pb2
from tests.faults import Exchange, Reply, Throttle
from tests.rpc.conftest import Proxied, Shared
from tests.support import WITNESS, Client, failure

ACTIVE = auth_pb2.TOKEN_STATE_ACTIVE


async def batch(client: Client, *tokens: str) -> list[auth_pb2.BatchValidateTokensResponse.Result]:
    return await validate_all(client, *(auth_pb2.ValidateTokenRequest(token=token) for token in tokens))


async def validate_all(client: Client, *requests: auth_pb2.ValidateTokenRequest) -> list[Any]:
    request = auth_pb2.BatchValidateTokensRequest(requests=requests)
    WITNESS.hide(*(each.token for each in requests if each.token.startswith("ey")))
    return list((await client.auth.BatchValidateTokens(request)).results)


async def test_the_answers_are_those_of_validate_token_in_order(anywhere: Client) -> None:
    tokens = []
    for number in range(4):
        email = f"user{number}@example.com"
        user = await anywhere.create_user(email)
        login = (await anywhere.log_in(email)).tokens
        tokens += [login.access_token, login.refresh_token]
        if number == 1:
            await anywhere.update_user(user.user_id, is_active=False)
        if number == 2:
            await anywhere.revoke(login.access_token)
        if number == 3:
            await anywhere.delete_user(user.user_id)
    tokens += ["garbage", "a.b.c", tokens[0], "\0"]
    for order in (tokens, tokens[::-1]):
        results = await batch(anywhere, *order)
        assert [result.response for result in results] == [await anywhere.validate(token) for token in order]
    assert [r.response.state == ACTIVE for r in await batch(anywhere, *tokens)].count(True) == 2


async def test_a_batch_has_one_to_a_hundred(client: Client) -> None:
    await client.create_user()
    token = await client.access_token()
    assert len(await batch(client, token)) == 1
    results = await batch(client, *[token] * 100)
    assert {result.response.state for result in results} == {ACTIVE}
    assert len(results) == 100
    for number in (0, 101):
        refused = await failure(batch(client, *[token] * number))
        assert (refused.reason, refused.field) == ("INVALID_FIELD", "requests")


def error_of(result: Any) -> tuple[int, str, str]:
    """Return code, reason and text of a failed result."""
    assert result.WhichOneof("outcome") == "error"
    return result.error.code, errors_pb2.ErrorReason.Name(result.error.reason), result.error.message


async def test_a_wrong_field_spoils_its_own_request_alone(client: Client) -> None:
    await client.create_user()
    good = auth_pb2.ValidateTokenRequest(token=await client.access_token())
    negative = Duration(seconds=-1)
    bad = [
        auth_pb2.ValidateTokenRequest(),
        auth_pb2.ValidateTokenRequest(token="x", max_staleness=negative),
        auth_pb2.ValidateTokenRequest(token="x", stale_if_error=negative),
    ]
    results = await validate_all(client, good, *bad, good)
    for result in results[1:-1]:
        assert error_of(result) == (
            grpc.StatusCode.INVALID_ARGUMENT.value[0],
            "ERROR_REASON_INVALID_FIELD",
            "a field of the request is invalid",
        )
    assert [results[0].response.state, results[-1].response.state] == [ACTIVE, ACTIVE]


@pytest.mark.parametrize("engine", ["dynoxide"], indirect=True)
async def test_a_broken_row_spoils_its_own_request_alone(shared: Shared) -> None:
    await shared.client.create_user()
    bob = await shared.client.create_user("bob@example.com")
    good, bad = await shared.client.access_token(), await shared.client.access_token("bob@example.com")
    shared.tables.set_attribute(bob.user_id, "role", {"N": "5"})
    results = await batch(shared.client, bad, good, bad)
    internal = (grpc.StatusCode.INTERNAL.value[0], "ERROR_REASON_INTERNAL", "internal error")
    assert [error_of(results[0]), error_of(results[2])] == [internal, internal]
    assert results[1].response.state == ACTIVE


class ThrottledKey:
    """A fault: DynamoDB throttles one partition."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id

    async def answer(self, exchange: Exchange, /) -> Reply:
        if self.user_id in exchange.attempt.body.decode():
            return await Throttle().answer(exchange)
        return await exchange.forward()


async def test_an_outage_of_one_key_spoils_its_own_requests_alone(proxied: Proxied) -> None:
    """F4."""
    client = proxied.client
    await client.create_user()
    bob = await client.create_user("bob@example.com")
    good, bad = await client.access_token(), await client.access_token("bob@example.com")
    with proxied.proxy.fault(ThrottledKey(bob.user_id), operations={"GetItem", "BatchGetItem"}):
        results = await batch(client, bad, good, "garbage")
    assert error_of(results[0]) == (
        grpc.StatusCode.UNAVAILABLE.value[0],
        "ERROR_REASON_STORE_UNAVAILABLE",
        "the store cannot answer in time",
    )
    assert results[1].response.state == ACTIVE
    assert results[2].response.reason == auth_pb2.INACTIVE_REASON_MALFORMED


async def test_a_fault_of_one_request_spoils_no_other(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """ASVS-16.5.1: neither the response nor the log has the text of the exception."""
    tokens = client.service.validations.tokens
    verify = tokens.verify

    def fail(text: str, now: datetime) -> AccessToken | InactiveReason:
        if text == "bad":
            raise ZeroDivisionError("the text of an exception")
        return verify(text, now)

    monkeypatch.setattr(tokens, "verify", fail)
    position = len(WITNESS.lines.getvalue())
    results = await batch(client, "bad", "garbage")
    assert error_of(results[0]) == (grpc.StatusCode.INTERNAL.value[0], "ERROR_REASON_INTERNAL", "internal error")
    assert results[1].response.reason == auth_pb2.INACTIVE_REASON_MALFORMED
    log = WITNESS.lines.getvalue()[position:]
    assert '"error": "ZeroDivisionError"' in log
    assert "the text of an exception" not in log
