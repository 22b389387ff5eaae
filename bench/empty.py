"""The floor of the stack: a ValidateToken server with typed messages and an empty handler."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import uvloop

from authsvc.v1 import auth_service_pb2 as auth_pb2

METHOD = "/authsvc.v1.AuthService/ValidateToken"
SERVICE, _, NAME = METHOD[1:].partition("/")

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[auth_pb2.ValidateTokenRequest, Context], Awaitable[auth_pb2.ValidateTokenResponse]]


async def validate(_: auth_pb2.ValidateTokenRequest, __: Context) -> auth_pb2.ValidateTokenResponse:
    """Answer that the token is active, without reading it."""
    return auth_pb2.ValidateTokenResponse(state=auth_pb2.TOKEN_STATE_ACTIVE)


async def serve(handler: Handler) -> None:
    """Serve ValidateToken until SIGTERM; the first line of stdout is the address."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        handler, auth_pb2.ValidateTokenRequest.FromString, auth_pb2.ValidateTokenResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {NAME: method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    await stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(serve(validate))
