"""Use cases on passwords: log in and change the password. The security steps of both are ordered here."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TypeVar

import structlog

from authsvc import fields, request_context
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
from authsvc.passwords import policy
from authsvc.passwords.hash_queue import HashQueue, QueueSlot
from authsvc.passwords.hashes import StoredHash, hash_problem, parse_stored_hash
from authsvc.stores.interface import EmailOwner, Store
from authsvc.telemetry import audit, metrics
from authsvc.telemetry.audit import Event
from authsvc.telemetry.logs import email_digest
from authsvc.throttling.login_throttle import LoginThrottle
from authsvc.throttling.refusal_pacer import RefusalPacer
from authsvc.usecases.optimistic_lock import retry_on_conflict
from authsvc.usecases.sessions import Sessions, Tokens

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class Logins:
    """The use cases, on one store.

    Args:
        password_min_length: Of new passwords, in code points.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - a login needs all of them
        self,
        store: Store,
        throttle: LoginThrottle,
        hash_queue: HashQueue,
        sessions: Sessions,
        clock: Clock,
        password_min_length: int,
    ) -> None:
        self._store = store
        self._throttle = throttle
        self._hash_queue = hash_queue
        self._hasher = hash_queue.hasher
        self._sessions = sessions
        self._clock = clock
        self._password_min_length = password_min_length
        self._refusal_pacer = RefusalPacer()

    async def authenticate(
        self, *, email: str, password: str, client_address: str, client_label: str
    ) -> tuple[Tokens, User]:
        """Verify an address and a password, and begin a session.

        Args are those of the request, as they arrived.

        Raises:
            InvalidFieldError: A field is empty, too long or malformed.
            InvalidCredentialsError: The login is refused; the log alone says why.
            PasswordChangeRequiredError: The password is a temporary one.
            TooManyAttemptsError: A budget of failed logins is used up; the password was not evaluated.
            OverloadedError: The hashing queue is full; the password was not evaluated.
        """
        address = fields.parse_email(email)
        passwords = fields.password_spellings(password)
        client_address = fields.client_address(client_address)
        client_label = fields.client_label(client_label)

        async def log_in(slot: QueueSlot) -> tuple[Tokens, User]:
            user, is_outdated = await self._verify_password(address, passwords, slot)
            if user.password_change_required:
                raise PasswordChangeRequiredError("password_change_required", user.user_id)
            if is_outdated:
                await self._rehash(user, passwords[0])
            return await self._begin_session(user, client_address, client_label), user

        return await self._attempt(address, client_address, log_in, hashes=len(passwords))

    async def change_password(
        self, *, email: str, current_password: str, new_password: str, client_address: str, client_label: str
    ) -> Tokens:
        """Replace a password, end every session of the user, and begin a new one.

        Args are those of the request, as they arrived.

        Raises:
            InvalidFieldError: A field is empty, too long or malformed.
            PasswordRejectedError: The new password violates the policy.
            InvalidCredentialsError: The address or the current password is refused; the log alone says why.
            TooManyAttemptsError: A budget of failed logins is used up; the password was not evaluated.
            OverloadedError: The hashing queue is full; the password was not evaluated.
        """
        address = fields.parse_email(email)
        current_passwords = fields.password_spellings(current_password, "current_password")
        new_password = fields.password(new_password, "new_password")
        client_address = fields.client_address(client_address)
        client_label = fields.client_label(client_label)
        policy.check_policy(new_password, address.normal, self._password_min_length, "new_password")
        if new_password == current_passwords[0]:
            raise PasswordRejectedError("new_password", "is the current password")

        async def change(slot: QueueSlot) -> Tokens:
            user, _ = await self._verify_password(address, current_passwords, slot)
            changed = await self._replace_password(user, await self._hasher.hash(new_password))
            audit.record(Event.PASSWORD_CHANGED, user_id=user.user_id, source=client_address)
            return await self._begin_session(changed, client_address, client_label)

        return await self._attempt(address, client_address, change, hashes=len(current_passwords) + 1)

    async def _attempt(
        self, email: Email, client_address: str, evaluate: Callable[[QueueSlot], Awaitable[T]], hashes: int
    ) -> T:
        """Run an attempt once it is at the front of the hashing queue.

        Args:
            email: The account.
            client_address: The source.
            evaluate: As for LoginThrottle.attempt, with the slot of the queue.
            hashes: How many it takes at most.
        """

        async def attempt() -> T:
            with _refusals_audited(email, client_address):
                await slot.pause()
                return await self._throttle.attempt(snapshot, lambda: evaluate(slot))

        try:
            with _refusals_audited(email, client_address):
                snapshot = await self._throttle.check(email.normal, client_address)
                slot = await self._hash_queue.enter(is_known_source=snapshot.is_known_source, hashes=hashes)
            return await self._hash_queue.run(slot, attempt())
        except (TooManyAttemptsError, OverloadedError):
            await self._refusal_pacer.wait()
            raise

    async def _verify_password(self, email: Email, passwords: Sequence[str], slot: QueueSlot) -> tuple[User, bool]:
        """Return the user whose password it is, and whether the hash is to be replaced.

        Args:
            email: The account.
            passwords: As fields.password_spellings returns them.
            slot: Of the hashing queue.

        Raises:
            InvalidCredentialsError: For whatever reason, at the same cost.
        """
        await slot.pause()
        owner = await self._find_owner(email)
        await slot.pause()
        user = None if owner is None else owner.user
        stored = None if user is None else parse_stored_hash(user.password_hash)
        reason = None if user is None else self._reason_to_refuse(user, stored)
        # A user who may not log in costs a dummy hash: with a stored hash of lower cost, the right password would be
        # refused sooner than a wrong one.
        right = await self._hasher.verify(passwords, None if reason else stored, is_backlog=slot.is_backlog)
        if owner is None or user is None:
            raise InvalidCredentialsError("unknown_email")
        if right is None:
            raise InvalidCredentialsError(reason or "wrong_password", user.user_id)
        if not owner.is_claimed and not await self._store.claim_email(user):
            raise InvalidCredentialsError("email_owned_by_another", user.user_id)
        if request_context.remaining_seconds() < 0:  # nobody waits for a session
            raise OverloadedError
        return user, right != passwords[0] or (stored is not None and stored.cost < self._hasher.cost)

    async def _begin_session(self, user: User, client_address: str, client_label: str) -> Tokens:
        tokens = await self._sessions.begin(user, client_address, client_label)
        session_id = tokens.refresh_token.session_id
        audit.record(Event.LOGIN, user_id=user.user_id, session_id=session_id, source=client_address)
        return tokens

    async def _find_owner(self, email: Email) -> EmailOwner | None:
        """Return the owner of an address; None costs the same store calls as a user."""
        try:
            return await self._store.get_user_by_email(email)
        except (UserNotFoundError, CorruptItemError):
            return None

    def _reason_to_refuse(self, user: User, stored: StoredHash | None) -> str | None:
        """Return why a user may not log in, whatever the password; None where the password decides."""
        if user.password_hash is None:
            return "no_password"
        if stored is None:
            metrics.CORRUPT_ITEMS.inc()
            problem = hash_problem(user.password_hash)
            _log.error("row_broken", table="users", user_id=user.user_id, attribute="password_hash", problem=problem)
            return "unreadable_hash"
        if not user.is_active:
            return "user_disabled"
        expire_time = user.temporary_password_expire_time
        if user.password_change_required and expire_time is not None and self._clock() >= expire_time:
            return "temporary_password_expired"
        return None

    async def _rehash(self, user: User, password: str) -> None:
        """Replace a hash of lower cost than configured or of a password not in NFC, now that the password is known.

        A rehash that loses a race is dropped, or it would restore an old password; so is one without enough time, or
        that the store does not take: the login needs none.
        """
        try:
            with request_context.time_limit(request_context.remaining_seconds() / 2):
                async with asyncio.timeout_at(request_context.deadline()):
                    rehashed = replace(user, password_hash=await self._hasher.hash(password))
                await self._store.update_user(user, rehashed)
        except (UserChangedError, StoreUnavailableError, TimeoutError):
            _log.info("rehash_dropped", user_id=user.user_id)

    async def _replace_password(self, verified: User, password_hash: str) -> User:
        """Write a new hash over the one whose password was verified, and end every session."""

        async def write(user: User) -> User:
            changed = replace(
                user.with_sessions_ended(),
                password_hash=password_hash,
                password_change_required=False,
                temporary_password_expire_time=None,
                update_time=self._clock(),
            )
            await self._store.update_user(user, changed)
            return changed

        async def read_and_write() -> User:
            return await write(await self._read_again(verified))

        with suppress(UserChangedError):
            return await write(verified)
        return await retry_on_conflict(read_and_write)

    async def _read_again(self, verified: User) -> User:
        """Return a user who has changed in other respects than those that were verified."""
        try:
            user = await self._store.get_user(verified.user_id)
        except (UserNotFoundError, CorruptItemError):
            raise InvalidCredentialsError("changed_meanwhile", verified.user_id) from None
        if not user.is_active or (user.email, user.password_hash) != (verified.email, verified.password_hash):
            raise InvalidCredentialsError("changed_meanwhile", verified.user_id)
        return user


@contextmanager
def _refusals_audited(email: Email, client_address: str) -> Iterator[None]:
    """Record why the body refuses an attempt, which the client must not learn."""
    try:
        yield
    except TooManyAttemptsError as error:
        digest = email_digest(email.normal)
        audit.record(Event.LOGIN_THROTTLED, reason=error.counter, email_digest=digest, source=client_address)
        raise
    except (LoginRefusedError, OverloadedError, StoreUnavailableError, asyncio.CancelledError) as error:
        reason, user_id = _refusal_reason(error)
        audit.record(
            Event.LOGIN_REFUSED,
            reason=reason,
            email_digest=email_digest(email.normal),
            user_id=user_id,
            source=client_address,
        )
        raise


def _refusal_reason(error: BaseException) -> tuple[str, str | None]:
    """Return the audit reason of a refused attempt, and its user id."""
    match error:
        case LoginRefusedError():
            return error.reason, error.user_id
        case OverloadedError():
            return "overloaded", None
        case StoreUnavailableError():
            return "store_unavailable", None
        case _:
            return "client_gone", None
