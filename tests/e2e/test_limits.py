"""What a process does when it runs out of something, or when somebody takes all that they can get."""

import re
import resource
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from authsvc.server.grpc_server import ConnectionLimits
from authsvc.server.http_connections import HttpLimits
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.e2e.conftest import Start
from tests.e2e.process import GIVE_UP_SECONDS, Process, invoke, open_files, poll, resident_kib
from tests.http2 import PREFACE, Kind, frame

INACTIVE = auth_pb2.TOKEN_STATE_INACTIVE
MORE = 30
"""Files that the process may open after the limit is set."""
CONNECTIONS = 10_000
"""Tried at once; fewer where this process may not open as many files."""
ROUNDS = 8
"""Of connections opened and closed."""
BEGIN = PREFACE + frame(Kind.SETTINGS)


@pytest.fixture
def serve(start: Start, tmp_path: Path, signing_keys: Path) -> Process:
    settings = {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
        "AUTHSVC_HTTP_LISTEN": "127.0.0.1:0",
    }
    assert invoke("tables", "create", **settings).exit_code == 0
    return start("serve", **settings)


@pytest.fixture
def address(serve: Process) -> str:
    match = serve.wait_for(lambda: re.search(r'"address": "([^"]+)"', serve.log), "listened")
    assert match
    return match[1]


@pytest.fixture
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


def is_served(channel: grpc.Channel) -> bool:
    request = auth_pb2.ValidateTokenRequest(token="garbage")
    stub = auth_grpc.AuthServiceStub(channel)
    return stub.ValidateToken(request, wait_for_ready=True, timeout=GIVE_UP_SECONDS).state == INACTIVE


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets limits of another process")
def test_idle_connections_to_the_side_port_take_no_files_from_grpc(serve: Process, address: str) -> None:
    resource.prlimit(serve.pid, resource.RLIMIT_NOFILE, (256, 256))
    match = re.search(r'"http_address": "([^"]+)"', serve.log)
    assert match
    host, _, port = match[1].rpartition(":")
    with ExitStack() as stack:
        for sent in (b"", b"GET /healthz HTTP/1.1\r\nHost") * 150:
            connection = socket.create_connection((host, int(port)), timeout=GIVE_UP_SECONDS)
            stack.enter_context(connection).sendall(sent)
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as new:
            assert is_served(new)
        with urllib.request.urlopen(f"http://{match[1]}/metrics", timeout=GIVE_UP_SECONDS) as answer:
            assert answer.status == 200
        assert open_files(serve.pid) < 200
    assert '"event": "http_connections_closed"' in serve.log
    assert HttpLimits().connection_seconds <= 30


@pytest.mark.soak
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets limits of another process")
def test_without_files_left_those_who_are_there_are_served(serve: Process, address: str, channel: grpc.Channel) -> None:
    """F18."""
    assert is_served(channel)
    limit = open_files(serve.pid) + MORE
    resource.prlimit(serve.pid, resource.RLIMIT_NOFILE, (limit, limit))
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(2 * MORE):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=GIVE_UP_SECONDS))
        poll(lambda: open_files(serve.pid) >= limit, "ran out of files")
        for _ in range(20):
            assert is_served(channel)
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as another:
        assert is_served(another)
    assert serve.end() == 0


@contextmanager
def many_connections(address: str, number: int) -> Iterator[int]:
    """Open connections as a client does and keep them all; give how many the service took."""
    host, _, port = address.rpartition(":")
    taken = 0
    with ExitStack() as stack:
        for _ in range(number):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=GIVE_UP_SECONDS))
            with suppress(ConnectionError):  # those beyond the limit are closed
                connection.sendall(BEGIN)
                taken += connection.recv(1) != b""
        yield taken


@pytest.mark.soak
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux tells what another process has")
def test_ten_thousand_connections_leave_others_served_and_no_memory_behind(
    serve: Process, address: str, channel: grpc.Channel
) -> None:
    """F18, F19: those beyond the limit are closed, and what the others took is used again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    number = min(CONNECTIONS, hard - 500)
    assert is_served(channel)
    quiet = open_files(serve.pid)
    quiet_kib = resident_kib(serve.pid)
    held_kib = []
    try:
        for _ in range(ROUNDS):
            with many_connections(address, number) as taken:
                assert 0 < taken <= ConnectionLimits().max_connections
                held_kib.append(resident_kib(serve.pid) - quiet_kib)
            assert is_served(channel)
            poll(lambda: open_files(serve.pid) <= quiet + 1, "closed what its clients had closed")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    # Memory that was freed in pieces is not used again at once; memory that is never freed adds up to all the rounds.
    assert held_kib[-1] < held_kib[0] * ROUNDS / 2
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as another:
        assert is_served(another)
    assert serve.end() == 0
