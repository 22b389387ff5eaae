"""Use cases on passwords: logging in and changing one. Here the security steps of both are put in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from authsvc import fields
from authsvc.errors import (
    CorruptItemError,
    InvalidCredentialsError,
    LoginRefusedError,
    OverloadedError,
    PasswordChangeRequiredError,
    PasswordRejectedError,
    StoreUnavailableError,
    TooManyAttemptsError,
    UserChangedError,
    UserNotFoundError,
)
from authsvc.models import Clock, Email, User
from authsvc.passwords import hashes, policy
from authsvc.passwords.hash_queue import HashQueue
from authsvc.stores.interface import EmailOwner, Store
from authsvc.telemetry import audit, metrics
from authsvc.telemetry.audit import Event
from authsvc.telemetry.logs import email_digest
from authsvc.throttling.login_throttle import Attempt, LoginThrottle
from authsvc.throttling.pace import RefusalPacer
from authsvc.usecases.optimistic_lock import MAX_UPDATE_ATTEMPTS
from authsvc.usecases.sessions import Sessions, Tokens

_log = structlog.get_logger(__name__)


class Logins:
    """The use cases, on one store.

    Args:
        password_min_length: Of new passwords, in code points.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - a login brings all of these together
        self,
        store: Store,
        attempts: LoginThrottle,
        hashing: HashQueue,
        sessions: Sessions,
        clock: Clock,
        password_min_length: int,
    ) -> None:
        self._store = store
        self._attempts = attempts
        self._hashing = hashing
        self._sessions = sessions
        self._clock = clock
        self._password_min_length = password_min_length
        self._refusals = RefusalPacer()

    async def authenticate(
        self, *, email: str, password: str, client_address: str, client_label: str
    ) -> tuple[Tokens, User]:
        """Check an address and a password, and begin a session.

        Args are those of the request, as they arrived.

        Raises:
            InvalidFieldError: A field is empty, too long or malformed.
            InvalidCredentialsError: They let nobody in; the log alone says why.
            PasswordChangeRequiredError: The password is a temporary one.
            TooManyAttemptsError: Too many passwords were wrong before; this one was not looked at.
            OverloadedError: Too many passwords wait to be checked.
        """
        address = fields.parse_email(email)
        secret = fields.password(password)
        client_address = fields.client_address(client_address)
        client_label = fields.client_label(client_label)
        async with self._audited_attempt(address.normal, client_address) as attempt:
            user = await self._check_password(await self._find(address), secret, attempt)
            if user.password_change_required:
                raise PasswordChangeRequiredError("password_change_required", user.user_id)
            await self._rehash_if_outdated(user, secret)
            tokens = await self._sessions.begin(user, client_address, client_label)
        _record_login(tokens, client_address)
        return tokens, user

    async def change_password(
        self, *, email: str, current_password: str, new_password: str, client_address: str, client_label: str
    ) -> Tokens:
        """Replace a password, ending every session of the user, and begin a new one.

        Args are those of the request, as they arrived.

        Raises:
            InvalidFieldError: A field is empty, too long or malformed.
            PasswordRejectedError: The new password is against the policy.
            InvalidCredentialsError: Address and current password let nobody in; the log alone says why.
            TooManyAttemptsError: Too many passwords were wrong before; this one was not looked at.
            OverloadedError: Too many passwords wait to be checked.
        """
        address = fields.parse_email(email)
        secret = fields.password(current_password, "current_password")
        new_secret = fields.password(new_password, "new_password")
        client_address = fields.client_address(client_address)
        client_label = fields.client_label(client_label)
        policy.check_policy(new_secret, address.normal, self._password_min_length, "new_password")
        if new_secret == secret:
            raise PasswordRejectedError("new_password", "is the current password")
        async with self._audited_attempt(address.normal, client_address) as attempt:
            user = await self._check_password(await self._find(address), secret, attempt)
            changed = await self._replace_password(user, await self._hashing.hash(new_secret))
            audit.record(Event.PASSWORD_CHANGED, user_id=user.user_id, source=client_address)
            tokens = await self._sessions.begin(changed, client_address, client_label)
        _record_login(tokens, client_address)
        return tokens

    @asynccontextmanager
    async def _audited_attempt(self, address: str, client_address: str) -> AsyncIterator[Attempt]:
        """Reserve a try for the body, and put on record why it lets nobody in, which the client must not learn."""
        try:
            async with self._attempts.reserved(address, client_address) as attempt:
                yield attempt
        except TooManyAttemptsError as error:
            digest = email_digest(address)
            audit.record(Event.LOGIN_THROTTLED, reason=error.counter, email_digest=digest, source=client_address)
            await self._refusals.turn()
            raise
        except (LoginRefusedError, OverloadedError, StoreUnavailableError, asyncio.CancelledError) as error:
            reason, user_id = _why(error)
            audit.record(
                Event.LOGIN_REFUSED,
                reason=reason,
                email_digest=email_digest(address),
                user_id=user_id,
                source=client_address,
            )
            if isinstance(error, OverloadedError):
                await self._refusals.turn()
            raise

    async def _replace_password(self, verified: User, password_hash: str) -> User:
        """Write a new hash over the one whose password was proved, and end every session."""
        user = verified
        for _ in range(MAX_UPDATE_ATTEMPTS):
            changed = replace(
                user,
                password_hash=password_hash,
                token_generation=user.token_generation + 1,
                revoked_sessions=frozenset(),
                password_change_required=False,
                temporary_password_expire_time=None,
                update_time=self._clock(),
            )
            try:
                await self._store.update_user(user, changed)
            except UserChangedError:
                user = await self._read_again(verified)
            else:
                return changed
        raise StoreUnavailableError("the user keeps changing")

    async def _read_again(self, verified: User) -> User:
        """Return a user who changed meanwhile, but for what was proved: the proof holds for nothing else."""
        try:
            user = await self._store.get_user(verified.user_id)
        except (UserNotFoundError, CorruptItemError):
            raise InvalidCredentialsError("changed_meanwhile", verified.user_id) from None
        if not user.is_active or (user.email, user.password_hash) != (verified.email, verified.password_hash):
            raise InvalidCredentialsError("changed_meanwhile", verified.user_id)
        return user

    async def _find(self, email: Email) -> EmailOwner | None:
        """Return who may log in by an address; None costs the same as somebody."""
        try:
            return await self._store.get_user_by_email(email)
        except (UserNotFoundError, CorruptItemError):
            return None

    async def _check_password(self, owner: EmailOwner | None, secret: str, attempt: Attempt) -> User:
        """Return the user whose password it is, who may be due to change it.

        Raises:
            InvalidCredentialsError: For whatever reason, at the same cost.
        """
        user = None if owner is None else owner.user
        stored = None if user is None else user.password_hash
        is_right = await self._hashing.verify(secret, stored, attempt.place, attempt.begin)
        if owner is None or user is None:
            raise InvalidCredentialsError("unknown_email")
        reason = self._reason_to_refuse(user, is_right=is_right)
        if reason is not None:
            raise InvalidCredentialsError(reason, user.user_id)
        if not owner.is_claimed and not await self._store.claim_email(user):
            raise InvalidCredentialsError("email_owned_by_another", user.user_id)
        attempt.is_right = True
        return user

    def _reason_to_refuse(self, user: User, *, is_right: bool) -> str | None:
        if user.password_hash is None:
            return "no_password"
        if hashes.stored_cost(user.password_hash) is None:
            metrics.CORRUPT_ITEMS.inc()
            _log.error("row_broken", table="users", user_id=user.user_id, attribute="password_hash")
            return "unreadable_hash"
        if not is_right:
            return "wrong_password"
        if not user.is_active:
            return "user_disabled"
        expire_time = user.temporary_password_expire_time
        if user.password_change_required and expire_time is not None and self._clock() >= expire_time:
            return "temporary_password_expired"
        return None

    async def _rehash_if_outdated(self, user: User, secret: str) -> None:
        """Replace a hash of lower cost than configured, now that its password is known.

        One that loses a race is dropped, or it would bring an old password back; one for which there is no time, too.
        """
        cost = None if user.password_hash is None else hashes.stored_cost(user.password_hash)
        if cost is None or cost >= self._hashing.cost:
            return
        try:
            stronger = replace(user, password_hash=await self._hashing.hash(secret))
            await self._store.update_user(user, stronger)
        except (UserChangedError, OverloadedError):
            _log.info("rehash_dropped", user_id=user.user_id)


def _record_login(tokens: Tokens, source: str) -> None:
    begun = tokens.refresh_token
    audit.record(Event.LOGIN, user_id=begun.user_id, session_id=begun.session_id, source=source)


def _why(error: BaseException) -> tuple[str, str | None]:
    """Return for the record why a try let nobody in, and whose it was."""
    match error:
        case LoginRefusedError():
            return error.reason, error.user_id
        case OverloadedError():
            return "overloaded", None
        case StoreUnavailableError():
            return "store_unavailable", None
        case _:
            return "client_gone", None
