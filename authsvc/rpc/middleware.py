"""What stands around every handler: trace id, deadline, caller, decoding, and the one table of errors.

grpc.aio sends the text of a handler's exception to the client, and that of its own decoding before any handler runs.
So methods are registered with plain bytes, and no exception leaves a guarded method. Nor does gRPC's own AbortError,
which holds its frames in a circle: a flood of refusals would keep the garbage collector busy.
"""

import asyncio
import functools
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf import any_pb2, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from authsvc import errors, request_context
from authsvc.config import Address
from authsvc.models import ADMIN_ROLE
from authsvc.rpc.callers import API_KEY_PREFIX, Callers, Permission
from authsvc.rpc.statuses import INTERNAL, Status, status_for
from authsvc.telemetry import audit, metrics
from authsvc.telemetry.audit import Event
from authsvc.tokens.verification import InactiveReason
from authsvc.usecases.validation import Check, Validations
from authsvc.watched_file import WatchedFile

DOMAIN = "authsvc"
CLIENT_ADDRESS = "client_address"
"""Field of requests: where the end user is, as the caller saw it."""

_log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Message]]
Admission = Callable[[Context], Awaitable[None]]

_VALIDATE = frozenset({Permission.VALIDATE})
_LOGIN = frozenset({Permission.LOGIN})
_SESSIONS = frozenset({Permission.SESSIONS, Permission.USERS})
_USERS = frozenset({Permission.USERS})
PERMISSIONS: Mapping[str, frozenset[Permission]] = {
    "authsvc.v1.AuthService.Authenticate": _LOGIN,
    "authsvc.v1.AuthService.ValidateToken": _VALIDATE,
    "authsvc.v1.AuthService.BatchValidateTokens": _VALIDATE,
    "authsvc.v1.AuthService.RefreshTokens": _LOGIN,
    "authsvc.v1.AuthService.RevokeToken": _LOGIN,
    "authsvc.v1.AuthService.ChangePassword": _LOGIN,
    "authsvc.v1.AuthService.GetJwks": frozenset(),
    "authsvc.v1.UserService.CreateUser": _USERS,
    "authsvc.v1.UserService.GetUser": _USERS,
    "authsvc.v1.UserService.ListUsers": _USERS,
    "authsvc.v1.UserService.UpdateUser": _USERS,
    "authsvc.v1.UserService.DeleteUser": _USERS,
    "authsvc.v1.UserService.ResetPassword": _USERS,
    "authsvc.v1.UserService.ListUserSessions": _SESSIONS,
    "authsvc.v1.UserService.RevokeUserSessions": _SESSIONS,
}
"""Which permissions open an RPC, any of them; where there are none, whoever connects may call it.

An admin's access token stands for `users`, and what that opens is never open without a callers file.
"""


class Middleware:
    """Puts handlers behind their protection.

    Args:
        validations: Tells who a user is by the access token that is shown.
        callers: The backends that may call; None: they are not told apart.
    """

    def __init__(self, validations: Validations, callers: WatchedFile[Callers] | None) -> None:
        self._validations = validations
        self._callers = callers

    def methods(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """Return a service's methods, guarded, ready to be added to a server.

        Raises:
            KeyError: PERMISSIONS lacks one.
        """
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            method.name: grpc.unary_unary_rpc_method_handler(self._guarded(method, getattr(servicer, method.name)))
            for method in service.methods
        }
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _guarded(self, method: MethodDescriptor, handler: Handler) -> Callable[[bytes, Context], Awaitable[bytes]]:
        request_class = message_factory.GetMessageClass(method.input_type)
        admit = self._admission(PERMISSIONS[method.full_name])
        may_be_deceived = self._callers is None and CLIENT_ADDRESS in method.input_type.fields_by_name
        calls = metrics.MethodCalls(method.full_name)

        async def guarded(data: bytes, context: Context) -> bytes:
            begin = time.perf_counter()
            trace_id = request_context.new_trace_id()
            try:
                request_context.start_deadline(context.time_remaining())
                if admit is not None:
                    await admit(context)
                request = _decode(request_class, data)
                if may_be_deceived and not _is_loopback(context.peer()):
                    request.ClearField(CLIENT_ADDRESS)
                response = await handler(request, context)
                answer = response.SerializeToString()
            except asyncio.CancelledError:
                calls.failed(begin, "CANCELLED")
                raise
            except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, the client gets a status
                status = status_for(error)
                calls.failed(begin, status.code.name, status.reason)
                _log_refusal(method.full_name, context.peer(), status, error)
                metadata = _error_metadata(status, error, str(trace_id))
            else:
                calls.good(begin)
                return answer
            context.set_code(status.code)
            context.set_details(status.text)
            context.set_trailing_metadata(metadata)
            return b""  # which is not sent

        return guarded

    def _admission(self, permissions: frozenset[Permission]) -> Admission | None:
        """Return what lets a caller in or raises CallerRefusedError; None where there is nothing to decide."""
        if Permission.USERS in permissions:
            return functools.partial(self._admit_caller_or_admin, permissions)
        if self._callers is None or not permissions:
            return None
        return functools.partial(self._admit_caller, permissions)

    async def _admit_caller(self, permissions: frozenset[Permission], context: Context) -> None:
        """Let a backend in; a bearer that is no API key is somebody else's, a user's for instance."""
        self._require_caller(_bearer(context), permissions, context)

    async def _admit_caller_or_admin(self, permissions: frozenset[Permission], context: Context) -> None:
        """Let a backend or an admin in; a bearer decides alone, whoever has the connection."""
        bearer = _bearer(context)
        if bearer and not bearer.startswith(API_KEY_PREFIX):
            await self._require_admin(bearer)
        else:
            self._require_caller(bearer, permissions, context)

    def _require_caller(self, bearer: str, permissions: frozenset[Permission], context: Context) -> None:
        """Require a backend with one of the permissions.

        Raises:
            CallerUnauthenticatedError: It is not known.
            CallerNotPermittedError: It has none of them.
        """
        known = Callers() if self._callers is None else self._callers.content
        if bearer.startswith(API_KEY_PREFIX):
            caller, reason = known.of_key(bearer), "unknown_key"
        else:
            caller, reason = known.of_tls_identities(_tls_identities(context)), "no_credentials"
        if caller is None:
            raise errors.CallerUnauthenticatedError(reason)
        request_context.caller.set(caller.name)
        if permissions.isdisjoint(caller.permissions):
            raise errors.CallerNotPermittedError("lacks_permission")

    async def _require_admin(self, token: str) -> None:
        """Require an access token of an active user whose stored role is admin.

        Raises:
            CallerUnauthenticatedError: It is not good.
            CallerNotPermittedError: The user is no admin.
        """
        validation = await self._validations.validate(Check(token))
        if isinstance(validation.outcome, InactiveReason):
            raise errors.CallerUnauthenticatedError(f"token_{validation.outcome.name.lower()}")
        user = validation.outcome.user
        request_context.caller.set(f"user:{user.user_id}")  # no caller's name has a colon
        if user.role != ADMIN_ROLE:
            raise errors.CallerNotPermittedError("no_admin")


