"""Use cases on sessions: beginning, refreshing, listing and ending them."""

import asyncio
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from authsvc import fields, request_context
from authsvc.errors import InvalidRefreshTokenError, StoreUnavailableError, UserNotFoundError
from authsvc.models import ACCESS_TOKEN_MAX_LIFETIME, Clock, Session, User
from authsvc.stores.interface import Store
from authsvc.telemetry import audit
from authsvc.telemetry.audit import Event
from authsvc.tokens import refresh_tokens
from authsvc.tokens.access_tokens import AccessTokens, IssuedToken
from authsvc.tokens.refresh_tokens import RefreshToken, digest

DEFAULT_CLIENT_ID = "authsvc"
"""Claim `client_id` where callers are not told apart."""
REUSE_GRACE = timedelta(seconds=10)
"""How long the refresh token before the current one gives the current one again: lost answers, two tabs."""
HOST_SKEW = timedelta(seconds=5)
"""Difference between the clocks of hosts that refresh one session."""
_ROTATIONS = 3
"""Tries of one refresh: the second finds what a concurrent one has done."""
_REUSED = "reused"


@dataclass(frozen=True, slots=True)
class SessionLifetimes:
    """How long sessions last.

    Args:
        idle: How long a refresh token is good unless used.
        maximum: How long a session is good, however much it is used.
    """

    idle: timedelta
    maximum: timedelta


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a login or a refresh hands out."""

    access_token: IssuedToken
    refresh_token: RefreshToken
    refresh_token_expire_time: datetime


class Sessions:
    """The use cases, on one store with one ring of keys."""

    def __init__(self, store: Store, tokens: AccessTokens, lifetimes: SessionLifetimes, clock: Clock) -> None:
        self._store = store
        self._tokens = tokens
        self._lifetimes = lifetimes
        self._clock = clock

    @property
    def jwks(self) -> str:
        """The public keys, as a JSON Web Key Set (RFC 7517)."""
        return self._tokens.ring.jwks(self._clock().timestamp())

    async def begin(self, user: User, client_address: str, client_label: str) -> Tokens:
        """Begin a session of a user who proved to be one, in the generation that was read at the proof."""
        now = self._clock().replace(microsecond=0)
        refresh_token = refresh_tokens.new_refresh_token(user.user_id)
        max_expire_time = now + self._lifetimes.maximum
        session = Session(
            user_id=user.user_id,
            session_id=refresh_token.session_id,
            token_generation=user.token_generation,
            session_part_sha256=digest(refresh_token.session_part),
            rotating_part_sha256=digest(refresh_token.rotating_part),
            create_time=now,
            expire_time=min(now + self._lifetimes.idle, max_expire_time),
            max_expire_time=max_expire_time,
            last_token_expire_time=max_expire_time,
            client_label=client_label,
            client_address=client_address,
        )
        access_token = self._issue(session, now, session.max_expire_time)
        await self._store.create_session(replace(session, last_token_expire_time=access_token.expire_time))
        return Tokens(access_token, refresh_token, session.expire_time)

    def _issue(self, session: Session, now: datetime, not_after: datetime) -> IssuedToken:
        return self._tokens.issue(
            user_id=session.user_id,
            session_id=session.session_id,
            token_generation=session.token_generation,
            client_id=request_context.caller.get(DEFAULT_CLIENT_ID),
            now=now,
            not_after=not_after,
        )

    async def refresh(self, text: str, client_address: str) -> Tokens:
        """Give new tokens for a refresh token, which is replaced by its successor.

        A lost answer or two tabs do no harm: within REUSE_GRACE the token before the current one gives the current one
        again. Any other old token is a copy in somebody's hands, and ends the session.

        Args:
            text: Anything but an empty text.
            client_address: As it arrived, for the log.

        Raises:
            InvalidFieldError: A field is malformed, or the token is empty.
            InvalidRefreshTokenError: It gives nothing; the log alone says why.
        """
        source = fields.client_address(client_address)
        token = refresh_tokens.parse(fields.token(text, "refresh_token"))
        user_id, session_id = (None, None) if token is None else (token.user_id, token.session_id)
        try:
            tokens = await self._refreshed(token)
        except InvalidRefreshTokenError as error:
            event = Event.REFRESH_TOKEN_REUSE if error.reason == _REUSED else Event.REFRESH_REFUSED
            audit.record(event, reason=error.reason, user_id=user_id, session_id=session_id, source=source)
            raise
        audit.record(Event.REFRESH, user_id=user_id, session_id=session_id, source=source)
        return tokens

    async def _refreshed(self, token: RefreshToken | None) -> Tokens:
        if token is None:
            raise InvalidRefreshTokenError("malformed")
        for _ in range(_ROTATIONS):
            session = await self._refreshable(token)
            tokens = await self._rotate_or_replay(session, token)
            if tokens is not None:
                return tokens
        raise StoreUnavailableError("the session keeps changing")

    async def _refreshable(self, token: RefreshToken) -> Session:
        """Return the living session of a refresh token; whoever lacks its session part changes nothing."""
        session, user = await asyncio.gather(
            self._store.get_session(token.user_id, token.session_id), self._user_or_none(token.user_id)
        )
        if session is None:
            raise InvalidRefreshTokenError("unknown_session")
        if not hmac.compare_digest(digest(token.session_part), session.session_part_sha256):
            raise InvalidRefreshTokenError("wrong_session_part")
        if session.expire_time <= self._clock():
            raise InvalidRefreshTokenError("expired")
        if user is None or not user.is_active or user.has_ended_session(session.session_id, session):
            raise InvalidRefreshTokenError("ended")
        return session

    async def _rotate_or_replay(self, session: Session, token: RefreshToken) -> Tokens | None:
        """Return the tokens that follow, None where a concurrent refresh came first."""
        presented = digest(token.rotating_part)
        if presented == session.rotating_part_sha256:
            return await self._rotate(session, token)
        if presented == session.previous_part_sha256 and self._is_recent(session):
            return self._replay(session, token)
        await self._store.end_session(token.user_id, token.session_id, self._clock(), None)
        raise InvalidRefreshTokenError(_REUSED)

    async def _rotate(self, session: Session, token: RefreshToken) -> Tokens | None:
        now = self._clock()
        nonce = refresh_tokens.new_nonce()
        following = refresh_tokens.next_token(token, nonce)
        access_token = self._issue(session, now, session.max_expire_time)
        idle_expire_time = now.replace(microsecond=0) + self._lifetimes.idle
        rotated = replace(
            session,
            rotating_part_sha256=digest(following.rotating_part),
            previous_part_sha256=session.rotating_part_sha256,
            rotation_nonce=nonce,
            last_refresh_time=now,
            expire_time=min(idle_expire_time, session.max_expire_time),
            last_token_expire_time=max(self._last_expiry(access_token, session), session.last_token_expire_time),
        )
        if not await self._store.rotate_refresh_token(session, rotated):
            return None
        return Tokens(access_token, following, rotated.expire_time)

    @staticmethod
    def _last_expiry(access_token: IssuedToken, session: Session) -> datetime:
        """Return when the last token is over that this rotation can give, repeated at the end of the grace."""
        return min(access_token.expire_time + REUSE_GRACE, session.max_expire_time)

    def _is_recent(self, session: Session) -> bool:
        """Tell whether the last rotation is within the grace, by the clock of whichever host."""
        since = self._clock() - session.last_refresh_time if session.last_refresh_time else REUSE_GRACE * 2
        return -HOST_SKEW <= since <= REUSE_GRACE

    def _replay(self, session: Session, token: RefreshToken) -> Tokens:
        """Give what the last rotation gave; no access token of it outlives what the session has recorded."""
        following = refresh_tokens.next_token(token, session.rotation_nonce or b"")
        access_token = self._issue(session, self._clock(), session.last_token_expire_time)
        return Tokens(access_token, following, session.expire_time)

    async def revoke(self, text: str) -> None:
        """End the session of an access or refresh token, expired or not; what is neither changes nothing (RFC 7009).

        Raises:
            InvalidFieldError: The token is empty.
        """
        refresh_token = refresh_tokens.parse(fields.token(text))
        now = self._clock()
        if refresh_token is not None:
            await self._revoke_by_refresh_token(refresh_token)
        elif owner := self._tokens.identify_session(text, now):
            await self._end(*owner, "access_token", now + ACCESS_TOKEN_MAX_LIFETIME)

    async def _revoke_by_refresh_token(self, token: RefreshToken) -> None:
        session = await self._store.get_session(token.user_id, token.session_id)
        if session is None or not hmac.compare_digest(digest(token.session_part), session.session_part_sha256):
            return
        await self._end(token.user_id, token.session_id, "refresh_token")

    async def _end(
        self, user_id: str, session_id: str, reason: str, revoke_until_if_missing: datetime | None = None
    ) -> None:
        if await self._store.end_session(user_id, session_id, self._clock(), revoke_until_if_missing):
            audit.record(Event.SESSION_REVOKED, reason=reason, user_id=user_id, session_id=session_id)

    async def list_sessions(self, user_id: str, page_size: int, page_token: str) -> tuple[Sequence[Session], str]:
        """Return living sessions of a user, and the token of the next page, empty on the last one.

        Raises:
            InvalidFieldError: A field is malformed.
            UserNotFoundError: There is no such user.
        """
        limit = fields.page_size(page_size)
        after = fields.key_of(page_token)
        user = await self._store.get_user(fields.user_id(user_id))
        page = await self._store.list_sessions(user.user_id, limit, after)
        now = self._clock()
        living = [s for s in page.sessions if s.expire_time > now and not user.has_ended_session(s.session_id, s)]
        return living, fields.token_of(page.last_session_id)

    async def revoke_sessions(self, user_id: str, session_ids: Sequence[str]) -> None:
        """End sessions of a user; one that is not that user's changes nothing.

        Raises:
            InvalidFieldError: A field is malformed.
            UserNotFoundError: There is no such user.
        """
        user = await self._store.get_user(fields.user_id(user_id))
        for session_id in fields.session_ids(session_ids):
            await self._end(user.user_id, session_id, "admin")

    async def _user_or_none(self, user_id: str) -> User | None:
        try:
            return await self._store.get_user(user_id)
        except UserNotFoundError:
            return None
