"""Access tokens of one issuer for one audience: issued, verified, and their verified signatures cached."""

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import jwt

from authsvc.telemetry import metrics
from authsvc.tokens.keys import Key, KeyRing
from authsvc.tokens.verification import (
    ACCESS_TOKEN_TYPE,
    AccessToken,
    InactiveReason,
    InactiveTokenError,
    check_claims,
    check_form,
    verify_signature,
)

CACHE_SIZE = 16_384
"""Verified tokens, about 12 MiB. An evicted token costs one more signature check."""
TOKEN_ID_BYTES = 16

_count_miss = metrics.CACHE_MISSES.labels("verified_tokens").inc


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A new access token.

    Args:
        text: Secret.
    """

    text: str = field(repr=False)
    expire_time: datetime


class AccessTokens:
    """Issues and verifies access tokens.

    Args:
        ring: The keys.
        issuer: Claim `iss`.
        audience: Claim `aud`.
        lifetime: How long a new token is valid, at most ACCESS_TOKEN_MAX_LIFETIME.
        cache_capacity: How many verified tokens are cached.
    """

    def __init__(
        self, ring: KeyRing, issuer: str, audience: str, lifetime: timedelta, cache_capacity: int = CACHE_SIZE
    ) -> None:
        self.ring = ring
        self._issuer = issuer
        self._audience = audience
        self._lifetime = lifetime
        self._cache_capacity = cache_capacity
        self._cache: OrderedDict[bytes, tuple[Key, AccessToken]] = OrderedDict()

    @property
    def cache_size(self) -> int:
        """How many verified tokens are cached."""
        return len(self._cache)

    def issue(  # noqa: PLR0913 - a token has this many claims
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
            user_id: Claim `sub`.
            session_id: Claim `sid`.
            token_generation: Claim `gen`: the user's generation when the session began.
            client_id: Claim `client_id`: the name of the calling service.
            now: Time of issue.
            not_after: End of the session, which the token does not outlive.
        """
        expires_at = int(min(now + self._lifetime, not_after).timestamp())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": user_id,
            "client_id": client_id,
            "iat": int(now.timestamp()),
            "exp": expires_at,
            "jti": secrets.token_urlsafe(TOKEN_ID_BYTES),
            "sid": session_id,
            "gen": token_generation,
        }
        key = self.ring.signing_key
        header = {"kid": key.kid, "typ": ACCESS_TOKEN_TYPE}
        text = jwt.encode(claims, key.private_key, algorithm=key.alg, headers=header)
        return IssuedToken(text, datetime.fromtimestamp(expires_at, UTC))

    def verify(self, text: str, now: datetime) -> AccessToken | InactiveReason:
        """Make every check of a token that needs no store.

        Args:
            text: Anything; what is not a token is inactive.
            now: Time at which the token is verified.

        Returns:
            The token's claims, or why it is inactive.
        """
        try:
            return self.check(text, now)
        except InactiveTokenError as error:
            return error.check.reason

    def check(self, text: str, now: datetime) -> AccessToken:
        """Do the same; raise where the token is inactive.

        Raises:
            InactiveTokenError: The first check that failed.
        """
        now_seconds = int(now.timestamp())
        token = self._verify_signature(text, now_seconds)
        check_claims(token, self._issuer, self._audience, now_seconds)
        return token

    def identify_session(self, text: str, now: datetime) -> tuple[str, str] | None:
        """Return user id and session id of a token of this service, expired or not; None for anything else."""
        try:
            token = self._verify_signature(text, int(now.timestamp()))
        except InactiveTokenError:
            return None
        is_own = (token.issuer, token.audience) == (self._issuer, self._audience)
        return (token.user_id, token.session_id) if is_own else None

    def _verify_signature(self, text: str, now_seconds: int) -> AccessToken:
        """Return the claims of a token that a key of the ring signed, from the cache where they are in it."""
        check_form(text)
        digest = hashlib.blake2b(text.encode(), digest_size=32).digest()
        key, token = self._cache.get(digest, (None, None))
        # A key that was removed, retired or replaced under its kid invalidates its cached tokens.
        if key is not None and token is not None and self.ring.get(key.kid, now_seconds) is key:
            return token
        _count_miss()
        key, token = verify_signature(text, self.ring, now_seconds)
        if len(self._cache) >= self._cache_capacity:
            self._cache.popitem(last=False)
        self._cache[digest] = (key, token)
        return token
