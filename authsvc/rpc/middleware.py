"""RPC middleware: trace, deadline, authorization, decoding, metrics and errors around every handler.

grpc.aio sends the text of a handler's exception to the client, and its own decoding error before any handler runs. So
methods are registered with plain bytes, and no exception leaves the wrapper. Errors are sent as Trailers-Only, for
gRPC's clients and proxies retry nothing else.
"""

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from authsvc import request_context
from authsvc.errors import CallerRefusedError, CorruptItemError, MalformedRequestError, StoreUnavailableError
from authsvc.request_context import Trace
from authsvc.rpc.authorization import Authorization, Context, is_loopback, peer_host
from authsvc.rpc.statuses import INTERNAL, Metadata, Status, error_metadata, status_for
from authsvc.telemetry import audit, metrics
from authsvc.telemetry.audit import Event

if TYPE_CHECKING:
    from authsvc.telemetry.spans import Spans

HASHING_METHODS = frozenset(
    {
        "authsvc.v1.AuthService.Authenticate",
        "authsvc.v1.AuthService.ChangePassword",
        "authsvc.v1.UserService.CreateUser",
        "authsvc.v1.UserService.ResetPassword",
    }
)
"""RPCs that hash a password: they have a longer deadline."""
CLIENT_ADDRESS = "client_address"
"""Request field: the end user's address as the caller saw it."""

_log = structlog.get_logger(__name__)

Handler = Callable[[Any, Context], Awaitable[Message]]
AnswerError = Callable[[BaseException], Message | None]


@runtime_checkable
class AnswersErrors(Protocol):
    """A servicer whose protocol has answers for errors."""

    def answer_error(self, error: BaseException) -> Message | None:
        """Return the response to a call that failed; None for a status of gRPC, as other servicers' calls end."""


class Middleware:
    """Wraps handlers.

    Args:
        authorization: Decides who may call.
        request_seconds: Deadline of a request whose client set no earlier one.
        hashing_seconds: The same for HASHING_METHODS.
        spans: Records the spans of sampled calls; None: no spans are exported.
    """

    def __init__(
        self,
        authorization: Authorization,
        request_seconds: float = request_context.DEFAULT_DEADLINE_SECONDS,
        hashing_seconds: float = request_context.HASHING_DEADLINE_SECONDS,
        spans: "Spans | None" = None,
    ) -> None:
        self._authorization = authorization
        self._request_seconds = request_seconds
        self._hashing_seconds = hashing_seconds
        self._spans = spans

    def wrap_service(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """Return a service's wrapped methods, ready to be added to a server.

        Raises:
            KeyError: An RPC has no row in PERMISSIONS.
        """
        answer_error = servicer.answer_error if isinstance(servicer, AnswersErrors) else _no_answer
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            method.name: grpc.unary_unary_rpc_method_handler(
                self._wrap(method, getattr(servicer, method.name), answer_error)
            )
            for method in service.methods
        }
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _wrap(
        self, method: MethodDescriptor, handler: Handler, answer_error: AnswerError
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        request_class = message_factory.GetMessageClass(method.input_type)
        authorize = self._authorization.for_method(method.full_name)
        # Without authenticated callers, only a client on this machine is believed.
        distrusts_address = not self._authorization.has_callers and CLIENT_ADDRESS in method.input_type.fields_by_name
        record = _Record(method, self._spans)
        max_seconds = self._hashing_seconds if method.full_name in HASHING_METHODS else self._request_seconds

        async def wrapped(data: bytes, context: Context) -> bytes:
            begin = time.perf_counter()
            trace = request_context.start_trace(context.invocation_metadata)
            try:
                request_context.start_deadline(context.time_remaining(), max_seconds)
                if authorize is not None:
                    await authorize(context)
                request = _decode(request_class, data)
                if distrusts_address and not is_loopback(context.peer()):
                    request.ClearField(CLIENT_ADDRESS)
                response = await handler(request, context)
                answer = response.SerializeToString()
            except (asyncio.CancelledError, Exception) as error:  # the last resort: the client gets a status
                if _is_cancelled(error):
                    record.failed(trace, begin, "CANCELLED")
                    raise
                status = status_for(error)
                record.failed(trace, begin, status.code.name, status.reason)
                _log_error(method.full_name, context.peer(), status, error)
                error_answer = answer_error(error)
                if error_answer is not None:
                    return error_answer.SerializeToString()
                metadata = error_metadata(status, error, trace.trace_id)
            else:
                record.succeeded(trace, begin)
                return answer
            await _abort(context, status, metadata)
            return b""  # ignored

        return wrapped


class _Record:
    """Counts the finished calls of a method, and records the spans of those that are sampled.

    Args:
        method: Of the calls.
        spans: None: no spans are exported.
    """

    def __init__(self, method: MethodDescriptor, spans: "Spans | None") -> None:
        self._calls = metrics.MethodCalls(method.full_name)
        self._spans = spans
        self._span_name = f"{method.containing_service.full_name}/{method.name}"

    def succeeded(self, trace: Trace, begin: float) -> None:
        self._calls.succeeded(begin)
        if self._spans is not None and self._spans.is_sampled(trace):
            outcome = request_context.validation_outcome.get()
            self._spans.record(self._span_name, begin, "OK", outcome=outcome)

    def failed(self, trace: Trace, begin: float, code: str, reason: str = "") -> None:
        self._calls.failed(begin, code, reason)
        if self._spans is not None and self._spans.is_sampled(trace):
            self._spans.record(self._span_name, begin, code, reason)


def _no_answer(_: BaseException) -> None:
    """Leave every error to its status."""


def _decode(request_class: type[Message], data: bytes) -> Message:
    try:
        return request_class.FromString(data)
    except DecodeError:
        raise MalformedRequestError from None


def _is_cancelled(error: BaseException) -> bool:
    """Return whether the client or the server cancelled the call, rather than something that the handler awaited."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


async def _abort(context: Context, status: Status, metadata: Metadata) -> None:
    """Send an error as Trailers-Only.

    gRPC keeps the AbortError that it raises. With its traceback it would hold this request's frames in a reference
    cycle, and a flood of refusals would keep the garbage collector busy.
    """
    try:
        await context.abort(status.code, status.text, metadata)
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = None


def _log_error(method: str, peer: str, status: Status, error: BaseException) -> None:
    """Log what the client must not see: the cause of an outage, the place of a bug. Never the error's text."""
    if isinstance(error, StoreUnavailableError):
        _log.warning("store_unavailable", method=method, cause=error.cause)
    elif isinstance(error, CallerRefusedError):
        audit.record(Event.CALLER_REFUSED, reason=error.reason, method=method, source=peer_host(peer))
    elif status is INTERNAL and not isinstance(error, CorruptItemError):  # logged where it is found
        frames = traceback.extract_tb(error.__traceback__)
        place = [f"{frame.name} {frame.filename}:{frame.lineno}" for frame in frames]
        _log.error("internal_error", method=method, error=type(error).__name__, place=place)
    else:
        _log.debug("refused", method=method, reason=status.reason)
