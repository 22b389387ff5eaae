"""Who may call which RPC: permissions, bearer credentials, TLS identities."""

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

import grpc

from authsvc import request_context
from authsvc.config import Address
from authsvc.errors import CallerNotPermittedError, CallerUnauthenticatedError
from authsvc.models import ADMIN_ROLE
from authsvc.rpc.callers import API_KEY_PREFIX, Callers, Permission
from authsvc.tokens.verification import InactiveReason
from authsvc.usecases.validation import Check, Validations
from authsvc.watched_file import WatchedFile

Context = grpc.aio.ServicerContext[Any, Any]
Authorize = Callable[[Context], Awaitable[None]]

_VALIDATE = frozenset({Permission.VALIDATE})
_LOGIN = frozenset({Permission.LOGIN})
_SESSIONS = frozenset({Permission.SESSIONS, Permission.USERS})
_USERS = frozenset({Permission.USERS})
PERMISSIONS: Mapping[str, frozenset[Permission]] = {
    "authsvc.v1.AuthService.Authenticate": _LOGIN,
    "authsvc.v1.AuthService.ValidateToken": _VALIDATE,
    "authsvc.v1.AuthService.BatchValidateTokens": _VALIDATE,
    "authsvc.v1.AuthService.RefreshTokens": _LOGIN,
    "authsvc.v1.AuthService.RevokeToken": _LOGIN,
    "authsvc.v1.AuthService.ChangePassword": _LOGIN,
    "authsvc.v1.AuthService.GetJwks": frozenset(),
    "envoy.service.auth.v3.Authorization.Check": _VALIDATE,
    "authsvc.v1.UserService.CreateUser": _USERS,
    "authsvc.v1.UserService.GetUser": _USERS,
    "authsvc.v1.UserService.ListUsers": _USERS,
    "authsvc.v1.UserService.UpdateUser": _USERS,
    "authsvc.v1.UserService.DeleteUser": _USERS,
    "authsvc.v1.UserService.ResetPassword": _USERS,
    "authsvc.v1.UserService.ListUserSessions": _SESSIONS,
    "authsvc.v1.UserService.RevokeUserSessions": _SESSIONS,
}
"""The permissions that open an RPC: any one of them is enough; an empty set opens it to every client.

An admin's access token has the permission `users`. RPCs that `users` opens are closed without a callers file too.
"""


class Authorization:
    """Decides whether a caller may call an RPC.

    Args:
        validations: Validates the access token of an admin.
        callers: The callers file; None where callers are not configured.
    """

    def __init__(self, validations: Validations, callers: WatchedFile[Callers] | None) -> None:
        self._validations = validations
        self._callers = callers

    @property
    def has_callers(self) -> bool:
        """Whether callers are configured, so that each call comes from an authenticated one."""
        return self._callers is not None

    def for_method(self, full_name: str) -> Authorize | None:
        """Return the check of an RPC, which raises CallerRefusedError; None where every client may call it.

        Raises:
            KeyError: PERMISSIONS has no row for the RPC.
        """
        permissions = PERMISSIONS[full_name]
        if Permission.USERS in permissions:
            return functools.partial(self._authorize_caller_or_admin, permissions)
        if self._callers is None or not permissions:
            return None
        return functools.partial(self._authorize_caller, permissions)

    async def _authorize_caller(self, permissions: frozenset[Permission], context: Context) -> None:
        """Require a caller; a bearer that is not an API key is ignored, for it may be an end user's token."""
        self._require_caller(_bearer(), permissions, context)

    async def _authorize_caller_or_admin(self, permissions: frozenset[Permission], context: Context) -> None:
        """Require a caller or an admin; a bearer decides before the TLS identity."""
        bearer = _bearer()
        if bearer and not bearer.startswith(API_KEY_PREFIX):
            await self._require_admin(bearer)
        else:
            self._require_caller(bearer, permissions, context)

    def _require_caller(self, bearer: str, permissions: frozenset[Permission], context: Context) -> None:
        """Require a caller with one of the permissions.

        Raises:
            CallerUnauthenticatedError: The credentials are missing or wrong.
            CallerNotPermittedError: The caller has none of the permissions.
        """
        callers = Callers() if self._callers is None else self._callers.content
        if bearer.startswith(API_KEY_PREFIX):
            caller, reason = callers.find_by_api_key(bearer), "unknown_key"
        else:
            caller, reason = callers.find_by_tls_identities(_tls_identities(context)), "no_credentials"
        if caller is None:
            raise CallerUnauthenticatedError(reason)
        request_context.caller.set(caller.name)
        if permissions.isdisjoint(caller.permissions):
            raise CallerNotPermittedError("lacks_permission")

    async def _require_admin(self, token: str) -> None:
        """Require an access token of an active user whose stored role is admin.

        Raises:
            CallerUnauthenticatedError: The token is inactive.
            CallerNotPermittedError: The user is not an admin.
        """
        validation = await self._validations.validate(Check(token))
        if isinstance(validation.outcome, InactiveReason):
            raise CallerUnauthenticatedError(f"token_{validation.outcome.name.lower()}")
        user = validation.outcome.user
        request_context.caller.set(f"user:{user.user_id}")  # a caller's name has no colon
        if user.role != ADMIN_ROLE:
            raise CallerNotPermittedError("no_admin")


def peer_host(peer: str) -> str:
    """Return the host of a gRPC peer, for instance of ipv4:127.0.0.1:4711 or ipv6:%5B::1%5D:4711."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def is_loopback(peer: str) -> bool:
    """Return whether a gRPC peer is on this machine."""
    return Address(peer_host(peer), 0).is_loopback


def _bearer() -> str:
    """Return the bearer credential, empty where there is none.

    Raises:
        CallerUnauthenticatedError: There are two headers: a proxy and this service could each read another one.
    """
    credentials = [value for key, value in request_context.trace.get().metadata if key == "authorization"]
    if not credentials:
        return ""
    if len(credentials) > 1:
        raise CallerUnauthenticatedError("two_credentials")
    scheme, _, bearer = str(credentials[0]).partition(" ")
    return bearer.strip(" ") if scheme.lower() == "bearer" else ""


def _tls_identities(context: Context) -> list[str]:
    """Return the URIs and DNS names of the client's certificate. The common name is not an identity (RFC 9525 §2)."""
    properties = context.auth_context()
    uris = (value.decode() for value in properties.get("peer_uri", ()))
    names = (value.decode().lower() for value in properties.get("peer_dns", ()))
    # A DNS name that looks like a URI must not pass for one.
    return [uri for uri in uris if "://" in uri] + [name for name in names if "://" not in name]
