"""The WSGI middleware, around Flask and Django, under waitress."""

from collections.abc import Iterable, Iterator
from typing import Any

import django
import flask
import pytest
from django.conf import settings as django_settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path as django_path

from authsvc.client import Identity, current_identity
from authsvc.client.testing import FakeClient, SyncFakeClient, make_identity
from authsvc.client.wsgi import AuthMiddleware
from tests.client.web import Address, send, serve_wsgi

ALICE = "Authorization: Bearer alice-token"
BOB = "Authorization: Bearer bob-token"
PUBLIC = ["/healthz", "/docs/*"]
TARGETS = [
    "//healthz",
    "/healthz/",
    "/healthz/../who",
    "/docs/../who",
    "/docs/%2e%2e/who",
    "/docs%2f..%2fwho",
    "/docs%2fa",
    "/docs/..%5cwho",
    "/docs/%252e%252e/who",
    "/docs//who",
    "/docs/%00",
    "/docs/%ff",
    "/docs/%c0%af",
    "/%68ealthz",
    "/HEALTHZ",
    "/who?/healthz",
    "/who;/healthz",
    "/app/healthz",
]


def current_user_id() -> str:
    identity = current_identity.get()
    return identity.user_id if identity else "nobody"


def flask_app() -> flask.Flask:
    app = flask.Flask("test")

    @app.get("/who")
    def who() -> list[str]:
        identity: Identity = flask.request.environ["authsvc.identity"]
        return [identity.user_id, current_user_id()]

    @app.get("/stream")
    def stream() -> flask.Response:
        def chunks() -> Iterator[str]:
            yield current_user_id()
            yield current_user_id()

        return flask.Response(chunks())

    @app.get("/fails")
    def fails() -> str:
        raise ZeroDivisionError

    @app.get("/healthz")
    @app.get("/docs/<path:rest>")
    def public(rest: str = "") -> list[object]:
        return [flask.request.environ["authsvc.identity"], current_user_id()]

    return app


def django_app() -> Any:
    def who(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{request.META['authsvc.identity'].user_id} {current_user_id()}")

    def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(current_user_id() for _ in range(2))

    def public(request: HttpRequest, rest: str = "") -> HttpResponse:
        return HttpResponse(f"{request.META['authsvc.identity']} {current_user_id()}")

    if not django_settings.configured:
        django_settings.configure(
            ALLOWED_HOSTS=["127.0.0.1"],
            ROOT_URLCONF=(
                django_path("who", who),
                django_path("stream", stream),
                django_path("healthz", public),
                django_path("docs/<path:rest>", public),
            ),
        )
        django.setup(set_prefix=False)
    return get_wsgi_application()


@pytest.fixture(scope="module")
def fake() -> SyncFakeClient:
    return SyncFakeClient({"alice-token": make_identity("alice", role="admin"), "bob-token": make_identity("bob")})


@pytest.fixture(scope="module")
def flask_address(fake: SyncFakeClient) -> Iterator[Address]:
    with serve_wsgi(AuthMiddleware(flask_app(), client=fake, public=PUBLIC)) as address:
        yield address


@pytest.fixture(scope="module")
def django_address(fake: SyncFakeClient) -> Iterator[Address]:
    with serve_wsgi(AuthMiddleware(django_app(), client=fake, public=PUBLIC)) as address:
        yield address


@pytest.fixture(params=["flask", "django"])
def address(request: pytest.FixtureRequest) -> Address:
    found: Address = request.getfixturevalue(f"{request.param}_address")
    return found


async def test_the_app_gets_who_it_is(flask_address: Address, django_address: Address) -> None:
    assert (await send(flask_address, "/who", ALICE)).body == '["alice","alice"]\n'
    assert (await send(django_address, "/who", BOB)).body == "bob bob"


async def test_streams_know_who_it_is(address: Address) -> None:
    assert (await send(address, "/stream", BOB)).body.count("bob") == 2
    assert (await send(address, "/stream", ALICE)).body.count("alice") == 2


async def test_public_paths_have_nobody(flask_address: Address, django_address: Address) -> None:
    assert (await send(flask_address, "/healthz", ALICE)).body == '[null,"nobody"]\n'
    assert (await send(flask_address, "/docs/%C3%A4%20b?x=%2f")).body == '[null,"nobody"]\n'
    assert (await send(django_address, "/healthz", "Authorization: Bearer unknown")).body == "None nobody"


async def test_no_path_is_taken_for_a_public_one(address: Address) -> None:
    answers = {target: (await send(address, target)).status for target in TARGETS}
    assert {target for target, status in answers.items() if status not in {400, 401}} == set()


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ([], "Bearer"),
        (["Authorization: Basic YTpi"], "Bearer"),
        (["Authorization:"], "Bearer"),
        (["Authorization: Bearer unknown"], 'Bearer error="invalid_token"'),
        ([ALICE, ALICE], 'Bearer error="invalid_token"'),
        ([ALICE, "authorization: Basic YTpi"], 'Bearer error="invalid_token"'),
    ],
)
async def test_no_or_a_bad_token_is_unauthorized(address: Address, headers: list[str], challenge: str) -> None:
    answer = await send(address, "/who", *headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, challenge)
    assert answer.headers["content-type"] == "application/json"


