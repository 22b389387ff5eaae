"""A well-formed request of every RPC, how it is damaged, and what may come of it (B4)."""

import random
import struct
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from authsvc.fields import encode_page_token
from authsvc.rpc import ext_authz_pb2
from authsvc.rpc.ext_authz_pb2 import AttributeContext, CheckRequest, HeaderMap, HeaderValue
from authsvc.tokens.refresh_tokens import new_refresh_token
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
    "RESOURCE_EXHAUSTED TOO_MANY_ATTEMPTS",
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
    "/envoy.service.auth.v3.Authorization/Check": CheckRequest(
        attributes=AttributeContext(
            request=AttributeContext.Request(
                http=AttributeContext.HttpRequest(
                    headers={"authorization": "Bearer a.b.c", "x-auth-role": "admin"},
                    header_map=HeaderMap(headers=[HeaderValue(key="cookie", raw_value=b"a")]),
                )
            ),
            context_extensions={"max_staleness": "5s"},
        )
    ).SerializeToString(),
    "/authsvc.v1.UserService/CreateUser": user_pb2.CreateUserRequest(
        email="alice@example.com", role="user", password=PASSWORD, request_id="x"
    ).SerializeToString(),
    "/authsvc.v1.UserService/GetUser": user_pb2.GetUserRequest(email="alice@example.com").SerializeToString(),
    "/authsvc.v1.UserService/ListUsers": user_pb2.ListUsersRequest(
        page_size=5, page_token=encode_page_token("alice")
    ).SerializeToString(),
    "/authsvc.v1.UserService/UpdateUser": user_pb2.UpdateUserRequest(
        user_id="alice",
        user=resources_pb2.User(email="alice@example.com", role="editor"),
        update_mask=FieldMask(paths=["email", "role"]),
    ).SerializeToString(),
    "/authsvc.v1.UserService/DeleteUser": user_pb2.DeleteUserRequest(user_id="alice").SerializeToString(),
    "/authsvc.v1.UserService/ResetPassword": user_pb2.ResetPasswordRequest(user_id="alice").SerializeToString(),
    "/authsvc.v1.UserService/ListUserSessions": user_pb2.ListUserSessionsRequest(
        user_id="alice", page_size=5, page_token=encode_page_token("session")
    ).SerializeToString(),
    "/authsvc.v1.UserService/RevokeUserSessions": user_pb2.RevokeUserSessionsRequest(
        user_id="alice", session_ids=["session"]
    ).SerializeToString(),
}
"""A well-formed request of every RPC."""
SERVICES = tuple(
    service
    for file in (auth_pb2.DESCRIPTOR, user_pb2.DESCRIPTOR, ext_authz_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
)
REQUESTS = {
    f"/{s.full_name}/{m.name}": message_factory.GetMessageClass(m.input_type) for s in SERVICES for m in s.methods
}
TEXTS = [
    "",
    "alice@example.com",
    "nobody@example.com",
    PASSWORD,
    "192.0.2.1",
    "::ffff:0:0",
    "a.b.c",
    new_refresh_token("alice").text,
    encode_page_token("alice"),
    "email",
    "is_active",
    "$2b$31$" + "a" * 53,
    "\0\r\n\x1b\u2028\u202e\ufeff\U0010ffff",
    "é" * 300,
    "x" * 70_000,
]
_BOOL = FieldDescriptor.CPPTYPE_BOOL
SHARE_OF_DAMAGE = 0.5
"""The others decode, and are nonsense."""
NUMBERS = [0, 1, -1, 100, 2**31 - 1, -(2**31)]


async def outcome(client: Client, method: str, body: bytes, metadata: Any = ()) -> str:
    """Send plain bytes and return the status, with its reason."""
    call: Any = client.channel.unary_unary(method)
    try:
        await call(body, metadata=(*client.admin, *metadata))
    except grpc.aio.AioRpcError as error:
        reported = failure_of(error)
        assert "Traceback" not in reported.text
        assert "Error" not in reported.text
        return f"{reported.code.name} {reported.reason}"
    return "OK"


def arbitrary(message: Message, source: random.Random) -> Message:
    """Fill a message of any class with values of the right types, and of no sense."""
    for field in message.DESCRIPTOR.fields:
        for _ in range(source.randint(0, 3 if field.is_repeated else 1)):
            if field.message_type is not None and field.message_type.GetOptions().map_entry:  # of texts
                getattr(message, field.name)[source.choice(TEXTS)] = source.choice(TEXTS)
                continue
            if field.message_type is not None:
                part = getattr(message, field.name)
                arbitrary(part.add() if field.is_repeated else part, source)
                continue
            is_text = field.cpp_type == FieldDescriptor.CPPTYPE_STRING
            value: Any = source.choice(TEXTS if is_text else [0, 1] if field.cpp_type == _BOOL else NUMBERS)
            if field.type == FieldDescriptor.TYPE_BYTES:
                value = value.encode()
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
    return message


def fuzzed(method: str, source: random.Random) -> bytes:
    """Return the body of a request that no program would send."""
    if source.random() < SHARE_OF_DAMAGE:
        return mutated(SEEDS[method], source)
    return arbitrary(REQUESTS[method](), source).SerializeToString()


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
