"""Refresh tokens: `rt_` + base64url(user id) `.` session id `.` session part `.` rotating part.

The session part (16 bytes) is constant for the session. The rotating part (32 bytes) is replaced at each refresh. The
store holds the SHA-256 of each part, never a token. Both parts are random, so a fast hash is enough.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field, replace

from authsvc.tokens import base64url

REFRESH_TOKEN_PREFIX = "rt_"  # noqa: S105 - what every refresh token begins with
SESSION_ID_BYTES = 16
SESSION_PART_BYTES = 16
ROTATING_PART_BYTES = 32
NONCE_BYTES = 16

_FORM = re.compile(
    REFRESH_TOKEN_PREFIX + r"([\w-]{1,342})\.([\w-]{22})\.([\w-]{22})\.([\w-]{43})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """The parts of a refresh token."""

    user_id: str
    session_id: str
    session_part: bytes = field(repr=False)
    rotating_part: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The token as the client gets it. Secret."""
        user_id, session_part, rotating_part = map(
            base64url.encode, (self.user_id.encode(), self.session_part, self.rotating_part)
        )
        return f"{REFRESH_TOKEN_PREFIX}{user_id}.{self.session_id}.{session_part}.{rotating_part}"


def new_refresh_token(user_id: str) -> RefreshToken:
    """Return the first refresh token of a new session."""
    return RefreshToken(
        user_id=user_id,
        session_id=secrets.token_urlsafe(SESSION_ID_BYTES),
        session_part=secrets.token_bytes(SESSION_PART_BYTES),
        rotating_part=secrets.token_bytes(ROTATING_PART_BYTES),
    )


def parse(text: str) -> RefreshToken | None:
    """Return the parts of a refresh token; None for a text that is not one in canonical form."""
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    user_id, session_id, session_part, rotating_part = match.groups()
    try:
        return RefreshToken(
            base64url.decode(user_id).decode(),
            session_id,
            base64url.decode(session_part),
            base64url.decode(rotating_part),
        )
    except ValueError:
        return None


def new_nonce() -> bytes:
    """Return the random input that makes the next rotating part unpredictable."""
    return secrets.token_bytes(NONCE_BYTES)


def next_token(token: RefreshToken, nonce: bytes) -> RefreshToken:
    """Return the refresh token that replaces this one: the same for the same token and nonce."""
    return replace(token, rotating_part=hmac.digest(token.rotating_part, nonce, hashlib.sha256))


def digest(part: bytes) -> bytes:
    """Return what the store holds of a part: its SHA-256."""
    return hashlib.sha256(part).digest()
