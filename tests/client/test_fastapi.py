"""FastAPI's dependency, under uvicorn."""

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Annotated, Any

import aiohttp
import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse

from authsvc.client import Identity, current_identity
from authsvc.client.asgi import AuthMiddleware
from authsvc.client.fastapi import Authenticated
from authsvc.client.testing import FakeClient, SyncFakeClient, make_identity
from tests.client.web import Address, send, serve_asgi

ALICE = "Authorization: Bearer alice-token"
BOB = "Authorization: Bearer bob-token"


class CountingClient(FakeClient):
    def __init__(self, identities: Mapping[str, Identity]) -> None:
        super().__init__(identities)
        self.asked: list[str] = []

    async def validate(self, token: str, **options: Any) -> Identity:
        self.asked.append(token)
        return await super().validate(token, **options)


@pytest.fixture(scope="module")
def fake() -> CountingClient:
    return CountingClient({"alice-token": make_identity("alice", role="admin"), "bob-token": make_identity("bob")})


def current_user_id() -> str:
    identity = current_identity.get()
    return identity.user_id if identity else "nobody"


def make_app(fake: FakeClient) -> FastAPI:
    app = FastAPI()
    user_of = Depends(Authenticated(fake))
    admin_of = Depends(Authenticated(fake, role="admin"))

    @app.get("/who")
    async def who(user: Annotated[Identity, user_of]) -> list[str]:
        return [user.user_id, current_user_id()]

    @app.get("/thread")
    def in_a_thread(user: Annotated[Identity, user_of]) -> list[str]:
        return [user.user_id, current_user_id()]

    @app.get("/admins")
    async def admins(user: Annotated[Identity, user_of], admin: Annotated[Identity, admin_of]) -> str:
        return current_user_id()

    @app.get("/stream")
    async def stream(user: Annotated[Identity, user_of]) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            yield current_user_id()

        return StreamingResponse(chunks())

    @app.get("/fails")
    async def fails(user: Annotated[Identity, user_of]) -> None:
        raise ZeroDivisionError

    @app.get("/open")
    async def nobody() -> str:
        return current_user_id()

    @app.websocket("/echo")
    async def echo(websocket: WebSocket, user: Annotated[Identity, user_of]) -> None:
        await websocket.accept()
        await websocket.send_text(current_user_id())
        await websocket.close()

    return app


@pytest.fixture(scope="module")
def address(fake: FakeClient) -> Iterator[Address]:
    with serve_asgi(make_app(fake)) as address:
        yield address


@pytest.mark.parametrize("path", ["/who", "/thread"])
async def test_the_route_gets_who_it_is(address: Address, path: str) -> None:
    assert (await send(address, path, ALICE)).body == '["alice","alice"]'
    assert (await send(address, path, BOB)).body == '["bob","bob"]'


async def test_a_stream_knows_who_it_is(address: Address) -> None:
    assert "bob" in (await send(address, "/stream", BOB)).body


async def test_routes_without_it_have_nobody_even_after_an_error(address: Address) -> None:
    assert (await send(address, "/fails", ALICE)).status == 500
    assert (await send(address, "/open", ALICE)).body == '"nobody"'


async def test_it_is_reset_after_the_request(fake: FakeClient) -> None:
    app = make_app(fake)
    after: list[str] = []

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(ZeroDivisionError):
            await app(scope, receive, send)
        after.append(current_user_id())

    with serve_asgi(outside, lifespan="off") as address:
        for path in ("/who", "/thread", "/stream", "/fails"):
            await send(address, path, ALICE)
    assert after == ["nobody"] * 4


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ([], "Bearer"),
        (["Authorization: Basic YTpi"], "Bearer"),
        (["Authorization: Bearer unknown"], 'Bearer error="invalid_token"'),
        ([ALICE, ALICE], 'Bearer error="invalid_token"'),
    ],
)
async def test_no_or_a_bad_token_is_unauthorized(address: Address, headers: list[str], challenge: str) -> None:
    answer = await send(address, "/who", *headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, challenge)


async def test_a_missing_role_is_forbidden(address: Address, fake: CountingClient) -> None:
    answer = await send(address, "/admins", BOB)
    assert (answer.status, answer.headers["www-authenticate"]) == (403, 'Bearer error="insufficient_scope"')
    assert answer.body == '{"detail":"the role is missing"}'


async def test_the_dependencies_of_a_request_share_an_answer(address: Address, fake: CountingClient) -> None:
    fake.asked.clear()
    assert (await send(address, "/admins", ALICE)).status == 200
    assert len(fake.asked) == 1


async def test_an_outage_is_unavailable(address: Address, fake: FakeClient) -> None:
    with fake.outage():
        answer = await send(address, "/who", ALICE)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


async def test_websockets(address: Address) -> None:
    url = address.url("/echo", "ws")
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url, headers={"authorization": "Bearer bob-token"}) as websocket:
            assert await websocket.receive_str() == "bob"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(url)
        assert refused.value.status == 401


async def test_behind_the_middleware_a_token_is_validated_once(fake: CountingClient) -> None:
    app = make_app(fake)
    app.add_middleware(AuthMiddleware, client=fake, public=["/docs", "/openapi.json"])
    fake.asked.clear()
    with serve_asgi(app) as address:
        assert (await send(address, "/who", BOB)).body == '["bob","bob"]'
        assert len(fake.asked) == 1
        assert (await send(address, "/open")).status == 401
        assert (await send(address, "/openapi.json")).status == 200


async def test_a_dependency_with_another_client_validates_itself(fake: CountingClient) -> None:
    app = make_app(fake)
    app.add_middleware(AuthMiddleware, client=FakeClient({"other-token": make_identity("carol")}))
    with serve_asgi(app) as address:
        assert (await send(address, "/who", "Authorization: Bearer other-token")).status == 401
        assert (await send(address, "/who", ALICE)).status == 401


def test_openapi_has_the_scheme(fake: FakeClient) -> None:
    schema = make_app(fake).openapi()
    assert schema["components"]["securitySchemes"]["authsvc"] == {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "An access token of authsvc.",
    }
    assert schema["paths"]["/who"]["get"]["security"] == [{"authsvc": []}]
    assert "security" not in schema["paths"]["/open"]["get"]
    assert "parameters" not in schema["paths"]["/who"]["get"]


def test_a_client_of_the_wrong_kind_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="SyncFakeClient is synchronous"):
        Authenticated(SyncFakeClient({}))  # type: ignore[arg-type] # the mistake
