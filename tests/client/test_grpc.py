"""The interceptors, on real gRPC servers, for RPCs of all four kinds."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from authsvc.client import CallerRefusedError, Identity, current_identity
from authsvc.client.grpc import AuthInterceptor, SyncAuthInterceptor
from authsvc.client.testing import FakeClient, SyncFakeClient, make_identity

ALICE = ("authorization", "Bearer alice-token")
BOB = ("authorization", "bearer bob-token")
IDENTITIES = {"alice-token": make_identity("alice", role="admin"), "bob-token": make_identity("bob")}
KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
SERVICE = "test.Service"


def user_id() -> bytes:
    identity = current_identity.get()
    return (identity.user_id if identity else "nobody").encode()


class Async:
    """Answers with who it is; `seen` has what ran before."""

    @staticmethod
    async def unary(request: Any, context: Any) -> bytes:
        await asyncio.sleep(0)
        return user_id()

    @staticmethod
    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield user_id()
        await asyncio.sleep(0)
        yield user_id()


class Sync:
    """The same, on a thread."""

    @staticmethod
    def unary(request: Any, context: Any) -> bytes:
        return user_id()

    @staticmethod
    def stream(request: Any, context: Any) -> Iterator[bytes]:
        yield user_id()
        yield user_id()


def handlers(kind: type[Async | Sync]) -> grpc.GenericRpcHandler:
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "unary_unary": grpc.unary_unary_rpc_method_handler(kind.unary),
        "unary_stream": grpc.unary_stream_rpc_method_handler(kind.stream),
        "stream_unary": grpc.stream_unary_rpc_method_handler(kind.unary),
        "stream_stream": grpc.stream_stream_rpc_method_handler(kind.stream),
        "Public": grpc.unary_unary_rpc_method_handler(kind.unary),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


class Server:
    """A server of either kind, with its client's outage."""

    def __init__(self, channel: grpc.Channel, fake: FakeClient | SyncFakeClient) -> None:
        self._channel = channel
        self.fake = fake

    async def call(self, kind: str, *metadata: tuple[str, str], method: str = "") -> list[bytes]:
        """Call a method and return its responses."""
        # On a thread: a stream of grpc.aio whose server answers before it has sent all may end in INTERNAL.
        return await asyncio.to_thread(self._call, kind, method or kind, metadata)

    def _call(self, kind: str, method: str, metadata: tuple[tuple[str, str], ...]) -> list[bytes]:
        rpc: Callable[..., Any] = getattr(self._channel, kind)(f"/{SERVICE}/{method}")
        request = iter([b"a", b"b"]) if kind.startswith("stream") else b"a"
        response = rpc(request, metadata=metadata, timeout=30)
        return list(response) if kind.endswith("stream") else [response]

    async def refused(
        self, kind: str, *metadata: tuple[str, str], method: str = ""
    ) -> tuple[grpc.StatusCode, dict[str, str]]:
        """Expect a call to be refused; return code and trailing metadata."""
        with pytest.raises(grpc.RpcError) as caught:
            await self.call(kind, *metadata, method=method)
        call: Any = caught.value
        assert "alice-token" not in call.details()
        return call.code(), dict(call.trailing_metadata())


