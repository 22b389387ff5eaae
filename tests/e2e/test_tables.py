"""`authsvc tables` on DynamoDB engines: what it creates, what it finds, and that each remedy works."""

import json
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.e2e.tables import Tables
from tests.engines import Capability, Engine
from tests.support import PASSWORD


@pytest.fixture(params=["dynoxide", "ministack"])
def tables(request: pytest.FixtureRequest, table_prefix: str) -> Tables:
    engine: Engine = request.getfixturevalue(request.param)
    return Tables(boto3.client("dynamodb", **engine.client_options()), table_prefix, engine)


def users_table(tables: Tables, **changes: object) -> dict[str, Any]:
    """Return what AWS's documentation shows of such a table."""
    return {
        "TableName": tables.users,
        "KeySchema": [{"AttributeName": "user_id", "KeyType": "HASH"}],
        "AttributeDefinitions": [
            {"AttributeName": "user_id", "AttributeType": "S"},
            {"AttributeName": "email", "AttributeType": "S"},
        ],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": "email-index",
                "KeySchema": [{"AttributeName": "email", "KeyType": "HASH"}],
                "Projection": {"ProjectionType": "ALL"},
            }
        ],
        "BillingMode": "PAY_PER_REQUEST",
        **changes,
    }


def test_makes_all_once(tables: Tables) -> None:
    lines = tables.create().stdout.splitlines()
    made = [line.removeprefix("created table ") for line in lines if line.startswith("created table ")]
    assert made == [f"{tables.prefix}{name}" for name in ("users", "unique", "sessions", "login-attempts")]
    assert sum(line.startswith("enabled TTL") for line in lines) == 3
    has_pitr = tables.engine.can(Capability.PITR)
    assert sum(line.startswith("enabled point-in-time") for line in lines) == (4 if has_pitr else 0)
    assert tables.create().stdout == "nothing to do\n"
    assert tables.is_good()


def test_users_are_created_and_listed(tables: Tables) -> None:
    tables.create()
    created = tables.authsvc("users", "create", "--email", "Alice@example.com", stdin=PASSWORD)
    assert (created.exit_code, created.stderr) == (0, "")
    again = tables.authsvc("users", "create", "--email", "alice@example.com", stdin=PASSWORD)
    assert again.stderr == "error: another user has the address alice@example.com: authsvc users list\n"
    listed = tables.authsvc("users", "list").stdout
    assert listed == f"{created.stdout.strip()}\talice@example.com\tuser\tactive\n"


def test_without_tables_it_says_what_makes_them(tables: Tables) -> None:
    for command in (["users", "list"], ["users", "create", "--email", "a@example.com"]):
        result = tables.authsvc(*command, stdin=PASSWORD)
        assert result.exit_code == 1
        assert result.stderr.endswith(
            "Remedy: authsvc tables create, where AWS_REGION and AUTHSVC_TABLE_PREFIX are right\n"
        )
    check = tables.authsvc("tables", "check")
    assert check.exit_code == 1
    lines = check.stdout.splitlines()
    assert all(line.startswith("WRONG ") and "Remedy: authsvc tables create" in line for line in lines)
    assert len(lines) == 5


def test_a_missing_table(tables: Tables) -> None:
    tables.create()
    sessions = f"{tables.prefix}sessions"
    tables.dynamodb.delete_table(TableName=sessions)
    line = tables.wrong()
    assert line == f"WRONG table {sessions}: is missing. Remedy: authsvc tables create"
    tables.mend(line)
    assert tables.is_good()


def test_a_table_with_other_keys(tables: Tables) -> None:
    keys = [{"AttributeName": "id", "KeyType": "HASH"}]
    types = [{"AttributeName": "id", "AttributeType": "S"}]
    tables.dynamodb.create_table(
        TableName=tables.unique, KeySchema=keys, AttributeDefinitions=types, BillingMode="PAY_PER_REQUEST"
    )
    created = tables.authsvc("tables", "create")
    assert created.exit_code == 1
    assert created.stderr == f"error: table {tables.unique}: its keys must be unique_key, strings\n"
    check = tables.authsvc("tables", "check")
    assert check.exit_code == 1
    reported = f"WRONG table {tables.unique}: keys: its keys must be unique_key, strings. Remedy: use another"
    assert reported in check.stdout


def test_a_missing_index(tables: Tables) -> None:
    definition = users_table(tables, AttributeDefinitions=users_table(tables)["AttributeDefinitions"][:1])
    del definition["GlobalSecondaryIndexes"]
    tables.dynamodb.create_table(**definition)
    assert f"WRONG table {tables.users}: index email-index: is missing. " in tables.authsvc("tables", "check").stdout
    assert f"created index email-index on {tables.users}" in tables.create().stdout.splitlines()
    _turn_on_pitr(tables)
    assert tables.is_good()


@pytest.mark.parametrize(("attribute", "attribute_type"), [("user_id", "S"), ("email", "N")])
def test_an_index_on_something_else(tables: Tables, attribute: str, attribute_type: str) -> None:
    tables.create()
    tables.dynamodb.delete_table(TableName=tables.users)
    index = {
        "IndexName": "email-index",
        "KeySchema": [{"AttributeName": attribute, "KeyType": "HASH"}],
        "Projection": {"ProjectionType": "ALL"},
    }
    types = [
        {"AttributeName": name, "AttributeType": kind}
        for name, kind in {"user_id": "S", attribute: attribute_type}.items()
    ]
    tables.dynamodb.create_table(**users_table(tables, GlobalSecondaryIndexes=[index], AttributeDefinitions=types))
    _turn_on_pitr(tables)
    line = tables.wrong()
    assert (
        f"WRONG table {tables.users}: index email-index: its index email-index must have the key email, a string. "
        in line
    )
    tables.mend(line)
    assert tables.is_good()


