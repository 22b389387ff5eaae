"""The command line: help, commands on SQLite, and what they say when something is wrong."""

import asyncio
import importlib
import importlib.metadata
import json
import os
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
import uvloop

from authsvc import config, request_context
from authsvc.cli.main import main
from authsvc.errors import AuthsvcError, UserNotFoundError
from authsvc.models import utc_now
from authsvc.passwords import hashes
from authsvc.rpc.callers import api_key_digest, read_callers
from authsvc.tokens import key_file as key_file_module
from authsvc.tokens import keys
from tests.e2e.certificates import Authority
from tests.e2e.process import AUTHSVC, GIVE_UP_SECONDS, Terminal, environment, invoke, run
from tests.fake_aws import FakeAws, serving_aws
from tests.support import PASSWORD, WITNESS

ROOT = Path(__file__).parents[2]
EMAIL = "alice@example.com"
HEAVY = ("aioboto3", "bcrypt", "cryptography", "grpc", "jwt", "prometheus_client", "structlog")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "authsvc.db"


@pytest.fixture
def sqlite(database: Path) -> dict[str, str]:
    """Settings of a SQLite store that is not there yet."""
    return {"AUTHSVC_STORE": f"sqlite:{database}"}


@pytest.fixture
def store(sqlite: dict[str, str]) -> dict[str, str]:
    """Settings of a store that is ready."""
    assert invoke("tables", "create", **sqlite).exit_code == 0
    return sqlite


@pytest.fixture
def complete(store: dict[str, str], signing_keys: Path) -> dict[str, str]:
    """Everything that `serve` needs."""
    return {
        **store,
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
        "AUTHSVC_LISTEN": "127.0.0.1:0",
    }


# Help


def every_command(command: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from every_command(child, (*path, name))


@pytest.mark.parametrize("path", list(every_command()), ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(path: tuple[str, ...], option: str) -> None:
    shown = invoke(*path, option)
    assert shown.exit_code == 0
    assert shown.stdout.startswith(f"Usage: {' '.join(('authsvc', *path))} ")
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help
    assert command is main or "..." not in command.get_short_help_str(limit=60), "is cut off in the list"
    assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))


def test_help_of_serve_names_every_setting() -> None:
    shown = invoke("serve", "--help").stdout
    assert "AUTHSVC_BCRYPT_COST          bcrypt cost of new password hashes, 10 to 16 (default 12)" in shown
    assert (
        "AUTHSVC_SIGNING_KEYS         key file, ssm:NAME or secretsmanager:NAME; see authsvc keys (required)" in shown
    )


def test_prints_its_version() -> None:
    assert invoke("--version").stdout == f"authsvc, version {importlib.metadata.version('authsvc')}\n"


