"""The container's health check."""

import asyncio
import os
import subprocess
import sys

import pytest

from authsvc.cli.health import is_serving
from authsvc.config import Address, ServeSettings
from authsvc.server import app
from tests.e2e.process import invoke
from tests.support import PATIENT_LIMITS, Client, FakeClock


def at(address: str, host: str = "127.0.0.1") -> Address:
    return Address(host, int(address.rpartition(":")[2]))


async def test_a_serving_service_is_healthy(client: Client) -> None:
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - what an image listens on
        assert await asyncio.to_thread(is_serving, at(client.address, host), has_tls=False)


async def test_a_service_without_its_store_is_not(settings: ServeSettings, clock: FakeClock) -> None:
    async with app.run_app(settings, clock, limits=PATIENT_LIMITS) as service:  # its tables are not made
        assert not await asyncio.to_thread(is_serving, at(service.address), has_tls=False)


async def test_a_proxy_of_the_environment_is_not_asked(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await asyncio.to_thread(is_serving, at(client.address), has_tls=False)


async def test_with_tls_a_connection_is_enough(client: Client) -> None:
    assert await asyncio.to_thread(is_serving, at(client.address), has_tls=True)


def test_without_a_service_the_check_fails() -> None:
    for has_tls in (False, True):
        assert not is_serving(Address("127.0.0.1", 1), has_tls=has_tls)


@pytest.mark.parametrize("command", ["serve", "dev"])
async def test_the_exit_code_is_the_result(client: Client, settings: ServeSettings, command: str) -> None:
    of_serve = {
        "AUTHSVC_STORE": settings.store,
        "AUTHSVC_ISSUER": settings.issuer,
        "AUTHSVC_AUDIENCE": settings.audience,
        "AUTHSVC_SIGNING_KEYS": str(settings.signing_keys),
    }
    environ = {**os.environ, **(of_serve if command == "serve" else {})}
    for address, code in ((client.address, 0), ("127.0.0.1:1", 1)):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "authsvc", "health"),
            env={**environ, "AUTHSVC_LISTEN": address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        shown = await process.communicate()
        assert process.returncode == code
        assert shown == ((b"serving\n", b"") if code == 0 else (b"", b"error: no service serves on 127.0.0.1:1\n"))


def test_a_malformed_address_is_not_healthy() -> None:
    result = invoke("health", AUTHSVC_LISTEN="nowhere")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: AUTHSVC_LISTEN: must be HOST:PORT")
