"""The DynamoDB tables: what they must be, making them, and checking them."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from authsvc.errors import StoreSetupError, StoreUnavailableError
from authsvc.models import Finding
from authsvc.stores.dynamodb.client import BACKUPS_NOT_READY, DynamoDBClient

EMAIL_INDEX = "email-index"
TTL_ATTRIBUTE = "expires_at"

_ACTIVE_POLL_SECONDS = 0.2
_ACTIVE_WAIT_SECONDS = 60.0
_CREATE_REMEDY = "authsvc tables create"


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
        """Claims of addresses, and request ids that were used."""
        return f"{self.prefix}unique"

    @property
    def sessions(self) -> str:
        """Sessions, by user id and session id."""
        return f"{self.prefix}sessions"

    @property
    def login_attempts(self) -> str:
        """Counters of failed logins, and which sources are known to an account."""
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
    def key_schema(self) -> list[dict[str, str]]:
        return [
            {"AttributeName": name, "KeyType": kind} for name, kind in zip(self.keys, ("HASH", "RANGE"), strict=False)
        ]

    @property
    def index(self) -> dict[str, Any]:
        return {
            "IndexName": EMAIL_INDEX,
            "KeySchema": [{"AttributeName": "email", "KeyType": "HASH"}],
            "Projection": {"ProjectionType": "ALL"},
        }

    @property
    def attributes(self) -> list[dict[str, str]]:
        names = (*self.keys, "email") if self.has_email_index else self.keys
        return [{"AttributeName": name, "AttributeType": "S"} for name in names]

    @property
    def definition(self) -> dict[str, Any]:
        definition: dict[str, Any] = {
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


async def create_tables(call: DynamoDBClient, tables: Tables) -> list[str]:
    """Make the tables, indexes and TTL settings that are missing.

    Returns:
        What was done, a line each.

    Raises:
        StoreSetupError: A table has other keys, or its index is another one.
        StoreUnavailableError: DynamoDB does not answer.
    """
    return [line for table in _required(tables) for line in await _create(call, table)]


async def check_tables(call: DynamoDBClient, tables: Tables) -> list[Finding]:
    """Compare keys, index, billing, TTL and PITR with what they must be.

    Raises:
        StoreUnavailableError: DynamoDB does not answer.
    """
    return [finding for table in _required(tables) for finding in await _check(call, table)]


async def _create(call: DynamoDBClient, table: _Table) -> list[str]:
    done = []
    there = await _describe(call, table)
    if there is None:
        await _make(call("CreateTable", **table.definition), _describe(call, table))
        await _wait_until_active(call, table)
        done.append(f"created table {table.name}")
        if await _enable_pitr(call, table):
            done.append(f"enabled point-in-time recovery on {table.name}")
    elif problem := _key_problem(table, there) or _index_problem(table, there):
        raise StoreSetupError(f"table {table.name}: {problem}")
    elif _index(there) is None and table.has_email_index:
        await _create_index(call, table)
        done.append(f"created index {EMAIL_INDEX} on {table.name}")
    if table.has_ttl and await _ttl_attribute(call, table) is None:
        await _enable_ttl(call, table)
        done.append(f"enabled TTL on {table.name}")
    return done


async def _make(making: Awaitable[object], found: Coroutine[Any, Any, object]) -> None:
    """Make something, which may be found to be there: another process or a try whose answer was lost has made it."""
    with closing(found):
        try:
            await making
        except StoreSetupError:
            if await found is None:
                raise


async def _create_index(call: DynamoDBClient, table: _Table) -> None:
    making = call(
        "UpdateTable",
        TableName=table.name,
        AttributeDefinitions=table.attributes,
        GlobalSecondaryIndexUpdates=[{"Create": table.index}],
    )
    await _make(making, _find_index(call, table))
    await _wait_until_active(call, table)


async def _find_index(call: DynamoDBClient, table: _Table) -> Mapping[str, Any] | None:
    there = await _describe(call, table)
    return None if there is None else _index(there)


async def _wait_until_active(call: DynamoDBClient, table: _Table) -> None:
    """Wait for a table and its index; DynamoDB takes seconds for a table, minutes for an index."""

    async def look() -> bool:
        return _is_active(await _describe(call, table))

    try:
        await _until(look)
    except TimeoutError:
        raise StoreSetupError(f"table {table.name} is still being made: run this again in a minute") from None


async def _until(look: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again."""
    async with asyncio.timeout(_ACTIVE_WAIT_SECONDS):
        while not await look():  # noqa: ASYNC110 - DynamoDB sends no events
            await asyncio.sleep(_ACTIVE_POLL_SECONDS)


def _is_active(there: Mapping[str, Any] | None) -> bool:
    if there is None:
        return False
    index = _index(there) or {}
    return {there["TableStatus"], index.get("IndexStatus", "ACTIVE")} == {"ACTIVE"}


async def _enable_ttl(call: DynamoDBClient, table: _Table) -> None:
    making = call(
        "UpdateTimeToLive",
        TableName=table.name,
        TimeToLiveSpecification={"Enabled": True, "AttributeName": TTL_ATTRIBUTE},
    )
    await _make(making, _ttl_attribute(call, table))


