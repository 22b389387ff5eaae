"""The parent of workers: restarts, kills, and failures to start. The rest is in tests/e2e."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from authsvc import config
from authsvc.errors import ConfigError, OperatorError
from authsvc.server import workers
from authsvc.server.workers import PRODUCTION_LIMITS, SupervisionLimits
from tests.e2e.process import environment, invoke
from tests.support import WITNESS, until

LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""


@pytest.fixture
def settings(tmp_path: Path, signing_keys: Path, monkeypatch: pytest.MonkeyPatch) -> config.ServeSettings:
    """Two workers on SQLite; they read the same from the environment."""
    own = {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
        "AUTHSVC_WORKERS": "2",
    }
    assert invoke("tables", "create", **own).exit_code == 0
    for name, value in environment(**own).items():
        monkeypatch.setenv(name, value)
    return config.load(os.environ)


class Log:
    """The lines that the parent logs from now on."""

    def __init__(self) -> None:
        self._begin = len(WITNESS.lines.getvalue())

    def events(self, event: str) -> list[dict[str, Any]]:
        lines = map(json.loads, WITNESS.lines.getvalue()[self._begin :].splitlines())
        return [line for line in lines if line["event"] == event]


@asynccontextmanager
async def two_workers(
    settings: config.ServeSettings, limits: SupervisionLimits = PRODUCTION_LIMITS
) -> AsyncIterator[Log]:
    """The parent on this loop, with its workers; a signal stops it."""
    log = Log()
    serving = asyncio.create_task(workers.serve(settings, limits))
    await until(lambda: len(log.events("worker_started")) == 2 or serving.done())
    yield log
    os.kill(os.getpid(), signal.SIGTERM)
    await serving


async def test_a_worker_that_lived_long_is_replaced_at_once(settings: config.ServeSettings) -> None:
    ends = REGISTRY.get_sample_value("authsvc_worker_ends_total") or 0.0
    async with two_workers(settings, SupervisionLimits(backoff_reset_seconds=0.0)) as log:
        for time in range(3):
            os.kill(log.events("worker_started")[-1]["pid"], signal.SIGKILL)
            await until(lambda: len(log.events("worker_started")) == 3 + time)  # noqa: B023 - is awaited here
    assert [line["restart_seconds"] for line in log.events("worker_ended")] == [0.0, 0.0, 0.0]
    # The two that ended in order at the end do not count.
    assert REGISTRY.get_sample_value("authsvc_worker_ends_total") == ends + 3


async def test_a_worker_that_does_not_end_is_killed(settings: config.ServeSettings) -> None:
    async with two_workers(settings, SupervisionLimits(kill_seconds=0.2)) as log:
        stopped = log.events("worker_started")[0]["pid"]
        os.kill(stopped, signal.SIGSTOP)
    assert stopped in [line["pid"] for line in log.events("worker_killed")]
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)


async def test_a_worker_that_cannot_be_started_ends_it(
    settings: config.ServeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(OperatorError, match="ended before it listened"):
        await workers.serve(settings)
    assert [line["problem"] for line in log.events("worker_not_started")] == ["No such file or directory"]


async def test_a_worker_that_cannot_be_started_again_is_tried_again(
    settings: config.ServeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_workers(settings) as log:
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/nowhere/python")
            os.kill(log.events("worker_started")[0]["pid"], signal.SIGKILL)
            await until(lambda: log.events("worker_not_started"))
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: log.events("keys_reloaded"))
        await until(lambda: len(log.events("worker_started")) == 3)


async def test_an_address_that_is_not_here_is_said(settings: config.ServeSettings) -> None:
    there = config.load(
        {**os.environ, "AUTHSVC_LISTEN": "nowhere.invalid:0"},
        {"AUTHSVC_ALLOW_OPEN": "true", "AUTHSVC_ALLOW_PLAINTEXT": "true"},
    )
    with pytest.raises(ConfigError, match=r"AUTHSVC_LISTEN: cannot listen on nowhere\.invalid:0: "):
        await workers.serve(there)


async def test_a_folder_for_metrics_is_needed(settings: config.ServeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(OperatorError, match=r"cannot create a folder for metrics: No such file or directory; .*TMPDIR"):
        await workers.serve(settings)


async def test_it_listens_on_both_families_with_both_ports(
    settings: config.ServeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AUTHSVC_LISTEN", "AUTHSVC_HTTP_LISTEN"):
        monkeypatch.setenv(name, "[::]:0")
    for name in ("AUTHSVC_ALLOW_OPEN", "AUTHSVC_ALLOW_PLAINTEXT"):
        monkeypatch.setenv(name, "true")
    async with two_workers(config.load(os.environ)) as log:
        await until(lambda: log.events("listening"))
        (listening,) = log.events("listening")
        for address in (listening["address"], listening["http_address"]):
            for host in ("127.0.0.1", "::1"):
                _, writer = await asyncio.open_connection(host, int(address.rpartition(":")[2]))
                writer.transport.abort()


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc names the descriptors of another process")
async def test_a_killed_worker_closes_its_port_before_its_connections(settings: config.ServeSettings) -> None:
    """Linux closes from the highest descriptor down; clients that reconnect must reach another worker."""
    async with two_workers(settings) as log:
        first = next(line["pid"] for line in log.events("worker_started") if line["worker"] == 1)
        await until(lambda: log.events("listening"))
        host, _, port = log.events("listening")[0]["address"].rpartition(":")
        connections = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
        for reader, _ in connections:
            assert await reader.read(1), "gRPC's first frame: the connection is accepted"
        assert last_socket(first) in listening_sockets()
        for _, writer in connections:
            writer.close()


def last_socket(pid: int) -> str:
    """Return what a process has under its highest descriptor."""
    descriptors = Path(f"/proc/{pid}/fd").iterdir()
    return str(max(descriptors, key=lambda descriptor: int(descriptor.name)).readlink())


def listening_sockets() -> set[str]:
    """Return the sockets of this machine that listen, as /proc names them."""
    tables = (Path(f"/proc/net/{protocol}").read_text().splitlines()[1:] for protocol in ("tcp", "tcp6"))
    rows = (line.split() for table in tables for line in table)
    return {f"socket:[{row[9]}]" for row in rows if row[3] == LISTEN}
