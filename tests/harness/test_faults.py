import asyncio
import json
import socket
import time
import zlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, closing, suppress

import aioboto3
import pytest
from aiobotocore.config import AioConfig
from aiohttp import ClientResponse, ClientSession, web
from botocore.exceptions import (
    ChecksumError,
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ReadTimeoutError,
)
from types_aiobotocore_dynamodb import DynamoDBClient

from tests import faults
from tests.faults import (
    Conflict,
    Delay,
    ExpiredToken,
    Fault,
    FaultyProxy,
    Garbage,
    Hang,
    Reset,
    ServerError,
    Throttle,
    Unprocessed,
    proxy_in_thread,
)
from tests.support import until

ITEM = {"user_id": {"S": "u1"}, "role": {"S": "admin"}}
KEY = {"user_id": {"S": "u1"}}
SESSION = aioboto3.Session()
GIVE_UP_SECONDS = 30.0


class Upstream:
    """An engine that answers every call and records which arrived."""

    def __init__(self) -> None:
        self.applied: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.says: object = {"Item": ITEM}
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        await request.content.read()
        self.applied.append(request.headers["X-Amz-Target"].rpartition(".")[2])
        self.headers.append(dict(request.headers))
        body = json.dumps(self.says).encode()
        return web.Response(body=body, headers={"x-amz-crc32": str(zlib.crc32(body))})


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    server = web.Server(upstream.answer)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    yield upstream
    listener.close()
    await server.shutdown(1)


@pytest.fixture
async def proxy(upstream: Upstream) -> AsyncIterator[FaultyProxy]:
    async with FaultyProxy(upstream.url, seed=7) as proxy:
        yield proxy


@pytest.fixture
async def dynamodb(proxy: FaultyProxy) -> AsyncIterator[DynamoDBClient]:
    async with client(proxy.endpoint_url) as dynamodb:
        yield dynamodb


@pytest.fixture
async def impatient(proxy: FaultyProxy) -> AsyncIterator[DynamoDBClient]:
    """A client for answers that do not come."""
    async with client(proxy.endpoint_url, read_timeout_seconds=0.1) as dynamodb:
        yield dynamodb


@asynccontextmanager
async def client(url: str, read_timeout_seconds: float = GIVE_UP_SECONDS) -> AsyncIterator[DynamoDBClient]:
    config = AioConfig(retries={"total_max_attempts": 1}, read_timeout=read_timeout_seconds)
    async with SESSION.client(
        "dynamodb",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=config,
    ) as dynamodb:
        yield dynamodb


async def get(dynamodb: DynamoDBClient) -> object:
    return (await dynamodb.get_item(TableName="auth-users", Key=KEY))["Item"]


async def put(dynamodb: DynamoDBClient) -> None:
    await dynamodb.put_item(TableName="auth-users", Item=KEY)


async def transact(dynamodb: DynamoDBClient) -> None:
    await dynamodb.transact_write_items(
        TransactItems=[
            {"Delete": {"TableName": "auth-users", "Key": KEY}},
            {"Delete": {"TableName": "auth-unique", "Key": KEY}},
        ]
    )


async def post(url: str) -> tuple[ClientResponse, bytes]:
    headers = {"X-Amz-Target": "DynamoDB_20120810.GetItem"}
    async with ClientSession() as session, session.post(url, headers=headers) as answer:
        return answer, await answer.read()


async def failure(call: Awaitable[object]) -> ClientError:
    with pytest.raises(ClientError) as raised:
        await call
    return raised.value


def code(error: ClientError) -> str:
    return error.response["Error"]["Code"]


def status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


async def test_without_a_fault_everything_passes(
    proxy: FaultyProxy, upstream: Upstream, dynamodb: DynamoDBClient
) -> None:
    assert await get(dynamodb) == ITEM
    await put(dynamodb)
    assert upstream.applied == ["GetItem", "PutItem"]
    assert proxy.requests == {"GetItem": 1, "PutItem": 1}
    assert [(each.operation, each.status) for each in proxy.attempts] == [
        ("GetItem", 200),
        ("PutItem", 200),
    ]
    assert proxy.attempts[0].payload["Key"] == KEY
    assert proxy.attempts[0].at <= proxy.attempts[1].at


