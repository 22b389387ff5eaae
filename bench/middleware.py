"""Measures what the ASGI middleware adds to a request whose token is in the client's cache."""

import asyncio
import time
from collections.abc import Iterator
from itertools import islice

from authsvc.client import AsyncClient
from authsvc.client.asgi import ASGIApp, AuthMiddleware, Message, Receive, Scope, Send
from bench.servers import USERS, Servers, Target

ROUNDS = 8
REQUESTS = 20_000
TOKENS = 1_000
STALENESS_SECONDS = 60.0


def added_microseconds(servers: Servers) -> list[float]:
    """Return the CPU microseconds that the middleware adds to a request, round by round."""
    address = servers.server(Target(store="sqlite")).address
    with servers.tokens(USERS).open() as tokens:
        return asyncio.run(_measure(address, [line.strip() for line in islice(tokens, TOKENS)]))


async def _measure(address: str, tokens: list[str]) -> list[float]:
    async with AsyncClient(address, max_staleness=STALENESS_SECONDS) as client:
        await asyncio.gather(*(client.validate(token) for token in tokens))
        protected = AuthMiddleware(_bare, client, public=["/healthz", "/docs", "/docs/*"])
        added = [await _cost(protected, tokens) - await _cost(_bare, tokens) for _ in range(ROUNDS)]
        assert client.stats().misses == len(tokens)
    return added


async def _cost(app: ASGIApp, tokens: list[str]) -> float:
    """Return the CPU microseconds of a request."""
    scopes = list(_scopes(tokens))
    begin = time.process_time()
    for scope in scopes:
        await app(scope, _receive, _send)
    return (time.process_time() - begin) / REQUESTS * 1e6


def _scopes(tokens: list[str]) -> Iterator[Scope]:
    for number in range(REQUESTS):
        token = tokens[number % len(tokens)]
        headers = [
            (b"host", b"notes.example.com"),
            (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
            (b"accept", b"application/json"),
            (b"accept-language", b"en-GB,en;q=0.7"),
            (b"accept-encoding", b"gzip, deflate, br"),
            (b"authorization", b"Bearer " + token.encode()),
            (b"x-forwarded-for", b"192.0.2.17"),
        ]
        path = f"/notes/{number}"
        yield {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": headers}


async def _bare(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _receive() -> Message:
    return {"type": "http.request", "body": b""}


async def _send(_message: Message) -> None:
    pass
