"""Interceptors for gRPC servers: AuthInterceptor for grpc.aio, SyncAuthInterceptor for servers with threads."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio

from authsvc.client.access.admission import AsyncValidator, Validator, require_admitted, require_async, require_sync
from authsvc.client.access.bearer import read_token
from authsvc.client.access.identity_context import IdentityContext
from authsvc.client.access.public_paths import PublicPaths
from authsvc.client.access.refusals import INTERNAL_ERROR, Refusal, refusal_of
from authsvc.client.errors import AuthsvcError
from authsvc.client.identity import Identity, current_identity

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour: TypeAlias = Callable[[Any, Any], Any]

_log = logging.getLogger("authsvc.client")
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
_KINDS: "dict[tuple[bool, bool], tuple[str, Callable[..., Handler]]]" = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
"""By whether request and response are streams."""


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets RPCs with a valid token pass, on a server of grpc.aio. A stream is checked when it begins.

    Args:
        client: Validates the tokens.
        public: Methods that need no token: `/package.Service/Method`, or `/package.Service/*` for all of a service.
        role: The role that every user must have; None for any.

    Raises:
        ValueError: An entry of `public` is no method.
        TypeError: The client is a synchronous one.
    """

    def __init__(self, client: AsyncValidator, *, public: Iterable[str] = (), role: str | None = None) -> None:
        self._client = require_async(client)
        self._public = PublicPaths(public)
        self._role = role

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return the handler of an RPC, or one that refuses it."""
        identity = None
        if not self._public.includes(handler_call_details.method):
            try:
                token = read_token(_authorization(handler_call_details))
                identity = require_admitted(await self._client.validate(token), self._role)
            except Exception as error:  # noqa: BLE001 - gRPC would send its text to the client
                return _refusing_handler(_refusal_of(error))
        # The RPC has a task of its own, whose context ends with it.
        current_identity.set(identity)
        handler = await continuation(handler_call_details)
        if handler is None or identity is None or _is_async(handler):
            return handler
        return _in_context(handler, lambda _: identity)


class SyncAuthInterceptor(grpc.ServerInterceptor):
    """Lets RPCs with a valid token pass, on a server with threads. A stream is checked when it begins.

    Args:
        client: Validates the tokens.
        public: Methods that need no token: `/package.Service/Method`, or `/package.Service/*` for all of a service.
        role: The role that every user must have; None for any.

    Raises:
        ValueError: An entry of `public` is no method.
        TypeError: The client is an asynchronous one.
    """

    def __init__(self, client: Validator, *, public: Iterable[str] = (), role: str | None = None) -> None:
        self._client = require_sync(client)
        self._public = PublicPaths(public)
        self._role = role

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return a handler that checks the RPC in its own thread: this one serves all RPCs."""
        handler = continuation(handler_call_details)
        if self._public.includes(handler_call_details.method):
            return handler
        headers = _authorization(handler_call_details)

        def identify(context: grpc.ServicerContext) -> Identity:
            try:
                return require_admitted(self._client.validate(read_token(headers)), self._role)
            except Exception as error:  # noqa: BLE001 - gRPC would send its text to the client
                refusal = _refusal_of(error)
            return _abort(context, refusal)

        return _in_context(handler or _UNKNOWN, identify)


def _authorization(details: grpc.HandlerCallDetails) -> list[str]:
    return [str(value) for key, value in details.invocation_metadata if key == "authorization"]


def _refusal_of(error: Exception) -> Refusal:
    if isinstance(error, AuthsvcError):
        return refusal_of(error)
    _log.error("a token could not be validated", exc_info=error)
    return INTERNAL_ERROR


def _pushback(refusal: Refusal) -> tuple[tuple[str, str], ...]:
    """Return what Retry-After is in gRPC: clients with a retry policy wait that long."""
    if refusal.retry_delay is None:
        return ()
    return (("grpc-retry-pushback-ms", str(refusal.retry_delay // timedelta(milliseconds=1))),)


def _abort(context: grpc.ServicerContext, refusal: Refusal) -> NoReturn:
    context.set_trailing_metadata(_pushback(refusal))
    context.abort(_CODES[refusal.status], refusal.detail)


def _refusing_handler(refusal: Refusal) -> Handler:
    """Return a handler that serves RPCs of all kinds: the client cannot see the difference."""

    async def refuse(_: object, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        context.set_trailing_metadata(_pushback(refusal))
        await context.abort(_CODES[refusal.status], refusal.detail)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _unimplemented(_: object, context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


_UNKNOWN: Handler = grpc.stream_stream_rpc_method_handler(_unimplemented)


def _kind(handler: Handler) -> tuple[Behaviour, Callable[..., Handler]]:
    name, make = _KINDS[handler.request_streaming, handler.response_streaming]
    return getattr(handler, name), make


def _is_async(handler: Handler) -> bool:
    behaviour, _ = _kind(handler)
    return inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)


def _in_context(handler: Handler, identify: "Callable[[grpc.ServicerContext], Identity]") -> Handler:
    """Return a synchronous handler that runs with `current_identity` set.

    Args:
        handler: Of the application.
        identify: Returns who an RPC is from, or ends it.
    """
    behaviour, make = _kind(handler)

    def serve(request: object, context: grpc.ServicerContext) -> object:
        request_context = IdentityContext(identify(context))
        response = request_context.run(behaviour, request, context)
        return request_context.iterate(response) if handler.response_streaming else response

    return make(
        serve, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )
