"""The processes that are measured, the engine and its tables: each is started at its first use."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from authsvc.config import ServeSettings
from authsvc.models import utc_now
from authsvc.tokens.key_file import generate_key_file
from bench import cores, deployment
from tests.engines import Engine
from tests.engines.dynoxide import launch

USERS = 10_000
TOKENS = 10_000
"""Spread over the users of a table."""
AUTHSVC = str(Path(sys.executable).with_name("authsvc"))
READY_SECONDS = 30.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.02
IN_MEMORY = "/dev/shm"  # noqa: S108 - the engine's files: what a write waits for there is this machine's disk


@dataclass(frozen=True)
class Target:
    """The target of a measurement: a server and its configuration.

    Args:
        what: The empty RPC, the naive validation, the service, or the engine itself without a server.
        users: Number of users in the table.
        store: The service's store.
        delay: Milliseconds by which a proxy delays the engine's answers; None: no proxy.
        workers: Number of the service's processes.
        is_pinned: Whether one process runs on one core; several run on all.
    """

    what: Literal["empty", "naive", "service", "getitem"] = "service"
    users: int = USERS
    store: Literal["dynamodb", "sqlite"] = "dynamodb"
    delay: int | None = None
    workers: int = 1
    is_pinned: bool = True

    @property
    def missing(self) -> str:
        """Why this target cannot be measured; empty: it can."""
        if self.workers > 1 and "workers" not in {setting.name for setting in fields(ServeSettings)}:
            return "the service has no AUTHSVC_WORKERS"
        return ""


@dataclass(frozen=True)
class Server:
    """A running server process."""

    address: str
    pid: int


class Servers:
    """All processes of a run; leaving the context stops them.

    Args:
        users: Numbers of users: each gets a set of tables with that many.
    """

    def __init__(self, users: Collection[int]) -> None:
        self._users = users
        self._stack = ExitStack()
        self._targets: dict[Target, Server] = {}

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=IN_MEMORY)))
        self._keys = self._folder / "keys.json"
        generate_key_file(self._keys, "ES256", utc_now())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def server(self, target: Target) -> Server:
        """Return the server of a target."""
        if target not in self._targets:
            self._targets[target] = self._started(target)
        return self._targets[target]

    def tokens(self, users: int, count: int = TOKENS) -> Path:
        """Return a file with tokens of the users of a table."""
        path = self._folder / f"tokens-{users}-{count}"
        if not path.exists():
            deployment.write_tokens(path, self._keys, users, count)
        return path

    @cached_property
    def user_ids(self) -> Path:
        """A file with the ids of the users of the usual table."""
        path = self._folder / "user-ids"
        path.write_text("\n".join(deployment.user(number).user_id for number in range(USERS)))
        return path

    @cached_property
    def engine(self) -> Engine:
        """The engine, with its tables."""
        database = self._folder / "engine.sqlite"
        deployment.write_database(database, {f"{table_prefix(users)}users": users for users in self._users})
        with cores.on(cores.REST):
            engine = self._stack.enter_context(launch(database=database))
        for users in self._users:
            self._create_tables(self._on_engine(engine, engine.endpoint_url, users))
        return engine

    def on_dynamodb(self, endpoint_url: str = "", users: int = USERS) -> dict[str, str]:
        """Return the environment of a server whose users are in the engine, behind an endpoint or directly."""
        return self._on_engine(self.engine, endpoint_url or self.engine.endpoint_url, users)

    def _on_engine(self, engine: Engine, endpoint_url: str, users: int) -> dict[str, str]:
        return {
            **self._environ(),
            **engine.environ(),
            "AUTHSVC_STORE": "dynamodb",
            "AUTHSVC_TABLE_PREFIX": table_prefix(users),
            "AWS_ENDPOINT_URL_DYNAMODB": endpoint_url,
        }

    def spawn(
        self, *command: str, environ: Mapping[str, str], on: Sequence[int], log: Path | None = None
    ) -> "subprocess.Popen[str]":
        """Start a program with pipes to its stdin and stdout; it is stopped with all the others."""
        with cores.on(on), nullcontext() if log is None else log.open("w") as stderr:
            process = subprocess.Popen(
                command,
                env={"PATH": os.environ["PATH"], **environ},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._stack.callback(_end, process)
        return process

    def serve(self, environ: Mapping[str, str], workers: int = 1, *, is_pinned: bool = True) -> Server:
        """Start the service, and wait until each of its workers serves."""
        log = self._folder / f"serve-{time.monotonic_ns()}.log"
        on = cores.SERVER if workers == 1 and is_pinned else cores.ALL
        process = self.spawn(AUTHSVC, "serve", environ={**environ, **_workers(workers)}, on=on, log=log)
        give_up = time.monotonic() + READY_SECONDS
        while len(_events(log, "serving")) < workers:
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"authsvc serve does not serve:\n{log.read_text()}")
            time.sleep(POLL_SECONDS)
        return Server(_events(log, "listening")[0]["address"], process.pid)

    def _started(self, target: Target) -> Server:
        if target.what == "empty":
            return self._listening("bench.empty", environ={}, on=cores.SERVER)
        if target.store == "sqlite":
            return self.serve(self._on_sqlite(target.users))
        endpoint_url = "" if target.delay is None else self._delayed(target.delay)
        environ = self.on_dynamodb(endpoint_url, target.users)
        if target.what == "naive":
            return self._listening("bench.naive", environ=environ, on=cores.SERVER)
        return self.serve(environ, target.workers, is_pinned=target.is_pinned)

    def _delayed(self, milliseconds: int) -> str:
        port = str(urlsplit(self.engine.endpoint_url).port)
        proxy = self._listening("bench.proxy", port, str(milliseconds / 1000), environ={}, on=cores.REST)
        return f"http://{proxy.address}"

    def _listening(self, module: str, *arguments: str, environ: Mapping[str, str], on: Sequence[int]) -> Server:
        """Start one of the benchmark's own servers, which prints its address."""
        process = self.spawn(sys.executable, "-m", module, *arguments, environ=environ, on=on)
        assert process.stdout is not None
        return Server(process.stdout.readline().strip(), process.pid)

    def _on_sqlite(self, users: int) -> dict[str, str]:
        path = self._folder / f"authsvc-{users}.db"
        environ = {**self._environ(), "AUTHSVC_STORE": f"sqlite:{path}"}
        self._create_tables(environ)
        asyncio.run(deployment.fill_sqlite(path, users))
        return environ

    def _create_tables(self, environ: Mapping[str, str]) -> None:
        subprocess.run([AUTHSVC, "tables", "create"], env=environ, check=True, stdout=subprocess.DEVNULL)

    def _environ(self) -> dict[str, str]:
        return {
            "AUTHSVC_LISTEN": "127.0.0.1:0",
            "AUTHSVC_HTTP_LISTEN": "",
            "AUTHSVC_ISSUER": deployment.ISSUER,
            "AUTHSVC_AUDIENCE": deployment.AUDIENCE,
            "AUTHSVC_SIGNING_KEYS": str(self._keys),
        }


def table_prefix(users: int) -> str:
    """Return the prefix of the names of the tables with that many users."""
    return f"bench-{users}-"


def _workers(number: int) -> dict[str, str]:
    return {} if number == 1 else {"AUTHSVC_WORKERS": str(number)}


def _events(log: Path, event: str) -> list[dict[str, str]]:
    """Return the lines of a log that record an event."""
    lines = map(json.loads, log.read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
