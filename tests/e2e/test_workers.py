"""`authsvc serve` with two workers: one port, no call lost but those of a worker that is killed."""

import json
import os
import re
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest

from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.e2e.certificates import Authority
from tests.e2e.conftest import Start
from tests.e2e.process import GIVE_UP_SECONDS, Process, invoke, poll
from tests.e2e.test_serve import address_of, create_store, is_refused, log_in, on_engine, with_tls
from tests.engines import CONCURRENT_ENGINES

CALLERS = 16
"""Connections of their own: that the kernel gives all of them to one of two workers happens once in 2**15 times."""
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
ENOUGH_CALLS = 20
LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
"""What became of calls that a server did not begin: when it ends, gRPC cancels those that wait in it."""


@pytest.fixture
def settings(tmp_path: Path, signing_keys: Path) -> dict[str, str]:
    """A complete set for two workers, on SQLite."""
    return {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
        "AUTHSVC_WORKERS": "2",
    }


@pytest.fixture
def sqlite(settings: dict[str, str]) -> dict[str, str]:
    create_store(settings)
    return settings


@pytest.fixture(params=["sqlite", *CONCURRENT_ENGINES])
def anywhere(request: pytest.FixtureRequest, settings: dict[str, str], table_prefix: str) -> dict[str, str]:
    """The settings, of a store that is ready, on every store in turn."""
    if request.param != "sqlite":
        engine = request.getfixturevalue(request.param)
        settings = {**on_engine(settings, engine), "AUTHSVC_TABLE_PREFIX": table_prefix}
    create_store(settings)
    return settings


def events(serve: Process, event: str) -> list[dict[str, Any]]:
    """What the log says under a name."""
    lines = [line for line in serve.log.splitlines(keepends=True) if line.startswith("{") and line.endswith("}\n")]
    return [line for line in map(json.loads, lines) if line["event"] == event]


def serving(serve: Process, times: int = 2) -> str:
    """Wait until so many workers have come to serve, the ended ones included; return where."""
    serve.wait_for(lambda: len(events(serve, "serving")) >= times, f"served {times} times")
    return address_of(serve)


def ended(serve: Process, times: int) -> None:
    """Wait until so many workers have ended; while callers are at work, the next one takes long to start."""
    serve.wait_for(lambda: len(events(serve, "worker_ended")) >= times, f"lost {times} workers")


def pid_of(serve: Process, worker: int) -> int:
    pid: int = [line["pid"] for line in events(serve, "worker_started") if line["worker"] == worker][-1]
    return pid


@contextmanager
def connected(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address, options=OWN_CONNECTION) as channel:
        yield channel


def access_token(address: str) -> str:
    """Log in on a new connection, however slow the machine's disk is."""

    def try_to() -> str:
        with connected(address) as channel, suppress(grpc.RpcError):
            return log_in(channel).tokens.access_token
        return ""

    return poll(try_to, "logged in")


# Load


RETRIES = 3
BACKOFF_SECONDS = 0.1
"""Both as in the service config of docs/guide.md."""


@dataclass
class Caller:
    """A client that validates a token over and over; after a failure it connects anew.

    Args:
        address: Of the service.
        second: Where a call is tried again.
    """

    address: str
    second: str | None
    good: int = 0
    failures: list[grpc.RpcError] = field(default_factory=list)

    def run(self, token: str, over: Event) -> None:
        while not over.is_set():
            with connected(self.address) as channel:
                try:
                    while not over.is_set():
                        self._call(channel, token)
                except grpc.RpcError as error:
                    self._try_again(token, error)

    def _call(self, channel: grpc.Channel, token: str) -> None:
        request = auth_pb2.ValidateTokenRequest(token=token)
        answer = auth_grpc.AuthServiceStub(channel).ValidateToken(request, timeout=GIVE_UP_SECONDS)
        assert answer.state == auth_pb2.TOKEN_STATE_ACTIVE
        self.good += 1

    def _try_again(self, token: str, error: grpc.RpcError) -> None:
        if self.second is None or error.code() not in LOST:
            self.failures.append(error)
            return
        for retry in range(RETRIES):
            with connected(self.second) as channel:
                try:
                    self._call(channel, token)
                except grpc.RpcError as again:
                    error = again
                else:
                    return
            time.sleep(BACKOFF_SECONDS * 2**retry)
        self.failures.append(error)


@contextmanager
def load(token: str, address: str, second: str | None = None) -> Iterator[list[Caller]]:
    """Callers at work while the body runs."""
    over = Event()
    callers = [Caller(address, second) for _ in range(CALLERS)]
    with ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(caller.run, token, over) for caller in callers]
        try:
            all_go_on(callers)
            yield callers
        finally:
            over.set()
        for each in running:
            each.result(GIVE_UP_SECONDS)


def all_go_on(callers: list[Caller]) -> None:
    """Wait until each has made some more good calls."""
    goals = [caller.good + ENOUGH_CALLS for caller in callers]
    poll(lambda: all(caller.good >= goal for caller, goal in zip(callers, goals, strict=True)), "went on")


# Ends of workers


