"""The ASGI middleware around Starlette, under uvicorn."""

from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from authsvc.client import current_identity
from authsvc.client.asgi import AuthMiddleware
from authsvc.client.testing import FakeClient, make_identity
from tests.client.web import Address, send, serve_asgi

ALICE = "Authorization: Bearer alice-token"
BOB = "Authorization: Bearer bob-token"


async def who(request: Request) -> JSONResponse:
    return JSONResponse([request.user.display_name, list(request.auth.scopes)])


def in_a_thread(request: Request) -> PlainTextResponse:
    identity = current_identity.get()
    return PlainTextResponse(identity.user_id if identity else "nobody")


@requires("admin")
async def admins(request: Request) -> PlainTextResponse:
    return PlainTextResponse("an admin")


async def stream(request: Request) -> StreamingResponse:
    def chunks() -> Iterator[str]:
        identity = current_identity.get()
        yield identity.user_id if identity else "nobody"

    return StreamingResponse(chunks())


async def fails(request: Request) -> PlainTextResponse:
    raise ZeroDivisionError


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(websocket.user.identity)
    await websocket.close()


def routes() -> list[Any]:
    return [
        Route("/who", who),
        Route("/thread", in_a_thread),
        Route("/admins", admins),
        Route("/stream", stream),
        Route("/fails", fails),
        Route("/healthz", who),
        Route("/docs/{rest:path}", who),
        WebSocketRoute("/echo", echo),
    ]


@pytest.fixture(scope="module")
def fake() -> FakeClient:
    return FakeClient({"alice-token": make_identity("alice", role="admin"), "bob-token": make_identity("bob")})


@pytest.fixture(scope="module")
def address(fake: FakeClient) -> Iterator[Address]:
    app = Starlette(
        routes=[*routes(), Mount("/below", routes=routes())],
        middleware=[
            Middleware(CORSMiddleware, allow_origins=["https://web.example.com"], allow_headers=["authorization"]),
            Middleware(AuthMiddleware, client=fake, public=["/healthz", "/docs/*"]),
        ],
    )
    with serve_asgi(app) as address:
        yield address


async def test_user_and_scopes_are_starlettes(address: Address) -> None:
    assert (await send(address, "/who", ALICE)).body == '["alice@example.com",["authenticated","admin"]]'
    assert (await send(address, "/healthz")).body == '["",[]]'


async def test_requires_reads_the_role(address: Address) -> None:
    assert (await send(address, "/admins", ALICE)).body == "an admin"
    assert (await send(address, "/admins", BOB)).status == 403


@pytest.mark.parametrize("path", ["/thread", "/stream"])
async def test_threads_and_streams_know_who_it_is(address: Address, path: str) -> None:
    assert "alice" in (await send(address, path, ALICE)).body
    assert "bob" in (await send(address, path, BOB)).body


async def test_an_error_of_a_request_does_not_change_the_next(address: Address) -> None:
    assert (await send(address, "/fails", ALICE)).status == 500
    assert (await send(address, "/who")).status == 401
    assert (await send(address, "/who", BOB)).body == '["bob@example.com",["authenticated","user"]]'


@pytest.mark.parametrize(
    "target",
    [
        "//healthz",
        "/healthz/",
        "/healthz/../who",
        "/docs/../who",
        "/docs/%2e%2e/who",
        "/docs/%2E%2E/who",
        "/docs/.%2e/who",
        "/docs%2f..%2fwho",
        "/docs/..%5cwho",
        "/docs/..\\who",
        "/docs/%252e%252e/who",
        "/docs//who",
        "/docs/",
        "/docs/%00",
        "/docs/%0d%0a",
        "/docs/%7f",
        "/%68ealthz",
        "/HEALTHZ",
        "/who?/healthz",
        "/who;/healthz",
        "/who#/healthz",
        "/below/healthz",
        "http://host/who",
    ],
)
async def test_no_path_is_taken_for_a_public_one(address: Address, target: str) -> None:
    assert (await send(address, target)).status in {400, 401}


async def test_public_paths_are_public(address: Address) -> None:
    assert (await send(address, "/docs/a/b%20c?x=%2f")).status == 200
    assert (await send(address, "/healthz", "Authorization: Bearer unknown")).status == 200


@pytest.mark.parametrize("options", [{"root_path": "/api"}, {"root_path": "/api/"}])
async def test_public_paths_are_below_the_servers_root_path(fake: FakeClient, options: dict[str, Any]) -> None:
    app = Starlette(routes=routes(), middleware=[Middleware(AuthMiddleware, client=fake, public=["/docs/*"])])
    with serve_asgi(app, **options) as address:
        is_plain = options["root_path"] == "/api"
        assert (await send(address, "/docs/a")).status == (200 if is_plain else 401)
        assert (await send(address, "/who")).status == 401
        assert (await send(address, "/api/docs/a")).status == 401


async def test_a_mounted_app_lists_paths_of_its_own(fake: FakeClient) -> None:
    inner = AuthMiddleware(Starlette(routes=routes()), fake, public=["/healthz"])
    with serve_asgi(Starlette(routes=[Mount("/inner", inner)])) as address:
        assert (await send(address, "/inner/healthz")).status == 200
        assert (await send(address, "/inner/who")).status == 401
        assert (await send(address, "/inner/who", ALICE)).status == 200


async def test_two_headers_and_a_joined_one_are_refused(address: Address) -> None:
    assert (await send(address, "/who", ALICE, ALICE)).status == 401
    assert (await send(address, "/who", ALICE, "authorization: Basic YTpi")).status == 401
    assert (await send(address, "/who", f"{ALICE}, Bearer bob-token")).status == 401
    assert (await send(address, "/who", "AUTHORIZATION: bearer bob-token")).status == 200


async def test_every_method_needs_a_token(address: Address) -> None:
    for method in ("HEAD", "POST", "OPTIONS", "ODD"):
        answer = await send(address, "/who", method=method)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert bool(answer.body) is (method != "HEAD")


async def test_cors_goes_outside(address: Address, fake: FakeClient) -> None:
    origin = "Origin: https://web.example.com"
    asked = ("Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization")
    preflight = await send(address, "/who", origin, *asked, method="OPTIONS")
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-headers"].endswith("authorization")
    refused = await send(address, "/who", origin)
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == "https://web.example.com"
    with fake.outage():
        assert (await send(address, "/who", origin, ALICE)).headers["retry-after"] == "1"


async def test_websockets(address: Address, fake: FakeClient) -> None:
    url = address.url("/echo", "ws")
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url, headers={"authorization": "Bearer bob-token"}) as websocket:
            assert await websocket.receive_str() == "bob"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(url)
        assert refused.value.status == 401
        assert refused.value.headers is not None
        assert refused.value.headers["www-authenticate"] == "Bearer"
        with fake.outage(), pytest.raises(aiohttp.WSServerHandshakeError) as unavailable:
            await session.ws_connect(url, headers={"authorization": "Bearer bob-token"})
        assert unavailable.value.status == 503
