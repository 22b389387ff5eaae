"""The RPCs of the API: their deadlines, and which of them gRPC may send again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from authsvc.v1 import auth_service_pb2, user_service_pb2

DEFAULT_TIMEOUT_SECONDS = 2.5
HASHING_TIMEOUT_SECONDS = 10.0
HASHING = frozenset({"Authenticate", "ChangePassword", "CreateUser", "ResetPassword"})
"""They hash a password."""
RETRYABLE = frozenset(
    {
        "ValidateToken",
        "BatchValidateTokens",
        "GetJwks",
        "RefreshTokens",  # its replay window makes a second one safe
        "RevokeToken",
        "CreateUser",  # always has a request_id
        "GetUser",
        "ListUsers",
        "ListUserSessions",
    }
)
"""A second one does no harm."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC.

    Args:
        service: Full name of its service.
        name: Its name.
        request_class: Class of its request.
        response_class: Class of its response.
    """

    service: str
    name: str
    request_class: type[Message]
    response_class: type[Message]

    @property
    def path(self) -> str:
        """Its path in HTTP/2."""
        return f"/{self.service}/{self.name}"

    @property
    def timeout_seconds(self) -> float:
        """Deadline of a call that sets none."""
        return HASHING_TIMEOUT_SECONDS if self.name in HASHING else DEFAULT_TIMEOUT_SECONDS


def _methods(service: ServiceDescriptor) -> Iterator[tuple[str, Method]]:
    for method in service.methods:
        request_class = message_factory.GetMessageClass(method.input_type)
        response_class = message_factory.GetMessageClass(method.output_type)
        yield method.name, Method(service.full_name, method.name, request_class, response_class)


AUTH_METHODS: Mapping[str, Method] = dict(_methods(auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"]))
USER_METHODS: Mapping[str, Method] = dict(_methods(user_service_pb2.DESCRIPTOR.services_by_name["UserService"]))
