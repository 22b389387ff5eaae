"""The ASGI middleware, called as a server calls it."""

import logging
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import pytest

from authsvc.client import CallerRefusedError, Identity, current_identity
from authsvc.client.asgi import AuthMiddleware, Message, Receive, Scope, Send
from authsvc.client.testing import FakeClient, SyncFakeClient, make_identity

ALICE = make_identity("alice", role="admin")
BOB = make_identity("bob")
BEARER = (b"authorization", b"Bearer alice-token")


class App:
    """Records the requests that reach it, and who they were from."""

    def __init__(self, error: Exception | None = None) -> None:
        self.scopes: list[Scope] = []
        self.identities: list[Identity | None] = []
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        self.identities.append(current_identity.get())
        if self._error is not None:
            raise self._error


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient({"alice-token": ALICE, "bob-token": BOB})


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def call(middleware: AuthMiddleware, *headers: tuple[bytes, bytes], **scope: Any) -> list[Message]:
    """Send a request, and return what the middleware sent back itself."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await middleware({"type": "http", "path": "/", "headers": list(headers), **scope}, receive, send)
    return sent


def headers_of(message: Message) -> Mapping[bytes, bytes]:
    return dict(message["headers"])


async def test_a_valid_token_reaches_the_app_with_its_identity(app: App, fake: FakeClient) -> None:
    assert await call(AuthMiddleware(app, fake), BEARER) == []
    [scope] = app.scopes
    assert scope["user"] is ALICE
    assert scope["auth"].scopes == ["authenticated", "admin"]
    assert app.identities == [ALICE]
    assert current_identity.get() is None


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ([], b"Bearer"),
        ([(b"authorization", b"Basic YTpi")], b"Bearer"),
        ([(b"authorization", b"Bearer ")], b"Bearer"),
        ([(b"cookie", b"authorization=Bearer alice-token")], b"Bearer"),
        ([(b"authorization", b"Bearer unknown")], b'Bearer error="invalid_token"'),
        ([(b"authorization", b"Bearer \xff")], b'Bearer error="invalid_token"'),
        ([BEARER, BEARER], b'Bearer error="invalid_token"'),
        ([BEARER, (b"Authorization", b"Bearer bob-token")], b'Bearer error="invalid_token"'),
    ],
)
async def test_no_or_a_bad_token_is_unauthorized(
    app: App, fake: FakeClient, headers: list[tuple[bytes, bytes]], challenge: bytes
) -> None:
    start, body = await call(AuthMiddleware(app, fake), *headers)
    assert (start["type"], start["status"]) == ("http.response.start", 401)
    assert headers_of(start)[b"www-authenticate"] == challenge
    assert headers_of(start)[b"content-length"] == str(len(body["body"])).encode()
    assert body["type"] == "http.response.body"
    assert app.scopes == []


async def test_a_lower_case_scheme_is_one(app: App, fake: FakeClient) -> None:
    await call(AuthMiddleware(app, fake), (b"authorization", b"bearer alice-token"))
    assert app.identities == [ALICE]


async def test_a_token_elsewhere_is_not_read(app: App, fake: FakeClient) -> None:
    [start, _] = await call(AuthMiddleware(app, fake), query_string=b"access_token=alice-token")
    assert start["status"] == 401


async def test_a_missing_role_is_forbidden(app: App, fake: FakeClient) -> None:
    middleware = AuthMiddleware(app, fake, role="admin")
    start, _ = await call(middleware, (b"authorization", b"Bearer bob-token"))
    assert start["status"] == 403
    assert headers_of(start)[b"www-authenticate"] == b'Bearer error="insufficient_scope"'
    assert app.scopes == []
    assert await call(middleware, BEARER) == []


async def test_an_empty_role_is_nobodys(app: App, fake: FakeClient) -> None:
    start, _ = await call(AuthMiddleware(app, fake, role=""), BEARER)
    assert start["status"] == 403


async def test_an_outage_is_unavailable(app: App, fake: FakeClient) -> None:
    with fake.outage():
        start, _ = await call(AuthMiddleware(app, fake), BEARER)
        assert start["status"] == 503
        assert headers_of(start)[b"retry-after"] == b"1"
        assert b"www-authenticate" not in headers_of(start)
    assert app.scopes == []


async def test_a_refused_backend_is_its_own_error(app: App) -> None:
    class Refused(FakeClient):
        async def validate(self, token: str, **_: object) -> Identity:
            raise CallerRefusedError

    start, _ = await call(AuthMiddleware(app, Refused({})), BEARER)
    assert start["status"] == 500
    assert app.scopes == []


@pytest.mark.parametrize("headers", [[], [BEARER], [(b"authorization", b"Bearer unknown")], [BEARER, BEARER]])
async def test_a_public_path_has_nobody_whatever_the_token(
    app: App, fake: FakeClient, headers: list[tuple[bytes, bytes]]
) -> None:
    with fake.outage():
        assert await call(AuthMiddleware(app, fake, public=["/healthz"]), *headers, path="/healthz") == []
    [scope] = app.scopes
    assert scope["user"].is_authenticated is False
    assert scope["user"].display_name == ""
    assert scope["auth"].scopes == []
    assert app.identities == [None]


async def test_what_another_middleware_said_is_not_believed(app: App, fake: FakeClient) -> None:
    middleware = AuthMiddleware(app, fake, public=["/healthz"])
    reset_token = current_identity.set(BOB)
    await call(middleware, path="/healthz", user=BOB)
    assert app.scopes[0]["user"].is_authenticated is False
    assert app.identities == [None]
    [start, _] = await call(middleware, user=BOB)
    assert start["status"] == 401
    current_identity.reset(reset_token)


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "TRACE", "CONNECT", "get", "ANYTHING", ""])
async def test_no_method_passes_without_a_token(app: App, fake: FakeClient, method: str) -> None:
    start, _ = await call(AuthMiddleware(app, fake, public=["/healthz"]), method=method)
    assert start["status"] == 401


@pytest.mark.parametrize(
    ("root_path", "path", "is_public"),
    [
        ("", "/healthz", True),
        ("/api", "/api/healthz", True),
        # A proxy has removed what it is mounted at, and FastAPI(root_path=...) says so.
        ("/api", "/healthz", True),
        ("/api", "/api/x/healthz", False),
        ("/api", "/api/api/healthz", False),
        ("/api", "/apix/healthz", False),
        ("/api", "/api", False),
        ("/api", "/api/", False),
        ("/api", "/api//healthz", False),
        ("/api", "/api/../healthz", False),
        # Litestar looks for the root path anywhere, Starlette at the beginning.
        ("/api", "/docs/api/admin", False),
        ("/api", "/docs/apix", False),
        ("/api", "/docs/a", True),
        ("/api/", "/api//healthz", False),
        ("/api/", "/api/healthz", True),
        ("/", "/healthz", True),
        ("", "", False),
    ],
)
async def test_public_paths_are_below_the_root_path(
    app: App, fake: FakeClient, root_path: str, path: str, *, is_public: bool
) -> None:
    sent = await call(AuthMiddleware(app, fake, public=["/healthz", "/docs/*"]), path=path, root_path=root_path)
    assert bool(app.scopes) is is_public
    assert bool(sent) is not is_public


@pytest.mark.parametrize(("raw_path", "is_public"), [(b"/docs/a", True), (None, True), (b"/docs%2fa", False)])
async def test_the_raw_path_has_a_say(app: App, fake: FakeClient, raw_path: bytes | None, *, is_public: bool) -> None:
    await call(AuthMiddleware(app, fake, public=["/docs/*"]), path="/docs/a", raw_path=raw_path, root_path=None)
    assert bool(app.scopes) is is_public


async def test_a_websocket_is_refused_before_it_is_accepted(app: App, fake: FakeClient) -> None:
    sent = await call(AuthMiddleware(app, fake), type="websocket", extensions=None)
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]
    assert app.scopes == []


async def test_a_websocket_is_refused_with_a_response_where_the_server_can(app: App, fake: FakeClient) -> None:
    extensions: dict[str, object] = {"websocket.http.response": {}}
    start, body = await call(AuthMiddleware(app, fake), type="websocket", extensions=extensions)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
    assert headers_of(start)[b"www-authenticate"] == b"Bearer"
    assert body["type"] == "websocket.http.response.body"


async def test_a_websocket_with_a_token_reaches_the_app(app: App, fake: FakeClient) -> None:
    await call(AuthMiddleware(app, fake), BEARER, type="websocket")
    assert app.identities == [ALICE]


async def test_lifespan_reaches_the_app_as_it_is(app: App, fake: FakeClient) -> None:
    scope: Scope = {"type": "lifespan", "state": {}}
    await AuthMiddleware(app, fake)(scope, receive, receive)  # type: ignore[arg-type] # nothing is sent
    assert app.scopes == [{"type": "lifespan", "state": {}}]


async def test_a_scope_of_an_unknown_type_does_not_pass(app: App, fake: FakeClient) -> None:
    with pytest.raises(NotImplementedError, match="webtransport"):
        await call(AuthMiddleware(app, fake, public=["/"]), BEARER, type="webtransport")
    assert app.scopes == []


@pytest.mark.parametrize("path", ["/", "/healthz"])
async def test_nobody_is_left_behind_by_an_error(fake: FakeClient, path: str) -> None:
    middleware = AuthMiddleware(App(error=ZeroDivisionError()), fake, public=["/healthz"])
    with pytest.raises(ZeroDivisionError):
        await call(middleware, BEARER, path=path)
    assert current_identity.get() is None


async def test_an_error_of_the_app_is_not_the_middlewares(fake: FakeClient) -> None:
    app = App(error=CallerRefusedError())
    with pytest.raises(CallerRefusedError):
        await call(AuthMiddleware(app, fake), BEARER)


async def test_two_layers_validate_once(app: App) -> None:
    class Counting(FakeClient):
        count = 0

        async def validate(self, token: str, **options: Any) -> Identity:
            self.count += 1
            return await super().validate(token, **options)

    inner, outer = Counting({"alice-token": BOB}), Counting({"alice-token": ALICE})
    await call(AuthMiddleware(AuthMiddleware(app, outer), outer), BEARER)
    assert outer.count == 1
    await call(AuthMiddleware(AuthMiddleware(app, inner), outer), BEARER)
    assert inner.count == 1
    assert app.identities == [ALICE, BOB]


@pytest.mark.parametrize("token", ["a-secret-that-is-unknown", "a-secret-that-is-bobs", "a secret that is no token"])
async def test_no_answer_and_no_log_has_the_token(app: App, token: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fake = FakeClient({"a-secret-that-is-bobs": BOB})
    header = (b"authorization", f"Bearer {token}".encode())
    answers = [await call(AuthMiddleware(app, fake, role="admin"), header)]
    with fake.outage():
        answers.append(await call(AuthMiddleware(app, fake), header))
        answers.append(await call(AuthMiddleware(app, fake), header, header, type="websocket"))
    texts = f"{answers} {caplog.text}"
    assert "status" in texts
    assert token not in texts
    assert sha256(token.encode()).hexdigest() not in texts


def test_a_client_of_the_wrong_kind_is_refused_at_once(app: App) -> None:
    with pytest.raises(TypeError, match="SyncFakeClient is synchronous"):
        AuthMiddleware(app, SyncFakeClient({}))  # type: ignore[arg-type] # the mistake


async def test_an_answer_that_is_no_identity_does_not_pass(app: App) -> None:
    class Odd(FakeClient):
        async def validate(self, token: str, **_: object) -> Any:
            return {"user_id": token}

    with pytest.raises(TypeError, match="answered with dict"):
        await call(AuthMiddleware(app, Odd({})), BEARER)
    assert app.scopes == []


def test_a_bad_public_pattern_is_an_error_at_once(app: App, fake: FakeClient) -> None:
    with pytest.raises(ValueError, match="public"):
        AuthMiddleware(app, fake, public=["docs"])
