"""A rollout under load: one of two services is killed and restarted, then both are restarted in turn; no call fails."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from authsvc.client import AsyncClient, Identity, InvalidTokenError
from authsvc.config import ServeSettings
from authsvc.models import utc_now
from authsvc.v1.auth_service_pb2 import RevokeTokenRequest
from tests.e2e.process import Process, environment, started
from tests.support import FakeClock, served

pytestmark = pytest.mark.engines
RATE = 200
RATES = [RATE, pytest.param(1000, marks=pytest.mark.soak)]
"""Requests a second."""
PAUSE_SECONDS = 0.5
"""Of load before and after each change."""


@dataclass
class Service:
    """A process that can be started again on the same port."""

    environ: dict[str, str]
    folder: Path
    stack: contextlib.ExitStack

    def start(self) -> None:
        self.process: Process = self.stack.enter_context(started("serve", cwd=self.folder, environ=self.environ))
        workers = int(self.environ.get("AUTHSVC_WORKERS", 1))
        self.process.wait_for(lambda: self.process.log.count('"event": "serving"') == workers, "serves")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
async def token(settings: ServeSettings) -> AsyncIterator[str]:
    """An access token of today, for the services run by today's clock."""
    clock = FakeClock()
    clock.now = utc_now()
    async with served(settings, clock) as client:
        await client.create_user()
        yield await client.access_token()


def environ_of(settings: ServeSettings, port: int, **more: str) -> dict[str, str]:
    return environment(
        AUTHSVC_STORE=settings.store,
        AUTHSVC_TABLE_PREFIX=settings.table_prefix,
        AUTHSVC_ISSUER=settings.issuer,
        AUTHSVC_AUDIENCE=settings.audience,
        AUTHSVC_SIGNING_KEYS=str(settings.signing_keys),
        AUTHSVC_LISTEN=f"127.0.0.1:{port}",
        **more,
    )


@pytest.mark.parametrize("rate", RATES)
async def test_no_call_fails(rate: int, token: str, settings: ServeSettings, tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack:
        services = [Service(environ_of(settings, port), tmp_path, stack) for port in ports]
        for service in services:
            await asyncio.to_thread(service.start)
        async with AsyncClient(f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}") as client:
            load = asyncio.create_task(keep_calling(client, token, rate))
            for service, number in (
                (services[0], signal.SIGKILL),
                (services[0], signal.SIGTERM),
                (services[1], signal.SIGTERM),
            ):
                await asyncio.sleep(PAUSE_SECONDS)
                await asyncio.to_thread(service.process.end, number)
                await asyncio.sleep(PAUSE_SECONDS)
                await asyncio.to_thread(service.start)
            await asyncio.sleep(PAUSE_SECONDS)
            load.cancel()
            failures, calls = await load
    assert not failures
    assert calls > rate


async def test_no_call_fails_when_a_worker_is_killed(token: str, settings: ServeSettings, tmp_path: Path) -> None:
    """Two workers share a port, and one connection may reach each: what one of them revokes the other refuses."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        service = Service(environ_of(settings, port, AUTHSVC_WORKERS="2"), tmp_path, stack)
        await asyncio.to_thread(service.start)
        async with AsyncClient(f"127.0.0.1:{port}", connections=4) as client:
            load = asyncio.create_task(keep_calling(client, token, RATE))
            await asyncio.sleep(PAUSE_SECONDS)
            os.kill(int(re.findall(r'"pid": (\d+), "event": "worker_started"', service.process.log)[0]), signal.SIGKILL)
            await asyncio.to_thread(service.process.wait_for, lambda: "worker_ended" in service.process.log, "notices")
            await asyncio.sleep(PAUSE_SECONDS)
            load.cancel()
            failures, calls = await load
            await client.auth.RevokeToken(RevokeTokenRequest(token=token))
            answers = await asyncio.gather(*(client.validate(token) for _ in range(100)), return_exceptions=True)
    assert not failures
    assert calls > RATE * PAUSE_SECONDS
    assert {type(answer) for answer in answers} == {InvalidTokenError}


async def keep_calling(client: AsyncClient, token: str, rate: int) -> tuple[list[BaseException], int]:
    """Validate so many times a second until cancelled; return what failed, and how many calls there were."""
    loop = asyncio.get_running_loop()
    begin, calls = loop.time(), list[asyncio.Task[Identity]]()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            while len(calls) < (loop.time() - begin) * rate:
                calls.append(asyncio.create_task(client.validate(token)))
            await asyncio.sleep(0.5 / rate)
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [result for result in results if isinstance(result, BaseException)], len(calls)