def _bearer(context: Context) -> str:
    """Return the bearer credential, empty where there is none.

    Raises:
        CallerUnauthenticatedError: There are two headers, which could mean one thing to a proxy and another to us.
    """
    credentials = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not credentials:
        return ""
    if len(credentials) > 1:
        raise errors.CallerUnauthenticatedError("two_credentials")
    scheme, _, bearer = str(credentials[0]).partition(" ")
    return bearer if scheme.lower() == "bearer" else ""


def _tls_identities(context: Context) -> list[str]:
    """Return the URIs and DNS names of the client's certificate; its common name was never checked for either."""
    properties = context.auth_context()
    uris = (value.decode() for value in properties.get("peer_uri", ()))
    names = (value.decode().lower() for value in properties.get("peer_dns", ()))
    # What a certificate calls a name must not pass for a URI.
    return [uri for uri in uris if "://" in uri] + [name for name in names if "://" not in name]


def _is_loopback(peer: str) -> bool:
    """Tell whether a client is on this machine.

    Args:
        peer: As gRPC has it, for instance ipv4:127.0.0.1:4711 or ipv6:%5B::1%5D:4711.
    """
    return Address(_host(peer), 0).is_loopback


def _host(peer: str) -> str:
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _decode(request_class: type[Message], data: bytes) -> Message:
    try:
        return request_class.FromString(data)
    except DecodeError:
        raise errors.MalformedRequestError from None


def _log_refusal(method: str, peer: str, status: Status, error: Exception) -> None:
    """Log what the client is not told: the cause of an outage, the place of a fault, never its text."""
    if isinstance(error, errors.StoreUnavailableError):
        _log.warning("store_unavailable", method=method, cause=error.cause)
    elif isinstance(error, errors.CallerRefusedError):
        audit.record(Event.CALLER_REFUSED, reason=error.reason, method=method, source=_host(peer))
    elif status is INTERNAL and not isinstance(error, errors.CorruptItemError):  # which is logged where it is found
        frames = traceback.extract_tb(error.__traceback__)
        place = [f"{frame.name} {frame.filename}:{frame.lineno}" for frame in frames]
        _log.error("internal_error", method=method, error=type(error).__name__, place=place)
    else:
        _log.debug("refused", method=method, reason=status.reason)


def _error_metadata(status: Status, error: Exception, trace_id: str) -> tuple[tuple[str, str | bytes], ...]:
    rich = status_pb2.Status(
        code=status.code.value[0],
        message=status.text,
        details=[_packed(detail) for detail in _details(status, error, trace_id)],
    )
    return rpc_status.to_status(rich).trailing_metadata or ()


def _details(status: Status, error: Exception, trace_id: str) -> list[Message]:
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=status.reason, domain=DOMAIN, metadata={"trace_id": trace_id})
    ]
    if isinstance(error, errors.InvalidFieldError):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.problem)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.RetryLaterError):
        details.append(_retry_info(error.retry_delay))
    return details


def _retry_info(delay: timedelta) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromTimedelta(delay)
    return info


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
