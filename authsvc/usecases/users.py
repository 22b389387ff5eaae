"""Use cases on users: creating, importing, finding, changing and deleting them."""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from weakref import WeakValueDictionary

from authsvc import fields
from authsvc.errors import (
    CorruptItemError,
    EmailAlreadyExistsError,
    InvalidFieldError,
    StoreUnavailableError,
    UserChangedError,
    UserNotFoundError,
)
from authsvc.models import Clock, User
from authsvc.passwords import hashes, policy
from authsvc.passwords.hash_queue import HashQueue
from authsvc.stores.interface import Store, UserPage
from authsvc.telemetry import audit
from authsvc.telemetry.audit import Event

USER_ID_BYTES = 16
TEMPORARY_PASSWORD_BYTES = 15
TEMPORARY_PASSWORD_TTL = timedelta(hours=24)
MAX_UPDATE_ATTEMPTS = 20
PAGE_SIZE = 1000


@dataclass(frozen=True, slots=True)
class TemporaryPassword:
    """A password for one change of password, shown this once."""

    text: str = field(repr=False)
    expire_time: datetime


class Users:
    """The use cases, on one store.

    Args:
        password_min_length: Of new passwords, in code points.
    """

    def __init__(self, store: Store, hashing: HashQueue, clock: Clock, password_min_length: int) -> None:
        self._store = store
        self._hashing = hashing
        self._clock = clock
        self._password_min_length = password_min_length
        self._creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create_user(self, *, email: str, role: str, password: str, request_id: str = "") -> User:
        """Create a user with a password.

        Args are those of the request, as they arrived.

        Returns:
            The user as stored; the one of the first call, where this is a retry with its request id.

        Raises:
            InvalidFieldError: A field is empty, too long or malformed, or the request id was used otherwise.
            PasswordRejectedError: The password is against the policy.
            EmailAlreadyExistsError: A user has that address.
            OverloadedError: Too many passwords wait to be hashed.
        """
        new = self._new_user(email, role)
        digest = _request_digest(request_id)
        secret = fields.password(password)
        policy.check_policy(secret, new.email, self._password_min_length)
        return await self._create(new, email, digest, secret)

    async def import_user(self, *, email: str, role: str, password_hash: str, request_id: str = "") -> User:
        """Create a user with the hash of a password that another program made.

        Args and errors are those of create_user, and the hash must be one that can be verified.
        """
        new = self._new_user(email, role)
        digest = _request_digest(request_id)
        if hashes.stored_cost(password_hash) is None:
            raise InvalidFieldError("password_hash", "must be bcrypt or bcrypt-sha256 of cost 4 to 16")
        return await self._create(replace(new, password_hash=password_hash), email, digest)

    async def create_user_with_temporary_password(
        self, *, email: str, role: str, request_id: str = ""
    ) -> tuple[User, TemporaryPassword | None]:
        """Create a user with a temporary password; a retry finds the user and gets no password.

        Args and errors are those of create_user.
        """
        new = self._new_user(email, role)
        digest = _request_digest(request_id)
        temporary = self._new_temporary_password()
        user = await self._create(_with_temporary_password(new, temporary), email, digest, temporary.text)
        return user, temporary if user.user_id == new.user_id else None

    def _new_user(self, email: str, role: str) -> User:
        now = self._clock()
        return User(
            user_id=secrets.token_urlsafe(USER_ID_BYTES),
            email=fields.new_email(email),
            role=fields.role(role),
            create_time=now,
            update_time=now,
        )

    async def _create(self, new: User, typed: str, request_digest: bytes | None, secret: str | None = None) -> User:
        """Create a user with the hash of `secret`, or with the hash that `new` has."""
        # One at a time for each address: the losers of a race find it taken, and hash nothing.
        async with self._creating.setdefault(new.email, asyncio.Lock()):
            if secret is not None:
                if request_digest is None:
                    await self._require_email_free(new.email, typed)
                new = replace(new, password_hash=await self._hashing.hash(secret))
            user = await self._store.create_user(new, self._clock(), request_digest, typed)
        is_retry = user.user_id != new.user_id
        audit.record(Event.USER_CREATED, user_id=user.user_id, role=user.role, is_retry=is_retry)
        return user

    async def _require_email_free(self, email: str, typed: str) -> None:
        try:
            await self._store.get_user_by_email(email, typed)
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
            UserNotFoundError: There is none.
            CorruptItemError: The row cannot be read.
        """
        return await self._store.get_user(fields.user_id(user_id))

    async def get_user_by_email(self, email: str) -> User:
        """Return the user who owns an address.

        Raises:
            InvalidFieldError: It is no address in form.
            UserNotFoundError: Nobody owns it.
            CorruptItemError: The row cannot be read.
        """
        owner = await self._store.get_user_by_email(fields.normal_email(email), email)
        return owner.user

    async def list_users(self, page_size: int, page_token: str) -> tuple[Sequence[User], str]:
        """Return users, and the token of the next page, empty on the last one.

        Raises:
            InvalidFieldError: A field is malformed.
        """
        page = await self._store.list_users(fields.page_size(page_size), fields.key_of(page_token))
        return page.users, fields.token_of(page.last_user_id)

    async def update_user(
        self, user_id: str, *, email: str | None = None, role: str | None = None, is_active: bool | None = None
    ) -> User:
        """Change what is given. Disabling ends every session; re-enabling revives none.

        Raises:
            InvalidFieldError: A field is malformed.
            UserNotFoundError: There is no such user.
            EmailAlreadyExistsError: Another user has that address.
        """
        new_email = None if email is None else fields.new_email(email)
        if role == "":
            raise InvalidFieldError("role", "must not be empty")
        new_role = None if role is None else fields.role(role)

        def change(user: User) -> User:
            changed = replace(
                user,
                email=user.email if new_email is None else new_email,
                role=user.role if new_role is None else new_role,
                is_active=user.is_active if is_active is None else is_active,
            )
            return _with_sessions_ended(changed) if is_active is False else changed

        user = await self._change(user_id, change, email or "")
        names = {"email": email, "role": role, "is_active": is_active}
        changed = [name for name, value in names.items() if value is not None]
        audit.record(Event.USER_UPDATED, user_id=user.user_id, fields=changed, role=user.role, is_active=user.is_active)
        return user

    async def reset_password(self, user_id: str) -> TemporaryPassword:
        """Give a user a temporary password, and end every session.

        Raises:
            InvalidFieldError: The id is empty or too long.
            UserNotFoundError: There is no such user.
            OverloadedError: Too many passwords wait to be hashed.
        """
        temporary = self._new_temporary_password()
        password_hash = await self._hashing.hash(temporary.text)

        def change(user: User) -> User:
            return replace(_with_temporary_password(_with_sessions_ended(user), temporary), password_hash=password_hash)

        user = await self._change(user_id, change)
        audit.record(Event.PASSWORD_RESET, user_id=user.user_id)
        return temporary

    async def end_all_sessions(self, user_id: str) -> None:
        """End every session of a user; one that begins afterwards lives.

        Raises:
            InvalidFieldError: The id is empty or too long.
            UserNotFoundError: There is no such user.
        """
        user = await self._change(user_id, _with_sessions_ended)
        audit.record(Event.SESSIONS_REVOKED, user_id=user.user_id)

    async def delete_user(self, user_id: str) -> None:
        """Delete a user; the address is free at once.

        Raises:
            InvalidFieldError: The id is empty or too long.
            UserNotFoundError: There is no such user.
        """
        fields.user_id(user_id)
        for _ in range(MAX_UPDATE_ATTEMPTS):
            user = await self._store.get_user(user_id)
            try:
                await self._store.delete_user(user)
            except UserChangedError:
                continue
            audit.record(Event.USER_DELETED, user_id=user_id)
            return
        raise StoreUnavailableError("the user keeps changing")

    async def _change(self, user_id: str, change: Callable[[User], User], typed_email: str = "") -> User:
        """Read a user and write what `change` makes of it, again where somebody else came between."""
        fields.user_id(user_id)
        for _ in range(MAX_UPDATE_ATTEMPTS):
            user = await self._store.get_user(user_id)
            changed = change(user)
            if changed == user:
                return user
            changed = replace(changed, update_time=self._clock())
            try:
                await self._store.update_user(user, changed, typed_email)
            except UserChangedError:
                continue
            return changed
        raise StoreUnavailableError("the user keeps changing")


def _with_temporary_password(user: User, temporary: TemporaryPassword) -> User:
    return replace(user, password_change_required=True, temporary_password_expire_time=temporary.expire_time)


def _with_sessions_ended(user: User) -> User:
    return replace(user, token_generation=user.token_generation + 1, revoked_sessions=frozenset())


def _request_digest(request_id: str) -> bytes | None:
    identifier = fields.request_id(request_id)
    return None if identifier is None else hashlib.sha256(identifier.encode()).digest()


async def iterate_users(store: Store) -> AsyncIterator[User]:
    """Return all readable users, page by page."""
    async for page in iterate_user_pages(store):
        for user in page.users:
            yield user


async def iterate_user_pages(store: Store) -> AsyncIterator[UserPage]:
    """Return all users page by page, with what is wrong with the unreadable ones."""
    last_user_id = None
    while True:
        page = await store.list_users(PAGE_SIZE, last_user_id)
        yield page
        if page.last_user_id is None:
            return
        last_user_id = page.last_user_id
