"""`authsvc serve` whose stderr is a pipe that nobody reads any more."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from authsvc.telemetry.log_queue import MAX_LINES
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.e2e.process import AUTHSVC, GIVE_UP_SECONDS, environment, invoke, poll

pytestmark = [
    pytest.mark.timeout(60, func_only=True),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux makes a pipe small"),
]

REFUSALS = MAX_LINES + 300
"""More than wait in the queue and in the smallest pipe."""


@pytest.fixture
def settings(tmp_path: Path, signing_keys: Path) -> dict[str, str]:
    own = {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
        "AUTHSVC_HTTP_LISTEN": "127.0.0.1:0",
    }
    assert invoke("tables", "create", **own).exit_code == 0
    return own


@contextmanager
def started(settings: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the service with a stderr that holds one page."""
    process = subprocess.Popen(
        [AUTHSVC, "serve"], env=environment(**settings), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with process:
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, os.sysconf("SC_PAGE_SIZE"))
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class Service:
    """A service whose log is not read any more.

    Args:
        process: Alone, or the parent of workers.
        address: Of gRPC.
        http_address: Of the side port.
    """

    process: "subprocess.Popen[bytes]"
    address: str
    http_address: str

    def show(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.http_address}{path}", timeout=GIVE_UP_SECONDS) as answer:
            return str(answer.read().decode())

    def value(self, sample: str) -> float:
        (line,) = (line for line in self.show("/metrics").splitlines() if line.startswith(f"{sample} "))
        return float(line.split()[-1])

    def refuse(self, times: int) -> None:
        """Make lines: each call writes one."""
        with grpc.insecure_channel(self.address) as channel, ThreadPoolExecutor(8) as pool:
            stub: Any = auth_grpc.AuthServiceStub(channel)

            def refresh(number: int) -> grpc.StatusCode:
                request = auth_pb2.RefreshTokensRequest(refresh_token=f"rt_{number:060}")
                code: grpc.StatusCode = stub.RefreshTokens.future(request).exception(GIVE_UP_SECONDS).code()
                return code

            assert set(pool.map(refresh, range(times))) == {grpc.StatusCode.UNAUTHENTICATED}

    def validate(self) -> None:
        with grpc.insecure_channel(self.address) as channel:
            request = auth_pb2.ValidateTokenRequest(token="x")
            answer = auth_grpc.AuthServiceStub(channel).ValidateToken(request, timeout=GIVE_UP_SECONDS)
        assert answer.state == auth_pb2.TOKEN_STATE_INACTIVE

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(GIVE_UP_SECONDS)


@contextmanager
def stalled(settings: dict[str, str], workers: int) -> Iterator[Service]:
    """Run the service, and read its log until all workers serve."""
    with started({**settings, "AUTHSVC_WORKERS": str(workers)}) as process:
        assert process.stderr is not None
        lines: list[dict[str, Any]] = []
        while [line["event"] for line in lines].count("serving") < workers:
            lines.append(json.loads(process.stderr.readline()))
        listening = next(line for line in lines if line["event"] == "listening" and line["http_address"])
        yield Service(process, listening["address"], listening["http_address"])


def test_a_log_that_nobody_reads_blocks_nothing(settings: dict[str, str]) -> None:
    with stalled(settings, workers=1) as service:
        service.refuse(REFUSALS)
        service.validate()
        assert service.show("/healthz") == "serving\n"
        assert service.value('authsvc_log_lines_dropped_total{kind="audit"}') == 0
        assert service.value('authsvc_log_lines_dropped_total{kind="refusal"}') > 0
        assert service.end() == 0


def test_it_blocks_no_worker_nor_their_parent(settings: dict[str, str]) -> None:
    with stalled(settings, workers=2) as service:
        service.refuse(300)
        service.validate()
        pid = service.process.pid
        first, _ = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(first), signal.SIGKILL)
        poll(lambda: service.value("authsvc_starts_total") == 3, "started another worker")
        poll(lambda: service.value("authsvc_serving") == 2, "served with two again")
        assert service.show("/healthz") == "serving\n"
        service.validate()
        assert service.end() == 0