async def test_request_and_answer_keep_their_headers_and_bytes(proxy: FaultyProxy, upstream: Upstream) -> None:
    direct, direct_body = await post(upstream.url)
    proxied, proxied_body = await post(proxy.endpoint_url)
    assert proxied_body == direct_body
    assert proxied.headers["x-amz-crc32"] == direct.headers["x-amz-crc32"]
    assert upstream.headers[0] == {**upstream.headers[1], "Host": upstream.headers[0]["Host"]}


@pytest.mark.parametrize(
    "name",
    ["ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"],
)
async def test_throttle(proxy: FaultyProxy, upstream: Upstream, dynamodb: DynamoDBClient, name: str) -> None:
    with proxy.fault(Throttle(name)):
        error = await failure(get(dynamodb))
    assert (code(error), status(error)) == (name, 400)
    assert upstream.applied == []
    assert proxy.requests["GetItem"] == 1
    assert await get(dynamodb) == ITEM


HUNDRED = [{"user_id": {"S": f"u{number}"}} for number in range(100)]


async def batch_get(dynamodb: DynamoDBClient) -> tuple[list[str], list[str]]:
    """Return the ids of the rows that came, and of those that were left out."""
    answer = await dynamodb.batch_get_item(RequestItems={"auth-users": {"Keys": HUNDRED, "ConsistentRead": True}})
    rows, left_out = answer["Responses"]["auth-users"], answer["UnprocessedKeys"].get("auth-users", {"Keys": []})
    return [row["user_id"]["S"] for row in rows], [key["user_id"]["S"] for key in left_out["Keys"]]


async def test_unprocessed_leaves_out_keys_by_the_seed(
    proxy: FaultyProxy, upstream: Upstream, dynamodb: DynamoDBClient
) -> None:
    rows = [{**key, "role": {"S": "user"}} for key in HUNDRED]
    upstream.says = {"Responses": {"auth-users": rows}, "UnprocessedKeys": {}}
    with proxy.fault(Unprocessed(0.3)):
        came, left_out = await batch_get(dynamodb)
        assert 10 < len(left_out) < 50
        assert sorted(came + left_out) == sorted(key["user_id"]["S"] for key in HUNDRED)
        assert await batch_get(dynamodb) != (came, left_out)
    async with FaultyProxy(upstream.url, seed=7) as same, client(same.endpoint_url) as through_same:
        with same.fault(Unprocessed(0.3)):
            assert await batch_get(through_same) == (came, left_out)
    with proxy.fault(Unprocessed(0.0)):
        assert len((await batch_get(dynamodb))[0]) == 100


async def test_unprocessed_throttles_where_no_key_is_left(
    proxy: FaultyProxy, upstream: Upstream, dynamodb: DynamoDBClient
) -> None:
    with proxy.fault(Unprocessed(1.0)):
        assert code(await failure(batch_get(dynamodb))) == "ProvisionedThroughputExceededException"
    assert upstream.applied == []


async def test_expired_token(proxy: FaultyProxy, dynamodb: DynamoDBClient) -> None:
    with proxy.fault(ExpiredToken()):
        assert code(await failure(get(dynamodb))) == "ExpiredTokenException"


async def test_conflict_cancels_a_transaction_by_its_reasons(
    proxy: FaultyProxy, upstream: Upstream, dynamodb: DynamoDBClient
) -> None:
    with proxy.fault(Conflict(index=1)):
        error = await failure(transact(dynamodb))
    assert code(error) == "TransactionCanceledException"
    reasons = error.response["CancellationReasons"]
    assert [reason["Code"] for reason in reasons] == ["None", "TransactionConflict"]
    assert upstream.applied == []


async def test_conflict_refuses_a_single_write(proxy: FaultyProxy, dynamodb: DynamoDBClient) -> None:
    with proxy.fault(Conflict()):
        assert code(await failure(put(dynamodb))) == "TransactionConflictException"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (ServerError(), ("InternalServerError", 500)),
        (ServerError(503), ("ServiceUnavailable", 503)),
        (ServerError(500, html=True), ("500", 500)),
        (ServerError(503, html=True), ("503", 503)),
    ],
)
async def test_server_error(
    proxy: FaultyProxy, dynamodb: DynamoDBClient, fault: Fault, expected: tuple[str, int]
) -> None:
    with proxy.fault(fault):
        error = await failure(get(dynamodb))
    assert (code(error), status(error)) == expected


