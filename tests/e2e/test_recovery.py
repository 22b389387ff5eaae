"""Backup and recovery, by the commands in docs/operations.md."""

import asyncio
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from authsvc.config import ServeSettings
from authsvc.server import app
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import resources_pb2
from tests.bare import ROOT
from tests.e2e.process import environment, invoke
from tests.e2e.tables import Tables
from tests.engines import Engine
from tests.support import (
    PATIENT_LIMITS,
    WITNESS,
    Client,
    FakeClock,
    connected,
    failure,
    make_settings,
    served,
    use_engine,
)

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
HASH = "$2b$04$" + "." * 53
RECORD = """
aws() { printf '%q ' aws "$@"; echo; }
authsvc() { printf '%q ' authsvc "$AUTHSVC_TABLE_PREFIX" "$@"; echo; }
"""
"""Shell functions that print what they are called with."""


def commands(heading: str) -> str:
    """Return the shell commands below a heading."""
    section = re.split(rf"^##+ {heading}\n", OPERATIONS, flags=re.MULTILINE)[1].partition("\n##")[0]
    [block] = re.findall(r"^ *```sh\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    return textwrap.dedent(block)


def shell(script: str, folder: Path, **settings: str) -> str:
    """Run a script as an operator does, and return what it printed; each of its commands must succeed."""
    environ = environment(**settings)
    path = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-euc", script],
        cwd=folder,
        env=environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    WITNESS.add_messages(done.stderr)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


@pytest.fixture
def keys(signing_keys: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(signing_keys, tmp_path / "keys.json"))


@asynccontextmanager
async def served_again(settings: ServeSettings, clock: FakeClock) -> AsyncIterator[Client]:
    """Run the service on a restored store."""
    async with app.run_app(settings, clock, clock.monotonic, PATIENT_LIMITS) as service, connected(service) as client:
        yield client


async def assert_restored(client: Client, before: resources_pb2.Tokens) -> None:
    """The users of the backup can log in, later ones do not exist, and no token of before is accepted."""
    await client.log_in()
    assert (await failure(client.log_in("later@example.com"))).reason == "INVALID_CREDENTIALS"
    assert (await failure(client.refresh(before.refresh_token))).reason == "INVALID_REFRESH_TOKEN"
    state = (await client.validate(before.access_token)).state
    assert state == auth_pb2.TOKEN_STATE_INACTIVE
    await client.as_admin()


def contents(folder: Path, pattern: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob(pattern)}


@pytest.mark.engines
async def test_sqlite(keys: Path, tmp_path: Path, clock: FakeClock) -> None:
    """The copy is made while users are created, and restored where a killed process has left its files."""
    settings = make_settings(keys, f"sqlite:{tmp_path / 'authsvc.db'}")
    async with served(settings, clock) as client:
        user = await client.create_user()
        tokens = (await client.log_in()).tokens
        copying = asyncio.create_task(asyncio.to_thread(shell, commands("Backup"), tmp_path))
        created = 0
        while not copying.done():
            await client.import_user(HASH, f"user{created}@example.com")
            created += 1
        assert "WRONG" not in await copying
        assert created > 1
        await client.create_user("later@example.com")
        left = contents(tmp_path, "authsvc.db*")
    assert {path.name for path in left} == {"authsvc.db", "authsvc.db-shm", "authsvc.db-wal"}
    for path, content in left.items():
        path.write_bytes(content)

    await asyncio.to_thread(shell, commands("Restore a SQLite file"), tmp_path)
    await asyncio.to_thread(shell, commands("After a restore"), tmp_path)
    assert {path.name: path.stat().st_mode & 0o777 for path in contents(tmp_path, "*.db*")} == {
        "authsvc.db": 0o600,
        "authsvc-backup.db": 0o600,
    }
    async with served_again(settings, clock) as client:
        await assert_restored(client, tokens)
        assert (await (await client.as_admin()).get_user(user_id=user.user_id)).email == user.email


@pytest.mark.engines
async def test_dynamodb(
    ministack: Engine,
    table_prefix: str,
    keys: Path,
    tmp_path: Path,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On ministack, whose restored tables lack TTL and PITR, as DynamoDB's do, but are as of now, not of a moment."""
    use_engine(ministack, monkeypatch)
    settings = make_settings(keys, "dynamodb", table_prefix=table_prefix)
    restored = Tables(boto3.client("dynamodb", **ministack.client_options()), f"restored-{table_prefix}", ministack)
    script = commands("Restore DynamoDB tables").replace("auth-", table_prefix).replace("restored-", restored.prefix)
    calls = [shlex.split(line) for line in shell(RECORD + script, tmp_path, AUTHSVC_TABLE_PREFIX="").splitlines()]
    restores, checks = calls[:-2], calls[-2:]
    assert {program for program, *_ in restores} == {"aws"}
    assert checks == [["authsvc", restored.prefix, "tables", command] for command in ("create", "check")]

    async with served(settings, clock) as client:
        await client.create_user()
        tokens = (await client.log_in()).tokens
        for _, _, *arguments in restores:
            await asyncio.to_thread(restored.aws, *arguments)
        await client.create_user("later@example.com")
    made = (await asyncio.to_thread(restored.create)).stdout.splitlines()
    assert made == [
        f"enabled TTL on {restored.unique}",
        f"created table {restored.prefix}sessions",
        f"enabled point-in-time recovery on {restored.prefix}sessions",
        f"enabled TTL on {restored.prefix}sessions",
        f"enabled TTL on {restored.prefix}login-attempts",
    ]
    assert await asyncio.to_thread(restored.is_good)
    await asyncio.to_thread(shell, commands("After a restore"), tmp_path)
    async with served_again(replace(settings, table_prefix=restored.prefix), clock) as client:
        await assert_restored(client, tokens)


async def test_sessions_that_are_restored_too_live_on_and_those_revoked_since(
    keys: Path, tmp_path: Path, clock: FakeClock
) -> None:
    """Which is why the procedures end them all."""
    settings = make_settings(keys, f"sqlite:{tmp_path / 'authsvc.db'}")
    copy = tmp_path / "copy.db"
    async with served(settings, clock) as client:
        await client.create_user()
        revoked, refreshed = (await client.log_in()).tokens, (await client.log_in()).tokens
        with closing(sqlite3.connect(tmp_path / "authsvc.db")) as other:
            other.execute("VACUUM INTO ?", [str(copy)])
        await client.revoke(revoked.refresh_token)
        refreshed = await client.refresh(refreshed.refresh_token)
    async with served_again(replace(settings, store=f"sqlite:{copy}"), clock) as client:
        await client.refresh(revoked.refresh_token)
        assert (await failure(client.refresh(refreshed.refresh_token))).reason == "INVALID_REFRESH_TOKEN"


DAMAGES: Mapping[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "its first page alone": lambda content: content[:4096],
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut before its last page": lambda content: content[:-4096],
    "cut within a page": lambda content: content[:-100],
    "pages of zeros": lambda content: content[:8192] + bytes(len(content) - 8192),
    "another file": lambda content: bytes(range(256)) * (len(content) // 256),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_copy_is_reported(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    store, copy = {"AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}"}, tmp_path / "authsvc-backup.db"
    assert invoke("tables", "create", **store).exit_code == 0
    with closing(sqlite3.connect(tmp_path / "authsvc.db", isolation_level=None)) as db:
        row = "INSERT INTO users VALUES (?, ?, 'user', NULL, 1, 0, '[]', 0, NULL, NULL, NULL)"
        db.executemany(row, [(f"user{n}", f"user{n}@example.com") for n in range(300)])
        db.execute("VACUUM INTO ?", [str(copy)])
    store = {"AUTHSVC_STORE": f"sqlite:{copy}"}
    assert invoke("tables", "check", **store).exit_code == 0
    copy.write_bytes(damage(copy.read_bytes()))
    check = invoke("tables", "check", **store)
    assert check.exit_code == 1
    assert re.search(r"restore it from a backup|schema version 3: is 0", check.output)
    assert "Traceback" not in check.output