def test_runs_as_a_module() -> None:
    done = run(sys.executable, "-m", "authsvc", "--version", environ=environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("authsvc, version")
    importlib.import_module("authsvc.__main__")  # does nothing: a worker process may import it


def test_help_loads_no_library_that_takes_long() -> None:
    code = f"import sys, authsvc.cli; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(sys.executable, "-c", code, environ=environment()).stdout == "[]\n"


def test_sqlite_loads_nothing_of_aws() -> None:
    code = "import sys, authsvc.server; print([name for name in sys.modules if 'boto' in name])"
    assert run(sys.executable, "-c", code, environ=environment()).stdout == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["dev", "--frobnicate"],
        ["users", "create"],
        ["keys", "generate"],
        ["keys", "generate", "f", "--alg", "HS256"],
        ["keys", "rotate"],
        ["keys", "remove", "f"],
        ["users", "disable"],
        ["users", "import"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_the_choice_of_algorithms_is_what_keys_can_be() -> None:
    (option,) = (p for p in main.commands["keys"].commands["generate"].params if p.name == "alg")  # type: ignore[attr-defined]
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == keys.ALGORITHMS


# Settings


def test_serve_names_every_problem_at_once() -> None:
    result = invoke("serve", AUTHSVC_LISTEN="nowhere", AUTHSVC_BCRYPT_COST="4")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: AUTHSVC_STORE: must be set: dynamodb, or sqlite:PATH",
        "error: AUTHSVC_BCRYPT_COST: must be a whole number from 10 to 16",
        "error: AUTHSVC_LISTEN: must be HOST:PORT, for instance 127.0.0.1:50051",
        "error: AUTHSVC_ISSUER: must be set: URL of this deployment, the iss claim of its tokens",
        "error: AUTHSVC_AUDIENCE: must be set: aud claim of the tokens",
        "error: AUTHSVC_SIGNING_KEYS: must be set: key file, ssm:NAME or secretsmanager:NAME; see authsvc keys",
    ]


@pytest.mark.parametrize(
    ("unsafe", "named"),
    [
        ({}, ["open to every client that can connect", "passwords in plain text"]),
        ({"AUTHSVC_ALLOW_OPEN": "true"}, ["passwords in plain text"]),
        ({"AUTHSVC_ALLOW_PLAINTEXT": "true"}, ["open to every client that can connect"]),
    ],
)
def test_serve_refuses_to_be_open_by_mistake(
    complete: dict[str, str], unsafe: dict[str, str], named: list[str]
) -> None:
    result = invoke("serve", **{**complete, **unsafe, "AUTHSVC_LISTEN": "0.0.0.0:0"})
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == len(named)
    assert all(text in line for text, line in zip(named, lines, strict=True))


def test_a_setting_that_is_misspelled_is_said_beside_the_missing_one(complete: dict[str, str]) -> None:
    result = invoke("serve", **{**complete, "AUTHSVC_AUDIENCE": "", "AUTHSVC_AUDIANCE": "backends"})
    warning, error = result.stderr.splitlines()
    assert warning == "warning: AUTHSVC_AUDIANCE is not a setting; AUTHSVC_AUDIENCE?"
    assert error.startswith("error: AUTHSVC_AUDIENCE: must be set: ")


def test_a_setting_that_is_none_is_said(complete: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = invoke("serve", **{**complete, "AUTHSVC_LISTEN": address, "AUTHSVC_ISUER": "x"})
    assert "warning: AUTHSVC_ISUER is not a setting; AUTHSVC_ISSUER?" in result.stderr
    assert f"error: AUTHSVC_LISTEN: cannot listen on {address}: Address already in use" in result.stderr
    assert result.exit_code == 1


@pytest.mark.parametrize("command", ["serve", "dev"])
def test_what_serves_runs_on_uvloop(
    complete: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    loops = []

    async def serve(*_: object, **__: object) -> None:
        loops.append(type(asyncio.get_running_loop()))

    monkeypatch.setattr("authsvc.server.app.serve", serve)
    monkeypatch.chdir(tmp_path)
    assert invoke(command, **complete).exit_code == 0
    assert loops == [uvloop.Loop]


def test_serve_refuses_an_address_that_is_not_here(complete: dict[str, str]) -> None:
    there = {"AUTHSVC_LISTEN": "[2001:db8::1]:0", "AUTHSVC_ALLOW_OPEN": "true", "AUTHSVC_ALLOW_PLAINTEXT": "true"}
    result = invoke("serve", **{**complete, **there})
    assert result.exit_code == 1
    assert "error: AUTHSVC_LISTEN: cannot listen on [2001:db8::1]:0: " in result.stderr


def test_serve_refuses_tls_files_that_do_not_fit(complete: dict[str, str], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = {
        "AUTHSVC_TLS_CERT": str(authority.issue("one").certificate),
        "AUTHSVC_TLS_KEY": str(authority.issue("other").key),
    }
    result = invoke("serve", **complete, **tls)
    assert result.exit_code == 1
    assert (
        result.stderr == f"error: AUTHSVC_TLS_KEY: {tls['AUTHSVC_TLS_KEY']}: is not the key of the first"
        f" certificate in {tls['AUTHSVC_TLS_CERT']}\n"
    )


def test_serve_refuses_a_folder_for_a_tls_file(complete: dict[str, str], tmp_path: Path) -> None:
    tls = {"AUTHSVC_TLS_CERT": str(tmp_path), "AUTHSVC_TLS_KEY": str(tmp_path)}
    result = invoke("serve", **complete, **tls)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: AUTHSVC_TLS_CERT: {tmp_path}: cannot be read: Is a directory",
        f"error: AUTHSVC_TLS_KEY: {tmp_path}: cannot be read: Is a directory",
    ]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_ENDPOINT_URL_DYNAMODB", "nowhere"),
        ("AWS_PROFILE", "nobody"),
        ("AWS_REGION", "no region"),
        ("AWS_ACCESS_KEY_ID", "half"),
        ("AWS_CONFIG_FILE", str(ROOT / "LICENSE")),
    ],
)
def test_what_aws_cannot_use_is_said(variable: str, value: str) -> None:
    aws = {"AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", variable: value}
    result = invoke("tables", "check", AUTHSVC_STORE="dynamodb", **aws)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: AWS's settings: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [["tables", "check"], ["users", "list"], ["users", "create", "--email", "a@b.co"], ["users", "disable", "a"]],
)
def test_an_engine_that_does_not_answer_is_said(command: list[str]) -> None:
    aws = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    nobody = {"AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:1"}
    result = invoke(*command, stdin=PASSWORD, AUTHSVC_STORE="dynamodb", **aws, **nobody)
    assert result.exit_code == 1
    assert "error: the store cannot answer: " in result.stderr
    assert "Remedy: check AWS_REGION" in result.stderr


