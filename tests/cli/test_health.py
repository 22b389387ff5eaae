"""The container's health check."""

import asyncio
import os
import sys
from dataclasses import replace

import pytest

from authsvc.cli.health import is_serving
from authsvc.config import Address, Settings
from authsvc.server import app
from tests.support import Client, FakeClock


def at(settings: Settings, address: str, host: str = "127.0.0.1") -> Settings:
    return replace(settings, listen=Address(host, int(address.rpartition(":")[2])))


async def test_a_serving_service_is_healthy(client: Client, settings: Settings) -> None:
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - what an image listens on
        assert await asyncio.to_thread(is_serving, at(settings, client.address, host))


async def test_a_service_without_its_store_is_not(settings: Settings, clock: FakeClock) -> None:
    async with app.running(settings, clock) as service:  # its tables are not made
        assert not await asyncio.to_thread(is_serving, at(settings, service.address))


async def test_with_tls_a_connection_is_enough(client: Client, settings: Settings) -> None:
    tls = replace(at(settings, client.address), tls_cert=settings.signing_keys)
    assert await asyncio.to_thread(is_serving, tls)


def test_nobody_there_is_not_healthy(settings: Settings) -> None:
    for tls_cert in (None, settings.signing_keys):
        assert not is_serving(replace(settings, listen=Address("127.0.0.1", 1), tls_cert=tls_cert))


@pytest.mark.parametrize("command", ["serve", "dev"])
async def test_the_exit_code_tells(client: Client, settings: Settings, command: str) -> None:
    of_serve = {
        "AUTHSVC_STORE": settings.store,
        "AUTHSVC_ISSUER": settings.issuer,
        "AUTHSVC_AUDIENCE": settings.audience,
        "AUTHSVC_SIGNING_KEYS": str(settings.signing_keys),
    }
    environ = {**os.environ, **(of_serve if command == "serve" else {})}
    for address, code in ((client.address, 0), ("127.0.0.1:1", 1)):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "authsvc.cli.health", env={**environ, "AUTHSVC_LISTEN": address}
        )
        assert await process.wait() == code
