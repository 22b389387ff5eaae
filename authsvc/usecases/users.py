"""Use cases on users: create, import, find, update, reset the password, delete."""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from authsvc import fields, request_context
from authsvc.errors import (
    CorruptItemError,
    EmailAlreadyExistsError,
    InvalidFieldError,
    OverloadedError,
    UserNotFoundError,
)
from authsvc.models import Clock, Email, User
from authsvc.passwords import policy
from authsvc.passwords.hash_queue import HashQueue
from authsvc.passwords.hashes import UnreadableHashError, parse_hash
from authsvc.stores.interface import Store, UserPage
from authsvc.telemetry import audit
from authsvc.telemetry.audit import Event
from authsvc.usecases.optimistic_lock import retry_on_conflict

USER_ID_BYTES = 16
TEMPORARY_PASSWORD_BYTES = 15
TEMPORARY_PASSWORD_TTL = timedelta(hours=24)
PAGE_SIZE = 1000
"""Users per page when all users are read."""


@dataclass(frozen=True, slots=True)
class TemporaryPassword:
    """A password that is valid for one ChangePassword, returned once.

    Args:
        text: Secret.
    """

    text: str = field(repr=False)
    expire_time: datetime


class Users:
    """The use cases, on one store.

    Args:
        password_min_length: Of new passwords, in code points.
    """

    def __init__(self, store: Store, hash_queue: HashQueue, clock: Clock, password_min_length: int) -> None:
        self._store = store
        self._hash_queue = hash_queue
        self._clock = clock
        self._password_min_length = password_min_length
        self._creations: dict[str, asyncio.Future[bool]] = {}  # by address; the result: whether it is taken

    async def create_user(self, *, email: str, role: str, password: str, request_id: str = "") -> User:
        """Create a user with a password.

        Args:
            email: As it arrived; the other arguments likewise.
            role: Empty: user.
            password: Checked against the policy.
            request_id: Makes a retry safe for 24 hours; empty: none.

        Returns:
            The user as stored; of a retry, the user that the first call created.

        Raises:
            InvalidFieldError: A field is empty, too long or malformed, or the request id was used for another address.
            PasswordRejectedError: The password violates the policy.
            EmailAlreadyExistsError: Another user has the address.
            OverloadedError: The password-hashing queue is full.
        """
        address = fields.parse_new_email(email)
        new = self._new_user(address, role)
        digest = _request_digest(request_id)
        password = fields.password(password)
        policy.check_policy(password, address.normal, self._password_min_length)
        return await self._create_with_password(new, address, digest, password)

    async def import_user(self, *, email: str, role: str, password_hash: str, request_id: str = "") -> User:
        """Create a user with a password hash of another program.

        Args, result and errors are those of create_user.

        Raises:
            InvalidFieldError: Also where the hash is not one that can be verified.
        """
        address = fields.parse_new_email(email)
        new = self._new_user(address, role)
        digest = _request_digest(request_id)
        try:
            stored = parse_hash(password_hash)
        except UnreadableHashError as error:
            raise InvalidFieldError("password_hash", str(error)) from None
        return await self._create(replace(new, password_hash=stored.text), address, digest)

    async def create_user_with_temporary_password(
        self, *, email: str, role: str, request_id: str = ""
    ) -> tuple[User, TemporaryPassword | None]:
        """Create a user with a temporary password.

        Args and errors are those of create_user.

        Returns:
            The user as stored, and the password; None in a retry, for only the first call knows it.
        """
        address = fields.parse_new_email(email)
        temporary = self._new_temporary_password()
        new = _with_temporary_password(self._new_user(address, role), temporary)
        digest = _request_digest(request_id)
        user = await self._create_with_password(new, address, digest, temporary.text)
        return user, temporary if user.user_id == new.user_id else None

    def _new_user(self, email: Email, role: str) -> User:
        now = self._clock()
        return User(
            user_id=_new_user_id(), email=email.normal, role=fields.role(role), create_time=now, update_time=now
        )

    async def _create_with_password(self, new: User, email: Email, request_digest: bytes | None, password: str) -> User:
        """Create a user. Concurrent calls for one address learn from the first one that it is taken."""
        while first := self._creations.get(new.email):
            is_taken = await _outcome(first)
            if is_taken and request_digest is None:
                raise EmailAlreadyExistsError
            if is_taken:  # perhaps by an earlier attempt of this very request
                return await self._queue_creation(new, email, request_digest, password)
        outcome = self._creations[new.email] = asyncio.get_running_loop().create_future()
        is_taken = False
        try:
            user = await self._queue_creation(new, email, request_digest, password)
            is_taken = True
        except EmailAlreadyExistsError:
            is_taken = True
            raise
        finally:
            del self._creations[new.email]
            outcome.set_result(is_taken)
        return user

    async def _queue_creation(self, new: User, email: Email, request_digest: bytes | None, password: str) -> User:
        slot = await self._hash_queue.enter()
        return await self._hash_queue.run(slot, self._hash_and_create(new, email, request_digest, password))

    async def _hash_and_create(self, new: User, email: Email, request_digest: bytes | None, password: str) -> User:
        if request_digest is None:
            await self._require_email_free(email)
        hashed = replace(new, password_hash=await self._hash_queue.hasher.hash(password))
        return await self._create(hashed, email, request_digest)

    async def _create(self, new: User, email: Email, request_digest: bytes | None) -> User:
        user = await self._store.create_user(new, self._clock(), request_digest, email)
        is_retry = user.user_id != new.user_id
        audit.record(Event.USER_CREATED, user_id=user.user_id, role=user.role, is_retry=is_retry)
        return user

    async def _require_email_free(self, email: Email) -> None:
        try:
            await self._store.get_user_by_email(email)
        except UserNotFoundError:
            return
        except CorruptItemError:
            pass
        raise EmailAlreadyExistsError

    def _new_temporary_password(self) -> TemporaryPassword:
        text = base64.b32encode(secrets.token_bytes(TEMPORARY_PASSWORD_BYTES)).decode().lower()
        groups = "-".join(text[at : at + 6] for at in range(0, len(text), 6))
        return TemporaryPassword(groups, self._clock().replace(microsecond=0) + TEMPORARY_PASSWORD_TTL)

    async def get_user(self, user_id: str) -> User:
        """Return a user by id.

        Raises:
            InvalidFieldError: The id is empty or too long.
            UserNotFoundError: There is no such user.
            CorruptItemError: The row cannot be read.
        """
        return await self._store.get_user(fields.user_id(user_id))

    async def get_user_by_email(self, email: str) -> User:
        """Return the user who owns an address.

        Raises:
            InvalidFieldError: The text does not have the form of an address.
            UserNotFoundError: No user owns it.
            CorruptItemError: The row cannot be read.
        """
        owner = await self._store.get_user_by_email(fields.parse_email(email))
        return owner.user

    async def list_users(self, page_size: int, page_token: str) -> tuple[Sequence[User], str]:
        """Return users, and the token of the next page, empty on the last one.

        Raises:
            InvalidFieldError: A field is malformed.
        """
        page = await self._store.list_users(fields.page_size(page_size), fields.decode_page_token(page_token))
        return page.users, fields.encode_page_token(page.last_user_id)

    async def update_user(
        self, user_id: str, *, email: str | None = None, role: str | None = None, is_active: bool | None = None
    ) -> User:
        """Change the given fields. Disabling ends every session; enabling restores none.

        Raises:
            InvalidFieldError: A field is malformed.
            UserNotFoundError: There is no such user.
            EmailAlreadyExistsError: Another user has the address.
        """
        new_email = None if email is None else fields.parse_new_email(email)
        if role == "":
            raise InvalidFieldError("role", "must not be empty")
        new_role = None if role is None else fields.role(role)

        def change(user: User) -> User:
            changed = replace(
                user,
                email=user.email if new_email is None else new_email.normal,
                role=user.role if new_role is None else new_role,
                is_active=user.is_active if is_active is None else is_active,
            )
            return changed.with_sessions_ended() if is_active is False else changed

        user = await self._update(user_id, change, new_email)
        values = {"email": email, "role": role, "is_active": is_active}
        changed = [name for name, value in values.items() if value is not None]
        audit.record(Event.USER_UPDATED, user_id=user.user_id, fields=changed, role=user.role, is_active=user.is_active)
        return user

    async def reset_password(self, user_id: str) -> TemporaryPassword:
        """Give a user a temporary password, and end every session.

        Raises:
            InvalidFieldError: The id is empty or too long.
            UserNotFoundError: There is no such user.
            OverloadedError: The password-hashing queue is full.
        """
        temporary = self._new_temporary_password()
        password_hash = await self._hash_queue.hash(temporary.text)

        def change(user: User) -> User:
            ended = replace(user.with_sessions_ended(), password_hash=password_hash)
            return _with_temporary_password(ended, temporary)

        user = await self._update(user_id, change)
        audit.record(Event.PASSWORD_RESET, user_id=user.user_id)
        return temporary

    async def end_all_sessions(self, user_id: str) -> None:
        """End every session of a user; a session that begins afterwards is valid.

        Raises:
            InvalidFieldError: The id is empty or too long.
            UserNotFoundError: There is no such user.
        """
        user = await self._update(user_id, User.with_sessions_ended)
        audit.record(Event.SESSIONS_REVOKED, user_id=user.user_id)

    async def delete_user(self, user_id: str) -> None:
        """Delete a user; the address is free at once.

        Raises:
            InvalidFieldError: The id is empty or too long.
            UserNotFoundError: There is no such user.
        """
        fields.user_id(user_id)

        async def delete() -> None:
            await self._store.delete_user(await self._store.get_user(user_id))

        await retry_on_conflict(delete)
        audit.record(Event.USER_DELETED, user_id=user_id)

    async def _update(self, user_id: str, change: Callable[[User], User], new_email: Email | None = None) -> User:
        """Read a user, and write what `change` makes of it."""
        fields.user_id(user_id)

        async def update() -> User:
            user = await self._store.get_user(user_id)
            changed = change(user)
            if changed == user:
                return user
            changed = replace(changed, update_time=self._clock())
            await self._store.update_user(user, changed, new_email)
            return changed

        return await retry_on_conflict(update)


