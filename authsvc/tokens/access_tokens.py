"""Access tokens (RFC 9068): issuing them, and verifying them strictly.

PyJWT's algorithms check signatures; everything else about a token is decided here, cheap steps before dear ones.
Nothing in a token ever chooses an algorithm, causes a fetch, or is compared as text: one token has many spellings.
"""

import base64
import binascii
import hashlib
import json
import re
import secrets
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any

from authsvc import fields
from authsvc.errors import InvalidFieldError
from authsvc.models import ACCESS_TOKEN_MAX_LIFETIME, LEEWAY
from authsvc.tokens.keys import Key, KeyRing

ACCESS_TOKEN_TYPE = "at+jwt"  # noqa: S105 - RFC 9068 §2.1
REFRESH_TOKEN_PREFIX = "rt_"  # noqa: S105 - what a refresh token begins with
MAX_LENGTH = 8 * 1024
LEEWAY_SECONDS = int(LEEWAY.total_seconds())
CACHE_SIZE = 16_384
"""Some 12 MiB; a token beyond costs a check of its signature again."""

_SEGMENTS = re.compile(r"([\w-]+)\.([\w-]+)\.([\w-]+)", re.ASCII)


class InactiveReason(Enum):
    """Why a token is not good, in the order of decision. Names are those of the API."""

    MALFORMED = auto()
    WRONG_TYPE = auto()
    BAD_SIGNATURE = auto()
    WRONG_ISSUER = auto()
    WRONG_AUDIENCE = auto()
    EXPIRED = auto()
    NOT_YET_VALID = auto()
    USER_NOT_FOUND = auto()
    USER_DISABLED = auto()
    SESSION_REVOKED = auto()


class _InactiveError(Exception):
    def __init__(self, reason: InactiveReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The claims of an access token whose signature verified; times in Unix seconds."""

    issuer: str
    audience: str
    user_id: str
    client_id: str
    session_id: str
    token_id: str
    token_generation: int
    issued_at: int
    expires_at: int
    not_before: int


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A new access token."""

    text: str
    expire_time: datetime

    def __repr__(self) -> str:
        """Return everything but the token."""
        return f"IssuedToken(expire_time={self.expire_time!r})"


class AccessTokens:
    """Issues and verifies the access tokens of one issuer for one audience.

    Args:
        ring: The keys.
        lifetime: How long a new token is good, at most ACCESS_TOKEN_MAX_LIFETIME.
    """

    def __init__(self, ring: KeyRing, issuer: str, audience: str, lifetime: timedelta) -> None:
        self.ring = ring
        self._issuer = issuer
        self._audience = audience
        self._lifetime = lifetime
        self._verified: OrderedDict[bytes, tuple[Key, AccessToken]] = OrderedDict()

    @property
    def remembered(self) -> int:
        """How many verified tokens are remembered."""
        return len(self._verified)

    def issue(  # noqa: PLR0913 - a token's claims are many
        self,
        *,
        user_id: str,
        session_id: str,
        token_generation: int,
        client_id: str,
        now: datetime,
        not_after: datetime,
    ) -> IssuedToken:
        """Issue a token.

        Args:
            user_id: For whom.
            session_id: Of which session.
            token_generation: Of the user when the session began.
            client_id: Name of the service that asked for it.
            now: Time of issue.
            not_after: When its session is over, which it does not outlive.
        """
        issued_at = int(now.timestamp())
        expires_at = int(min(now + self._lifetime, not_after).timestamp())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": user_id,
            "client_id": client_id,
            "iat": issued_at,
            "exp": expires_at,
            "jti": secrets.token_urlsafe(16),
            "sid": session_id,
            "gen": token_generation,
        }
        key = self.ring.signing_key
        header = {"alg": key.alg, "kid": key.kid, "typ": ACCESS_TOKEN_TYPE}
        message = _encode(_json(header)) + "." + _encode(_json(claims))
        text = message + "." + _encode(key.sign(message.encode()))
        return IssuedToken(text, datetime.fromtimestamp(expires_at, UTC))

    def session_of(self, text: str, now: datetime) -> tuple[str, str] | None:
        """Return user and session of a token that is ours, however old; None for anything else."""
        try:
            token = self._authentic(text, int(now.timestamp()))
        except _InactiveError:
            return None
        is_ours = (token.issuer, token.audience) == (self._issuer, self._audience)
        return (token.user_id, token.session_id) if is_ours else None

    def verify(self, text: str, now: datetime) -> AccessToken | InactiveReason:
        """Decide everything about a token that needs no store.

        Args:
            text: Anything; what is no token is inactive.
            now: Time by which it is judged.

        Returns:
            Its claims, or why it is not good.
        """
        try:
            second = int(now.timestamp())
            token = self._authentic(text, second)
            self._judge(token, second)
        except _InactiveError as inactive:
            return inactive.reason
        return token

    def _authentic(self, text: str, second: int) -> AccessToken:
        """Return the claims of a token that one of our living keys signed."""
        if text.startswith(REFRESH_TOKEN_PREFIX):
            raise _InactiveError(InactiveReason.WRONG_TYPE)
        if len(text) > MAX_LENGTH or not text.isascii():
            raise _InactiveError(InactiveReason.MALFORMED)
        digest = hashlib.blake2b(text.encode(), digest_size=32).digest()
        key, token = self._verified.get(digest, (None, None))
        # A key that was removed, retired, or replaced under its kid takes its remembered tokens with it.
        if key is not None and token is not None and self.ring.get(key.kid, second) is key:
            return token
        key, token = self._check_signature(text, second)
        if len(self._verified) >= CACHE_SIZE:
            self._verified.popitem(last=False)
        self._verified[digest] = (key, token)
        return token

    def _check_signature(self, text: str, second: int) -> tuple[Key, AccessToken]:
        match = _SEGMENTS.fullmatch(text)  # unlike `$`, fullmatch lets no newline through
        if match is None:
            raise _InactiveError(InactiveReason.MALFORMED)
        header, payload, signature = (_decode(segment) for segment in match.groups())
        key = self._key(_strict_object(header), second)
        if key is None or not key.verify(text.rpartition(".")[0].encode(), signature):
            raise _InactiveError(InactiveReason.BAD_SIGNATURE)
        return key, _access_token(_strict_object(payload))

    def _key(self, header: Mapping[str, Any], second: int) -> Key | None:
        """Return the key that a header names, None where there is none for its algorithm."""
        if header.keys() != {"alg", "kid", "typ"} or not all(isinstance(value, str) for value in header.values()):
            raise _InactiveError(InactiveReason.MALFORMED)
        if header["typ"] != ACCESS_TOKEN_TYPE:
            raise _InactiveError(InactiveReason.WRONG_TYPE)
        key = self.ring.get(header["kid"], second)
        return key if key is not None and key.alg == header["alg"] else None

    def _judge(self, token: AccessToken, second: int) -> None:
        if token.issuer != self._issuer:
            raise _InactiveError(InactiveReason.WRONG_ISSUER)
        if token.audience != self._audience:
            raise _InactiveError(InactiveReason.WRONG_AUDIENCE)
        if second >= token.expires_at + LEEWAY_SECONDS:
            raise _InactiveError(InactiveReason.EXPIRED)
        if second < max(token.issued_at, token.not_before) - LEEWAY_SECONDS:
            raise _InactiveError(InactiveReason.NOT_YET_VALID)