def test_an_error_without_a_text_is_named_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    async def raise_it(_: key_file_module.KeyFile) -> None:
        raise UserNotFoundError

    monkeypatch.setattr(key_file_module.KeyFile, "read", raise_it)
    assert invoke("keys", "list", "file").stderr == "error: There is no such user.\n"
    assert all(cls.__doc__ for cls in AuthsvcError.__subclasses__())


# Tables


def test_tables_are_made_once(sqlite: dict[str, str], database: Path) -> None:
    first, second, check = (invoke("tables", verb, **sqlite) for verb in ("create", "create", "check"))
    assert first.stdout == "created the schema, version 3\n"
    assert second.stdout == "nothing to do\n"
    assert check.stdout.splitlines() == ["ok    schema version 3", "ok    file integrity", "ok    addresses"]
    assert (first.exit_code, second.exit_code, check.exit_code) == (0, 0, 0)
    assert stat.S_IMODE(database.stat().st_mode) == 0o600


def test_missing_tables_are_said_with_what_makes_them(sqlite: dict[str, str], database: Path) -> None:
    database.touch()
    check = invoke("tables", "check", **sqlite)
    assert check.exit_code == 1
    assert check.stdout.splitlines() == [
        "WRONG schema version 3: is 0. Remedy: authsvc tables create",
        "ok    file integrity",
        "WRONG addresses: the store cannot answer: sqlite: no such table: users. Remedy: authsvc tables create",
    ]
    create = invoke("users", "create", "--email", "alice@example.com", stdin=PASSWORD, **sqlite)
    assert create.exit_code == 1
    assert create.stderr == (
        "error: the store cannot answer: sqlite: no such table: users. Remedy: authsvc tables create\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        ["tables", "check"],
        ["users", "list"],
        ["users", "create", "--email", "a@example.com"],
        ["users", "reset-password", "a"],
        ["users", "import", "file"],
    ],
    ids=" ".join,
)
def test_looking_at_a_store_does_not_make_one(sqlite: dict[str, str], database: Path, command: list[str]) -> None:
    result = invoke(*command, stdin=PASSWORD, **sqlite)
    assert result.exit_code == 1
    assert result.stderr == f"error: {database}: no such file; create it: authsvc tables create\n"
    assert not database.exists()


@pytest.mark.parametrize("command", ["create", "check"])
def test_a_file_that_is_no_database_is_said(sqlite: dict[str, str], database: Path, command: str) -> None:
    database.write_text("Dear diary, " * 1000)
    result = invoke("tables", command, **sqlite)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: cannot open the SQLite file {database}: ")


# Users


def test_a_user_is_created_from_the_first_line_of_stdin(store: dict[str, str]) -> None:
    arguments = ["users", "create", "--email", "Alice@Example.com", "--role", "admin"]
    created = invoke(*arguments, stdin=f"{PASSWORD}\r\nand more\n", **store)
    assert (created.exit_code, created.stderr) == (0, "")
    listed = invoke("users", "list", **store)
    assert listed.stdout == f"{created.stdout.strip()}\talice@example.com\tadmin\tactive\n"


@pytest.mark.parametrize(
    ("email", "shown"),
    [
        ("josef@xn--exmple-cua.de", "josef@exämple.de (xn--exmple-cua.de)"),
        ("eve@ex\u0430mple.com", "eve@ex\u0430mple.com (xn--exmple-4nf.com)"),  # a Cyrillic letter
        ("jörg@example.com", "jörg@example.com"),
    ],
)
def test_a_domain_that_may_look_like_another_is_listed_in_a_labels_too(
    store: dict[str, str], email: str, shown: str
) -> None:
    created = invoke("users", "create", "--email", email, stdin=PASSWORD, **store)
    assert invoke("users", "list", **store).stdout == f"{created.stdout.strip()}\t{shown}\tuser\tactive\n"


