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
from authsvc.tokens.json_members import unique_members
from authsvc.tokens.keys import Key, KeyRing
from authsvc.tokens.refresh_tokens import REFRESH_TOKEN_PREFIX

ACCESS_TOKEN_TYPE = "at+jwt"  # noqa: S105 - RFC 9068 §2.1
MAX_TOKEN_LENGTH = 8 * 1024
LEEWAY_SECONDS = int(LEEWAY.total_seconds())

NOT_AN_OBJECT = "not a JSON object, or one with duplicate members or deep nesting"
_HEADER_MEMBERS = {"alg", "kid", "typ"}
_CLAIM_FORMS = {str: "a text, not empty", int: "a whole number"}
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


class TokenCheck(Enum):
    """The checks of a token in the order of decision, those of its user last: the first that fails is the answer.

    Args:
        reason: Why a token that fails the check is inactive.
        requirement: What the check requires.
    """

    KIND = InactiveReason.WRONG_TYPE, "the token is not a refresh token"
    LENGTH = InactiveReason.MALFORMED, f"the token is ASCII of at most {MAX_TOKEN_LENGTH:,} characters"
    SEGMENTS = InactiveReason.MALFORMED, "the token is three segments of base64url, joined by dots"
    HEADER = InactiveReason.MALFORMED, "the header is a JSON object of alg, kid and typ, all strings"
    TYPE = InactiveReason.WRONG_TYPE, f"typ is {ACCESS_TOKEN_TYPE}"
    KEY = InactiveReason.BAD_SIGNATURE, "a current key has the kid and the alg"
    SIGNATURE = InactiveReason.BAD_SIGNATURE, "the signature is that key's"
    CLAIMS = InactiveReason.MALFORMED, "every claim is there and well-formed"
    ISSUER = InactiveReason.WRONG_ISSUER, "iss is the issuer of this service"
    AUDIENCE = InactiveReason.WRONG_AUDIENCE, "aud is the audience of this service"
    EXPIRY = InactiveReason.EXPIRED, f"exp is in the future, or less than {LEEWAY_SECONDS} s ago"
    START = InactiveReason.NOT_YET_VALID, f"iat and nbf are in the past, or at most {LEEWAY_SECONDS} s ahead"
    USER = InactiveReason.USER_NOT_FOUND, "the user exists"
    ENABLED = InactiveReason.USER_DISABLED, "the user is not disabled"
    SESSION = InactiveReason.SESSION_REVOKED, "the session is not revoked"

    def __init__(self, reason: InactiveReason, requirement: str) -> None:
        self.reason = reason
        self.requirement = requirement


class InactiveTokenError(Exception):
    """A check of a token failed.

    Args:
        check: The first check that failed.
        problem: What is wrong, where the check does not say it: a fixed text, without anything of the token.
    """

    def __init__(self, check: TokenCheck, problem: str = "") -> None:
        super().__init__(check.name)
        self.check = check
        self.problem = problem


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The claims of an access token whose signature is valid. Times are Unix seconds."""

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
        raise InactiveTokenError(TokenCheck.KIND)
    if len(text) > MAX_TOKEN_LENGTH or not text.isascii():
        raise InactiveTokenError(TokenCheck.LENGTH)


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
        raise InactiveTokenError(TokenCheck.SEGMENTS)
    header, payload, signature = (_decode_segment(segment) for segment in match.groups())
    key = _find_key(_parse_object(header, TokenCheck.HEADER), ring, now_seconds)
    if not key.verify(text.rpartition(".")[0].encode(), signature):
        raise InactiveTokenError(TokenCheck.SIGNATURE)
    return key, _parse_claims(_parse_object(payload, TokenCheck.CLAIMS))


def check_claims(token: AccessToken, issuer: str, audience: str, now_seconds: int) -> None:
    """Check the claims whose verdict depends on the deployment or on the time.

    Raises:
        InactiveTokenError: The token is of another issuer or audience, expired, or not yet valid.
    """
    if token.issuer != issuer:
        raise InactiveTokenError(TokenCheck.ISSUER)
    if token.audience != audience:
        raise InactiveTokenError(TokenCheck.AUDIENCE)
    if now_seconds >= token.expires_at + LEEWAY_SECONDS:
        raise InactiveTokenError(TokenCheck.EXPIRY)
    if now_seconds < max(token.issued_at, token.not_before) - LEEWAY_SECONDS:
        raise InactiveTokenError(TokenCheck.START)


def read_unverified(text: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return header and claims as anyone may have written them, for display alone; empty where they are unreadable."""
    header, payload, *_ = [*text.split(".", 2), ""]
    return _read_unverified(header), _read_unverified(payload)


def _read_unverified(segment: str) -> Mapping[str, Any]:
    try:
        return _parse_object(_decode_segment(segment), TokenCheck.SEGMENTS)
    except InactiveTokenError:
        return {}


def _decode_segment(segment: str) -> bytes:
    try:
        return base64url.decode(segment)
    except ValueError:
        raise InactiveTokenError(TokenCheck.SEGMENTS) from None


def _find_key(header: Mapping[str, Any], ring: KeyRing, now_seconds: int) -> Key:
    """Return the key of the ring that a header names."""
    if header.keys() != _HEADER_MEMBERS or not all(isinstance(value, str) for value in header.values()):
        raise InactiveTokenError(TokenCheck.HEADER)
    if header["typ"] != ACCESS_TOKEN_TYPE:
        raise InactiveTokenError(TokenCheck.TYPE)
    key = ring.get(header["kid"], now_seconds)
    if key is None or key.alg != header["alg"]:
        raise InactiveTokenError(TokenCheck.KEY)
    return key


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
    except InvalidFieldError as error:
        raise InactiveTokenError(TokenCheck.CLAIMS, f"sub {error.problem}") from None
    lifetime_seconds = token.expires_at - token.issued_at
    if not 0 <= lifetime_seconds <= ACCESS_TOKEN_MAX_LIFETIME.total_seconds():
        raise InactiveTokenError(TokenCheck.CLAIMS, "exp must be at most 24 hours after iat")
    return token


def _claim(claims: Mapping[str, Any], name: str, expected: type[T]) -> T:
    value = claims.get(name)
    if type(value) is not expected or value == "":  # isinstance would accept a bool as an int
        problem = "must be" if name in claims else "is missing:"
        raise InactiveTokenError(TokenCheck.CLAIMS, f"{name} {problem} {_CLAIM_FORMS[expected]}")
    return value


def _parse_object(text: bytes, check: TokenCheck) -> Mapping[str, Any]:
    """Return a JSON object, refusing duplicate members, NaN, lone surrogates and deep nesting."""
    try:
        value = json.loads(text.decode(), object_pairs_hook=unique_members, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # fails for an escaped lone surrogate
    except (ValueError, RecursionError):
        raise InactiveTokenError(check, NOT_AN_OBJECT) from None
    if not isinstance(value, dict):
        raise InactiveTokenError(check, NOT_AN_OBJECT)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
