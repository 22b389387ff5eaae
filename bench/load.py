"""The load generator: a process that reads one Load per line from stdin and writes three lines to stdout for each.

It writes MARKS when the measured time begins and ends, and then the Sample as JSON. It sends requests serialized in
advance and decodes as little of a response as possible, so that it costs less than any server.
"""

import asyncio
import gc
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import aioboto3
import grpc
import uvloop
from google.protobuf.duration_pb2 import Duration

from authsvc.v1 import auth_service_pb2 as auth_pb2
from bench import gateway
from bench.backend import Library, validation

SERVICE = "/authsvc.v1.AuthService/"
ACTIVE = auth_pb2.ValidateTokenResponse(state=auth_pb2.TOKEN_STATE_ACTIVE).SerializeToString()
"""The first bytes of a response for an active token: `state` is field 1."""
MARKS = ("begin", "end")
TIMEOUT_SECONDS = 10.0

Send = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Load:
    """The calls to send, and how to send them.

    Args:
        address: Address of the server; with `table` the engine's endpoint.
        tokens: File with a token a line (with `table`: a user id), used in turn, from where the last load stopped.
        hot: Number of tokens to use; 0: all.
        batch: Tokens per BatchValidateTokens; 0: call ValidateToken.
        gateway: Call ext_authz instead of ValidateToken, as Envoy does for a browser's requests.
        max_staleness: In seconds.
        connections: Number of connections, used in turn.
        in_flight: Concurrent calls of a closed loop; 0: an open loop.
        rate: Calls per second of an open loop, evenly spaced.
        seconds: Measured time after the warm-up.
        warm_up: Seconds before the measured time.
        calls: End the measured time after this many calls; 0: after `seconds` alone.
        flood: Number of clients that guess passwords meanwhile, without a pause.
        library: Validate as a backend does, see `bench.backend`; empty: send requests serialized in advance.
        table: Call DynamoDB's GetItem on this users table through aioboto3, instead of the service.
    """

    address: str = ""
    tokens: str = ""
    hot: int = 0
    batch: int = 0
    gateway: bool = False
    max_staleness: int = 0
    connections: int = 8
    in_flight: int = 0
    rate: float = 0.0
    seconds: float = 2.0
    warm_up: float = 0.5
    calls: int = 0
    flood: int = 0
    library: Library = ""
    table: str = ""


@dataclass
class Sample:
    """The figures of one run, as the client sees them; latencies in milliseconds.

    Args:
        calls: Calls answered in the measured time, even if they were sent before it.
        all_calls: Calls answered before and after it, too.
        seconds: The measured time.
        refused_p50: Median latency of a flood's guesses.
        errors: Number of failed calls by error.
    """

    calls: int = 0
    all_calls: int = 0
    seconds: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    refused_p50: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)


class Run:
    """The sending of one load.

    Args:
        load: The load to send.
        sends: One function for each connection, which makes one call and raises if it fails.
        mark: Called with each of MARKS at its time.
    """

    def __init__(self, load: Load, sends: Sequence[Send], mark: Callable[[str], None]) -> None:
        self._load = load
        self._sends = itertools.cycle(sends)
        self._mark = mark
        self._has_ended = False
        self._sample = Sample()
        self._latencies: list[float] = []
        self._errors: Counter[str] = Counter()
        self._begin_time = 0.0

    async def sample(self) -> Sample:
        """Send the whole load, and return the figures."""
        clock = asyncio.create_task(self._keep_time())
        await (self._closed() if self._load.in_flight else self._open())
        clock.cancel()
        ordered = sorted(self._latencies)
        self._sample.p50, self._sample.p99, self._sample.p999 = (_quantile(ordered, q) for q in (0.5, 0.99, 0.999))
        self._sample.errors = dict(self._errors)
        return self._sample

    async def _keep_time(self) -> None:
        await asyncio.sleep(self._load.warm_up)
        self._latencies.clear()
        self._errors.clear()
        self._begin_time = time.perf_counter()
        self._mark(MARKS[0])
        await asyncio.sleep(self._load.seconds)
        self._end()

    def _end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._sample.calls = len(self._latencies)
            self._sample.seconds = time.perf_counter() - self._begin_time
            self._mark(MARKS[1])

    async def _closed(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._load.in_flight)))

    async def _client(self) -> None:
        send = next(self._sends)
        while not self._has_ended:
            await self._timed(send, time.perf_counter())

    async def _open(self) -> None:
        """Send evenly spaced calls, however long earlier ones take, and time each from the moment it was due."""
        loop = asyncio.get_running_loop()
        calls: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        while not self._has_ended:
            await asyncio.sleep(due - time.perf_counter())
            call = loop.create_task(self._timed(next(self._sends), due))
            calls.add(call)
            call.add_done_callback(calls.discard)
            due += 1 / self._load.rate
        await asyncio.gather(*calls)

    async def _timed(self, send: Send, begin: float) -> None:
        try:
            await send()
        except grpc.aio.AioRpcError as error:
            self._errors[error.code().name] += 1
        except ValueError as error:
            self._errors[str(error)] += 1
        else:
            self._latencies.append((time.perf_counter() - begin) * 1000)
            self._sample.all_calls += 1
            if len(self._latencies) == self._load.calls:
                self._end()


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _lines(load: Load) -> list[str]:
    return Path(load.tokens).read_text().split()[: load.hot or None]


