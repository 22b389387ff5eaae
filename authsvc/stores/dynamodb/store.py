"""The store on DynamoDB: production, and the distributed engine. Composes the modules beside it."""

import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog

from authsvc import aws, fields, request_context
from authsvc.coalescer import Coalescer
from authsvc.errors import (
    CorruptItemError,
    EmailAlreadyExistsError,
    InvalidFieldError,
    StoreUnavailableError,
    UserChangedError,
    UserNotFoundError,
)
from authsvc.models import (
    AttemptCount,
    Counter,
    CounterUpdate,
    Email,
    Finding,
    Session,
    User,
    UserState,
    revocation_entry,
)
from authsvc.stores.dynamodb.batch_get import USER_STATE_ATTRIBUTES, BatchGet
from authsvc.stores.dynamodb.client import DynamoDBClient, open_client
from authsvc.stores.dynamodb.email_claims import EmailClaims
from authsvc.stores.dynamodb.items import (
    Item,
    item_of,
    last_key,
    page_start,
    session_from_item,
    session_item,
    user_from_item,
    user_item,
    user_state_from_item,
    user_update,
)
from authsvc.stores.dynamodb.login_attempts import LoginAttempts
from authsvc.stores.dynamodb.responses import ConditionFailedError
from authsvc.stores.dynamodb.tables import Tables, check_tables, create_tables
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.stores.interface import (
    MAX_REVOKED_SESSIONS,
    REQUEST_ID_TTL,
    ClaimPage,
    EmailOwner,
    OnUserChanged,
    SessionPage,
    UserPage,
    ignore,
)

_DELETE_PAGE_SIZE = 100

_log = structlog.get_logger(__name__)


