"""The rotation drill: keys rotate and their file breaks while a service validates."""

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Event

import grpc
import jwt
import pytest

from authsvc.models import utc_now
from authsvc.tokens.key_file import generate_key_file, read_keys
from authsvc.tokens.keys import KeyStatus
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.e2e.conftest import Start
from tests.e2e.process import Process, invoke, patiently, poll
from tests.support import PASSWORD, WITNESS

EMAIL = "alice@example.com"
ACTIVE = auth_pb2.TOKEN_STATE_ACTIVE


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    generate_key_file(path, "ES256", utc_now() - timedelta(days=1))
    return path


@dataclass
class Drill:
    """A running service whose keys change.

    Args:
        published: Every key id that the side port has shown before a change.
        tokens: What clients hold; all of it is good.
    """

    serve: Process
    channel: grpc.Channel
    jwks_url: str
    key_file: Path
    published: set[str] = field(default_factory=set)
    tokens: list[str] = field(default_factory=list)

    def jwks(self) -> list[str]:
        with urllib.request.urlopen(self.jwks_url) as answer:  # noqa: S310 - the service's own
            return [key["kid"] for key in json.load(answer)["keys"]]

    def log_in(self) -> str:
        """Take a token, whose key must have been published before its first token."""
        request = auth_pb2.AuthenticateRequest(email=EMAIL, password=PASSWORD)
        response = patiently(lambda: auth_grpc.AuthServiceStub(self.channel).Authenticate(request))
        WITNESS.hide_fields(response)
        token = response.tokens.access_token
        assert jwt.get_unverified_header(token)["kid"] in self.published
        self.tokens.append(token)
        return token

    def validate(self, token: str) -> auth_pb2.ValidateTokenResponse:
        return auth_grpc.AuthServiceStub(self.channel).ValidateToken(auth_pb2.ValidateTokenRequest(token=token))

    def change(self, *command: str) -> None:
        """Change the keys by a command, and wait until the service follows."""
        self.published.update(self.jwks())
        done = invoke("keys", *command)
        assert done.exit_code == 0, done.stderr
        kids = [key.kid for key in read_keys(self.key_file)]
        poll(lambda: self.jwks() == kids, "followed")

    def count(self, event: str) -> int:
        return self.serve.log.count(f'"event": "{event}"')

    def damage(self, damage: Callable[[Path], object]) -> None:
        """Break the file, see that the service goes on with its keys, and restore it."""
        good, before = self.key_file.read_text(), self.jwks()
        errors = self.count("keys_not_reloaded")
        damage(self.key_file)
        poll(lambda: self.count("keys_not_reloaded") > errors, "reported the broken file")
        assert self.jwks() == before
        self.log_in()
        reloads = self.count("keys_reloaded")
        if self.key_file.is_dir():
            self.key_file.rmdir()
        self.key_file.write_text(good)
        poll(lambda: self.count("keys_reloaded") > reloads, "took the restored file")
        assert self.jwks() == before

    @contextmanager
    def load(self) -> "Iterator[Future[int]]":
        """Validate all tokens over and over while the body runs."""
        over = Event()

        def run() -> int:
            count = 0
            while not over.is_set():
                for token in list(self.tokens):
                    answer = self.validate(token)
                    assert answer.state == ACTIVE, answer.reason
                    count += 1
            return count

        with ThreadPoolExecutor(1) as pool:
            try:
                yield (running := pool.submit(run))
            finally:
                over.set()
        assert running.result() > 0


@pytest.fixture
def drill(start: Start, tmp_path: Path, key_file: Path) -> Iterator[Drill]:
    settings = {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(key_file),
        "AUTHSVC_HTTP_LISTEN": "127.0.0.1:0",
    }
    assert invoke("tables", "create", **settings).exit_code == 0
    assert invoke("users", "create", "--email", EMAIL, stdin=PASSWORD, **settings).exit_code == 0
    serve = start("serve", **settings)
    line = serve.wait_for(lambda: re.search(r'.*"listening".*\n', serve.log), "listened")
    assert line
    address, http_address = (json.loads(line[0])[name] for name in ("address", "http_address"))
    with grpc.insecure_channel(address) as channel:
        drill = Drill(serve, channel, f"http://{http_address}/.well-known/jwks.json", key_file)
        drill.published.update(drill.jwks())
        drill.log_in()
        yield drill


def half_written(path: Path) -> None:
    other = path.with_name("half")
    other.write_bytes(path.read_bytes()[:300])
    other.replace(path)


def unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[Callable[[Path], object]] = [
    half_written,
    lambda path: path.write_bytes(b""),
    Path.unlink,
    unreadable,
    lambda path: path.write_text(path.read_text().replace('"next"', '"signing"')),
]


@pytest.mark.engines
def test_no_good_token_is_refused_while_keys_rotate_and_their_file_breaks(drill: Drill) -> None:
    """ASVS-11.1.1, F15, F16."""
    with drill.load() as running:
        for damage in DAMAGES:
            drill.change("rotate", str(drill.key_file))
            drill.log_in()
            drill.damage(damage)
            assert not running.done(), running.exception()
    kids = [jwt.get_unverified_header(token)["kid"] for token in drill.tokens]
    assert len(set(kids)) == 1 + len(DAMAGES), "each rotation made another key sign"


def test_an_expired_key_is_dropped_and_its_tokens_are_invalid(drill: Drill) -> None:
    """The file says so; rotation itself gives the old key longer than its tokens live."""
    (token,) = drill.tokens
    drill.change("rotate", str(drill.key_file))
    assert drill.validate(token).state == ACTIVE
    jwks = json.loads(drill.key_file.read_text())
    assert jwks["keys"][0]["status"] == KeyStatus.RETIRED
    jwks["keys"][0]["retire_time"] = int(utc_now().timestamp()) + 2
    drill.key_file.write_text(json.dumps(jwks))
    poll(lambda: len(drill.jwks()) == 2, "dropped the key")
    assert drill.validate(token).reason == auth_pb2.INACTIVE_REASON_BAD_SIGNATURE


def test_the_tokens_of_a_removed_key_are_dead(drill: Drill) -> None:
    """Cached ones, too."""
    (token,) = drill.tokens
    assert drill.validate(token).state == drill.validate(token).state == ACTIVE
    drill.change("remove", str(drill.key_file), jwt.get_unverified_header(token)["kid"])
    assert drill.validate(token).reason == auth_pb2.INACTIVE_REASON_BAD_SIGNATURE
    assert drill.validate(drill.log_in()).state == ACTIVE


def test_a_broken_file_is_not_rotated(drill: Drill) -> None:
    drill.key_file.write_text("{")
    done = invoke("keys", "rotate", str(drill.key_file))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f'error: {drill.key_file}: not a JWK Set: {{"keys": […]}}\n'
    assert drill.key_file.read_text() == "{"
