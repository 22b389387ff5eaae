"""The load generator: a process that takes one Load a line on stdin and answers with three lines on stdout.

MARKS come when the measured time begins and ends, and then the Sample as JSON. It sends bytes made ahead and looks at
no more of an answer than it must, so that it costs less than any server.
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
"""What the bytes of an active answer begin with: `state` is field 1."""
MARKS = ("begin", "end")
TIMEOUT_SECONDS = 10.0

Send = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Load:
    """What is sent, and how.

    Args:
        address: Of the server; of the engine where `table` is given.
        tokens: File with a token a line (for `table`: a user id), taken in turn from where the last load stopped.
        hot: How many of them are used; 0: all.
        batch: Tokens in a BatchValidateTokens; 0: ValidateToken.
        gateway: Not ValidateToken is called but ext_authz, as Envoy does for a browser's requests.
        max_staleness: In seconds.
        connections: Taken in turn.
        in_flight: Calls at any time: a closed loop. 0: an open loop.
        rate: Calls a second of an open loop, at even distances.
        seconds: How long it is measured, after the warm-up.
        calls: Ends the run earlier; 0: does not.
        flood: Clients that guess passwords meanwhile, without a pause.
        library: How a backend validates: plain stubs, the client library or not at all; empty: by bytes made ahead.
        table: Not the service is called but DynamoDB's GetItem, on this users table, through aioboto3.
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
    """What one run saw; times in seconds, latencies in milliseconds.

    Args:
        calls: Answered in the measured time, however long before they were sent.
        all_calls: Those before and after as well.
        refused_p50: Of the guesses of a flood.
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
    """One load under way.

    Args:
        sends: One for each connection; calls and waits for a good answer.
        mark: Told of the MARKS.
    """

    def __init__(self, load: Load, sends: Sequence[Send], mark: Callable[[str], None]) -> None:
        self._load = load
        self._sends = itertools.cycle(sends)
        self._mark = mark
        self._is_over = False
        self._sample = Sample()
        self._latencies: list[float] = []
        self._errors: Counter[str] = Counter()
        self._begin_time = 0.0

    async def sample(self) -> Sample:
        """Run it to its end."""
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
        if not self._is_over:
            self._is_over = True
            self._sample.calls = len(self._latencies)
            self._sample.seconds = time.perf_counter() - self._begin_time
            self._mark(MARKS[1])

    async def _closed(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._load.in_flight)))

    async def _client(self) -> None:
        send = next(self._sends)
        while not self._is_over:
            await self._timed(send, time.perf_counter())

    async def _open(self) -> None:
        """Send at even distances whatever becomes of earlier calls, and time each from when it should have begun."""
        loop = asyncio.get_running_loop()
        calls: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        while not self._is_over:
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
    """Return a method that takes and gives bytes."""
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
    """Guess, and note how long each answer takes.

    Half of the clients guess at one account from one source, which fills its budgets; the others each at an account and
    from a source of their own, which fills the hashing queue.
    """
    target = number if number % 2 else 0
    request = auth_pb2.AuthenticateRequest(
        email=f"user{target}@example.com",
        password="a wrong password",  # noqa: S106 - nobody's
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
    """Guess during the body, over connections of its own; yield the latencies of the guesses, in milliseconds."""
    latencies: list[float] = []
    async with AsyncExitStack() as stack:
        number_of_channels = min(load.connections, load.flood)
        channels = [await stack.enter_async_context(_channel(load.address)) for _ in range(number_of_channels)]
        for number, channel in zip(range(load.flood), itertools.cycle(channels), strict=False):
            stack.callback(asyncio.create_task(_flood(channel, number, latencies)).cancel)
        yield latencies


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the pauses of our own collector out of the latencies."""
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
    """Send a load and return what it saw; a line on stdout says when the warm-up is over."""
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
    """Take loads until stdin ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        _say(json.dumps(asdict(await run(Load(**json.loads(line))))))


if __name__ == "__main__":
    uvloop.run(main())