async def _enable_pitr(call: DynamoDBClient, table: _Table) -> bool:
    """Enable point-in-time recovery of a new table; False where the engine has none, as local ones do."""

    async def enable() -> bool:
        try:
            await call(
                "UpdateContinuousBackups",
                TableName=table.name,
                PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
            )
        except StoreUnavailableError as error:
            if error.cause != BACKUPS_NOT_READY:
                raise
            return False
        return True

    try:
        await _until(enable)
    except StoreSetupError:
        return False
    except TimeoutError:
        remedy = "authsvc tables check says what enables it"
        raise StoreSetupError(f"table {table.name} has no point-in-time recovery yet: {remedy}") from None
    return True


async def _describe(call: DynamoDBClient, table: _Table) -> Mapping[str, Any] | None:
    try:
        response = await call("DescribeTable", TableName=table.name)
    except StoreUnavailableError as error:
        if error.cause == "ResourceNotFoundException":
            return None
        raise
    there: Mapping[str, Any] = response["Table"]
    return there


def _index(there: Mapping[str, Any]) -> Mapping[str, Any] | None:
    indexes = there.get("GlobalSecondaryIndexes") or ()
    return next((index for index in indexes if index["IndexName"] == EMAIL_INDEX), None)


def _key_problem(table: _Table, there: Mapping[str, Any]) -> str:
    types = {a["AttributeName"]: a["AttributeType"] for a in there["AttributeDefinitions"]}
    if there["KeySchema"] == table.key_schema and all(types[key] == "S" for key in table.keys):
        return ""
    return f"its keys must be {' and '.join(table.keys)}, strings"


def _index_problem(table: _Table, there: Mapping[str, Any]) -> str:
    index = _index(there)
    if index is None or not table.has_email_index:
        return ""
    # Any projection will do: only the user id is taken from the index.
    return "" if index["KeySchema"] == table.index["KeySchema"] else f"its index {EMAIL_INDEX} must have the key email"


async def _ttl_attribute(call: DynamoDBClient, table: _Table) -> str | None:
    response = await call("DescribeTimeToLive", TableName=table.name)
    description = response["TimeToLiveDescription"]
    if description["TimeToLiveStatus"] not in ("ENABLED", "ENABLING"):
        return None
    attribute: str = description["AttributeName"]
    return attribute


async def _has_pitr(call: DynamoDBClient, table: _Table) -> bool | None:
    """Tell whether point-in-time recovery is on; None where the engine has none."""
    try:
        response = await call("DescribeContinuousBackups", TableName=table.name)
    except StoreSetupError:
        return None
    backups: Mapping[str, Mapping[str, str]] = response["ContinuousBackupsDescription"]
    return backups.get("PointInTimeRecoveryDescription", {}).get("PointInTimeRecoveryStatus") == "ENABLED"


async def _check(call: DynamoDBClient, table: _Table) -> list[Finding]:
    there = await _describe(call, table)
    subject = f"table {table.name}"
    if there is None:
        return [Finding(subject, "is missing", _CREATE_REMEDY)]
    return [
        Finding(f"{subject}: keys", _key_problem(table, there), "use another AUTHSVC_TABLE_PREFIX"),
        *_index_findings(subject, table, there),
        _billing_finding(subject, there),
        *await _ttl_findings(call, subject, table),
        *await _pitr_findings(call, subject, table),
    ]


def _index_findings(subject: str, table: _Table, there: Mapping[str, Any]) -> Iterator[Finding]:
    if not table.has_email_index:
        return
    subject = f"{subject}: index {EMAIL_INDEX}"
    if _index(there) is None:
        yield Finding(subject, "is missing", _CREATE_REMEDY)
    else:
        updates = f'\'[{{"Delete": {{"IndexName": "{EMAIL_INDEX}"}}}}]\''
        remedy = f"aws dynamodb update-table --table-name {table.name} --global-secondary-index-updates {updates}"
        yield Finding(subject, _index_problem(table, there), f"{remedy}; then {_CREATE_REMEDY}")


def _billing_finding(subject: str, there: Mapping[str, Any]) -> Finding:
    mode = there.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED")
    problem = "" if mode == "PAY_PER_REQUEST" else f"is {mode}: it throttles above what it was given"
    remedy = f"aws dynamodb update-table --table-name {there['TableName']} --billing-mode PAY_PER_REQUEST"
    return Finding(f"{subject}: billing", problem, remedy)


async def _ttl_findings(call: DynamoDBClient, subject: str, table: _Table) -> list[Finding]:
    if not table.has_ttl:
        return []
    attribute = await _ttl_attribute(call, table)
    subject = f"{subject}: TTL on {TTL_ATTRIBUTE}"
    if attribute is None:
        return [Finding(subject, "is off", _CREATE_REMEDY)]
    problem = "" if attribute == TTL_ATTRIBUTE else f"is on {attribute}"
    remedy = (
        f"aws dynamodb update-time-to-live --table-name {table.name} "
        f"--time-to-live-specification Enabled=false,AttributeName={attribute}; an hour later {_CREATE_REMEDY}"
    )
    return [Finding(subject, problem, remedy)]


async def _pitr_findings(call: DynamoDBClient, subject: str, table: _Table) -> list[Finding]:
    has_pitr = await _has_pitr(call, table)
    if has_pitr is None:
        return []
    remedy = (
        f"aws dynamodb update-continuous-backups --table-name {table.name} "
        "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true"
    )
    problem = "" if has_pitr else "is off"
    return [Finding(f"{subject}: point-in-time recovery", problem, remedy)]
