"""What a process does when it runs out of something."""

import re
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.e2e.conftest import Start
from tests.e2e.process import GIVE_UP_SECONDS, Process, invoke, poll

INACTIVE = auth_pb2.TOKEN_STATE_INACTIVE
MORE = 30
"""Files that the process may open after the limit is set."""


@pytest.fixture
def serve(start: Start, tmp_path: Path, signing_keys: Path) -> Process:
    settings = {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
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
def test_without_files_left_those_who_are_there_are_served(serve: Process, address: str, channel: grpc.Channel) -> None:
    """F18."""
    assert is_served(channel)
    files = Path(f"/proc/{serve.pid}/fd")
    limit = len(list(files.iterdir())) + MORE
    resource.prlimit(serve.pid, resource.RLIMIT_NOFILE, (limit, limit))
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(2 * MORE):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=GIVE_UP_SECONDS))
        poll(lambda: len(list(files.iterdir())) >= limit, "ran out of files")
        for _ in range(20):
            assert is_served(channel)
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as another:
        assert is_served(another)
    assert serve.end() == 0
