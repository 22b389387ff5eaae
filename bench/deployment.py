"""What the servers need to be there first: tables with users in them, signing keys, and tokens."""

import asyncio
import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import aioboto3
import boto3
from aiobotocore.config import AioConfig

from authsvc.dynamodb_items import user_item
from authsvc.keys import read_key_ring
from authsvc.models import User, utc_now
from authsvc.sqlite import open_sqlite_store
from authsvc.tokens import AccessTokens
from tests.engines import Engine

ISSUER = "https://auth.example.com"
AUDIENCE = "backends"
TOKEN_TTL = timedelta(hours=24)
ITEMS_PER_WRITE = 25
WRITES_IN_FLIGHT = 32
CREATE_TIME = datetime(2026, 1, 1, tzinfo=UTC)


def user(number: int) -> User:
    """Return one of the users: without a password, for nobody logs in as one."""
    return User(
        user_id=f"user{number:018}",
        email=f"user{number}@example.com",
        role="user",
        create_time=CREATE_TIME,
        update_time=CREATE_TIME,
    )


def write_tokens(path: Path, keys: Path, users: int, tokens: int) -> None:
    """Sign tokens that are spread evenly over the users, and write one a line."""
    now = utc_now()
    issuer = AccessTokens(read_key_ring(keys, now), ISSUER, AUDIENCE, TOKEN_TTL)
    numbers = (number * max(1, users // tokens) % users for number in range(tokens))
    issued = (
        issuer.issue(
            user_id=user(number).user_id,
            session_id=secrets.token_urlsafe(16),
            token_generation=0,
            client_id="bench",
            now=now,
            not_after=now + TOKEN_TTL,
        )
        for number in numbers
    )
    path.write_text("".join(token.text + "\n" for token in issued))


async def fill_sqlite(path: Path, users: int) -> None:
    """Write the users into a file that has its tables."""
    async with open_sqlite_store(path) as store:
        for number in range(users):
            await store.create_user(user(number), CREATE_TIME)


def create_users_table(engine: Engine, table: str) -> None:
    """Create a table that is good for validations alone: its index, which they never read, is left out."""
    dynamodb = boto3.client("dynamodb", **engine.client_options())
    dynamodb.create_table(
        TableName=table,
        AttributeDefinitions=[{"AttributeName": "user_id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "user_id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )


async def fill_users_table(engine: Engine, table: str, users: int) -> None:
    """Write the users, as many requests at once as the engine takes."""
    config = AioConfig(max_pool_connections=WRITES_IN_FLIGHT)
    async with aioboto3.Session().client("dynamodb", config=config, **engine.client_options()) as dynamodb:
        batches = _batches(user(number) for number in range(users))
        await asyncio.gather(*(_write(dynamodb, table, batches) for _ in range(WRITES_IN_FLIGHT)))


async def _write(dynamodb: Any, table: str, batches: Iterator[list[User]]) -> None:  # noqa: ANN401 - has no name
    for batch in batches:
        requests = [{"PutRequest": {"Item": user_item(each)}} for each in batch]
        while requests:
            answer = await dynamodb.batch_write_item(RequestItems={table: requests})
            requests = answer["UnprocessedItems"].get(table, [])


def _batches(users: Iterable[User]) -> Iterator[list[User]]:
    rest = iter(users)
    while batch := list(islice(rest, ITEMS_PER_WRITE)):
        yield batch
