"""The DynamoDB tables: their definitions, their creation, and their check."""

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from authsvc.errors import StoreSetupError, StoreUnavailableError
from authsvc.models import Finding
from authsvc.stores.dynamodb.client import DynamoDBClient
from authsvc.stores.dynamodb.responses import BACKUPS_NOT_READY

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb.literals import KeyTypeType
    from types_aiobotocore_dynamodb.type_defs import (
        AttributeDefinitionTypeDef,
        CreateGlobalSecondaryIndexActionTypeDef,
        CreateTableInputTypeDef,
        KeySchemaElementTypeDef,
    )

EMAIL_INDEX = "email-index"
TTL_ATTRIBUTE = "expires_at"

_ACTIVE_POLL_SECONDS = 0.2
_ACTIVE_WAIT_SECONDS = 60.0
_CREATE_REMEDY = "authsvc tables create"
_UNLESS_SHARED = "where no other program needs it (else use another AUTHSVC_TABLE_PREFIX)"


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables' names.

    Args:
        prefix: What they begin with, for instance `auth-`.
    """

    prefix: str

    @property
    def users(self) -> str:
        """Users, by user id, with an index on email."""
        return f"{self.prefix}users"

    @property
    def unique(self) -> str:
        """Claims of addresses, and used request ids."""
        return f"{self.prefix}unique"

    @property
    def sessions(self) -> str:
        """Sessions, by user id and session id."""
        return f"{self.prefix}sessions"

    @property
    def login_attempts(self) -> str:
        """Counters of failed logins, and marks of known sources."""
        return f"{self.prefix}login-attempts"


@dataclass(frozen=True, slots=True)
class _Table:
    """What a table must be.

    Args:
        keys: HASH and, where there is one, RANGE attribute; all are strings.
        has_email_index: Whether it has the index on email.
        has_ttl: Whether items expire by TTL_ATTRIBUTE.
    """

    name: str
    keys: tuple[str, ...]
    has_email_index: bool = False
    has_ttl: bool = True

    @property
    def key_schema(self) -> list["KeySchemaElementTypeDef"]:
        kinds: tuple[KeyTypeType, ...] = ("HASH", "RANGE")
        return [{"AttributeName": name, "KeyType": kind} for name, kind in zip(self.keys, kinds, strict=False)]

    @property
    def index(self) -> "CreateGlobalSecondaryIndexActionTypeDef":
        return {
            "IndexName": EMAIL_INDEX,
            "KeySchema": [{"AttributeName": "email", "KeyType": "HASH"}],
            "Projection": {"ProjectionType": "ALL"},
        }

    @property
    def attributes(self) -> list["AttributeDefinitionTypeDef"]:
        names = (*self.keys, "email") if self.has_email_index else self.keys
        return [{"AttributeName": name, "AttributeType": "S"} for name in names]

    @property
    def definition(self) -> "CreateTableInputTypeDef":
        definition: CreateTableInputTypeDef = {
            "TableName": self.name,
            "KeySchema": self.key_schema,
            "AttributeDefinitions": self.attributes,
            "BillingMode": "PAY_PER_REQUEST",
        }
        if self.has_email_index:
            definition["GlobalSecondaryIndexes"] = [self.index]
        return definition


def _required(tables: Tables) -> Iterator[_Table]:
    yield _Table(tables.users, ("user_id",), has_email_index=True, has_ttl=False)
    yield _Table(tables.unique, ("unique_key",))
    yield _Table(tables.sessions, ("user_id", "session_id"))
    yield _Table(tables.login_attempts, ("attempt_key",))


async def create_tables(client: DynamoDBClient, tables: Tables) -> list[str]:
    """Create the tables, indexes and TTL settings that are missing.

    Returns:
        What was done, a line each.

    Raises:
        StoreSetupError: A table has other keys, or its index is another one.
        StoreUnavailableError: DynamoDB does not answer.
    """
    return [line for table in _required(tables) for line in await _create(client, table)]


async def check_tables(client: DynamoDBClient, tables: Tables) -> list[Finding]:
    """Compare keys, index, billing, TTL and PITR with the definitions.

    Raises:
        StoreUnavailableError: DynamoDB does not answer.
    """
    return [finding for table in _required(tables) for finding in await _check(client, table)]


async def _create(client: DynamoDBClient, table: _Table) -> list[str]:
    done = []
    found = await _describe(client, table)
    if found is None:
        await _create_or_find(client.call(client.api.create_table, **table.definition), _describe(client, table))
    elif problem := _key_problem(table, found) or _index_problem(table, found):
        raise StoreSetupError(f"table {table.name}: {problem}")
    # Also for what exists: another process, or an earlier run that did not wait for its end, may be creating it.
    await _wait_until_active(client, table)
    if found is None:
        done.append(f"created table {table.name}")
        if await _enable_pitr(client, table):
            done.append(f"enabled point-in-time recovery on {table.name}")
    elif table.has_email_index and await _find_index(client, table) is None:
        await _create_index(client, table)
        done.append(f"created index {EMAIL_INDEX} on {table.name}")
    if table.has_ttl and await _ttl_attribute(client, table) is None:
        await _enable_ttl(client, table)
        done.append(f"enabled TTL on {table.name}")
    return done


async def _create_or_find(creation: Awaitable[object], found: Coroutine[Any, Any, object]) -> None:
    """Create something that may exist by now: another process, or an attempt whose response was lost, created it."""
    with closing(found):
        try:
            await creation
        except StoreSetupError:
            if await found is None:
                raise


async def _create_index(client: DynamoDBClient, table: _Table) -> None:
    creation = client.call(
        client.api.update_table,
        TableName=table.name,
        AttributeDefinitions=table.attributes,
        GlobalSecondaryIndexUpdates=[{"Create": table.index}],
    )
    await _create_or_find(creation, _find_index(client, table))
    await _wait_until_active(client, table)


async def _find_index(client: DynamoDBClient, table: _Table) -> Mapping[str, Any] | None:
    found = await _describe(client, table)
    return None if found is None else _index(found)


async def _wait_until_active(client: DynamoDBClient, table: _Table) -> None:
    """Wait for a table and its index; DynamoDB takes seconds for a table, minutes for an index."""

    async def is_done() -> bool:
        return _is_active(await _describe(client, table))

    try:
        await _poll_until(is_done)
    except TimeoutError:
        raise StoreSetupError(
            f"table {table.name} is still being created or changed: run this command again in a minute"
        ) from None


async def _poll_until(is_done: Callable[[], Awaitable[bool]]) -> None:
    """Poll until done; TimeoutError after _ACTIVE_WAIT_SECONDS."""
    async with asyncio.timeout(_ACTIVE_WAIT_SECONDS):
        while not await is_done():  # noqa: ASYNC110 - DynamoDB offers no events
            await asyncio.sleep(_ACTIVE_POLL_SECONDS)


def _is_active(found: Mapping[str, Any] | None) -> bool:
    if found is None:
        return False
    index = _index(found) or {}
    return {found["TableStatus"], index.get("IndexStatus", "ACTIVE")} == {"ACTIVE"}


async def _enable_ttl(client: DynamoDBClient, table: _Table) -> None:
    creation = client.call(
        client.api.update_time_to_live,
        TableName=table.name,
        TimeToLiveSpecification={"Enabled": True, "AttributeName": TTL_ATTRIBUTE},
    )
    await _create_or_find(creation, _ttl_attribute(client, table))


async def _enable_pitr(client: DynamoDBClient, table: _Table) -> bool:
    """Enable point-in-time recovery of a new table; return False where the engine has none, as local engines."""

    async def enable() -> bool:
        try:
            await client.call(
                client.api.update_continuous_backups,
                TableName=table.name,
                PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
            )
        except StoreUnavailableError as error:
            if error.cause != BACKUPS_NOT_READY:
                raise
            return False
        return True

    try:
        await _poll_until(enable)
    except StoreSetupError:
        return False
    except TimeoutError:
        remedy = "authsvc tables check prints the command that enables it"
        raise StoreSetupError(f"table {table.name} has no point-in-time recovery yet: {remedy}") from None
    return True


async def _describe(client: DynamoDBClient, table: _Table) -> Mapping[str, Any] | None:
    try:
        response = await client.call(client.api.describe_table, TableName=table.name)
    except StoreUnavailableError as error:
        if error.cause == "ResourceNotFoundException":
            return None
        raise
    found: Mapping[str, Any] = response["Table"]
    return found


def _index(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    indexes = found.get("GlobalSecondaryIndexes") or ()
    return next((index for index in indexes if index["IndexName"] == EMAIL_INDEX), None)


def _are_strings(found: Mapping[str, Any], names: Iterable[str]) -> bool:
    types = {a["AttributeName"]: a["AttributeType"] for a in found["AttributeDefinitions"]}
    return all(types[name] == "S" for name in names)


def _key_problem(table: _Table, found: Mapping[str, Any]) -> str:
    if found["KeySchema"] == table.key_schema and _are_strings(found, table.keys):
        return ""
    return f"its keys must be {' and '.join(table.keys)}, strings"


def _index_problem(table: _Table, found: Mapping[str, Any]) -> str:
    index = _index(found)
    if index is None or not table.has_email_index:
        return ""
    # Any projection is enough: only the user id is read from the index.
    if index["KeySchema"] == table.index["KeySchema"] and _are_strings(found, ["email"]):
        return ""
    return f"its index {EMAIL_INDEX} must have the key email, a string"


async def _ttl_attribute(client: DynamoDBClient, table: _Table) -> str | None:
    response = await client.call(client.api.describe_time_to_live, TableName=table.name)
    description = response["TimeToLiveDescription"]
    if description["TimeToLiveStatus"] not in ("ENABLED", "ENABLING"):
        return None
    attribute: str = description["AttributeName"]
    return attribute


async def _has_pitr(client: DynamoDBClient, table: _Table) -> bool | None:
    """Return whether point-in-time recovery is on; None where the engine has none."""
    try:
        response = await client.call(client.api.describe_continuous_backups, TableName=table.name)
    except StoreSetupError:
        return None
    recovery = response["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    return recovery.get("PointInTimeRecoveryStatus") == "ENABLED"


async def _check(client: DynamoDBClient, table: _Table) -> list[Finding]:
    found = await _describe(client, table)
    subject = f"table {table.name}"
    if found is None:
        return [Finding(subject, "is missing", _CREATE_REMEDY)]
    return [
        *_status_findings(subject, found),
        Finding(f"{subject}: keys", _key_problem(table, found), "use another AUTHSVC_TABLE_PREFIX"),
        *_index_findings(subject, table, found),
        _billing_finding(subject, found),
        *await _ttl_findings(client, subject, table),
        *await _pitr_findings(client, subject, table),
    ]


def _status_findings(subject: str, found: Mapping[str, Any]) -> Iterator[Finding]:
    """Report a table or an index that cannot be read yet, or no longer."""
    index = _index(found) or {}
    statuses = {subject: found["TableStatus"], f"{subject}: index {EMAIL_INDEX}": index.get("IndexStatus", "ACTIVE")}
    for name, status in statuses.items():
        if status not in ("ACTIVE", "UPDATING"):
            yield Finding(name, f"is {status}", f"{_CREATE_REMEDY}, which waits until it is ACTIVE")


def _index_findings(subject: str, table: _Table, found: Mapping[str, Any]) -> Iterator[Finding]:
    if not table.has_email_index:
        return
    subject = f"{subject}: index {EMAIL_INDEX}"
    if _index(found) is None:
        yield Finding(subject, "is missing", _CREATE_REMEDY)
    else:
        updates = f'\'[{{"Delete": {{"IndexName": "{EMAIL_INDEX}"}}}}]\''
        remedy = f"aws dynamodb update-table --table-name {table.name} --global-secondary-index-updates {updates}"
        yield Finding(subject, _index_problem(table, found), f"{_UNLESS_SHARED}: {remedy}; then {_CREATE_REMEDY}")


def _billing_finding(subject: str, found: Mapping[str, Any]) -> Finding:
    mode = found.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED")
    problem = "" if mode == "PAY_PER_REQUEST" else f"is {mode}: it throttles above its provisioned capacity"
    remedy = f"aws dynamodb update-table --table-name {found['TableName']} --billing-mode PAY_PER_REQUEST"
    return Finding(f"{subject}: billing", problem, remedy)


async def _ttl_findings(client: DynamoDBClient, subject: str, table: _Table) -> list[Finding]:
    if not table.has_ttl:
        return []
    attribute = await _ttl_attribute(client, table)
    subject = f"{subject}: TTL on {TTL_ATTRIBUTE}"
    if attribute is None:
        return [Finding(subject, "is off", _CREATE_REMEDY)]
    problem = "" if attribute == TTL_ATTRIBUTE else f"is on {attribute}"
    # The name is another program's: a shell must not run a part of it.
    off = shlex.quote(f"Enabled=false,AttributeName={attribute}")
    remedy = (
        f"{_UNLESS_SHARED}: aws dynamodb update-time-to-live --table-name {table.name} "
        f"--time-to-live-specification {off}; an hour later {_CREATE_REMEDY}"
    )
    return [Finding(subject, problem, remedy)]


async def _pitr_findings(client: DynamoDBClient, subject: str, table: _Table) -> list[Finding]:
    has_pitr = await _has_pitr(client, table)
    if has_pitr is None:
        return []
    remedy = (
        f"aws dynamodb update-continuous-backups --table-name {table.name} "
        "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true"
    )
    problem = "" if has_pitr else "is off"
    return [Finding(f"{subject}: point-in-time recovery", problem, remedy)]
