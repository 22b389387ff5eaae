"""Arbitrary bytes as requests end in a status of the API, without the text of an exception (B4, B6)."""

import random
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import resources_pb2
from authsvc.v1 import user_service_pb2 as user_pb2
from tests.fuzz import REQUESTS, SEEDS, STATUSES, fuzzed, outcome
from tests.support import Client, failure_of

ROUNDS = 200


def test_no_rpc_is_left_out() -> None:
    assert SEEDS.keys() == REQUESTS.keys()


@pytest.mark.parametrize("method", SEEDS, ids=lambda method: method.rpartition("/")[2])
async def test_requests_without_sense_end_in_a_status_of_the_api(client: Client, method: str) -> None:
    source = random.Random(method)  # noqa: S311 - the same bytes in every run
    await client.create_user()
    seen = {await outcome(client, method, fuzzed(method, source)) for _ in range(ROUNDS)}
    assert seen <= STATUSES
    assert "INVALID_ARGUMENT MALFORMED_REQUEST" in seen
    assert await outcome(client, "/authsvc.v1.AuthService/GetJwks", b"") == "OK"


@pytest.mark.parametrize("method", SEEDS, ids=lambda method: method.rpartition("/")[2])
@pytest.mark.parametrize("body", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x01\xff", b"\x0b" * 200, b"\0"])
async def test_bytes_that_do_not_decode_are_the_clients_mistake(client: Client, method: str, body: bytes) -> None:
    if method.endswith(("GetJwks", "ListUsers")) and body == b"\x0a\x01\xff":
        return  # decodes, as an unknown field
    assert await outcome(client, method, body) == "INVALID_ARGUMENT MALFORMED_REQUEST"


@pytest.mark.parametrize(
    "text",
    ["\0", "a\0@example.com", "\u202e@example.com", "😀@example.com", "İ@example.com", "ﬁ@example.com", "\ufffe"],
)
async def test_any_text_is_answered_in_every_field(client: Client, text: str) -> None:
    requests = {
        "/authsvc.v1.AuthService/Authenticate": auth_pb2.AuthenticateRequest(
            email=text, password=text, client_label=text
        ),
        "/authsvc.v1.AuthService/ValidateToken": auth_pb2.ValidateTokenRequest(token=text),
        "/authsvc.v1.UserService/CreateUser": user_pb2.CreateUserRequest(
            email=text, role=text, password=text, request_id=text
        ),
        "/authsvc.v1.AuthService/RefreshTokens": auth_pb2.RefreshTokensRequest(refresh_token=text),
        "/authsvc.v1.AuthService/RevokeToken": auth_pb2.RevokeTokenRequest(token=text),
        "/authsvc.v1.AuthService/ChangePassword": auth_pb2.ChangePasswordRequest(
            email=text, current_password=text, new_password=text, client_label=text
        ),
        "/authsvc.v1.UserService/GetUser": user_pb2.GetUserRequest(user_id=text),
        "/authsvc.v1.UserService/ListUsers": user_pb2.ListUsersRequest(page_token=text),
        "/authsvc.v1.UserService/UpdateUser": user_pb2.UpdateUserRequest(
            user_id=text, user=resources_pb2.User(email=text), update_mask=FieldMask(paths=["email"])
        ),
        "/authsvc.v1.UserService/DeleteUser": user_pb2.DeleteUserRequest(user_id=text),
        "/authsvc.v1.UserService/ResetPassword": user_pb2.ResetPasswordRequest(user_id=text),
        "/authsvc.v1.UserService/ListUserSessions": user_pb2.ListUserSessionsRequest(user_id=text, page_token=text),
        "/authsvc.v1.UserService/RevokeUserSessions": user_pb2.RevokeUserSessionsRequest(
            user_id=text, session_ids=[text]
        ),
    }
    for method, request in requests.items():
        assert await outcome(client, method, request.SerializeToString()) in STATUSES


@pytest.mark.parametrize(
    "metadata",
    [
        (("x", "1" * 4000),),
        (("x-bin", b"\0\xff" * 100),),
        (("authorization-bin", b"Bearer x"),),
        (("grpc-trace-bin", b"\xff"),),
        tuple((f"x-{n}", "v") for n in range(100)),
        (("cookie", "a=b"), ("x-forwarded-for", "'; --")),
    ],
    ids=lambda metadata: metadata[0][0],
)
async def test_any_metadata_is_answered(client: Client, metadata: Any) -> None:
    assert await outcome(client, "/authsvc.v1.AuthService/GetJwks", b"", metadata) == "OK"
    get_user = "/authsvc.v1.UserService/GetUser"
    assert await outcome(client, get_user, SEEDS[get_user], metadata) == "NOT_FOUND USER_NOT_FOUND"


async def test_an_unexpected_failure_reveals_nothing_to_the_client(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ASVS-16.5.1, ASVS-16.5.4."""
    internal_text = "arn:aws:dynamodb:table/auth-users"

    async def fail(_text: str) -> None:
        raise ZeroDivisionError(internal_text)

    monkeypatch.setattr(client.service.validations, "validate", fail)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.validate("x")
    refusal = failure_of(caught.value)
    assert (refusal.code, refusal.reason, refusal.text) == (grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")
    assert internal_text not in str(caught.value)
    monkeypatch.undo()
    assert (await client.validate("x")).reason == auth_pb2.INACTIVE_REASON_MALFORMED