def test_provisioned_billing(tables: Tables) -> None:
    tables.create()
    tables.dynamodb.delete_table(TableName=tables.users)
    units = {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5}
    index = {**users_table(tables)["GlobalSecondaryIndexes"][0], "ProvisionedThroughput": units}
    definition = users_table(
        tables, BillingMode="PROVISIONED", ProvisionedThroughput=units, GlobalSecondaryIndexes=[index]
    )
    tables.dynamodb.create_table(**definition)
    _turn_on_pitr(tables)
    line = tables.wrong()
    assert f"WRONG table {tables.users}: billing: is PROVISIONED: it throttles above its provisioned capacity. " in line
    tables.mend(line)
    assert tables.is_good()


@pytest.mark.parametrize("attribute", [None, "ttl"])
def test_time_to_live_is_off_or_on_something_else(tables: Tables, attribute: str | None) -> None:
    tables.create()
    _set_ttl(tables, "expires_at", is_on=False)
    if attribute is not None:
        _set_ttl(tables, attribute, is_on=True)
    line = tables.wrong()
    reported = "is off" if attribute is None else "is on ttl"
    assert line.startswith(f"WRONG table {tables.unique}: TTL on expires_at: {reported}. ")
    tables.mend(line)
    assert tables.is_good()


def test_point_in_time_recovery_is_off(tables: Tables) -> None:
    tables.engine.skip_unless(Capability.PITR)
    tables.create()
    tables.dynamodb.update_continuous_backups(
        TableName=tables.users, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": False}
    )
    line = tables.wrong()
    assert line.startswith(f"WRONG table {tables.users}: point-in-time recovery: is off. ")
    tables.mend(line)
    assert tables.is_good()


def test_a_users_table_of_another_program_is_accepted_with_its_rows(tables: Tables) -> None:
    tables.dynamodb.create_table(**users_table(tables))
    row = {
        "user_id": {"S": "u-1"},
        "email": {"S": "alice@example.com"},
        "role": {"S": "user"},
        "is_active": {"BOOL": True},
        "created_at": {"S": "2024-01-01T00:00:00Z"},
    }
    tables.dynamodb.put_item(TableName=tables.users, Item=row)
    assert tables.users not in tables.create().stdout
    _turn_on_pitr(tables)
    assert tables.is_good()
    assert tables.authsvc("users", "list").stdout == "u-1\talice@example.com\tuser\tactive\n"
    assert tables.dynamodb.get_item(TableName=tables.users, Key={"user_id": {"S": "u-1"}})["Item"] == row


def test_addresses_that_no_login_finds_are_listed(tables: Tables) -> None:
    tables.create()
    addresses = {"u-1": "Alice@example.com", "u-2": "alice@example.com", "u-3": "nobody", "u-4": "bob@example.com"}
    for user_id, email in addresses.items():
        row = {"user_id": {"S": user_id}, "email": {"S": email}, "role": {"S": "user"}}
        tables.dynamodb.put_item(TableName=tables.users, Item=row)
    check = tables.authsvc("tables", "check")
    assert check.exit_code == 1
    wrong = [line for line in check.stdout.splitlines() if line.startswith("WRONG")]
    assert sorted(wrong) == [
        (
            "WRONG user u-1: email: is not in normal form (NFC, lower case, domain in Unicode). "
            "Remedy: write it in normal form"
        ),
        "WRONG user u-3: email: must have exactly one @, with text on both sides. Remedy: write it in normal form",
        (
            "WRONG users u-1, u-2: have the same address: none owns it by claim, so none can log in. "
            "Remedy: give all but one another address"
        ),
    ]


def test_claims_that_are_dead_are_counted_and_unreadable_rows_listed(tables: Tables) -> None:
    tables.create()
    for email in ("alice@example.com", "bob@example.com"):
        assert tables.authsvc("users", "create", "--email", email, stdin=PASSWORD).exit_code == 0
    rows = tables.dynamodb.scan(TableName=tables.users)["Items"]
    tables.dynamodb.delete_item(TableName=tables.users, Key={"user_id": rows[0]["user_id"]})
    check = tables.authsvc("tables", "check")
    assert check.exit_code == 0
    assert check.stdout.splitlines()[-1] == "ok    addresses (1 stale claims: harmless)"
    tables.dynamodb.put_item(TableName=tables.users, Item={**rows[1], "is_active": {"N": "1"}})
    user_id = rows[1]["user_id"]["S"]
    assert tables.wrong() == (
        f"WRONG user {user_id}: attribute is_active is missing or unreadable: the user cannot log in. "
        "Remedy: correct the attribute"
    )


def test_users_are_imported(tables: Tables, tmp_path: Path) -> None:
    tables.create()
    file = tmp_path / "users.jsonl"
    line = {"password_hash": "$2b$12$" + "." * 53}
    file.write_text("\n".join(json.dumps({**line, "email": f"user{n}@example.com"}) for n in range(100)))
    for reported in ("100 created, 0 already there, 0 wrong\n", "0 created, 100 already there, 0 wrong\n"):
        done = tables.authsvc("users", "import", str(file))
        assert (done.exit_code, done.stdout, done.stderr) == (0, reported, "")
    assert tables.is_good()


def _turn_on_pitr(tables: Tables) -> None:
    """Turn on what only a check asks for of tables that others made."""
    if tables.engine.can(Capability.PITR):
        tables.dynamodb.update_continuous_backups(
            TableName=tables.users, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
        )


def _set_ttl(tables: Tables, attribute: str, *, is_on: bool) -> None:
    tables.dynamodb.update_time_to_live(
        TableName=tables.unique, TimeToLiveSpecification={"Enabled": is_on, "AttributeName": attribute}
    )