async def test_every_method_needs_a_token(address: Address) -> None:
    for method in ("HEAD", "POST", "OPTIONS", "ODD"):
        answer = await send(address, "/who", method=method)
        assert answer.status == 401
        assert bool(answer.body) is (method != "HEAD")


async def test_an_outage_is_unavailable(address: Address, fake: SyncFakeClient) -> None:
    with fake.outage():
        answer = await send(address, "/who", ALICE)
        assert (await send(address, "/healthz")).status == 200
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


async def test_an_error_of_a_request_does_not_change_the_next(flask_address: Address) -> None:
    # Both threads of the server.
    assert [(await send(flask_address, "/fails", ALICE)).status for _ in range(2)] == [500, 500]
    assert [(await send(flask_address, "/healthz")).body for _ in range(2)] == ['[null,"nobody"]\n'] * 2


async def test_a_missing_role_is_forbidden(fake: SyncFakeClient) -> None:
    with serve_wsgi(AuthMiddleware(flask_app(), client=fake, role="admin")) as address:
        answer = await send(address, "/who", BOB)
        assert (answer.status, answer.headers["www-authenticate"]) == (403, 'Bearer error="insufficient_scope"')
        assert (await send(address, "/who", ALICE)).status == 200


class Body:
    """A response whose every step looks who it is."""

    def __init__(self) -> None:
        self.seen = [current_user_id()]

    def __iter__(self) -> Iterator[bytes]:
        self.seen.append(current_user_id())
        yield current_user_id().encode()

    def close(self) -> None:
        self.seen.append(current_user_id())


def request(middleware: AuthMiddleware, **environ: str) -> Iterable[bytes]:
    return middleware({"REQUEST_METHOD": "GET", "PATH_INFO": "/", **environ}, lambda *_: lambda _: None)


def test_all_of_a_response_knows_who_it_is_and_the_thread_never_does(fake: SyncFakeClient) -> None:
    body = Body()
    seen = body.seen

    def app(environ: object, start_response: object) -> Iterable[bytes]:
        seen.append(current_user_id())
        assert current_user_id() == "bob"
        return body

    response = request(AuthMiddleware(app, fake), HTTP_AUTHORIZATION="Bearer bob-token")
    assert current_user_id() == "nobody"
    for chunk in response:
        assert (chunk, current_user_id()) == (b"bob", "nobody")
    response.close()  # type: ignore[attr-defined] # as a server does
    assert seen == ["nobody", "bob", "bob", "bob"]
    assert current_user_id() == "nobody"


def test_a_response_that_cannot_be_closed(fake: SyncFakeClient) -> None:
    middleware = AuthMiddleware(lambda *_: [b"a"], fake)
    response = request(middleware, HTTP_AUTHORIZATION="Bearer bob-token")
    assert list(response) == [b"a"]
    response.close()  # type: ignore[attr-defined] # as a server does


@pytest.mark.parametrize(("name", "is_public"), [("REQUEST_URI", False), ("RAW_URI", False), ("HTTP_RAW_URI", True)])
def test_the_raw_path_has_a_say(fake: SyncFakeClient, name: str, *, is_public: bool) -> None:
    middleware = AuthMiddleware(lambda *_: [b"public"], fake, public=["/docs/*"])
    assert (list(request(middleware, PATH_INFO="/docs/a", **{name: "/docs%2fa"})) == [b"public"]) is is_public


@pytest.mark.parametrize("path", ["", "/docs/\xff", "/docs/\udc80", "/docs/€"])
def test_a_path_that_is_no_text_is_not_public(fake: SyncFakeClient, path: str) -> None:
    middleware = AuthMiddleware(lambda *_: [b"public"], fake, public=["/docs/*"])
    assert list(request(middleware, PATH_INFO=path)) != [b"public"]


def test_what_was_in_the_environ_before_is_not_believed(fake: SyncFakeClient) -> None:
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/healthz", "authsvc.identity": make_identity()}
    AuthMiddleware(lambda *_: [b""], fake, public=["/healthz"])(environ, lambda *_: lambda _: None)
    assert environ["authsvc.identity"] is None


def test_a_request_without_a_path_is_not_public(fake: SyncFakeClient) -> None:
    middleware = AuthMiddleware(lambda *_: [b"public"], fake, public=["/"])
    assert list(middleware({"REQUEST_METHOD": "GET"}, lambda *_: lambda _: None)) != [b"public"]


def test_a_client_of_the_wrong_kind_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="FakeClient is asynchronous"):
        AuthMiddleware(flask_app(), FakeClient({}))  # type: ignore[arg-type] # the mistake


def test_a_coroutine_is_no_identity() -> None:
    class Odd(SyncFakeClient):
        def validate(self, token: str, **_: object) -> Any:
            return object()

    with pytest.raises(TypeError, match="answered with object"):
        request(AuthMiddleware(flask_app(), Odd({})), HTTP_AUTHORIZATION="Bearer x")