class DynamoDBStore:
    """Store on DynamoDB. Opened by open_dynamodb_store."""

    def __init__(self, client: DynamoDBClient, tables: Tables, on_user_changed: OnUserChanged) -> None:
        self._client = client
        self._tables = tables
        self._on_user_changed = on_user_changed
        self._user_states = Coalescer(
            BatchGet(client.direct, client.timeouts, tables.users, "user_id", USER_STATE_ATTRIBUTES)
        )
        self._claims = EmailClaims(client, tables)
        self._counters = LoginAttempts(client, tables.login_attempts)

    async def ping(self) -> datetime | None:
        """See Store: reads a key that does not exist; the Date header of the response is the store's time."""
        key = item_of(user_id="ping")
        response = await self._client.call(self._client.api.get_item, TableName=self._tables.users, Key=key)
        return aws.parse_date(response["ResponseMetadata"]["HTTPHeaders"])

    async def create_user(
        self, user: User, now: datetime, request_digest: bytes | None = None, email: Email | None = None
    ) -> User:
        """See Store."""
        earlier = await self._find_user_of_request(request_digest, user.email, now)
        if earlier is not None:
            return earlier
        if await self._create_if_free(user, now, request_digest, email or fields.parse_email(user.email)):
            return user
        # The winner may be an earlier attempt of this very request.
        earlier = await self._find_user_of_request(request_digest, user.email, now)
        if earlier is None:
            raise EmailAlreadyExistsError
        return earlier

    async def _create_if_free(self, user: User, now: datetime, request_digest: bytes | None, email: Email) -> bool:
        """Create a user; return False where the address is taken, but True where only the response was lost."""
        lookup = await self._claims.look_up(email)
        if lookup.user_ids:
            return False
        put = {
            "TableName": self._tables.users,
            "Item": user_item(user),
            "ConditionExpression": "attribute_not_exists(user_id)",
        }
        try:
            await self._client.transact(
                {"Put": put},
                *self._claims.claim_actions(user, lookup),
                *self._record_request(request_digest, user, now),
            )
        except ConditionFailedError:
            # The id is random: if the row exists, this call wrote it, whatever happened to its address since.
            return await self._client.get(self._tables.users, user_id=user.user_id) is not None
        return True

    async def _find_user_of_request(self, digest: bytes | None, email: str, now: datetime) -> User | None:
        """Return the user that an earlier call with the same request id created."""
        if digest is None:
            return None
        request = await self._client.get(self._tables.unique, unique_key=_request_key(digest))
        if request is None or int(request["expires_at"]["N"]) <= now.timestamp():
            return None
        # A version before this one may have recorded it in another normal form.
        if fields.normalize_email(request["email"]["S"]) != email:
            raise InvalidFieldError("request_id", "was used with another email")
        return await self.get_user(request["user_id"]["S"])

    def _record_request(self, digest: bytes | None, user: User, now: datetime) -> Iterator[Mapping[str, Any]]:
        if digest is None:
            return
        yield {
            "Put": {
                "TableName": self._tables.unique,
                "Item": item_of(
                    unique_key=_request_key(digest),
                    user_id=user.user_id,
                    email=user.email,
                    expires_at=int((now + REQUEST_ID_TTL).timestamp()),
                ),
                "ConditionExpression": "attribute_not_exists(unique_key) OR expires_at <= :now",
                "ExpressionAttributeValues": item_of(**{":now": int(now.timestamp())}),
            }
        }

    async def get_user(self, user_id: str) -> User:
        """See Store."""
        item = await self._client.get(self._tables.users, user_id=user_id)
        if item is None:
            raise UserNotFoundError
        return user_from_item(item)

    async def get_user_states(self, user_ids: Collection[str]) -> Mapping[str, UserState | Exception | None]:
        """See Store."""
        rows = await self._user_states.get(user_ids, request_context.store_deadline())
        return {user_id: _user_state(row) for user_id, row in rows.items()}

    async def get_user_by_email(self, email: Email) -> EmailOwner:
        """See Store."""
        lookup = await self._claims.look_up(email)
        user_ids = lookup.user_ids if lookup.owner_id is None else [lookup.owner_id]
        if len(user_ids) > 1:
            _log.warning("email_ambiguous", user_ids=user_ids)
        row = lookup.found[user_ids[0]] if len(user_ids) == 1 else None
        if row is None:
            raise UserNotFoundError
        return EmailOwner(user_from_item(row), lookup.is_claimed)

    async def claim_email(self, user: User) -> bool:
        """See Store."""
        email = fields.parse_email(user.email)
        lookup = await self._claims.look_up(email)
        if lookup.is_claimed or lookup.owner_id not in {None, user.user_id}:
            return lookup.owner_id == user.user_id
        if lookup.owner_id is None and lookup.user_ids != [user.user_id]:
            return False
        try:
            await self._client.transact(
                self._claims.check(user.user_id, {"S": user.email}), *self._claims.claim_actions(user, lookup)
            )
        except ConditionFailedError:
            return (await self._claims.owner_ids(email)).get(email.normal) == user.user_id
        return True

    async def list_users(self, limit: int, after_user_id: str | None) -> UserPage:
        """See Store."""
        start = page_start(user_id=after_user_id)
        response = await self._client.call(self._client.api.scan, TableName=self._tables.users, Limit=limit, **start)
        users, corrupt = _read_users(response["Items"])
        return UserPage(users, last_key(response, "user_id"), corrupt)

    async def list_claims(self, limit: int, after_key: str | None) -> ClaimPage:
        """See Store."""
        return await self._claims.list_claims(limit, after_key)

    async def update_user(self, expected: User, new: User, new_email: Email | None = None) -> None:
        """See Store."""
        update = {"Update": user_update(self._tables.users, expected, new)}
        email_actions = (
            []
            if expected.email == new.email
            else await self._change_email_actions(expected, new, new_email or fields.parse_email(new.email))
        )
        try:
            # A transaction even for one row: its idempotency token keeps an attempt that was delayed in the network
            # from overwriting later changes.
            await self._transact_user(new.user_id, update, *email_actions)
        except ConditionFailedError:
            if not await self._is_own_write(expected, new):
                raise UserChangedError from None

    async def _change_email_actions(self, expected: User, new: User, new_email: Email) -> list[Mapping[str, Any]]:
        """Claim the new address, and release the old one with its other spellings."""
        lookup = await self._claims.look_up(new_email)
        if set(lookup.user_ids) - {new.user_id}:
            raise EmailAlreadyExistsError
        release_actions = await self._claims.release_actions(expected, but={new.email, *lookup.owner_ids})
        return [*release_actions, *self._claims.claim_actions(new, lookup)]

    async def _is_own_write(self, expected: User, new: User) -> bool:
        """Return whether the user is as this write wanted it: then only its response was lost."""
        item = await self._client.get(self._tables.users, user_id=new.user_id)
        if item is None:
            return False
        user = user_from_item(item)
        # A new hash has a random salt: no other write could have set it, whatever else has changed since.
        has_own_hash = expected.password_hash != new.password_hash == user.password_hash
        # Other calls add to revoked_sessions at any time.
        return has_own_hash or _without_revocations(user) == _without_revocations(new)

    async def delete_user(self, user: User) -> None:
        """See Store."""
        delete = {
            "TableName": self._tables.users,
            "Key": item_of(user_id=user.user_id),
            "ConditionExpression": "email = :email",
            "ExpressionAttributeValues": item_of(**{":email": user.email}),
        }
        try:
            release_actions = await self._claims.release_actions(user)
            await self._transact_user(user.user_id, {"Delete": delete}, *release_actions)
        except ConditionFailedError:
            if await self._client.get(self._tables.users, user_id=user.user_id) is not None:
                raise UserChangedError from None
        with contextlib.suppress(StoreUnavailableError):  # the user is deleted anyway
            await self._delete_sessions(user.user_id)

    async def _transact_user(self, user_id: str, *actions: Mapping[str, Any]) -> None:
        """Change a user's row in a transaction, and report the change however the transaction ends."""
        try:
            await self._client.transact(*actions)
        finally:
            self._on_user_changed(user_id)

    async def _delete_sessions(self, user_id: str) -> None:
        """Delete the sessions of a deleted user, which are useless; TTL would delete what is left."""
        while page := (await self.list_sessions(user_id, _DELETE_PAGE_SIZE, None)).sessions:
            for session in page:
                key = item_of(user_id=user_id, session_id=session.session_id)
                await self._client.call(self._client.api.delete_item, TableName=self._tables.sessions, Key=key)

    async def create_session(self, session: Session) -> None:
        """See Store."""
        # The id is random: if it exists, this write made it and lost its response.
        with contextlib.suppress(ConditionFailedError):
            await self._client.call(
                self._client.api.put_item,
                TableName=self._tables.sessions,
                Item=session_item(session),
                ConditionExpression="attribute_not_exists(session_id)",
            )

    async def get_session(self, user_id: str, session_id: str) -> Session | None:
        """See Store."""
        item = await self._client.get(self._tables.sessions, user_id=user_id, session_id=session_id)
        return None if item is None else session_from_item(item)

    async def rotate_refresh_token(self, expected: Session, new: Session) -> bool:
        """See Store."""
        try:
            await self._client.call(
                self._client.api.put_item,
                TableName=self._tables.sessions,
                Item=session_item(new),
                ConditionExpression="rotating_part_sha256 = :expected AND attribute_not_exists(ended_at)",
                ExpressionAttributeValues=item_of(**{":expected": expected.rotating_part_sha256}),
            )
        except ConditionFailedError:
            return await self.get_session(new.user_id, new.session_id) == new
        return True

    async def list_sessions(self, user_id: str, limit: int, after_session_id: str | None) -> SessionPage:
        """See Store."""
        response = await self._client.call(
            self._client.api.query,
            TableName=self._tables.sessions,
            KeyConditionExpression="user_id = :user_id",
            ExpressionAttributeValues=item_of(**{":user_id": user_id}),
            ConsistentRead=True,
            Limit=limit,
            **page_start(user_id=user_id, session_id=after_session_id),
        )
        return SessionPage([session_from_item(i) for i in response["Items"]], last_key(response, "session_id"))

    async def end_session(
        self, user_id: str, session_id: str, now: datetime, revoke_until_if_missing: datetime | None
    ) -> bool:
        """See Store."""
        has_attempted = False
        while True:
            session = await self.get_session(user_id, session_id)
            until = revoke_until_if_missing if session is None else session.last_token_expire_time
            try:
                user = await self.get_user(user_id)
                if until is None or user.has_ended_session(session_id, session):
                    return has_attempted
                await self._revoke(user, session, revocation_entry(session_id, until), now)
            except ConditionFailedError:
                # A concurrent refresh, revocation or change of the user won, or the response was lost: read again.
                has_attempted = True
                continue
            except UserNotFoundError:
                return False
            return True

    async def _revoke(self, user: User, session: Session | None, entry: str, now: datetime) -> None:
        expired = user.expired_revocations(now)
        if expired:
            await self._remove_revocations(user, expired)
        if len(user.revoked_sessions - expired) >= MAX_REVOKED_SESSIONS:
            _log.warning("revocations_full", user_id=user.user_id, effect="all sessions of the user end")
            update = user_update(self._tables.users, user, user.with_sessions_ended())
            await self._transact_user(user.user_id, {"Update": update})
            return
        adding = {
            "TableName": self._tables.users,
            "Key": item_of(user_id=user.user_id),
            "UpdateExpression": "ADD revoked_sessions :entries",
            "ConditionExpression": "attribute_exists(user_id) AND "
            "(attribute_not_exists(revoked_sessions) OR size(revoked_sessions) < :most)",
            "ExpressionAttributeValues": item_of(**{":entries": frozenset({entry}), ":most": MAX_REVOKED_SESSIONS}),
        }
        await self._transact_user(user.user_id, {"Update": adding}, *self._end_actions(session, now))

    async def _remove_revocations(self, user: User, entries: frozenset[str]) -> None:
        await self._client.call(
            self._client.api.update_item,
            TableName=self._tables.users,
            Key=item_of(user_id=user.user_id),
            UpdateExpression="DELETE revoked_sessions :entries",
            ConditionExpression="attribute_exists(user_id)",
            ExpressionAttributeValues=item_of(**{":entries": entries}),
        )

    def _end_actions(self, session: Session | None, now: datetime) -> Iterator[Mapping[str, Any]]:
        """Mark a session as ended, provided that no token was issued since the session was read."""
        if session is None:
            return
        yield {
            "Put": {
                "TableName": self._tables.sessions,
                "Item": session_item(replace(session, end_time=now)),
                "ConditionExpression": "rotating_part_sha256 = :expected AND attribute_not_exists(ended_at)",
                "ExpressionAttributeValues": item_of(**{":expected": session.rotating_part_sha256}),
            }
        }

    async def get_attempt_counts(self, keys: Sequence[str], now: datetime) -> Mapping[str, AttemptCount]:
        """See Store."""
        return await self._counters.get(keys, now)

    async def reserve_attempt(self, attempt_id: str, counters: Sequence[Counter], now: datetime) -> bool:
        """See Store."""
        return await self._counters.reserve(attempt_id, counters, now)

    async def settle_attempt(self, attempt_id: str, update: CounterUpdate) -> None:
        """See Store."""
        await self._counters.settle(attempt_id, update)

    async def create_tables(self) -> list[str]:
        """See Store."""
        return await create_tables(self._client, self._tables)

    async def check_tables(self) -> list[Finding]:
        """See Store."""
        return await check_tables(self._client, self._tables)


