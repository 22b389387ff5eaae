"""Strict verification of access tokens (RFC 9068): signature first, then claims, without a store.

PyJWT's algorithm objects check the signature and nothing else. A token never chooses an algorithm and never causes a
fetch. Nothing is keyed by a token's text: one token has many spellings (ECDSA `n - s`).
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

from authsvc import fields
from authsvc.errors import InvalidFieldError
from authsvc.models import ACCESS_TOKEN_MAX_LIFETIME, LEEWAY
from authsvc.tokens import base64url
from authsvc.tokens.keys import Key, KeyRing
from authsvc.tokens.refresh_tokens import REFRESH_TOKEN_PREFIX

ACCESS_TOKEN_TYPE = "at+jwt"  # noqa: S105 - RFC 9068 §2.1
MAX_TOKEN_LENGTH = 8 * 1024
LEEWAY_SECONDS = int(LEEWAY.total_seconds())

_HEADER_MEMBERS = {"alg", "kid", "typ"}
_SEGMENTS = re.compile(r"([\w-]+)\.([\w-]+)\.([\w-]+)", re.ASCII)

T = TypeVar("T", str, int)


class InactiveReason(Enum):
    """Why a token is inactive, in the order of decision. The names are those of the API."""

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


class InactiveTokenError(Exception):
    """A check of a token failed.

    Args:
        reason: The first check that failed.
    """

    def __init__(self, reason: InactiveReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The claims of an access token whose signature is good. Times are Unix seconds."""

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


def check_form(text: str) -> None:
    """Check what needs no decoding.

    Raises:
        InactiveTokenError: The text is a refresh token, too long, or not ASCII.
    """
    if text.startswith(REFRESH_TOKEN_PREFIX):
        raise InactiveTokenError(InactiveReason.WRONG_TYPE)
    if len(text) > MAX_TOKEN_LENGTH or not text.isascii():
        raise InactiveTokenError(InactiveReason.MALFORMED)


def verify_signature(text: str, ring: KeyRing, now_seconds: int) -> tuple[Key, AccessToken]:
    """Return the claims of a token that a key of the ring signed, and that key.

    Args:
        text: A token that passed check_form.
        ring: The keys that may have signed it.
        now_seconds: Unix seconds; keys retired by then verify nothing.

    Raises:
        InactiveTokenError: The token is malformed, of another type, or its signature is wrong.
    """
    match = _SEGMENTS.fullmatch(text)  # unlike `$`, fullmatch accepts no trailing newline
    if match is None:
        raise InactiveTokenError(InactiveReason.MALFORMED)
    header, payload, signature = (_decode_segment(segment) for segment in match.groups())
    key = _find_key(_parse_object(header), ring, now_seconds)
    if key is None or not key.verify(text.rpartition(".")[0].encode(), signature):
        raise InactiveTokenError(InactiveReason.BAD_SIGNATURE)
    return key, _parse_claims(_parse_object(payload))


def check_claims(token: AccessToken, issuer: str, audience: str, now_seconds: int) -> None:
    """Check the claims whose verdict depends on the deployment or on the time.

    Raises:
        InactiveTokenError: The token is of another issuer or audience, expired, or not yet valid.
    """
    if token.issuer != issuer:
        raise InactiveTokenError(InactiveReason.WRONG_ISSUER)
    if token.audience != audience:
        raise InactiveTokenError(InactiveReason.WRONG_AUDIENCE)
    if now_seconds >= token.expires_at + LEEWAY_SECONDS:
        raise InactiveTokenError(InactiveReason.EXPIRED)
    if now_seconds < max(token.issued_at, token.not_before) - LEEWAY_SECONDS:
        raise InactiveTokenError(InactiveReason.NOT_YET_VALID)


def _decode_segment(segment: str) -> bytes:
    try:
        return base64url.decode(segment)
    except ValueError:
        raise InactiveTokenError(InactiveReason.MALFORMED) from None


def _find_key(header: Mapping[str, Any], ring: KeyRing, now_seconds: int) -> Key | None:
    """Return the key that a header names; None where the ring has none for the header's algorithm."""
    if header.keys() != _HEADER_MEMBERS or not all(isinstance(value, str) for value in header.values()):
        raise InactiveTokenError(InactiveReason.MALFORMED)
    if header["typ"] != ACCESS_TOKEN_TYPE:
        raise InactiveTokenError(InactiveReason.WRONG_TYPE)
    key = ring.get(header["kid"], now_seconds)
    return key if key is not None and key.alg == header["alg"] else None


def _parse_claims(claims: Mapping[str, Any]) -> AccessToken:
    """Return claims as a token; each must be present and of its exact type."""
    issued_at = _claim(claims, "iat", int)
    token = AccessToken(
        issuer=sys.intern(_claim(claims, "iss", str)),  # equal in all cached tokens: stored once
        audience=sys.intern(_claim(claims, "aud", str)),
        user_id=_claim(claims, "sub", str),
        client_id=sys.intern(_claim(claims, "client_id", str)),
        session_id=_claim(claims, "sid", str),
        token_id=_claim(claims, "jti", str),
        token_generation=_claim(claims, "gen", int),
        issued_at=issued_at,
        expires_at=_claim(claims, "exp", int),
        not_before=_claim(claims, "nbf", int) if "nbf" in claims else issued_at,
    )
    try:
        fields.user_id(token.user_id)
    except InvalidFieldError:
        raise InactiveTokenError(InactiveReason.MALFORMED) from None
    lifetime_seconds = token.expires_at - token.issued_at
    if not 0 <= lifetime_seconds <= ACCESS_TOKEN_MAX_LIFETIME.total_seconds():
        raise InactiveTokenError(InactiveReason.MALFORMED)
    return token


def _claim(claims: Mapping[str, Any], name: str, expected: type[T]) -> T:
    value = claims.get(name)
    if type(value) is not expected or value == "":  # isinstance would accept a bool as an int
        raise InactiveTokenError(InactiveReason.MALFORMED)
    return value


def _parse_object(text: bytes) -> Mapping[str, Any]:
    """Return a JSON object, refusing duplicate members, NaN, lone surrogates and deep nesting."""
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique_members, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # fails for an escaped lone surrogate
    except (ValueError, RecursionError):
        raise InactiveTokenError(InactiveReason.MALFORMED) from None
    if not isinstance(value, dict):
        raise InactiveTokenError(InactiveReason.MALFORMED)
    return value


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
