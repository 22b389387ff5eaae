"""A reverse proxy before a DynamoDB engine that fails in the ways DynamoDB and its network do."""

import asyncio
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, Self, TypeVar

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

ERROR_PREFIX = "com.amazonaws.dynamodb.v20120810#"
JSON_TYPE = "application/x-amz-json-1.0"
# The proxy gives up on an engine after this; a service's own limits are far below.
UPSTREAM_TIMEOUT = ClientTimeout(total=30.0)
CLOSE_SECONDS = 1.0
# Close with RST instead of FIN: linger on, for zero seconds.
RST_ON_CLOSE = struct.pack("ii", 1, 0)
T = TypeVar("T")
WRITES = frozenset({"PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems"})
"""The operations that the service writes by."""
HOP_BY_HOP = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})


@dataclass(frozen=True)
class Reply:
    """An HTTP answer on its way to the service."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": JSON_TYPE})

    def with_body(self, body: bytes, content_type: str = JSON_TYPE) -> "Reply":
        """Return it with another body and no checksum, so that only the body is wrong."""
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _BODY_HEADERS}
        return replace(self, body=body, headers={**headers, "Content-Type": content_type})


_BODY_HEADERS = frozenset({"content-type", "x-amz-crc32"})


@dataclass
class Attempt:
    """One request as the proxy received it.

    Args:
        operation: from X-Amz-Target, as "GetItem".
        body: the request's.
        at: seconds on the monotonic clock.
        faults: those that acted on it, the last installed first.
        forwarded: whether the engine was asked.
        status: of the answer; None without one (not yet, hung, or reset).
    """

    operation: str
    body: bytes
    at: float
    faults: "list[Fault]" = field(default_factory=list)
    forwarded: bool = False
    status: int | None = None

    @property
    def payload(self) -> dict[str, Any]:
        """The request's JSON: `attempt.payload["Key"]["user_id"]["S"]`."""
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


@dataclass(frozen=True)
class Exchange:
    """What a fault may do with one request; `random` is by the proxy's seed."""

    attempt: Attempt
    forward: Callable[[], Awaitable[Reply]]
    until_lifted: Callable[[], Awaitable[object]]
    random: random.Random


class Fault(Protocol):
    """Decides one request's fate; ConnectionResetError from `answer` is a TCP RST."""

    async def answer(self, exchange: Exchange, /) -> Reply:
        """Return what the service gets."""


@dataclass(frozen=True)
class Delay:
    """The network takes longer; the request arrives even when its sender has given up."""

    seconds: float

    async def answer(self, exchange: Exchange, /) -> Reply:
        await asyncio.sleep(self.seconds)
        return await exchange.forward()


@dataclass(frozen=True)
class Hang:
    """No answer while the fault lasts, then a reset; with `applied`, the engine did the call."""

    applied: bool = False

    async def answer(self, exchange: Exchange, /) -> Reply:
        if self.applied:
            await exchange.forward()
        await exchange.until_lifted()
        raise ConnectionResetError


@dataclass(frozen=True)
class Reset:
    """TCP RST instead of an answer; with `applied`, the engine did the call: a lost response."""

    applied: bool = False

    async def answer(self, exchange: Exchange, /) -> Reply:
        if self.applied:
            await exchange.forward()
        raise ConnectionResetError


@dataclass(frozen=True)
class Throttle:
    """DynamoDB has no capacity left; also ThrottlingException and RequestLimitExceeded."""

    code: str = "ProvisionedThroughputExceededException"

    async def answer(self, _: Exchange, /) -> Reply:
        return _error(400, self.code, "Rate exceeded")