@pytest.mark.parametrize("stored", ["nobody", "eve@\U0001f4a9.la"])
def test_an_address_without_a_labels_is_listed_as_it_is(
    store: dict[str, str], database: Path, alice: str, stored: str
) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("UPDATE users SET email = ?", (stored,))
    assert invoke("users", "list", **store).stdout == f"{alice}\t{stored}\tuser\tactive\n"


@pytest.mark.parametrize(
    ("stdin", "reported"),
    [
        (b"", "password: must not be empty"),
        (b"\n", "password: must not be empty"),
        (b"short\n", "password: must have at least 15 characters"),
        (b"passwordpassword", "password: is a commonly used password"),
        (b"\xff\n", "standard input: the password is not UTF-8"),
        (b"x" * 5000, "password: must have at most 1024 bytes"),
    ],
)
def test_a_password_against_the_policy_is_refused(store: dict[str, str], stdin: bytes, reported: str) -> None:
    result = invoke("users", "create", "--email", "alice@example.com", stdin=stdin, **store)
    assert (result.exit_code, result.stderr) == (1, f"error: {reported}\n")


@pytest.mark.parametrize("email", ["", "alice", "alice@", "a b@example.com", "alice@localhost", "a@b@c.com"])
def test_what_is_no_address_is_refused(store: dict[str, str], email: str) -> None:
    result = invoke("users", "create", "--email", email, stdin=PASSWORD, **store)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: email: must ")


def test_a_byte_order_mark_is_no_part_of_a_password(store: dict[str, str]) -> None:
    """PowerShell writes one into a pipe."""
    arguments = ["users", "create", "--email", EMAIL]
    assert invoke(*arguments, stdin=b"\xef\xbb\xbf" + PASSWORD.encode() + b"\r\n", **store).exit_code == 0
    stored = state(store, "password_hash")
    assert isinstance(stored, str)
    assert hashes.verify_password(PASSWORD, hashes.parse_stored_hash(stored), 10)


def test_a_role_has_its_form(store: dict[str, str]) -> None:
    result = invoke("users", "create", "--email", "a@example.com", "--role", "Ädmin", stdin=PASSWORD, **store)
    assert (result.exit_code, result.stderr) == (1, "error: role: must match [a-z][a-z0-9_-]{0,62}\n")


def test_a_taken_address_is_said(store: dict[str, str]) -> None:
    assert invoke("users", "create", "--email", "alice@example.com", stdin=PASSWORD, **store).exit_code == 0
    again = invoke("users", "create", "--email", "ALICE@example.com", stdin=PASSWORD, **store)
    assert again.exit_code == 1
    assert again.stderr == "error: another user has the address ALICE@example.com: authsvc users list\n"


def test_a_command_is_given_more_time_than_a_request(store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of the highest cost take longer than a request may."""
    monkeypatch.setattr(request_context, "DEFAULT_DEADLINE_SECONDS", 0.0)
    result = invoke("users", "create", "--email", "alice@example.com", stdin=PASSWORD, **store)
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.fixture
def alice(store: dict[str, str]) -> str:
    """A user's id."""
    created = invoke("users", "create", "--email", EMAIL, stdin=PASSWORD, **store)
    assert created.exit_code == 0
    return created.stdout.strip()


def state(store: dict[str, str], column: str) -> object:
    """What the store holds of the only user."""
    with closing(sqlite3.connect(store["AUTHSVC_STORE"].removeprefix("sqlite:"))) as db:
        db.row_factory = sqlite3.Row
        (row,) = db.execute("SELECT * FROM users").fetchall()
    return row[column]


@pytest.mark.parametrize("named", ["id", EMAIL, "ALICE@example.com"])
def test_a_user_is_disabled_and_enabled(store: dict[str, str], alice: str, named: str) -> None:
    named = alice if named == "id" else named
    for verb, reported in (("disable", "disabled"), ("enable", "active"), ("enable", "active")):
        done = invoke("users", verb, named, **store)
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout == f"{alice}\t{EMAIL}\tuser\t{reported}\n" == invoke("users", "list", **store).stdout
    assert state(store, "token_generation") == 1, "disabling ends every session; enabling revives none"


def test_all_sessions_of_a_user_are_ended(store: dict[str, str], alice: str) -> None:
    done = invoke("users", "revoke-sessions", alice, **store)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"ended all sessions of {alice}\n", "")
    assert state(store, "token_generation") == 1