def _access_token(claims: Mapping[str, Any]) -> AccessToken:
    """Return claims as a token, each with its exact type."""
    token = AccessToken(
        issuer=sys.intern(_claim(claims, "iss", str)),  # the same in all tokens
        audience=sys.intern(_claim(claims, "aud", str)),
        user_id=_claim(claims, "sub", str),
        client_id=sys.intern(_claim(claims, "client_id", str)),
        session_id=_claim(claims, "sid", str),
        token_id=_claim(claims, "jti", str),
        token_generation=_claim(claims, "gen", int),
        issued_at=_claim(claims, "iat", int),
        expires_at=_claim(claims, "exp", int),
        not_before=_claim(claims, "nbf", int) if "nbf" in claims else _claim(claims, "iat", int),
    )
    try:
        fields.user_id(token.user_id)
    except InvalidFieldError:
        raise _InactiveError(InactiveReason.MALFORMED) from None
    lifetime_seconds = token.expires_at - token.issued_at
    if not 0 <= lifetime_seconds <= ACCESS_TOKEN_MAX_LIFETIME.total_seconds():
        raise _InactiveError(InactiveReason.MALFORMED)
    return token


def _claim(claims: Mapping[str, Any], name: str, expected: Callable[..., Any]) -> Any:  # noqa: ANN401 - of the expected type
    value = claims.get(name)
    if type(value) is not expected or value == "":  # a bool is no int here
        raise _InactiveError(InactiveReason.MALFORMED)
    return value


def _strict_object(text: bytes) -> Mapping[str, Any]:
    """Return a JSON object: UTF-8, no member twice, no NaN, no lone surrogate, no endless nesting."""
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique_members, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # an escaped lone surrogate is no text
    except (ValueError, RecursionError):
        raise _InactiveError(InactiveReason.MALFORMED) from None
    if not isinstance(value, dict):
        raise _InactiveError(InactiveReason.MALFORMED)
    return value


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _decode(segment: str) -> bytes:
    """Return what canonical base64url without padding (RFC 7515 §2) holds."""
    try:
        data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except binascii.Error:
        raise _InactiveError(InactiveReason.MALFORMED) from None
    if _encode(data) != segment:
        raise _InactiveError(InactiveReason.MALFORMED)
    return data


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
