"""Which answers a successful call makes obsolete: a client must not go on serving what it has itself ended."""

import base64
import json
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, TypeAlias

from authsvc.client.validation.cache import Cache

Drop: TypeAlias = Callable[[Cache, Any], None]
_REFRESH_TOKEN = re.compile(r"rt_[^.]+\.([^.]+)\.")


def _drop_session(cache: Cache, request: Any) -> None:
    """Drop the identities of a token's session; of every session where a refresh token does not show which."""
    cache.drop_token(sha256(request.token.encode()).digest())
    if session_id := session_of(request.token):
        cache.drop_session(session_id)
    elif request.token.startswith("rt_"):
        cache.clear()


def _drop_user(cache: Cache, request: Any) -> None:
    cache.drop_user(request.user_id)


def _drop_all(cache: Cache, _: Any) -> None:
    cache.clear()


DROP_AFTER: Mapping[str, Drop] = {
    "RevokeToken": _drop_session,
    "UpdateUser": _drop_user,
    "DeleteUser": _drop_user,
    "ResetPassword": _drop_user,
    "RevokeUserSessions": _drop_user,
    # It names the user by an address, which the store may hold in another form.
    "ChangePassword": _drop_all,
}
"""By the name of the RPC. A call that fails may have taken effect all the same, so its answers are dropped too."""


def session_of(token: str) -> str:
    """Return the session that a token claims to belong to, unverified; empty where it does not say."""
    if match := _REFRESH_TOKEN.match(token):
        return match[1]
    payload = token.split(".")[1] if token.count(".") == 2 else ""  # noqa: PLR2004 - header, payload, signature
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):  # a user wrote it
        return ""
    session_id = claims.get("sid") if isinstance(claims, dict) else None
    return session_id if isinstance(session_id, str) else ""