def test_a_password_is_reset_to_a_temporary_one(store: dict[str, str], alice: str) -> None:
    done = invoke("users", "reset-password", EMAIL, **store)
    assert done.exit_code == 0
    (password,) = done.stdout.splitlines()
    WITNESS.hide(password)
    assert re.fullmatch(r"must be changed before 20\d\d-\d\d-\d\d \d\d:\d\d UTC\n", done.stderr)
    stored = state(store, "password_hash")
    assert isinstance(stored, str)
    assert hashes.verify_password(password, hashes.parse_stored_hash(stored), 10)
    assert state(store, "password_change_required") == 1
    assert state(store, "user_id") == alice


def test_a_user_is_created_with_a_temporary_password(store: dict[str, str]) -> None:
    done = invoke("users", "create", "--email", EMAIL, "--temporary", stdin="not read", **store)
    assert done.exit_code == 0
    user_id, password = done.stdout.splitlines()
    WITNESS.hide(password)
    assert done.stderr.startswith("must be changed before 20")
    stored = state(store, "password_hash")
    assert isinstance(stored, str)
    assert hashes.verify_password(password, hashes.parse_stored_hash(stored), 10)
    assert state(store, "password_change_required") == 1
    assert state(store, "user_id") == user_id


@pytest.mark.parametrize("verb", ["disable", "enable", "reset-password", "revoke-sessions"])
@pytest.mark.parametrize(
    ("named", "reported"),
    [
        ("nobody", "There is no such user."),
        ("nobody@example.com", "There is no such user."),
        ("@", "email: must have exactly one @, with text on both sides"),
        ("", "user_id: must not be empty"),
        ("\udcff@example.com", "user_id: must be UTF-8"),
    ],
)
def test_an_unknown_user_is_reported(store: dict[str, str], verb: str, named: str, reported: str) -> None:
    done = invoke("users", verb, named, **store)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", f"error: {reported}\n")


def test_an_address_that_is_an_id_is_taken_for_that(store: dict[str, str], alice: str) -> None:
    """Rows of other programs may have such ids."""
    rename(store, alice, "bob@example.com")
    done = invoke("users", "disable", "bob@example.com", **store)
    assert done.stdout == f"bob@example.com\t{EMAIL}\tuser\tdisabled\n"


def rename(store: dict[str, str], user_id: str, new_user_id: str) -> None:
    with closing(sqlite3.connect(store["AUTHSVC_STORE"].removeprefix("sqlite:"))) as db, db:
        db.execute("UPDATE users SET user_id = ? WHERE user_id = ?", (new_user_id, user_id))


@pytest.mark.parametrize("verb", ["disable", "enable", "reset-password", "revoke-sessions"])
def test_an_id_that_begins_with_a_dash_goes_after_two_dashes(store: dict[str, str], alice: str, verb: str) -> None:
    rename(store, alice, "-hello")
    done = invoke("users", verb, "--", "-hello", **store)
    assert done.exit_code == 0
    if verb == "reset-password":
        WITNESS.hide(done.stdout.strip())


