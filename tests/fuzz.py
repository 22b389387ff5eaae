"""A well-formed request of every RPC, how it is damaged, and what may come of it (B4)."""

import random
import struct
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from authsvc.paging import token_of
from authsvc.refresh_tokens import new_refresh_token
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import resources_pb2
from authsvc.v1 import user_service_pb2 as user_pb2
from tests.support import PASSWORD, Client, failure_of

STATUSES = {
    "INVALID_ARGUMENT MALFORMED_REQUEST",
    "INVALID_ARGUMENT INVALID_FIELD",
    "INVALID_ARGUMENT PASSWORD_REJECTED",
    "UNAUTHENTICATED INVALID_CREDENTIALS",
    "UNAUTHENTICATED INVALID_REFRESH_TOKEN",
    "ALREADY_EXISTS EMAIL_ALREADY_EXISTS",
    "NOT_FOUND USER_NOT_FOUND",
    "RESOURCE_EXHAUSTED OVERLOADED",
    "OK",
}
SEEDS: dict[str, bytes] = {
    "/authsvc.v1.AuthService/Authenticate": auth_pb2.AuthenticateRequest(
        email="alice@example.com", password=PASSWORD, client_address="192.0.2.1", client_label="x"
    ).SerializeToString(),
    "/authsvc.v1.AuthService/ValidateToken": auth_pb2.ValidateTokenRequest(
        token="a.b.c", max_staleness=Duration(seconds=5), stale_if_error=Duration(nanos=5)
    ).SerializeToString(),
    "/authsvc.v1.AuthService/BatchValidateTokens": auth_pb2.BatchValidateTokensRequest(
        requests=[auth_pb2.ValidateTokenRequest(token="a.b.c", max_staleness=Duration(seconds=5))] * 2
    ).SerializeToString(),
    "/authsvc.v1.AuthService/RefreshTokens": auth_pb2.RefreshTokensRequest(
        refresh_token=new_refresh_token("alice").text, client_address="192.0.2.1"
    ).SerializeToString(),
    "/authsvc.v1.AuthService/RevokeToken": auth_pb2.RevokeTokenRequest(
        token=new_refresh_token("alice").text
    ).SerializeToString(),
    "/authsvc.v1.AuthService/ChangePassword": auth_pb2.ChangePasswordRequest(
        email="nobody@example.com",
        current_password=PASSWORD,
        new_password="another password of words",
        client_address="192.0.2.1",
        client_label="x",
    ).SerializeToString(),
    "/authsvc.v1.AuthService/GetJwks": b"",
    "/authsvc.v1.UserService/CreateUser": user_pb2.CreateUserRequest(
        email="alice@example.com", role="user", password=PASSWORD, request_id="x"
    ).SerializeToString(),
    "/authsvc.v1.UserService/GetUser": user_pb2.GetUserRequest(email="alice@example.com").SerializeToString(),
    "/authsvc.v1.UserService/ListUsers": user_pb2.ListUsersRequest(
        page_size=5, page_token=token_of("alice")
    ).SerializeToString(),
    "/authsvc.v1.UserService/UpdateUser": user_pb2.UpdateUserRequest(
        user_id="alice",
        user=resources_pb2.User(email="alice@example.com", role="editor"),
        update_mask=FieldMask(paths=["email", "role"]),
    ).SerializeToString(),
    "/authsvc.v1.UserService/DeleteUser": user_pb2.DeleteUserRequest(user_id="alice").SerializeToString(),
    "/authsvc.v1.UserService/ResetPassword": user_pb2.ResetPasswordRequest(user_id="alice").SerializeToString(),
    "/authsvc.v1.UserService/ListUserSessions": user_pb2.ListUserSessionsRequest(
        user_id="alice", page_size=5, page_token=token_of("session")
    ).SerializeToString(),
    "/authsvc.v1.UserService/RevokeUserSessions": user_pb2.RevokeUserSessionsRequest(
        user_id="alice", session_ids=["session"]
    ).SerializeToString(),
}
"""A well-formed request of every RPC."""


async def outcome(client: Client, method: str, body: bytes, metadata: Any = ()) -> str:
    """Send plain bytes and return the status, with its reason."""
    call: Any = client.channel.unary_unary(method)
    try:
        await call(body, metadata=(*client.admin, *metadata))
    except grpc.aio.AioRpcError as error:
        told = failure_of(error)
        assert "Traceback" not in told.text
        assert "Error" not in told.text
        return f"{told.code.name} {told.reason}"
    return "OK"


def mutated(seed: bytes, source: random.Random) -> bytes:
    """Damage a request: lengths, tags, text that is no UTF-8, groups, pieces doubled, lost, or swapped."""
    body = bytearray(seed)
    for _ in range(source.randint(1, 4)):
        at = source.randint(0, len(body))
        match source.randint(0, 6):
            case 0 if body:
                body[at % len(body)] ^= 1 << source.randint(0, 7)
            case 1:
                body[at:at] = source.randbytes(source.randint(1, 8))
            case 2:
                del body[at : at + source.randint(1, 8)]
            case 3:
                body[at:at] = body[: source.randint(0, len(body))]
            case 4:
                body[at:at] = b"\xff" * source.randint(1, 11)
            case 5:
                body[at:at] = bytes([source.randint(0, 15) << 3 | source.randint(0, 7)])
            case _:
                body[at:at] = struct.pack("<Q", source.getrandbits(64))
    return bytes(body)