@dataclass(frozen=True)
class Unprocessed:
    """DynamoDB has capacity for some keys of a BatchGetItem only, each by chance; for none of them it throttles."""

    probability: float = 0.3

    async def answer(self, exchange: Exchange, /) -> Reply:
        asked: dict[str, Any] = exchange.attempt.payload["RequestItems"]
        left_out = {
            table: [key for key in read["Keys"] if exchange.random.random() < self.probability]
            for table, read in asked.items()
        }
        if left_out == {table: read["Keys"] for table, read in asked.items()}:
            return await Throttle().answer(exchange)
        reply = await exchange.forward()
        answer = json.loads(reply.body)
        for table, items in answer["Responses"].items():
            answer["Responses"][table] = [
                item for item in items if not any(key.items() <= item.items() for key in left_out[table])
            ]
        answer["UnprocessedKeys"] = {table: {**asked[table], "Keys": keys} for table, keys in left_out.items() if keys}
        return reply.with_body(json.dumps(answer).encode())


@dataclass(frozen=True)
class Conflict:
    """Another transaction holds an item: that of `index` in TransactWriteItems, else the only."""

    index: int = 0

    async def answer(self, exchange: Exchange, /) -> Reply:
        items = exchange.attempt.payload.get("TransactItems")
        if items is None:
            return _error(400, "TransactionConflictException", "Transaction is ongoing for the item")
        codes = ["None"] * len(items)
        codes[self.index] = "TransactionConflict"
        return _cancelled(codes)


@dataclass(frozen=True)
class ServerError:
    """DynamoDB fails: 500 or 503 in its own shape, or as a load balancer's HTML."""

    status: int = 500
    html: bool = False

    async def answer(self, _: Exchange, /) -> Reply:
        if self.html:
            page = f"<html><body><h1>{self.status} Service Unavailable</h1></body></html>"
            return Reply(self.status, page.encode(), {"Content-Type": "text/html"})
        code = "InternalServerError" if self.status == 500 else "ServiceUnavailable"
        return _error(self.status, code, "The request could not be completed")


@dataclass(frozen=True)
class ExpiredToken:
    """The AWS credentials have run out."""

    async def answer(self, _: Exchange, /) -> Reply:
        message = "The security token included in the request is expired"
        return _error(400, "ExpiredTokenException", message)


@dataclass(frozen=True)
class Garbage:
    """The engine did the call and its answer arrives spoiled; see the constants below."""

    name: str
    spoil: Callable[[Reply], Reply] = field(repr=False)

    async def answer(self, exchange: Exchange, /) -> Reply:
        return self.spoil(await exchange.forward())


Change = Callable[[dict[str, Any]], object]


def _map_items(change: Change) -> Callable[[Reply], Reply]:
    def spoil(reply: Reply) -> Reply:
        return reply.with_body(json.dumps(_spoil(json.loads(reply.body), change)).encode())

    return spoil


def _spoil(answer: dict[str, Any], change: Change) -> dict[str, Any]:
    spoiled = dict(answer)
    for name, value in answer.items():
        if name in {"Item", "Attributes"}:
            spoiled[name] = change(value)
        elif name == "Items":
            spoiled[name] = [change(item) for item in value]
        elif name == "Responses" and isinstance(value, dict):  # BatchGetItem
            spoiled[name] = {table: [change(i) for i in items] for table, items in value.items()}
        elif name == "Responses":  # TransactGetItems
            spoiled[name] = [_spoil(each, change) for each in value]
    return spoiled


def _with_wrong_checksum(reply: Reply) -> Reply:
    headers = {k: v for k, v in reply.headers.items() if k.lower() != "x-amz-crc32"}
    return replace(reply, headers={**headers, "x-amz-crc32": str(zlib.crc32(reply.body) ^ 1)})