@asynccontextmanager
async def serving_async(fake: FakeClient, kind: type[Async | Sync], **options: Any) -> AsyncIterator[Server]:
    interceptor = AuthInterceptor(fake, public=[f"/{SERVICE}/Public"], **options)
    server = grpc.aio.server(ThreadPoolExecutor(1), interceptors=[interceptor])
    server.add_generic_rpc_handlers([handlers(kind)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Server(channel, fake)
    finally:
        await server.stop(None)


@asynccontextmanager
async def serving_sync(fake: SyncFakeClient, **options: Any) -> AsyncIterator[Server]:
    interceptor = SyncAuthInterceptor(fake, public=[f"/{SERVICE}/Public"], **options)
    server = grpc.server(ThreadPoolExecutor(1), interceptors=[interceptor])
    server.add_generic_rpc_handlers([handlers(Sync)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Server(channel, fake)
    finally:
        await asyncio.to_thread(server.stop(None).wait)


def serving(name: str, **options: Any) -> Any:
    if name == "threads":
        return serving_sync(SyncFakeClient(IDENTITIES), **options)
    return serving_async(FakeClient(IDENTITIES), Sync if name == "aio, synchronous handlers" else Async, **options)


SERVERS = ["aio", "aio, synchronous handlers", "threads"]


@pytest.fixture(params=SERVERS)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    async with serving(request.param) as server:
        yield server


async def test_a_valid_token_reaches_the_handler_with_its_identity(server: Server) -> None:
    for kind in KINDS:
        assert set(await server.call(kind, ALICE)) == {b"alice"}
        assert set(await server.call(kind, BOB)) == {b"bob"}


async def test_no_or_a_bad_token_is_unauthenticated(server: Server) -> None:
    bad: list[list[tuple[str, str]]] = [
        [],
        [("authorization", "Basic YTpi")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer unknown")],
        [ALICE, ALICE],
        [ALICE, ("authorization", "Basic YTpi")],
        [("x-authorization", "Bearer alice-token")],
    ]
    for kind in KINDS:
        for metadata in bad:
            code, _ = await server.refused(kind, *metadata)
            assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_public_method_has_nobody_whatever_the_token(server: Server) -> None:
    for metadata in ([], [ALICE], [ALICE, ALICE], [("authorization", "Bearer unknown")]):
        assert await server.call("unary_unary", *metadata, method="Public") == [b"nobody"]


@pytest.mark.parametrize("name", SERVERS)
async def test_a_request_after_another_has_no_identity_of_it(name: str) -> None:
    async with serving(name) as server:  # with one thread
        assert await server.call("unary_unary", ALICE) == [b"alice"]
        assert await server.call("unary_stream", ALICE) == [b"alice"] * 2
        assert await server.call("unary_unary", method="Public") == [b"nobody"]
        assert current_identity.get() is None


async def test_an_outage_is_unavailable_with_a_pause(server: Server) -> None:
    with server.fake.outage():
        for kind in KINDS:
            code, metadata = await server.refused(kind, ALICE)
            assert code is grpc.StatusCode.UNAVAILABLE
            assert metadata["grpc-retry-pushback-ms"] == "1000"
        assert await server.call("unary_unary", method="Public") == [b"nobody"]
    assert await server.call("unary_unary", ALICE) == [b"alice"]


async def test_an_unknown_method_needs_a_token_too(server: Server) -> None:
    code, _ = await server.refused("unary_unary", method="Unknown")
    assert code is grpc.StatusCode.UNAUTHENTICATED
    code, _ = await server.refused("unary_unary", ALICE, method="Unknown")
    assert code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("name", SERVERS)
async def test_a_missing_role_is_permission_denied(name: str) -> None:
    async with serving(name, role="admin") as server:
        for kind in KINDS:
            code, _ = await server.refused(kind, BOB)
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert set(await server.call(kind, ALICE)) == {b"alice"}


async def test_a_refused_backend_is_its_own_error() -> None:
    class Refused(FakeClient):
        async def validate(self, token: str, **_: object) -> Identity:
            raise CallerRefusedError

    class SyncRefused(SyncFakeClient):
        def validate(self, token: str, **_: object) -> Identity:
            raise CallerRefusedError

    for serving_one in (serving_async(Refused({}), Async), serving_sync(SyncRefused({}))):
        async with serving_one as server:
            code, _ = await server.refused("unary_unary", ALICE)
            assert code is grpc.StatusCode.INTERNAL


async def test_the_text_of_a_bug_is_logged_and_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeClient):
        async def validate(self, token: str, **_: object) -> Identity:
            raise RuntimeError("a path of this machine")

    class SyncBroken(SyncFakeClient):
        def validate(self, token: str, **_: object) -> Identity:
            raise RuntimeError("a path of this machine")

    for serving_one in (serving_async(Broken({}), Async), serving_sync(SyncBroken({}))):
        caplog.clear()
        async with serving_one as server:
            with pytest.raises(grpc.RpcError) as caught:
                await server.call("unary_unary", ALICE)
        refusal: Any = caught.value
        assert (refusal.code(), refusal.details()) == (grpc.StatusCode.INTERNAL, "internal error")
        assert "a path of this machine" in caplog.text
        assert "alice-token" not in caplog.text


async def test_a_whole_service_may_be_public() -> None:
    fake = FakeClient(IDENTITIES)
    interceptor = AuthInterceptor(fake, public=["/grpc.health.v1.Health/*"])
    details = _Details("/grpc.health.v1.Health/Check")
    handler: Any = grpc.unary_unary_rpc_method_handler(Async.unary)

    async def found(_: object) -> Any:
        return handler

    assert await interceptor.intercept_service(found, details) is handler
    for method in ("/grpc.health.v1.Health", "/grpc.health.v1.Health2/Check", "//grpc.health.v1.Health/Check", ""):
        assert await interceptor.intercept_service(found, _Details(method)) is not handler


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


def test_a_client_of_the_wrong_kind_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="SyncFakeClient is synchronous"):
        AuthInterceptor(SyncFakeClient({}))  # type: ignore[arg-type] # the mistake
    with pytest.raises(TypeError, match="FakeClient is asynchronous"):
        SyncAuthInterceptor(FakeClient({}))  # type: ignore[arg-type] # the mistake


@pytest.mark.parametrize("pattern", ["pkg.Service/Method", "/pkg.Service/", "/pkg.*", "/pkg.Service/Get*"])
def test_another_pattern_is_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match="public"):
        AuthInterceptor(FakeClient({}), public=[pattern])
    with pytest.raises(ValueError, match="public"):
        SyncAuthInterceptor(SyncFakeClient({}), public=[pattern])
