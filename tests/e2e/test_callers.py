"""The callers file of a running process: it breaks and changes while backends validate."""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import grpc
import pytest

from authsvc.rpc.callers import api_key_digest, new_api_key
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.e2e.conftest import Start
from tests.e2e.process import Process, invoke, poll
from tests.support import WITNESS


def text(*keys: str) -> str:
    """Return a callers file with one caller."""
    digests = ", ".join(f'"{api_key_digest(key)}"' for key in keys)
    return f'[callers.gateway]\napi_key_sha256 = [{digests}]\npermissions = ["validate"]\n'


@pytest.fixture
def settings(tmp_path: Path, signing_keys: Path) -> dict[str, str]:
    settings = {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
        "AUTHSVC_CALLERS": str(tmp_path / "callers.toml"),
    }
    assert invoke("tables", "create", **settings).exit_code == 0
    return settings


@dataclass(frozen=True)
class Drill:
    """A running service whose callers file changes."""

    serve: Process
    channel: grpc.Channel
    file: Path

    def lets_in(self, key: str) -> bool:
        request = auth_pb2.ValidateTokenRequest(token="garbage")
        try:
            auth_grpc.AuthServiceStub(self.channel).ValidateToken(
                request, metadata=(("authorization", f"Bearer {key}"),), wait_for_ready=True
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise
        return True

    def count(self, event: str) -> int:
        return self.serve.log.count(f'"event": "{event}"')

    def change(self, change: Callable[[], object], event: str) -> None:
        """Change the file, and wait for its log line."""
        before = self.count(event)
        change()
        poll(lambda: self.count(event) > before, event)

    @contextmanager
    def load(self, key: str) -> "Iterator[Future[None]]":
        """Validate by a key without pause while the body runs; every call is let in."""
        over = Event()

        def run() -> None:
            while not over.is_set():
                assert self.lets_in(key)

        with ThreadPoolExecutor(1) as pool:
            try:
                yield (running := pool.submit(run))
            finally:
                over.set()
        running.result()


@pytest.fixture
def key() -> str:
    key = new_api_key()
    WITNESS.hide(key)
    return key


@pytest.fixture
def drill(start: Start, settings: dict[str, str], key: str) -> Iterator[Drill]:
    file = Path(settings["AUTHSVC_CALLERS"])
    file.write_text(text(key))
    serve = start("serve", **settings)
    address = serve.wait_for(lambda: re.search(r'"address": "([^"]+)"', serve.log), "listened")
    assert address
    with grpc.insecure_channel(address[1]) as channel:
        yield Drill(serve, channel, file)
    assert serve.end() == 0


def unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swapped(path: Path) -> None:
    broken = path.with_name("broken")
    broken.write_text("[callers")
    link = path.with_name("link")
    link.symlink_to(broken)
    link.replace(path)


@pytest.mark.parametrize(
    "damage", [lambda path: os.truncate(path, 20), Path.unlink, unreadable, swapped], ids=["cut", "gone", "dir", "link"]
)
def test_a_broken_file_changes_nothing_for_anybody(drill: Drill, key: str, damage: Callable[[Path], object]) -> None:
    """ASVS-13.2.1, F16: under load, and never open."""
    unknown = new_api_key()
    with drill.load(key):
        drill.change(lambda: damage(drill.file), "callers_not_reloaded")
        assert drill.lets_in(key)
        assert not drill.lets_in(unknown)
        if drill.file.is_dir():
            drill.file.rmdir()
        drill.file.unlink(missing_ok=True)
        drill.change(lambda: drill.file.write_text(text(unknown, key)), "callers_reloaded")
        assert drill.lets_in(unknown)


def test_a_key_is_replaced_without_a_refused_call(drill: Drill, key: str) -> None:
    new = new_api_key()
    WITNESS.hide(new)
    with drill.load(key):
        drill.change(lambda: drill.file.write_text(text(key, new)), "callers_reloaded")
    with drill.load(new):
        drill.change(lambda: drill.file.write_text(text(new)), "callers_reloaded")
        assert not drill.lets_in(key)


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        (None, "cannot be read: No such file or directory"),
        (
            "[callers.a]",
            "caller 'a': has no permission; set permissions to a list of validate, login, sessions, users",
        ),
    ],
)
def test_serve_does_not_start_without_good_callers(
    settings: dict[str, str], content: str | None, reported: str
) -> None:
    file = Path(settings["AUTHSVC_CALLERS"])
    if content is not None:
        file.write_text(content)
    result = invoke("serve", **settings, AUTHSVC_LISTEN="127.0.0.1:0")
    assert result.exit_code == 1
    assert f"error: {file}: {reported}" in result.stderr.splitlines()