def test_users_are_imported(store: dict[str, str], alice: str, tmp_path: Path) -> None:
    file = tmp_path / "users.jsonl"
    imported = {"password_hash": "$2b$12$" + "." * 53}
    lines = [{"email": "bob@example.com", **imported}, {"email": EMAIL, **imported}, {"email": "eve@example.com"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = invoke("users", "import", str(file), **store)
    assert done.exit_code == 1
    assert done.stdout == "1 created, 1 already there, 1 wrong\n"
    assert done.stderr == "line 3: password_hash: must be a string\n"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    again = invoke("users", "import", str(file), **store)
    assert (again.exit_code, again.stderr) == (0, "")
    assert again.stdout == "0 created, 2 already there, 0 wrong\n"
    listed = invoke("users", "list", **store).stdout
    assert f"{alice}\t{EMAIL}\tuser\tactive\n" in listed
    assert "\tbob@example.com\tuser\tactive\n" in listed


def test_a_file_to_import_that_is_not_there_is_said(store: dict[str, str], tmp_path: Path) -> None:
    done = invoke("users", "import", str(tmp_path / "users"), **store)
    assert done.exit_code == 1
    assert done.stderr == f"error: {tmp_path / 'users'}: cannot be read: No such file or directory\n"


# Keys


@pytest.mark.parametrize("alg", ["ES256", "RS256"])
def test_keys_are_made_and_listed(tmp_path: Path, alg: str) -> None:
    file = tmp_path / "keys.json"
    made = invoke("keys", "generate", str(file), "--alg", alg)
    listed = invoke("keys", "list", str(file))
    assert made.exit_code == listed.exit_code == 0
    assert made.stdout == listed.stdout
    assert [line.split("\t")[1:] for line in made.stdout.splitlines()] == [[alg, "signing"], [alg, "next"]]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_keys_are_never_overwritten(signing_keys: Path) -> None:
    before = signing_keys.read_text()
    result = invoke("keys", "generate", str(signing_keys))
    assert (result.exit_code, result.stderr) == (1, f"error: {signing_keys}: exists; keys are never overwritten\n")
    assert signing_keys.read_text() == before


def test_keys_need_a_folder(tmp_path: Path) -> None:
    result = invoke("keys", "generate", str(tmp_path / "nowhere" / "keys.json"))
    assert result.exit_code == 1
    assert result.stderr.endswith("keys.json: cannot be written: No such file or directory\n")


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        (None, "no such file; create it: authsvc keys generate "),
        (b"", "not a JWK Set"),
        (b"\xff", "cannot be read: not UTF-8"),
        (b'{"keys": 1}', '"keys" must be a list of keys'),
        (b'{"keys": []}', 'exactly one key must have the status "signing"'),
        (json.dumps({"keys": [{"kid": "k", "kty": "oct"}]}).encode(), "key k: symmetric keys are refused"),
    ],
)
def test_a_wrong_key_file_is_said(tmp_path: Path, content: bytes | None, reported: str) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_bytes(content)
    result = invoke("keys", "list", str(file))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {file}: {reported}")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Keys of yesterday, which gateways know."""
    path = tmp_path / "keys.json"
    key_file_module.generate_key_file(path, "ES256", utc_now() - timedelta(days=1))
    return path


def kids_in(path: Path) -> list[str]:
    return [key.kid for key in key_file_module.read_keys(path)]