@pytest.mark.long_on_dynoxide
def test_a_killed_worker_takes_its_calls_in_flight_along_and_no_others(start: Start, anywhere: dict[str, str]) -> None:
    """F13."""
    serve = start("serve", **anywhere)
    address = serving(serve)
    with load(access_token(address), address) as callers:
        os.kill(pid_of(serve, 1), signal.SIGKILL)
        ended(serve, 1)
        all_go_on(callers)
    failed = [caller.failures for caller in callers if caller.failures]
    assert len(failed) < CALLERS, "the other worker's callers noticed nothing"
    assert all(len(failures) == 1 for failures in failed), "no connection got to a dead port"
    assert {failure.code() for (failure,) in failed} <= {grpc.StatusCode.UNAVAILABLE}
    assert [(line["worker"], line["exit_code"]) for line in events(serve, "worker_ended")] == [(1, -signal.SIGKILL)]
    # The new one has its share of new connections.
    serving(serve, 3)
    born = len(serve.log)
    poll(lambda: access_token(address) and re.search(r'"login".*"worker": 1', serve.log[born:]), "got a call")
    assert serve.end() == 0


@pytest.mark.engines
def test_workers_that_end_in_order_one_after_the_other_lose_no_call(start: Start, anywhere: dict[str, str]) -> None:
    """F12: clients try a call again, on a new connection, which may still get to a worker that ends."""
    serve = start("serve", **anywhere)
    address = serving(serve)
    token = access_token(address)
    for worker in (1, 2):
        with load(token, address, address) as callers:
            os.kill(pid_of(serve, worker), signal.SIGTERM)
            ended(serve, worker)
            all_go_on(callers)
        assert [caller.failures for caller in callers if caller.failures] == []
        serving(serve, 2 + worker)
    assert [(line["worker"], line["exit_code"]) for line in events(serve, "worker_ended")] == [(1, 0), (2, 0)]


@pytest.mark.engines
def test_a_deployment_of_two_loses_no_call_when_one_ends(start: Start, anywhere: dict[str, str]) -> None:
    """F12: clients try a call again once, with the other."""
    ending, staying = (start("serve", **anywhere) for _ in range(2))
    addresses = [serving(serve) for serve in (ending, staying)]
    with load(access_token(addresses[0]), addresses[0], addresses[1]) as callers:
        assert ending.end() == 0
        all_go_on(callers)
    assert [caller.failures for caller in callers if caller.failures] == []
    assert [line.get("worker") for line in events(ending, "stopped")][-1] is None, "the parent is the last"
    assert {line.get("worker") for line in events(ending, "stopped")} == {1, 2, None}
    assert is_refused(addresses[0])


def test_workers_end_in_order_when_their_parent_is_killed(start: Start, sqlite: dict[str, str]) -> None:
    serve = start("serve", **sqlite)
    address = serving(serve)
    assert serve.end(signal.SIGKILL) == -signal.SIGKILL
    poll(lambda: {line.get("worker") for line in events(serve, "stopped")} == {1, 2}, "ended")
    poll(lambda: is_refused(address), "closed the port")


@pytest.mark.engines
def test_a_worker_that_keeps_ending_is_started_after_growing_pauses(start: Start, sqlite: dict[str, str]) -> None:
    serve = start("serve", **sqlite)
    serving(serve)
    for ends in range(3):
        os.kill(pid_of(serve, 2), signal.SIGKILL)
        serving(serve, 3 + ends)
    assert [line["restart_seconds"] for line in events(serve, "worker_ended")] == [0.0, 0.5, 1.0]


def test_the_parent_shows_the_keys_of_the_moment(start: Start, sqlite: dict[str, str], tmp_path: Path) -> None:
    keys = tmp_path / "own.json"
    assert invoke("keys", "generate", str(keys)).exit_code == 0
    own = {"AUTHSVC_SIGNING_KEYS": str(keys), "AUTHSVC_HTTP_LISTEN": "127.0.0.1:0"}
    serve = start("serve", **{**sqlite, **own})
    serving(serve)
    (by_parent,) = [line for line in events(serve, "listening") if "worker" not in line]
    url = f"http://{by_parent['http_address']}/.well-known/jwks.json"

    def published() -> int:
        with urllib.request.urlopen(url) as answer:
            return len(json.load(answer)["keys"])

    assert published() == 2
    assert invoke("keys", "rotate", str(keys)).exit_code == 0
    assert published() == 3


def test_sighup_reads_the_files_of_parent_and_workers(start: Start, sqlite: dict[str, str]) -> None:
    serve = start("serve", **sqlite)
    serving(serve)
    serve.send(signal.SIGHUP)
    serve.wait_for(lambda: len(events(serve, "keys_reloaded")) >= 3, "read the keys thrice")
    assert {line.get("worker") for line in events(serve, "keys_reloaded")} == {1, 2, None}
    assert not events(serve, "worker_ended")
    assert serve.end() == 0


