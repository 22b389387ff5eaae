"""What stands around every handler: trace id, deadline, caller, decoding, and the one table of errors.

grpc.aio sends the text of a handler's exception to the client, and that of its own decoding before any handler runs.
So methods are registered with plain bytes, and nothing but gRPC's own AbortError leaves a guarded method.
"""

import traceback
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from authsvc import deadline, errors, logs
from authsvc.models import ADMIN_ROLE
from authsvc.statuses import INTERNAL, Status, status_of
from authsvc.tokens import InactiveReason
from authsvc.validations import Check, Validations

DOMAIN = "authsvc"
_OPEN_SERVICES = frozenset({"authsvc.v1.AuthService"})

_log = structlog.get_logger(__name__)


Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Message]]


class Guard:
    """Puts handlers behind their protection.

    Args:
        validations: Tells who a caller is by the access token that it shows.
    """

    def __init__(self, validations: Validations) -> None:
        self._validations = validations

    def methods(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """Return a service's methods, guarded, ready to be added to a server."""
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            method.name: grpc.unary_unary_rpc_method_handler(self._guarded(method, getattr(servicer, method.name)))
            for method in service.methods
        }
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _guarded(
        self, method: MethodDescriptor, handler: Handler
    ) -> Callable[[bytes, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]:
        request_class = message_factory.GetMessageClass(method.input_type)
        is_open = method.containing_service.full_name in _OPEN_SERVICES

        async def guarded(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            trace_id = logs.new_trace_id()
            try:
                with deadline.within(context.time_remaining()):
                    if not is_open:
                        await self._require_admin(context)
                    response = await handler(_decode(request_class, data), context)
                    return response.SerializeToString()
            except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, the client gets a status
                status = status_of(error)
                _log_refusal(method.full_name, status, error)
                metadata = _error_metadata(status, error, trace_id)
            return await context.abort(status.code, status.text, metadata)

        return guarded

    async def _require_admin(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Require an access token of an active user whose stored role is admin.

        Raises:
            CallerUnauthenticatedError: There is no token, more than one, or it is not good.
            CallerNotPermittedError: The user is no admin.
        """
        credentials = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        # Two headers could mean one thing to a proxy and another to us.
        if len(credentials) != 1:
            raise errors.CallerUnauthenticatedError
        scheme, _, token = str(credentials[0]).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise errors.CallerUnauthenticatedError
        validation = await self._validations.validate(Check(token))
        if isinstance(validation.outcome, InactiveReason):
            raise errors.CallerUnauthenticatedError
        user = validation.outcome.user
        if user.role != ADMIN_ROLE:
            _log.warning("caller_refused", user_id=user.user_id, reason="not_permitted")
            raise errors.CallerNotPermittedError


def _decode(request_class: type[Message], data: bytes) -> Message:
    try:
        return request_class.FromString(data)
    except DecodeError:
        raise errors.MalformedRequestError from None


def _log_refusal(method: str, status: Status, error: Exception) -> None:
    """Log what the client is not told: the cause of an outage, the place of a fault, never its text."""
    if isinstance(error, errors.StoreUnavailableError):
        _log.warning("store_unavailable", method=method, cause=error.cause)
    elif status is INTERNAL and not isinstance(error, errors.BrokenRowError):  # which is logged where it is found
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
