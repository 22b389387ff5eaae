"""Middleware for WSGI applications: Flask, Django and others."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from authsvc.client.access.admission import Validator, require_admitted, require_sync
from authsvc.client.access.bearer import read_token
from authsvc.client.access.identity_context import IdentityContext
from authsvc.client.access.public_paths import PublicPaths
from authsvc.client.access.refusals import Refusal, refusal_of
from authsvc.client.errors import AuthsvcError
from authsvc.client.identity import Identity

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

IDENTITY = "authsvc.identity"
"""Key of the environ: the Identity; None on a public path."""


class AuthMiddleware:
    """Lets requests with a valid token pass; `environ["authsvc.identity"]` is the Identity, None on a public path.

    Args:
        app: The application.
        client: Validates the tokens.
        public: Paths that need no token: exact ones, or with `/*` at the end for all paths below.
        role: The role that every user must have; None for any.

    Raises:
        ValueError: An entry of `public` is no path.
        TypeError: The client is an asynchronous one.
    """

    def __init__(
        self, app: "WSGIApplication", client: Validator, *, public: Iterable[str] = (), role: str | None = None
    ) -> None:
        self._app = app
        self._client = require_sync(client)
        self._public = PublicPaths(public)
        self._role = role

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Serve a request."""
        try:
            identity = None if self._is_public(environ) else self._identify(environ)
        except AuthsvcError as error:
            return _refuse(environ, start_response, refusal_of(error))
        environ[IDENTITY] = identity
        context = IdentityContext(identity)
        return context.iterate(context.run(self._app, environ, start_response))

    def _is_public(self, environ: "WSGIEnvironment") -> bool:
        try:
            # PEP 3333 carries bytes as Latin-1; applications decode them as UTF-8.
            path, mount = (environ.get(name, "").encode("latin-1").decode() for name in ("PATH_INFO", "SCRIPT_NAME"))
            raw_path = (environ.get("REQUEST_URI") or environ.get("RAW_URI") or "").encode("latin-1")
        except UnicodeError:
            return False
        return self._public.includes(path, raw_path, mount)

    def _identify(self, environ: "WSGIEnvironment") -> Identity:
        header = environ.get("HTTP_AUTHORIZATION")
        token = read_token([] if header is None else [header])
        return require_admitted(self._client.validate(token), self._role)


def _refuse(environ: "WSGIEnvironment", start_response: "StartResponse", refusal: Refusal) -> Iterable[bytes]:
    start_response(f"{refusal.status} {HTTPStatus(refusal.status).phrase}", list(refusal.response_headers))
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [refusal.body]
