"""The use cases on a store, without RPC, and the invariants of its rows."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from authsvc.errors import InvalidCredentialsError, InvalidRefreshTokenError
from authsvc.models import Budget, User
from authsvc.passwords import hashes
from authsvc.passwords.hash_queue import HashQueue
from authsvc.stores.interface import Store
from authsvc.throttling.budgets import Budgets
from authsvc.throttling.login_throttle import LoginThrottle
from authsvc.tokens.access_tokens import AccessTokens
from authsvc.tokens.key_file import watch_key_file
from authsvc.tokens.keys import KeyRing
from authsvc.usecases.login import Logins
from authsvc.usecases.sessions import SessionLifetimes, Sessions, Tokens
from authsvc.usecases.user_state_cache import StalenessLimits, UserStateCache
from authsvc.usecases.users import Users
from authsvc.usecases.validation import ActiveToken, Check, Validations
from tests.dynamodb import Tables
from tests.support import PASSWORD, TEST_COST, WITNESS, FakeClock

EMAIL = "alice@example.com"
NEW_PASSWORD = "another password of words"
ACCESS_TTL = timedelta(minutes=15)
IDLE_TTL = timedelta(days=7)
MAX_TTL = timedelta(days=30)
REFRESH_GRACE = timedelta(seconds=60)
UNBOUNDED = Budget(1_000_000, timedelta(minutes=15))
NO_BUDGETS = Budgets(pair=UNBOUNDED, account=UNBOUNDED, source=UNBOUNDED)
"""Races fail many logins on purpose, on a stopped clock."""
HASH = hashes.hash_password(PASSWORD, TEST_COST)


def key_ring(signing_keys: Path, clock: FakeClock) -> KeyRing:
    return watch_key_file(signing_keys, clock).content


class UseCases:
    """The use cases, as short calls for tests of many steps.

    Args:
        tables: The rows as another program reads them; None for SQLite.
    """

    def __init__(
        self,
        store: Store,
        ring: KeyRing,
        clock: FakeClock,
        hash_queue: HashQueue,
        tables: Tables | None,
        budgets: Budgets = NO_BUDGETS,
    ) -> None:
        self._ring = ring
        tokens = AccessTokens(ring, "https://auth.example.com", "backends", ACCESS_TTL)
        self.hash_queue = hash_queue
        self.store = store
        self.clock = clock
        self.tables = tables
        self.sessions = Sessions(store, tokens, SessionLifetimes(IDLE_TTL, MAX_TTL, REFRESH_GRACE), clock)
        self.validations = Validations(
            store,
            tokens,
            UserStateCache(clock.monotonic),
            clock,
            StalenessLimits(timedelta(seconds=60), timedelta(minutes=15)),
        )
        self.login_throttle = LoginThrottle(store, budgets, clock, clock.monotonic)
        self.logins = Logins(store, self.login_throttle, hash_queue, self.sessions, clock, 15)
        self.users = Users(store, hash_queue, clock, 15)

    def with_hash_queue(self, hash_queue: HashQueue) -> "UseCases":
        return UseCases(self.store, self._ring, self.clock, hash_queue, self.tables)

    def on(self, store: Store) -> "UseCases":
        """Return the use cases of another process on the same rows."""
        return UseCases(store, self._ring, self.clock, self.hash_queue, self.tables)

    async def create(self, email: str = EMAIL, request_id: str = "") -> User:
        return await self.users.import_user(email=email, role="", password_hash=HASH, request_id=request_id)

    async def log_in(self, email: str = EMAIL, password: str = PASSWORD) -> Tokens:
        tokens, _ = await self.logins.authenticate(email=email, password=password, client_address="", client_label="")
        WITNESS.hide(tokens.access_token.text, tokens.refresh_token.text)
        return tokens

    async def change_password(self, old: str, new: str, email: str = EMAIL) -> Tokens:
        return await self.logins.change_password(
            email=email, current_password=old, new_password=new, client_address="", client_label=""
        )

    async def refresh(self, tokens: Tokens) -> Tokens:
        return await self.sessions.refresh(tokens.refresh_token.text, "")

    async def is_active(self, tokens: Tokens) -> bool:
        """Validate the access token, fresh."""
        validation = await self.validations.validate(Check(tokens.access_token.text))
        return isinstance(validation.outcome, ActiveToken)

    async def is_alive(self, tokens: Tokens) -> bool:
        """Validate the access token, fresh, and refresh; both must agree."""
        is_active = await self.is_active(tokens)
        try:
            await self.refresh(tokens)
        except InvalidRefreshTokenError:
            assert not is_active, "a session that cannot be refreshed has an active access token"
            return False
        assert is_active, "a refresh token of an ended session was accepted"
        return True

    async def can_log_in(self, password: str, email: str = EMAIL) -> bool:
        try:
            await self.log_in(email, password)
        except InvalidCredentialsError:
            return False
        return True

    async def check_rows(self) -> None:
        """Require that users and claims agree and no two users share an address."""
        if self.tables is None:
            users = (await self.store.list_users(1000, None)).users
            assert len({user.email for user in users}) == len(users)
        else:
            assert list(_disagreements(self.tables)) == []


def _disagreements(tables: Tables) -> Iterator[str]:
    rows = {row["user_id"]["S"]: row for row in tables.rows(tables.users)}
    claims = {row["unique_key"]["S"]: row["user_id"]["S"] for row in tables.rows(tables.unique)}
    owners: dict[str, str] = {}
    for user_id, row in rows.items():
        if not row.keys() >= {"email", "role", "is_active", "created_at"}:
            yield f"incomplete row: {row}"
            continue
        email = row["email"]["S"]
        if claims.get(f"email#{email}") != user_id:
            yield f"{user_id} has {email}, whose claim names {claims.get(f'email#{email}')}"
        if owners.setdefault(email, user_id) != user_id:
            yield f"{user_id} and {owners[email]} have {email}"
    for key, user_id in claims.items():
        kind, _, email = key.partition("#")
        if kind == "email" and owners.get(email) != user_id:
            yield f"the claim of {email} names {user_id}, who has another address"