@pytest.mark.parametrize(("applied", "expected"), [(False, []), (True, ["PutItem"])])
async def test_reset_before_or_after_the_write(
    proxy: FaultyProxy,
    upstream: Upstream,
    dynamodb: DynamoDBClient,
    applied: bool,  # noqa: FBT001  # a parameter of the test
    expected: list[str],
) -> None:
    with proxy.fault(Reset(applied=applied)), pytest.raises(EndpointConnectionError):
        await put(dynamodb)
    assert upstream.applied == expected
    assert proxy.attempts[0].forwarded is applied
    assert proxy.attempts[0].status is None


async def test_reset_is_an_rst(proxy: FaultyProxy) -> None:
    reader, writer = await asyncio.open_connection(*address(proxy))
    with proxy.fault(Reset()):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
    writer.close()


async def test_hang_never_answers_while_it_lasts(
    proxy: FaultyProxy, upstream: Upstream, dynamodb: DynamoDBClient, impatient: DynamoDBClient
) -> None:
    with proxy.fault(Hang()), pytest.raises(ReadTimeoutError):
        await get(impatient)
    assert upstream.applied == []
    assert await get(dynamodb) == ITEM


async def test_lifting_a_hang_resets_who_still_waits(proxy: FaultyProxy) -> None:
    reader, writer = await asyncio.open_connection(*address(proxy))
    with proxy.fault(Hang()) as hang:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await until(lambda: hang.hits == 1)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_hung_write_can_be_applied(proxy: FaultyProxy, upstream: Upstream, impatient: DynamoDBClient) -> None:
    with proxy.fault(Hang(applied=True)), pytest.raises(ReadTimeoutError):
        await put(impatient)
    await until(lambda: upstream.applied == ["PutItem"])


async def test_delay_adds_to_every_call(proxy: FaultyProxy, dynamodb: DynamoDBClient) -> None:
    with proxy.fault(Delay(0.1)):
        started = time.monotonic()
        assert await get(dynamodb) == ITEM
        assert time.monotonic() - started >= 0.1


async def test_a_delayed_write_arrives_although_its_sender_gave_up(
    proxy: FaultyProxy, upstream: Upstream, impatient: DynamoDBClient
) -> None:
    with proxy.fault(Delay(1.0)), pytest.raises(ReadTimeoutError):
        await put(impatient)
    assert upstream.applied == []
    await until(lambda: upstream.applied == ["PutItem"])


@pytest.mark.parametrize(
    ("garbage", "body"),
    [
        (faults.TRUNCATED, b'{"Item": {"user_id": {"S": "u'),
        (faults.EMPTY, b""),
        (faults.HTML, b"<html>Sign in to the network</html>"),
        (faults.NOT_AN_OBJECT, b'["Item"]'),
        (faults.ITEM_NOT_A_MAP, b'{"Item": "item"}'),
        (faults.WRONG_TYPES, b'{"Item": {"user_id": {"S": []}, "role": {"S": []}}}'),
    ],
)
async def test_garbage_spoils_the_body_of_an_applied_call(
    proxy: FaultyProxy, upstream: Upstream, garbage: Garbage, body: bytes
) -> None:
    with proxy.fault(garbage):
        answer, received = await post(proxy.endpoint_url)
    assert (answer.status, received) == (200, body)
    assert "x-amz-crc32" not in answer.headers
    assert upstream.applied == ["GetItem"]


@pytest.mark.parametrize(
    ("engine_says", "service_gets"),
    [
        ({"Items": [ITEM, ITEM]}, {"Items": ["item", "item"]}),
        ({"Attributes": ITEM}, {"Attributes": "item"}),
        ({"Responses": {"auth-users": [ITEM]}}, {"Responses": {"auth-users": ["item"]}}),
        ({"Responses": [{"Item": ITEM}]}, {"Responses": [{"Item": "item"}]}),
        ({"TableNames": ["a"]}, {"TableNames": ["a"]}),
    ],
)
async def test_garbage_finds_the_items_of_every_operation(
    proxy: FaultyProxy, upstream: Upstream, engine_says: object, service_gets: object
) -> None:
    upstream.says = engine_says
    with proxy.fault(faults.ITEM_NOT_A_MAP):
        _, received = await post(proxy.endpoint_url)
    assert json.loads(received) == service_gets


async def test_a_wrong_checksum_is_all_that_is_wrong(proxy: FaultyProxy, dynamodb: DynamoDBClient) -> None:
    right = await post(proxy.endpoint_url)
    with proxy.fault(faults.WRONG_CHECKSUM):
        wrong = await post(proxy.endpoint_url)
        with pytest.raises(ChecksumError):
            await get(dynamodb)
    assert wrong[1] == right[1]
    assert wrong[0].headers["x-amz-crc32"] != right[0].headers["x-amz-crc32"]


