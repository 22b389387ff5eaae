"""A backend that validates tokens by plain stubs or by the client library, or runs its loop without validating."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Literal

import grpc

from authsvc.client import AsyncClient, AuthsvcError
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc

Library = Literal["", "plain", "client", "loop"]
TIMEOUT_SECONDS = 10.0


async def validation(
    library: Library, address: str, tokens: Sequence[str], max_staleness: float, stack: AsyncExitStack
) -> Callable[[], Awaitable[None]]:
    """Return a function that validates the next token with the library; it raises ValueError for an inactive one."""
    next_token = itertools.cycle(tokens).__next__
    if library == "plain":
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        stub = auth_grpc.AuthServiceStub(channel)

        async def by_stub() -> None:
            request = auth_pb2.ValidateTokenRequest(token=next_token())
            answer = await stub.ValidateToken(request, timeout=TIMEOUT_SECONDS)
            if answer.state != auth_pb2.TOKEN_STATE_ACTIVE:
                raise ValueError(str(answer))

        return by_stub
    if library == "loop":

        async def loop() -> None:
            next_token()
            await asyncio.sleep(0)

        return loop
    client = await stack.enter_async_context(AsyncClient(address, max_staleness=max_staleness))

    async def by_client() -> None:
        try:
            await client.validate(next_token())
        except AuthsvcError as error:
            raise ValueError(type(error).__name__) from None
        if max_staleness:  # a cache hit never yields to other tasks
            await asyncio.sleep(0)

    return by_client
