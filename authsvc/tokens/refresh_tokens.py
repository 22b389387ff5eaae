"""Refresh tokens: `rt_` + base64url(user id) `.` session id `.` session part `.` rotating part.

The session part (16 bytes) is the session's for life, the rotating part (32 bytes) is replaced at each refresh. The
store holds the SHA-256 of each, never a token. Both parts are random, so a fast hash is enough.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field, replace

PREFIX = "rt_"
SESSION_ID_BYTES = 16
SESSION_PART_BYTES = 16
ROTATING_PART_BYTES = 32
NONCE_BYTES = 16

_FORM = re.compile(r"rt_([\w-]{1,342})\.([\w-]{22})\.([\w-]{22})\.([\w-]{43})", re.ASCII)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """The parts of a refresh token."""

    user_id: str
    session_id: str
    session_part: bytes = field(repr=False)
    rotating_part: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The token as it is handed out. Secret."""
        parts = (_encode(self.session_part), _encode(self.rotating_part))
        return ".".join((PREFIX + _encode(self.user_id.encode()), self.session_id, *parts))


def new_refresh_token(user_id: str) -> RefreshToken:
    """Return the first refresh token of a new session."""
    return RefreshToken(
        user_id=user_id,
        session_id=secrets.token_urlsafe(SESSION_ID_BYTES),
        session_part=secrets.token_bytes(SESSION_PART_BYTES),
        rotating_part=secrets.token_bytes(ROTATING_PART_BYTES),
    )


def parse(text: str) -> RefreshToken | None:
    """Return the parts of a refresh token, None for what is none."""
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    user_id, session_id, session_part, rotating_part = match.groups()
    try:
        token = RefreshToken(_decode(user_id).decode(), session_id, _decode(session_part), _decode(rotating_part))
    except (binascii.Error, UnicodeDecodeError):
        return None
    return token if token.text == text else None  # one spelling each: canonical base64url


def new_nonce() -> bytes:
    """Return what makes the next rotating part another one than anybody can guess."""
    return secrets.token_bytes(NONCE_BYTES)


def successor(token: RefreshToken, nonce: bytes) -> RefreshToken:
    """Return the refresh token that follows: whoever has the old one gets the same new one again."""
    return replace(token, rotating_part=hmac.digest(token.rotating_part, nonce, hashlib.sha256))


def stored_form(part: bytes) -> bytes:
    """Return what the store holds of a part: its SHA-256."""
    return hashlib.sha256(part).digest()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