async def test_only_named_operations_fail(proxy: FaultyProxy, dynamodb: DynamoDBClient) -> None:
    with proxy.fault(Throttle(), operations={"PutItem"}):
        assert await get(dynamodb) == ITEM
        await failure(put(dynamodb))


async def test_a_fault_acts_so_many_times_after_so_many_calls(proxy: FaultyProxy, dynamodb: DynamoDBClient) -> None:
    with proxy.fault(Throttle(), skip=1, times=2) as throttle:
        assert await get(dynamodb) == ITEM
        await failure(get(dynamodb))
        await failure(get(dynamodb))
        assert await get(dynamodb) == ITEM
    assert throttle.hits == 2
    assert [len(each.faults) for each in proxy.attempts] == [0, 1, 1, 0]


async def test_probability_is_repeated_by_the_seed(upstream: Upstream) -> None:
    first, again, other = [await throttled(upstream, seed) for seed in (1, 1, 2)]
    assert first == again != other
    assert 15 <= first.count(400) <= 45


async def throttled(upstream: Upstream, seed: int) -> list[int | None]:
    async with FaultyProxy(upstream.url, seed=seed) as proxy:
        with proxy.fault(Throttle(), probability=0.3):
            for _ in range(100):
                await post(proxy.endpoint_url)
        return [each.status for each in proxy.attempts]


async def test_faults_combine_and_the_last_one_acts_first(proxy: FaultyProxy, dynamodb: DynamoDBClient) -> None:
    with proxy.fault(Throttle()), proxy.fault(Delay(0)):
        await failure(get(dynamodb))
        assert proxy.attempts[0].faults == [Delay(0), Throttle()]
    with proxy.fault(Delay(0)), proxy.fault(Throttle()):
        await failure(get(dynamodb))
        assert proxy.attempts[1].faults == [Throttle()]


async def test_down_refuses_connections_and_comes_back_on_the_same_port(
    proxy: FaultyProxy, dynamodb: DynamoDBClient
) -> None:
    url = proxy.endpoint_url
    assert await get(dynamodb) == ITEM  # Leaves a pooled connection behind.
    with proxy.down():
        for _ in range(3):
            with pytest.raises((EndpointConnectionError, ConnectionClosedError)):
                await get(dynamodb)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address(proxy))
        assert proxy.requests["GetItem"] == 1
    assert await get(dynamodb) == ITEM
    assert proxy.endpoint_url == url


async def test_going_down_resets_open_connections(proxy: FaultyProxy) -> None:
    reader, writer = await asyncio.open_connection(*address(proxy))
    with proxy.fault(Hang()) as hang:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await until(lambda: hang.hits == 1)
        with proxy.down(), pytest.raises(ConnectionResetError):
            await reader.read()
    writer.close()


async def test_an_engine_that_is_gone_looks_like_a_reset() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with FaultyProxy(nowhere) as proxy, client(proxy.endpoint_url) as dynamodb:
            with pytest.raises(EndpointConnectionError):
                await get(dynamodb)


async def test_leaving_ends_what_still_hangs_and_frees_the_port(upstream: Upstream) -> None:
    async with FaultyProxy(upstream.url) as proxy:
        reader, writer = await asyncio.open_connection(*address(proxy))
        with proxy.fault(Delay(60)) as delay:
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await until(lambda: delay.hits == 1)
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address(proxy))


async def test_forget_starts_counting_anew(proxy: FaultyProxy, dynamodb: DynamoDBClient) -> None:
    await get(dynamodb)
    proxy.forget()
    assert not proxy.requests
    assert proxy.attempts == []


async def test_a_proxy_in_a_thread_is_switched_from_outside(upstream: Upstream) -> None:
    with proxy_in_thread(upstream.url) as proxy:
        async with (
            client(proxy.endpoint_url) as dynamodb,
            client(proxy.endpoint_url, read_timeout_seconds=0.1) as impatient,
        ):
            with proxy.fault(Throttle()):
                await failure(get(dynamodb))
            with proxy.down(), pytest.raises((EndpointConnectionError, ConnectionClosedError)):
                await get(dynamodb)
            with proxy.fault(Hang()), pytest.raises(ReadTimeoutError):
                await get(impatient)
            assert await get(dynamodb) == ITEM


def address(proxy: FaultyProxy) -> tuple[str, int]:
    return "127.0.0.1", int(proxy.endpoint_url.rpartition(":")[2])