def test_the_parent_sums_the_counts_of_all_workers(start: Start, sqlite: dict[str, str]) -> None:
    """Also what one has counted that is dead since."""
    serve = start("serve", **{**sqlite, "AUTHSVC_HTTP_LISTEN": "127.0.0.1:0"})
    address = serving(serve)
    (by_parent,) = [line for line in events(serve, "listening") if "worker" not in line]

    def show(path: str) -> str:
        with urllib.request.urlopen(f"http://{by_parent['http_address']}{path}") as answer:
            return str(answer.read().decode())

    def value(name: str) -> float:
        return sum(float(line.split()[-1]) for line in show("/metrics").splitlines() if line.startswith(name))

    assert show("/healthz") == "serving\n"
    assert value("authsvc_serving ") == 2
    good = 'authsvc_rpc_total{code="OK",method="authsvc.v1.AuthService.ValidateToken"'
    with load(access_token(address), address) as callers:
        pass
    validated = sum(caller.good for caller in callers)
    assert value(good) == validated
    os.kill(pid_of(serve, 1), signal.SIGKILL)
    poll(lambda: value("authsvc_starts_total ") == 3, "counted the new one")
    poll(lambda: value("authsvc_serving ") == 2, "served again")
    assert value(good) == validated
    (counts,) = Path(tempfile.gettempdir()).glob(f"authsvc-metrics-*/counter_{pid_of(serve, 1)}.db")
    assert serve.end() == 0
    assert not counts.parent.exists()


def test_health_waits_for_the_first_worker_that_serves(start: Start, settings: dict[str, str]) -> None:
    serve = start("serve", **{**settings, "AUTHSVC_HTTP_LISTEN": "127.0.0.1:0"})
    serve.wait_for(lambda: len(events(serve, "listening")) == 3, "listened with both")
    (by_parent,) = [line for line in events(serve, "listening") if "worker" not in line]

    def health() -> int:
        try:
            with urllib.request.urlopen(f"http://{by_parent['http_address']}/healthz") as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert health() == 503
    create_store(settings)
    poll(lambda: health() == 200, "served")


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_ends_in_order_while_it_starts(
    start: Start, settings: dict[str, str], numbers: tuple[signal.Signals, ...]
) -> None:
    serve = start("serve", **settings)
    serve.wait_for(lambda: events(serve, "worker_started"), "started a worker")
    for number in numbers:
        serve.send(number)
    assert serve.wait() == 0
    assert "Traceback" not in serve.log


# What is wrong at the start


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_is_not_shared_with_others(start: Start, sqlite: dict[str, str], workers: str) -> None:
    address = address_of(start("serve", **{**sqlite, "AUTHSVC_WORKERS": workers}))
    second = start("serve", **{**sqlite, "AUTHSVC_LISTEN": address})
    assert second.wait() == 1
    assert second.log == f"error: AUTHSVC_LISTEN: cannot listen on {address}: Address already in use\n"


def test_a_port_is_not_shared_with_whoever_would(start: Start, sqlite: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        serve = start("serve", **{**sqlite, "AUTHSVC_LISTEN": address})
        assert serve.wait() == 1
    assert serve.log == f"error: AUTHSVC_LISTEN: cannot listen on {address}: Address already in use\n"


def test_a_port_is_taken_before_a_worker_listens(start: Start, sqlite: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    first = start("serve", **{**sqlite, "AUTHSVC_LISTEN": address})
    first.wait_for(lambda: events(first, "worker_started"), "started a worker")
    second = start("serve", **{**sqlite, "AUTHSVC_LISTEN": address})
    assert second.wait() == 1
    assert "Address already in use" in second.log
    assert serving(first) == address


def test_keys_that_cannot_be_used_end_it(start: Start, sqlite: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    serve = start("serve", **{**sqlite, "AUTHSVC_SIGNING_KEYS": "broken.json"})
    assert serve.wait() == 1
    assert serve.log == 'error: broken.json: not a JWK Set: {"keys": […]}\n'


def test_what_a_worker_cannot_use_ends_it_and_is_said_once(
    start: Start, sqlite: dict[str, str], authority: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("server")
    (tmp_path / "garbage.pem").write_text("garbage")
    serve = start("serve", **{**with_tls(sqlite, pair), "AUTHSVC_TLS_KEY": "garbage.pem"})
    assert serve.wait() == 1
    errors = [line for line in serve.log.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: AUTHSVC_TLS_KEY: garbage.pem: holds no private key in PEM form (PKCS #8), or one that cannot be read",
        "error: the first worker ended before it listened; see the log lines above",
    ]


def test_keys_that_break_later_do_not_end_it(start: Start, sqlite: dict[str, str], tmp_path: Path) -> None:
    """A worker that ends then is not replaced until they are mended; the other one goes on with the keys of before."""
    keys = tmp_path / "own.json"
    assert invoke("keys", "generate", str(keys)).exit_code == 0
    good = keys.read_text()
    serve = start("serve", **{**sqlite, "AUTHSVC_SIGNING_KEYS": str(keys)})
    address = serving(serve)
    keys.write_text("{")
    os.kill(pid_of(serve, 1), signal.SIGKILL)
    serve.wait_for(lambda: len(events(serve, "worker_ended")) >= 2, "tried it with the broken keys")
    assert access_token(address)
    keys.write_text(good)
    serving(serve, 3)
    assert serve.end() == 0