@cache
def _requests(tokens: str, hot: int, batch: int, max_staleness: int, *, for_gateway: bool) -> Iterator[bytes]:
    staleness = Duration(seconds=max_staleness) if max_staleness else None
    lines = _lines(Load(tokens=tokens, hot=hot))
    if for_gateway:
        return itertools.cycle(gateway.requests(lines))
    messages = [auth_pb2.ValidateTokenRequest(token=token, max_staleness=staleness) for token in lines]
    if not batch:
        return itertools.cycle([message.SerializeToString() for message in messages])
    batches = [messages[start : start + batch] for start in range(0, len(messages) - batch + 1, batch)]
    return itertools.cycle([auth_pb2.BatchValidateTokensRequest(requests=each).SerializeToString() for each in batches])


def _check(answer: bytes) -> None:
    if not answer.startswith(ACTIVE):
        raise ValueError(str(auth_pb2.ValidateTokenResponse.FromString(answer)))


def _check_batch(answer: bytes) -> None:
    for result in auth_pb2.BatchValidateTokensResponse.FromString(answer).results:
        if result.response.state != auth_pb2.TOKEN_STATE_ACTIVE:
            raise ValueError(str(result))


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])


def _method(channel: grpc.aio.Channel, name: str) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    """Return a method whose request and response are bytes."""
    return channel.unary_unary(name if name.startswith("/") else SERVICE + name)


def _validations(channel: grpc.aio.Channel, load: Load, requests: Iterator[bytes]) -> Send:
    if load.gateway:
        name, check = gateway.METHOD, gateway.check
    elif load.batch:
        name, check = "BatchValidateTokens", _check_batch
    else:
        name, check = "ValidateToken", _check
    call = _method(channel, name)

    async def send() -> None:
        check(await call(next(requests), timeout=TIMEOUT_SECONDS))

    return send


async def _flood(channel: grpc.aio.Channel, number: int, latencies: list[float]) -> None:
    """Guess passwords without pause, and record the latency of each answer.

    Half of the clients guess at one account from one source, which fills its budgets; the others each at an account and
    from a source of their own, which fills the hashing queue.
    """
    target = number if number % 2 else 0
    request = auth_pb2.AuthenticateRequest(
        email=f"user{target}@example.com",
        password="a wrong password",  # noqa: S106 - not a secret
        client_address=f"192.0.2.{target}",
    ).SerializeToString()
    call = _method(channel, "Authenticate")
    while True:
        begin = time.perf_counter()
        with suppress(grpc.aio.AioRpcError):
            await call(request, timeout=TIMEOUT_SECONDS)
        latencies.append((time.perf_counter() - begin) * 1000)


@asynccontextmanager
async def _flooding(load: Load) -> AsyncIterator[list[float]]:
    """Run the flood during the body, over its own connections; yield the latencies of its guesses in milliseconds."""
    latencies: list[float] = []
    async with AsyncExitStack() as stack:
        number_of_channels = min(load.connections, load.flood)
        channels = [await stack.enter_async_context(_channel(load.address)) for _ in range(number_of_channels)]
        for number, channel in zip(range(load.flood), itertools.cycle(channels), strict=False):
            stack.callback(asyncio.create_task(_flood(channel, number, latencies)).cancel)
        yield latencies


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep garbage collection of this process out of the latencies."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _calls(load: Load, stack: AsyncExitStack) -> list[Send]:
    if load.table:
        client = await stack.enter_async_context(aioboto3.Session().client("dynamodb", endpoint_url=load.address))
        user_ids = itertools.cycle(_lines(load))

        async def get_item() -> None:
            key = {"user_id": {"S": next(user_ids)}}
            answer = await client.get_item(TableName=load.table, Key=key, ConsistentRead=True)
            if "Item" not in answer:
                raise ValueError("no such user")

        return [get_item]
    if load.library:
        return [await validation(load.library, load.address, _lines(load), load.max_staleness, stack)]
    channels = [await stack.enter_async_context(_channel(load.address)) for _ in range(load.connections)]
    requests = _requests(load.tokens, load.hot, load.batch, load.max_staleness, for_gateway=load.gateway)
    return [_validations(channel, load, requests) for channel in channels]


async def run(load: Load) -> Sample:
    """Send a load, write the MARKS, and return the figures."""
    async with AsyncExitStack() as stack:
        sends = await _calls(load, stack)
        async with _flooding(load) as latencies:
            with _no_garbage_collection():
                sample = await Run(load, sends, _say).sample()
        sample.refused_p50 = _quantile(sorted(latencies), 0.5)
        return sample


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Read and send loads until stdin ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        _say(json.dumps(asdict(await run(Load(**json.loads(line))))))


if __name__ == "__main__":
    uvloop.run(main())