@pytest.mark.parametrize(("ttl", "reported"), [("", "0:15:00"), ("24h", "1 day, 0:00:00")])
def test_keys_are_rotated(key_file: Path, ttl: str, reported: str) -> None:
    old, following = kids_in(key_file)
    begin = int(time.time())
    rotated = invoke("keys", "rotate", str(key_file), AUTHSVC_ACCESS_TOKEN_TTL=ttl)
    assert rotated.exit_code == 0
    assert (
        rotated.stderr == f"the old key verifies until that time, for tokens of AUTHSVC_ACCESS_TOKEN_TTL={reported}\n"
    )
    retired, signing, added = (line.split("\t") for line in rotated.stdout.splitlines())
    assert (retired[:3], signing) == ([old, "ES256", "retired"], [following, "ES256", "signing"])
    assert (added[1:], added[0] in {old, following}) == (["ES256", "next"], False)
    until = datetime.strptime(retired[3], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    seconds = config.load_setting({"AUTHSVC_ACCESS_TOKEN_TTL": ttl}, "access_token_ttl").total_seconds() + 90
    assert begin + seconds <= until <= time.time() + seconds
    assert invoke("keys", "list", str(key_file)).stdout == rotated.stdout


def test_a_rotation_too_soon_after_another_is_warned_of(key_file: Path) -> None:
    assert "warning" not in invoke("keys", "rotate", str(key_file)).stderr
    again = invoke("keys", "rotate", str(key_file))
    assert again.exit_code == 0
    signing = again.stdout.splitlines()[1].split("\t")[0]
    assert again.stderr.splitlines()[1:] == [
        f"warning: key {signing} signs less than 2 hours after it was published: gateways may not know it yet"
    ]


def test_a_rotation_without_a_next_key_publishes_one(key_file: Path) -> None:
    jwks = json.loads(key_file.read_text())
    del jwks["keys"][1]
    key_file.write_text(json.dumps(jwks))
    rotated = invoke("keys", "rotate", str(key_file))
    assert rotated.exit_code == 0
    assert rotated.stderr == "there was no next key: one is published now; rotate again in 2 hours\n"
    assert [line.split("\t")[2] for line in rotated.stdout.splitlines()] == ["signing", "next"]


def test_a_wrong_life_of_tokens_is_said_and_nothing_rotated(key_file: Path) -> None:
    before = key_file.read_bytes()
    rotated = invoke("keys", "rotate", str(key_file), AUTHSVC_ACCESS_TOKEN_TTL="2d")
    assert (rotated.exit_code, rotated.stdout) == (1, "")
    assert rotated.stderr == "error: AUTHSVC_ACCESS_TOKEN_TTL: must be from 1s to 24h\n"
    assert key_file.read_bytes() == before


def test_a_key_is_removed(key_file: Path) -> None:
    signing, following = kids_in(key_file)
    removed = invoke("keys", "remove", str(key_file), signing)
    assert (removed.exit_code, removed.stderr) == (0, "")
    assert removed.stdout == invoke("keys", "list", str(key_file)).stdout
    assert [line.split("\t")[2] for line in removed.stdout.splitlines()] == ["signing", "next"]
    assert kids_in(key_file)[0] == following
    again = invoke("keys", "remove", str(key_file), following)
    assert again.exit_code == 0
    assert "signs less than 2 hours after it was published" in again.stderr


def test_a_key_that_is_not_there_is_said(key_file: Path) -> None:
    removed = invoke("keys", "remove", str(key_file), "nobody")
    assert (removed.exit_code, removed.stderr) == (1, f"error: {key_file}: has no key nobody\n")


def test_a_key_whose_id_begins_with_a_dash_is_removed(key_file: Path) -> None:
    """Older versions made such keys: one in 64."""
    kid = "-" + kids_in(key_file)[0][1:]
    key_file.write_text(key_file.read_text().replace(kids_in(key_file)[0], kid))
    removed = invoke("keys", "remove", "--", str(key_file), kid)
    assert (removed.exit_code, removed.stderr) == (0, "")
    assert kid not in removed.stdout


@pytest.fixture
def aws() -> Iterator[FakeAws]:
    with serving_aws() as aws:
        yield aws


@pytest.mark.parametrize("keys", ["ssm:/authsvc/keys", "secretsmanager:authsvc/keys"])
def test_keys_in_aws_have_the_same_commands(aws: FakeAws, keys: str) -> None:
    made = invoke("keys", "generate", keys, **aws.environ())
    assert (made.exit_code, made.stderr) == (0, "")
    signing, following = (line.split("\t")[0] for line in made.stdout.splitlines())
    assert invoke("keys", "list", keys, **aws.environ()).stdout == made.stdout
    rotated = invoke("keys", "rotate", keys, **aws.environ())
    assert [line.split("\t")[2] for line in rotated.stdout.splitlines()] == ["retired", "signing", "next"]
    assert rotated.stdout.splitlines()[1].startswith(following)
    assert "signs less than 2 hours after it was published" in rotated.stderr
    removed = invoke("keys", "remove", keys, signing, **aws.environ())
    assert removed.exit_code == 0
    assert signing not in removed.stdout
    assert invoke("keys", "list", keys, **aws.environ()).stdout == removed.stdout
    again = invoke("keys", "generate", keys, **aws.environ())
    assert (again.exit_code, again.stderr) == (1, f"error: {keys}: exists; keys are never overwritten\n")


@pytest.mark.parametrize(
    ("keys", "settings", "reported"),
    [
        ("ssm:none", {}, "error: ssm:none: no such parameter in eu-west-1; create it: authsvc keys generate ssm:none"),
        ("ssm:none", {"AWS_REGION": "x "}, "error: AWS_REGION: must not end with a blank"),
        ("ssm:none", {"AWS_REGION": "", "AWS_CONFIG_FILE": "/nowhere"}, "error: AWS_REGION: must be set for what is"),
        ("ssm:none:3", {}, "must have a name without a version after ssm:, for instance ssm:authsvc/keys"),
        ("secretsmanager:", {}, "must have a name without a version after secretsmanager:"),
    ],
)
def test_what_is_wrong_with_keys_in_aws_is_said(
    aws: FakeAws, keys: str, settings: dict[str, str], reported: str
) -> None:
    listed = invoke("keys", "list", keys, **{**aws.environ(), **settings})
    assert listed.exit_code == (2 if "must have a name" in reported else 1)
    assert reported in listed.stderr


# Callers


def test_a_new_api_key_is_what_the_callers_file_takes(tmp_path: Path) -> None:
    made = [invoke("callers", "new-key") for _ in range(2)]
    keys = [result.stdout.splitlines()[0] for result in made]
    WITNESS.hide(*keys)
    assert len(set(keys)) == 2
    for key, result in zip(keys, made, strict=True):
        assert result.exit_code == 0
        assert result.stdout.splitlines() == [key, api_key_digest(key)]
        line = result.stderr.removeprefix("in the callers file: ")
        file = tmp_path / "callers.toml"
        file.write_text(f'[callers.a]\n{line}permissions = ["login"]\n')
        caller = read_callers(file).find_by_api_key(key)
        assert caller is not None
        assert caller.name == "a"


# Processes: terminals, pipes, bytes


def test_bytes_that_are_no_text_are_refused(store: dict[str, str]) -> None:
    settings = environment(**store)
    arguments = [os.fsencode(AUTHSVC), b"users", b"create", b"--email", b"\xff@example.com"]
    done = subprocess.run(
        arguments, env=settings, input=PASSWORD.encode(), capture_output=True, timeout=GIVE_UP_SECONDS, check=False
    )
    assert done.returncode == 1
    assert done.stderr == b"error: email: must have no white space or control characters\n"


def test_a_path_that_is_no_text_is_shown(tmp_path: Path) -> None:
    file = os.fsencode(tmp_path) + b"/\xff.json"
    done = subprocess.run(
        [os.fsencode(AUTHSVC), b"keys", b"list", file],
        env=environment(),
        capture_output=True,
        timeout=GIVE_UP_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert rb"\udcff.json: no such file" in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_address_that_the_terminal_cannot_show_is_listed(store: dict[str, str]) -> None:
    assert invoke("users", "create", "--email", "例え@example.com", stdin=PASSWORD, **store).exit_code == 0
    listed = run(AUTHSVC, "users", "list", environ=environment(**store, PYTHONIOENCODING="latin-1"))
    assert (listed.returncode, listed.stderr) == (0, "")
    assert r"\u4f8b\u3048@example.com" in listed.stdout


def test_a_reader_that_has_seen_enough_gets_no_traceback(store: dict[str, str]) -> None:
    assert invoke("users", "create", "--email", "alice@example.com", stdin=PASSWORD, **store).exit_code == 0
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [AUTHSVC, "users", "list"],
            env=environment(**store),
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=GIVE_UP_SECONDS,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_closed_standard_input_is_said(store: dict[str, str]) -> None:
    command = f"exec {AUTHSVC} users create --email alice@example.com <&-"
    done = run("/bin/bash", "-c", command, environ=environment(**store))
    assert done.returncode == 1
    assert done.stderr == "error: standard input: is closed; the password is its first line\n"


def test_a_closed_standard_output_is_no_problem(store: dict[str, str]) -> None:
    assert invoke("users", "create", "--email", "alice@example.com", stdin=PASSWORD, **store).exit_code == 0
    done = run("/bin/bash", "-c", f"exec {AUTHSVC} users list >&-", environ=environment(**store))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_closed_standard_error_is_no_problem(store: dict[str, str]) -> None:
    assert invoke("users", "create", "--email", "alice@example.com", stdin=PASSWORD, **store).exit_code == 0
    done = run("/bin/bash", "-c", f"exec {AUTHSVC} users list 2>&-", environ=environment(**store))
    assert done.returncode == 0
    assert "alice@example.com" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/full")
@pytest.mark.parametrize("command", ["callers new-key", "descriptor"])
def test_a_full_disk_is_said(command: str) -> None:
    done = run("/bin/bash", "-c", f"exec {AUTHSVC} {command} > /dev/full", environ=environment())
    assert done.returncode == 1
    assert done.stderr == "error: standard output: cannot be written: No space left on device\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/full")
def test_a_reason_that_cannot_be_written_leaves_the_exit_code() -> None:
    done = run("/bin/bash", "-c", f"exec {AUTHSVC} keys list /nowhere/keys.json 2> /dev/full", environ=environment())
    assert (done.returncode, done.stdout) == (1, "")


def test_a_terminal_is_asked_for_the_password_twice_and_does_not_show_it(store: dict[str, str], tmp_path: Path) -> None:
    arguments = ["users", "create", "--email", "alice@example.com"]
    terminal = Terminal(tmp_path / "shown", *arguments, environ=environment(**store))
    terminal.answer("Password: ", PASSWORD + "\n")
    terminal.answer("Repeat for confirmation: ", PASSWORD + "\n")
    assert terminal.wait() == 0
    assert PASSWORD not in terminal.shown
    user_id = terminal.shown.splitlines()[-1]
    assert invoke("users", "list", **store).stdout.startswith(f"{user_id}\talice@example.com\t")


def test_ctrl_c_at_the_prompt_ends_it(store: dict[str, str], tmp_path: Path) -> None:
    arguments = ["users", "create", "--email", "alice@example.com"]
    terminal = Terminal(tmp_path / "shown", *arguments, environ=environment(**store))
    terminal.answer("Password: ", "\x03")
    assert terminal.wait() == 1
    assert "Aborted!" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert invoke("users", "list", **store).stdout == ""
