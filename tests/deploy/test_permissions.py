"""The IAM policies allow what the code calls, and nothing else: each is compared with recorded requests."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.deploy.cloudformation import resources
from tests.dynamodb import Tables
from tests.e2e.process import invoke
from tests.engines import Engine
from tests.faults import Attempt, FaultyProxy, proxy_in_thread
from tests.support import PASSWORD, WITNESS, FakeClock, failure, make_settings, served, use_engine

SOURCE = "192.0.2.7"
OTHER_PASSWORD = "another password of words"
ACTIONS_OF_A_TRANSACTION = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}
"""DynamoDB asks for the permission of each action, and for none of TransactWriteItems."""

Permissions = set[tuple[str, str]]
"""Pairs of an action and a resource, such as ("GetItem", "UsersTable")."""


@pytest.fixture
def proxy(dynoxide: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Records the requests of what runs in this process."""
    with proxy_in_thread(dynoxide.endpoint_url) as proxy:
        use_engine(dynoxide, monkeypatch, proxy.endpoint_url)
        yield proxy


@pytest.fixture
def tables(dynoxide: Engine, table_prefix: str) -> Tables:
    """Another program's way to the tables, which is not recorded."""
    return Tables(boto3.client("dynamodb", **dynoxide.client_options()), table_prefix)


def recorded(proxy: FaultyProxy, tables: Tables) -> Permissions:
    """Return what the requests so far need, and forget them."""
    names = {
        tables.users: "UsersTable",
        tables.unique: "UniqueTable",
        tables.sessions: "SessionsTable",
        tables.login_attempts: "LoginAttemptsTable",
    }
    used = {
        (action, names[table] + (f"/index/{index}" if index else ""))
        for attempt in proxy.attempts
        for action, table, index in needs(attempt)
    }
    proxy.forget()
    return used


def needs(attempt: Attempt) -> Iterator[tuple[str, str, str]]:
    """Return action, table and index of each permission that a request needs."""
    match attempt.operation:
        case "BatchGetItem":
            yield from (("BatchGetItem", table, "") for table in attempt.payload["RequestItems"])
        case "TransactWriteItems":
            for item in attempt.payload["TransactItems"]:
                ((kind, action),) = item.items()
                yield ACTIONS_OF_A_TRANSACTION[kind], action["TableName"], ""
        case operation:
            yield operation, attempt.payload["TableName"], attempt.payload.get("IndexName", "")


def allowed(policy: str) -> Permissions:
    """Return what the policy's statements on DynamoDB allow."""
    document = resources("AWS::IAM::ManagedPolicy")[policy]["PolicyDocument"]
    pairs = [
        (action, resource)
        for statement in document["Statement"]
        if "Action" in statement
        for action in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    ]
    assert len(pairs) == len(set(map(str, pairs))), "an action is allowed twice"
    return {(action.removeprefix("dynamodb:"), logical_name(resource)) for action, resource in pairs}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def logical_name(resource: Mapping[str, str]) -> str:
    """Return `UsersTable` of `!GetAtt UsersTable.Arn`, and `UsersTable/index/x` of `!Sub ${UsersTable.Arn}/index/x`."""
    (text,) = resource.values()
    return text.replace("${", "").replace("}", "").replace(".Arn", "")


async def test_serve(
    proxy: FaultyProxy, tables: Tables, signing_keys: Path, table_prefix: str, clock: FakeClock
) -> None:
    settings = make_settings(signing_keys, "dynamodb", table_prefix=table_prefix)
    async with served(settings, clock) as client:
        proxy.forget()  # the tables were created
        alice = await client.create_user(request_id="once")
        await client.create_user(request_id="once")
        tokens = (await client.log_in(client_address=SOURCE)).tokens
        WITNESS.hide(tokens.access_token, tokens.refresh_token)
        await client.validate(tokens.access_token)
        await client.refresh(tokens.refresh_token)
        await client.revoke(tokens.refresh_token)
        await failure(client.log_in(password=OTHER_PASSWORD, client_address=SOURCE))
        await client.change_password(OTHER_PASSWORD)
        await client.get_user(user_id=alice.user_id)
        await client.list_users()
        await client.list_sessions(alice.user_id)
        await client.update_user(alice.user_id, email="moved@example.com")
        await client.reset_password(alice.user_id)
        await client.revoke_sessions(alice.user_id)
        await client.delete_user(alice.user_id)
        # A row of another program, whose address is not claimed, and one whose address a deleted user had.
        tables.put_user("bob", "bob@example.com")
        await client.delete_user("bob")
        tables.put_claim("carol@example.com", "deleted")
        await client.create_user("carol@example.com")
    assert recorded(proxy, tables) == allowed("ServePolicy")


def test_tables_check_and_doctor(proxy: FaultyProxy, tables: Tables, signing_keys: Path) -> None:
    settings = {
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
    }
    authsvc(proxy, tables, "tables", "create")
    proxy.forget()
    authsvc(proxy, tables, "tables", "check")
    authsvc(proxy, tables, "doctor", **settings)
    assert recorded(proxy, tables) == allowed("CheckPolicy")


def test_users(proxy: FaultyProxy, tables: Tables, tmp_path: Path) -> None:
    authsvc(proxy, tables, "tables", "create")
    proxy.forget()
    # Claims of deleted users, one of them in an older normal form.
    tables.put_claim("alice@example.com", "deleted")
    tables.put_claim("bob@xn--exmple-cua.de", "deleted")
    file = tmp_path / "users.jsonl"
    file.write_text(json.dumps({"email": "bob@exämple.de", "password_hash": "$2b$12$" + "." * 53}))
    create = ("users", "create", "--email", "alice@example.com")
    authsvc(proxy, tables, *create, stdin=PASSWORD)
    authsvc(proxy, tables, "users", "import", str(file))
    authsvc(proxy, tables, "users", "list")
    for command in ("disable", "enable", "reset-password", "revoke-sessions"):
        authsvc(proxy, tables, "users", command, "alice@example.com")
    assert recorded(proxy, tables) == allowed("AdminPolicy")


def authsvc(proxy: FaultyProxy, tables: Tables, *arguments: str, stdin: str = "", **settings: str) -> None:
    environ = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_DYNAMODB": proxy.endpoint_url,
        "AUTHSVC_STORE": "dynamodb",
        "AUTHSVC_TABLE_PREFIX": tables.prefix,
        **settings,
    }
    done = invoke(*arguments, stdin=stdin, **environ)
    assert done.exit_code == 0, done.stderr
