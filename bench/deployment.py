"""What the servers need before they start: tables with users, signing keys, and tokens."""

import gzip
import json
import secrets
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from authsvc.models import User, utc_now
from authsvc.stores.dynamodb.items import user_item
from authsvc.stores.dynamodb.tables import EMAIL_INDEX
from authsvc.stores.sqlite import open_sqlite_store
from authsvc.tokens.access_tokens import AccessTokens
from authsvc.tokens.key_file import read_key_ring
from tests.engines.dynoxide import import_tables

ISSUER = "https://auth.example.com"
AUDIENCE = "backends"
TOKEN_TTL = timedelta(hours=24)
CREATE_TIME = datetime(2026, 1, 1, tzinfo=UTC)


def user(number: int) -> User:
    """Return one of the users, without a password, because none of them logs in."""
    return User(
        user_id=f"user{number:018}",
        email=f"user{number}@example.com",
        role="user",
        create_time=CREATE_TIME,
        update_time=CREATE_TIME,
    )


def write_tokens(path: Path, keys: Path, users: int, tokens: int) -> None:
    """Sign tokens, spread evenly over the users, and write one a line."""
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
    """Write the users into a SQLite file that already has its tables."""
    async with open_sqlite_store(path) as store:
        for number in range(users):
            await store.create_user(user(number), CREATE_TIME)


def write_database(database: Path, tables: Mapping[str, int]) -> None:
    """Create an engine's database that holds users.

    Args:
        database: The file to create.
        tables: Number of users by name of the users table.
    """
    with tempfile.TemporaryDirectory(prefix="bench-export-", dir=database.parent) as name:
        export = Path(name)
        for table, users in tables.items():
            _export_users(export / table / "data", users)
        schema = export / "schema.json"
        schema.write_text(json.dumps([_description(table) for table in tables]))
        import_tables(export, schema, database)


def _export_users(folder: Path, users: int) -> None:
    folder.mkdir(parents=True)
    with gzip.open(folder / "users.json.gz", "wb", compresslevel=1) as file:
        file.writelines(orjson.dumps({"Item": user_item(user(number))}) + b"\n" for number in range(users))


def _description(table: str) -> dict[str, Any]:
    """Return what DescribeTable says of a users table."""
    names = ("user_id", "email")
    schemas = {name: [{"AttributeName": name, "KeyType": "HASH"}] for name in names}
    index = {"IndexName": EMAIL_INDEX, "KeySchema": schemas["email"], "Projection": {"ProjectionType": "ALL"}}
    return {
        "Table": {
            "TableName": table,
            "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in names],
            "KeySchema": schemas["user_id"],
            "GlobalSecondaryIndexes": [index],
            "BillingModeSummary": {"BillingMode": "PAY_PER_REQUEST"},
        }
    }