TRUNCATED = Garbage("truncated", lambda r: r.with_body(r.body[: len(r.body) // 2]))
EMPTY = Garbage("empty", lambda r: r.with_body(b""))
HTML = Garbage("html", lambda r: r.with_body(b"<html>Sign in to the network</html>", "text/html"))
NOT_AN_OBJECT = Garbage("not an object", lambda r: r.with_body(b'["Item"]'))
WRONG_CHECKSUM = Garbage("wrong checksum", _with_wrong_checksum)
# Each item is a string; each attribute is a list where a string should be.
ITEM_NOT_A_MAP = Garbage("item not a map", _map_items(lambda _: "item"))
WRONG_TYPES = Garbage("wrong types", _map_items(lambda item: {name: {"S": []} for name in item}))
GARBAGE = (TRUNCATED, EMPTY, HTML, NOT_AN_OBJECT, WRONG_CHECKSUM, ITEM_NOT_A_MAP, WRONG_TYPES)


class Injection:
    """A fault while it lasts: which requests it takes, and how many it took (`hits`)."""

    def __init__(
        self,
        fault: Fault,
        chance: Callable[[], bool],
        operations: Collection[str] | None,
        skip: int,
        times: int | None,
    ) -> None:
        self.fault = fault
        self.hits = 0
        self.lifted = asyncio.Event()
        self._chance = chance
        self._operations = operations
        self._skip = skip
        self._times = times

    def takes(self, operation: str) -> bool:
        """Count the request in and return whether the fault acts on it."""
        if self._operations is not None and operation not in self._operations:
            return False
        if self.hits == self._times or not self._chance():
            return False
        if self._skip > 0:
            self._skip -= 1
            return False
        self.hits += 1
        return True


class FaultyProxy:
    """A proxy on 127.0.0.1: `async with FaultyProxy(engine.endpoint_url) as proxy`.

    Args:
        upstream: the engine's URL.
        port: to listen on; 0 for a free one.
        seed: for faults with a probability.

    Attributes:
        requests: the requests received by operation, faults included.
        attempts: the same in order, each with its fate.
    """

    def __init__(self, upstream: str, *, port: int = 0, seed: int = 0) -> None:
        self.requests: Counter[str] = Counter()
        self.attempts: list[Attempt] = []
        self._upstream = upstream.rstrip("/")
        self._random = random.Random(seed)  # noqa: S311  # repeatable, not secret
        self._injections: tuple[Injection, ...] = ()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._socket = _bound(port)
        self._address = self._socket.getsockname()
        self._listening = False
        self._loop: asyncio.AbstractEventLoop
        self._session: ClientSession
        self._server: web.Server

    @property
    def endpoint_url(self) -> str:
        """The URL for the service, the same for the proxy's whole life."""
        return f"http://127.0.0.1:{self._address[1]}"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._session = ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=5.0),
            timeout=UPSTREAM_TIMEOUT,
            auto_decompress=False,
            skip_auto_headers={"Accept", "Accept-Encoding", "Content-Type", "User-Agent"},
        )
        self._server = web.Server(self._handle, access_log=None)
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listening:
            self._refuse()
        self._socket.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.shutdown(CLOSE_SECONDS)
        await self._session.close()

    @contextmanager
    def fault(
        self,
        fault: Fault,
        *,
        operations: Collection[str] | None = None,
        times: int | None = None,
        skip: int = 0,
        probability: float = 1.0,
    ) -> Iterator[Injection]:
        """Let requests meet the fault; faults combine, the last one installed acts first.

        Args:
            fault: what happens.
            operations: as {"GetItem"}; every operation by default.
            times: how many requests it acts on at most.
            skip: how many it lets pass before the first.
            probability: of acting on one request, by the proxy's seed.
        """
        chance = _chance(self._random, probability)
        injection = Injection(fault, chance, operations, skip, times)
        self._injections = (injection, *self._injections)
        try:
            yield injection
        finally:
            self._injections = tuple(each for each in self._injections if each is not injection)
            self._loop.call_soon_threadsafe(injection.lifted.set)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Reset every connection and refuse new ones; on leaving, listen on the same port."""
        self._on_loop(self._refuse)
        try:
            yield
        finally:
            self._on_loop(self._listen)

    def forget(self) -> None:
        """Start counting anew."""
        self.requests.clear()
        self.attempts.clear()

    def _listen(self) -> None:
        self._socket.listen(512)
        self._loop.add_reader(self._socket, self._accept)
        self._listening = True

    def _refuse(self) -> None:
        self._listening = False
        self._loop.remove_reader(self._socket)
        self._socket.close()
        # Bound without listening: connections are refused and nobody else takes the port.
        self._socket = _bound(self._address[1])
        for connection in self._server.connections:
            _abort(connection.transport)

    def _accept(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            while True:
                connection, _ = self._socket.accept()
                task = self._spawn(self._loop.connect_accepted_socket(self._server, connection))
                task.add_done_callback(partial(_close_if_cancelled, connection))

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        attempt = Attempt(operation, await request.content.read(), time.monotonic())
        self.requests[operation] += 1
        self.attempts.append(attempt)
        taking = [each for each in self._injections if each.takes(operation)]
        try:
            # A task that leaving can end; aiohttp forgets handlers whose client has gone.
            reply = await self._spawn(self._answer(attempt, taking, request))
        except ConnectionResetError:
            _abort(request.transport)
            return web.Response()
        attempt.status = reply.status
        return web.Response(status=reply.status, body=reply.body, headers=reply.headers)

    async def _answer(self, attempt: Attempt, taking: list[Injection], request: web.BaseRequest) -> Reply:
        if not taking:
            return await self._forward(attempt, request)
        first, *rest = taking
        attempt.faults.append(first.fault)
        exchange = Exchange(attempt, lambda: self._answer(attempt, rest, request), first.lifted.wait, self._random)
        return await first.fault.answer(exchange)

    async def _forward(self, attempt: Attempt, request: web.BaseRequest) -> Reply:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        url = self._upstream + request.path_qs
        attempt.forwarded = True
        try:
            async with self._session.request(
                request.method, url, data=attempt.body, headers=headers, allow_redirects=False
            ) as answer:
                body = await answer.read()
        except (ClientError, TimeoutError) as error:
            raise ConnectionResetError from error
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
        return Reply(answer.status, body, kept)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _on_loop(self, act: Callable[[], None]) -> None:
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:  # No loop runs in this thread.
            here = False
        if here:
            act()
        else:
            asyncio.run_coroutine_threadsafe(_call(act), self._loop).result()


@contextmanager
def proxy_in_thread(upstream: str, *, port: int = 0, seed: int = 0) -> Iterator[FaultyProxy]:
    """Run a FaultyProxy on a loop of its own, for tests that block or have no loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="faulty-proxy")
    thread.start()
    proxy = FaultyProxy(upstream, port=port, seed=seed)
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result()
        try:
            yield proxy
        finally:
            asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _call(act: Callable[[], None]) -> None:
    act()


def _chance(source: random.Random, probability: float) -> Callable[[], bool]:
    return lambda: source.random() < probability


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.settimeout(0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _close_if_cancelled(connection: socket.socket, task: asyncio.Task[Any]) -> None:
    """Close a connection whose task ended before its first step."""
    if task.cancelled():
        connection.close()


def _abort(transport: asyncio.Transport | None) -> None:
    if transport is not None:
        connection = transport.get_extra_info("socket")
        with suppress(OSError):  # Closed already.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
        transport.abort()


def _error(status: int, code: str, message: str, **more: object) -> Reply:
    body = json.dumps({"__type": ERROR_PREFIX + code, "message": message, **more}).encode()
    headers = {"Content-Type": JSON_TYPE, "x-amz-crc32": str(zlib.crc32(body))}
    return Reply(status, body, headers)


def _cancelled(codes: list[str]) -> Reply:
    listed = ", ".join(codes)
    reasons = [{"Code": code} for code in codes]
    return _error(
        400,
        "TransactionCanceledException",
        f"Transaction cancelled, please refer cancellation reasons for specific reasons [{listed}]",
        CancellationReasons=reasons,
    )