def _user_state(row: Item | Exception | None) -> UserState | Exception | None:
    if isinstance(row, TimeoutError):
        return StoreUnavailableError("no answer in time")
    if row is None or isinstance(row, Exception):
        return row
    try:
        return user_state_from_item(row)
    except CorruptItemError as error:
        return error


def _request_key(digest: bytes) -> str:
    return f"request#{digest.hex()}"


def _without_revocations(user: User) -> User:
    return replace(user, revoked_sessions=frozenset())


def _read_users(rows: Iterable[Item]) -> tuple[list[User], list[CorruptItemError]]:
    users, corrupt = [], []
    for row in rows:
        try:
            users.append(user_from_item(row))
        except CorruptItemError as error:
            corrupt.append(error)
    return users, corrupt


@asynccontextmanager
async def open_dynamodb_store(
    table_prefix: str, on_user_changed: OnUserChanged = ignore, timeouts: DynamoDBTimeouts | None = None
) -> AsyncIterator[DynamoDBStore]:
    """Open the store on the tables whose names begin with `table_prefix`.

    Args:
        table_prefix: Of the tables.
        on_user_changed: See Store.
        timeouts: None: those of production.

    Raises:
        ConfigError: No region is configured.
    """
    async with open_client(timeouts or DynamoDBTimeouts()) as client:
        yield DynamoDBStore(client, Tables(table_prefix), on_user_changed)