def _new_user_id() -> str:
    """Return a random id that does not begin with a dash, which a command would take for an option."""
    while (user_id := secrets.token_urlsafe(USER_ID_BYTES)).startswith("-"):
        pass
    return user_id


async def _outcome(creation: asyncio.Future[bool]) -> bool:
    """Return whether a creation in progress took its address.

    Raises:
        OverloadedError: It did not end by the request's deadline.
    """
    done, _ = await asyncio.wait({creation}, timeout=max(0.0, request_context.remaining_seconds()))
    if not done:
        raise OverloadedError
    return creation.result()


def _with_temporary_password(user: User, temporary: TemporaryPassword) -> User:
    return replace(user, password_change_required=True, temporary_password_expire_time=temporary.expire_time)


def _request_digest(request_id: str) -> bytes | None:
    identifier = fields.request_id(request_id)
    return None if identifier is None else hashlib.sha256(identifier.encode()).digest()


async def iterate_users(store: Store, page_size: int = PAGE_SIZE) -> AsyncIterator[User]:
    """Yield all readable users."""
    async for page in iterate_user_pages(store, page_size):
        for user in page.users:
            yield user


async def iterate_user_pages(store: Store, page_size: int = PAGE_SIZE) -> AsyncIterator[UserPage]:
    """Yield all users page by page, with the errors of unreadable rows."""
    last_user_id = None
    while True:
        page = await store.list_users(page_size, last_user_id)
        yield page
        if page.last_user_id is None:
            return
        last_user_id = page.last_user_id
