"""Use cases on sessions: begin, refresh, list, revoke."""

import asyncio
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from authsvc import fields, request_context
from authsvc.errors import (
    InvalidRefreshTokenError,
    RefreshTokenReusedError,
    StoreUnavailableError,
    UserNotFoundError,
)
from authsvc.models import ACCESS_TOKEN_MAX_LIFETIME, Clock, Session, User
from authsvc.stores.interface import Store
from authsvc.telemetry import audit
from authsvc.telemetry.audit import Event
from authsvc.throttling.budgets import source_of
from authsvc.tokens import refresh_tokens
from authsvc.tokens.access_tokens import AccessTokens, IssuedToken
from authsvc.tokens.refresh_tokens import RefreshToken, digest

DEFAULT_CLIENT_ID = "authsvc"
"""Claim `client_id` where callers are not configured."""
HOST_SKEW = timedelta(seconds=5)
"""Tolerated difference between the clocks of hosts that refresh one session."""
MAX_ROTATION_ATTEMPTS = 3
"""The second attempt sees what a concurrent refresh has written."""


@dataclass(frozen=True, slots=True)
class SessionLifetimes:
    """How long sessions last.

    Args:
        idle: Lifetime of an unused refresh token.
        maximum: Lifetime of a session, however often it is refreshed.
        refresh_grace: How long after a refresh the previous refresh token returns the current one: for lost answers and
            parallel tabs. Zero: never.
    """

    idle: timedelta
    maximum: timedelta
    refresh_grace: timedelta


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that a login or a refresh returns."""

    access_token: IssuedToken
    refresh_token: RefreshToken
    refresh_token_expire_time: datetime


class Sessions:
    """The use cases, on one store with one key ring."""

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
        """Begin a session.

        Args:
            user: As read when the password was verified: the session belongs to that token generation.
            client_address: In canonical form, or empty.
            client_label: Shown in session lists.
        """
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
        """Return new tokens for a refresh token, and replace it.

        Within the grace the previous refresh token returns the current one again, so a lost answer or two parallel tabs
        do no harm. Any other replaced token is a stolen copy, and ends the session.

        Args:
            text: The refresh token.
            client_address: As it arrived, for the log.

        Raises:
            InvalidFieldError: A field is malformed, or the token is empty.
            InvalidRefreshTokenError: The token is refused; the log alone says why.
        """
        source = fields.client_address(client_address)
        token = refresh_tokens.parse(fields.token(text, "refresh_token"))
        user_id, session_id = (None, None) if token is None else (token.user_id, token.session_id)
        try:
            tokens = await self._refresh(token, source)
        except InvalidRefreshTokenError as error:
            is_reuse = isinstance(error, RefreshTokenReusedError)
            event = Event.REFRESH_TOKEN_REUSE if is_reuse else Event.REFRESH_REFUSED
            audit.record(event, reason=error.reason, user_id=user_id, session_id=session_id, source=source)
            raise
        audit.record(Event.REFRESH, user_id=user_id, session_id=session_id, source=source)
        return tokens

    async def _refresh(self, token: RefreshToken | None, source: str) -> Tokens:
        if token is None:
            raise InvalidRefreshTokenError("malformed")
        for _ in range(MAX_ROTATION_ATTEMPTS):
            session = await self._get_live_session(token)
            tokens = await self._rotate_or_replay(session, token, source)
            if tokens is not None:
                return tokens
        raise StoreUnavailableError("the session keeps changing")

    async def _get_live_session(self, token: RefreshToken) -> Session:
        """Return the live session of a refresh token with the right session part."""
        session, user = await asyncio.gather(
            self._store.get_session(token.user_id, token.session_id), self._find_user(token.user_id)
        )
        if session is None:
            raise InvalidRefreshTokenError("unknown_session")
        if not _has_session_part(session, token):
            raise InvalidRefreshTokenError("wrong_session_part")
        if session.expire_time <= self._clock():
            raise InvalidRefreshTokenError("expired")
        if user is None or not user.is_active or user.has_ended_session(session.session_id, session):
            raise InvalidRefreshTokenError("ended")
        return session

    async def _rotate_or_replay(self, session: Session, token: RefreshToken, source: str) -> Tokens | None:
        """Return new tokens; None where a concurrent refresh won."""
        presented = digest(token.rotating_part)
        if presented == session.rotating_part_sha256:
            return await self._rotate(session, token)
        if presented == session.previous_part_sha256 and self._is_within_grace(session):
            _record_replay_elsewhere(session, source)
            return self._replay(session, token)
        await self._store.end_session(token.user_id, token.session_id, self._clock(), None)
        raise RefreshTokenReusedError

    async def _rotate(self, session: Session, token: RefreshToken) -> Tokens | None:
        now = self._clock()
        nonce = refresh_tokens.new_nonce()
        next_token = refresh_tokens.next_token(token, nonce)
        access_token = self._issue(session, now, session.max_expire_time)
        idle_expire_time = now.replace(microsecond=0) + self._lifetimes.idle
        # A replay at the end of the grace issues the last token of this rotation.
        last_replay_expire_time = min(access_token.expire_time + self._lifetimes.refresh_grace, session.max_expire_time)
        rotated = replace(
            session,
            rotating_part_sha256=digest(next_token.rotating_part),
            previous_part_sha256=session.rotating_part_sha256,
            rotation_nonce=nonce,
            last_refresh_time=now,
            expire_time=min(idle_expire_time, session.max_expire_time),
            last_token_expire_time=max(last_replay_expire_time, session.last_token_expire_time),
        )
        if not await self._store.rotate_refresh_token(session, rotated):
            return None
        return Tokens(access_token, next_token, rotated.expire_time)

    def _is_within_grace(self, session: Session) -> bool:
        """Return whether the last rotation is within the grace; another host's clock may have written its time."""
        grace = self._lifetimes.refresh_grace
        if session.last_refresh_time is None or not grace:
            return False
        return -HOST_SKEW <= self._clock() - session.last_refresh_time <= grace

    def _replay(self, session: Session, token: RefreshToken) -> Tokens:
        """Return the refresh token of the last rotation again, with an access token that the session accounts for."""
        next_token = refresh_tokens.next_token(token, session.rotation_nonce or b"")
        access_token = self._issue(session, self._clock(), session.last_token_expire_time)
        return Tokens(access_token, next_token, session.expire_time)

    async def revoke(self, text: str) -> None:
        """End the session of an access or refresh token, expired or not.

        A text that is neither changes nothing (RFC 7009 §2.2).

        Raises:
            InvalidFieldError: The text is empty.
        """
        refresh_token = refresh_tokens.parse(fields.token(text))
        now = self._clock()
        if refresh_token is not None:
            await self._revoke_by_refresh_token(refresh_token)
        elif ids := self._tokens.identify_session(text, now):
            await self._end(*ids, "access_token", now + ACCESS_TOKEN_MAX_LIFETIME)

    async def _revoke_by_refresh_token(self, token: RefreshToken) -> None:
        session = await self._store.get_session(token.user_id, token.session_id)
        if session is not None and _has_session_part(session, token):
            await self._end(token.user_id, token.session_id, "refresh_token")

    async def revoke_sessions(self, user_id: str, session_ids: Sequence[str]) -> None:
        """End sessions of a user; the id of another user's session changes nothing.

        Raises:
            InvalidFieldError: A field is malformed.
            UserNotFoundError: There is no such user.
        """
        user = await self._store.get_user(fields.user_id(user_id))
        for session_id in fields.session_ids(session_ids):
            await self._end(user.user_id, session_id, "admin")

    async def _end(
        self, user_id: str, session_id: str, reason: str, revoke_until_if_missing: datetime | None = None
    ) -> None:
        if await self._store.end_session(user_id, session_id, self._clock(), revoke_until_if_missing):
            audit.record(Event.SESSION_REVOKED, reason=reason, user_id=user_id, session_id=session_id)

    async def list_sessions(self, user_id: str, page_size: int, page_token: str) -> tuple[Sequence[Session], str]:
        """Return live sessions of a user, and the token of the next page, empty on the last one.

        Raises:
            InvalidFieldError: A field is malformed.
            UserNotFoundError: There is no such user.
        """
        limit = fields.page_size(page_size)
        after = fields.decode_page_token(page_token, fields.SESSION_ID_MAX_BYTES)
        user = await self._store.get_user(fields.user_id(user_id))
        page = await self._store.list_sessions(user.user_id, limit, after)
        now = self._clock()
        live = [s for s in page.sessions if s.expire_time > now and not user.has_ended_session(s.session_id, s)]
        return live, fields.encode_page_token(page.last_session_id)

    async def _find_user(self, user_id: str) -> User | None:
        try:
            return await self._store.get_user(user_id)
        except UserNotFoundError:
            return None


def _record_replay_elsewhere(session: Session, source: str) -> None:
    """Record a replay from another source than that of the login: perhaps somebody else has the token."""
    login_source = session.client_address
    if source and login_source and source_of(source) != source_of(login_source):
        ids = {"user_id": session.user_id, "session_id": session.session_id}
        audit.record(Event.REFRESH_REPLAYED_ELSEWHERE, **ids, source=source, login_source=login_source)


def _has_session_part(session: Session, token: RefreshToken) -> bool:
    """Return whether a token has the session's secret part: a session id alone, which logs show, ends no session."""
    return hmac.compare_digest(digest(token.session_part), session.session_part_sha256)
