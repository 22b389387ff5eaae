"""Middleware for ASGI applications: Starlette, FastAPI, Litestar and others, websockets included."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

from authsvc.client.access.admission import AsyncValidator, require_admitted, require_async
from authsvc.client.access.bearer import read_token
from authsvc.client.access.public_paths import PublicPaths
from authsvc.client.access.refusals import Refusal, refusal_of
from authsvc.client.errors import AuthsvcError
from authsvc.client.identity import Identity, current_identity

# As in Starlette, which is not imported.
Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

CHECKED = "authsvc.checked"
"""Key of the scope: the client that has validated the request's token, and its answer."""
POLICY_VIOLATION = 1008
"""Close code of RFC 6455 section 7.4.1. Before the handshake's end, servers answer 403 instead."""


class Anonymous:
    """The user of a request that needs no token, as Starlette has it."""

    is_authenticated = False
    display_name = ""
    identity = ""


class Credentials:
    """What `request.auth` is, and `@requires` reads.

    Args:
        scopes: "authenticated" and the role; empty for a request that needs no token.
    """

    __slots__ = ("scopes",)

    def __init__(self, scopes: list[str]) -> None:
        self.scopes = scopes


class AuthMiddleware:
    """Lets requests and websockets with a valid token pass; `scope["user"]` is the Identity.

    Args:
        app: The application.
        client: Validates the tokens.
        public: Paths that need no token: exact ones, or with `/*` at the end for all paths below.
        role: The role that every user must have; None for any.

    Raises:
        ValueError: An entry of `public` is no path.
        TypeError: The client is a synchronous one.
    """

    def __init__(
        self, app: ASGIApp, client: AsyncValidator, *, public: Iterable[str] = (), role: str | None = None
    ) -> None:
        self._app = app
        self._client = require_async(client)
        self._public = PublicPaths(public)
        self._role = role

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request.

        Raises:
            NotImplementedError: It is of a type that this middleware cannot check.
        """
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] not in {"http", "websocket"}:
            raise NotImplementedError(f"AuthMiddleware cannot check a scope of type {scope['type']!r}")
        identity = None
        root_path = (scope.get("root_path") or "").rstrip("/")
        if not self._public.includes(_route_path(scope["path"], root_path), scope.get("raw_path") or b"", root_path):
            try:
                identity = await identify(scope, self._client, self._role)
            except AuthsvcError as error:
                await _refuse(scope, send, refusal_of(error))
                return
        await self._serve(identity, scope, receive, send)

    async def _serve(self, identity: Identity | None, scope: Scope, receive: Receive, send: Send) -> None:
        scope["user"] = Anonymous() if identity is None else identity
        scope["auth"] = Credentials([] if identity is None else ["authenticated", identity.role])
        reset_token = current_identity.set(identity)
        try:
            await self._app(scope, receive, send)
        finally:
            current_identity.reset(reset_token)


async def identify(scope: Scope, client: AsyncValidator, role: str | None) -> Identity:
    """Return who a request is from; ask the client once, however many of its parts want to know.

    Args:
        scope: Of the request.
        client: Validates the token.
        role: The role that the user must have; None for any.

    Raises:
        AuthsvcError: The request is refused, or its token could not be validated.
    """
    checked_by, identity = scope.get(CHECKED, (None, None))
    if checked_by is not client:
        identity = await client.validate(read_token(_authorization(scope)))
        scope[CHECKED] = client, identity
    return require_admitted(identity, role)


def _authorization(scope: Scope) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"authorization"]


def _route_path(path: str, root_path: str) -> str:
    """Return the path below `root_path`, as routers have it; empty, which is never public, where they may disagree."""
    if path.startswith(f"{root_path}/"):
        return path[len(root_path) :]
    # The server, or what is in front of it, has removed it already.
    return "" if root_path in path else path


async def _refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    kind = "http.response"
    if scope["type"] == "websocket":
        kind = "websocket.http.response"
        if kind not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": ""})
            return
    headers = [(name.encode(), value.encode()) for name, value in refusal.response_headers]
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": refusal.body})
