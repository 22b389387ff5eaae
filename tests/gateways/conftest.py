"""Fixtures of the tests with a real Envoy: its binary, a service that speaks TLS and knows callers, and a backend."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from authsvc.config import ServeSettings
from authsvc.rpc.callers import Permission, api_key_digest, new_api_key
from authsvc.server.app import Limits
from tests import tools
from tests.e2e.certificates import Authority
from tests.gateways.envoy import (
    BACKEND,
    FILES,
    SERVICE,
    Backend,
    Envoy,
    Response,
    configuration,
    run_backend,
    run_envoy,
)
from tests.support import WITNESS, Client, FakeClock, served

SPOOFED = ("x-auth-user-id: mallory", "X-Auth-Role: admin", "X-AUTH-EMAIL: root@example.com", "x-auth-anything: 1")
ENVOY_IDENTITY = "spiffe://example.com/envoy"


@dataclass(frozen=True)
class ApiKeys:
    """The keys of the callers file.

    Args:
        envoy: May validate, and nothing else.
        backend: May do everything.
    """

    envoy: str
    backend: str


@pytest.fixture(scope="session")
def envoy_binary() -> Path:
    """Envoy's path."""
    return tools.required_or_skip(tools.envoy)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with run_backend() as backend:
        yield backend


@pytest.fixture(scope="session")
def api_keys() -> ApiKeys:
    keys = ApiKeys(new_api_key(), new_api_key())
    WITNESS.hide(keys.envoy, keys.backend)
    return keys


@pytest.fixture
def secured(settings: ServeSettings, authority: Authority, api_keys: ApiKeys, tmp_path: Path) -> ServeSettings:
    """The settings of a service in production: it speaks TLS as auth.internal, and Envoy is one of its callers."""
    pair = authority.issue("service", names=[x509.DNSName("auth.internal")])
    callers = tmp_path / "callers.toml"
    callers.write_text(
        f'[callers.envoy]\napi_key_sha256 = ["{api_key_digest(api_keys.envoy)}"]\n'
        f'tls_identities = ["{ENVOY_IDENTITY}"]\npermissions = ["validate"]\n'
        f'[callers.backend]\napi_key_sha256 = ["{api_key_digest(api_keys.backend)}"]\n'
        f"permissions = {[str(permission) for permission in Permission]}\n"
    )
    return replace(settings, tls_cert=pair.certificate, tls_key=pair.key, callers=callers)


ServeSecured = Callable[[ServeSettings], AbstractAsyncContextManager[Client]]


@pytest.fixture
def serve_secured(clock: FakeClock, limits: Limits, authority: Authority, api_keys: ApiKeys) -> ServeSecured:
    """Run a service with such settings."""
    # Of no caller: where the service asks for a certificate, this is one.
    pair = authority.issue("client")
    credentials = grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(), pair.key.read_bytes(), pair.certificate.read_bytes()
    )

    @asynccontextmanager
    async def serve(settings: ServeSettings) -> AsyncIterator[Client]:
        async with served(settings, clock, limits, credentials, api_keys.backend) as client:
            yield client

    return serve


RunEnvoy = Callable[..., AbstractAsyncContextManager[Envoy]]


def bearer(token: str) -> str:
    return f"authorization: Bearer {token}"


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Path:
    """What is in /etc/envoy."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "ca.pem").write_bytes(authority.certificate.read_bytes())
    return folder


@pytest.fixture
def in_front(envoy_binary: Path, files: Path, backend: Backend, api_keys: ApiKeys) -> RunEnvoy:
    """Run Envoy between a service, at HOST:PORT, and the backend."""

    @asynccontextmanager
    async def run(service: str, key: str = api_keys.envoy, adapt: Callable[[str], str] = str) -> AsyncIterator[Envoy]:
        replaced = {SERVICE: int(service.rpartition(":")[2]), BACKEND: backend.port, FILES: files}
        text = adapt(configuration("envoy.yaml", replaced))
        async with run_envoy(envoy_binary, text, {"AUTHSVC_API_KEY": key}) as envoy:
            yield envoy

    return run


@dataclass(frozen=True)
class Gateway:
    """A service, Envoy and a backend.

    Args:
        client: Of the service.
    """

    client: Client
    envoy: Envoy
    backend: Backend

    async def get(self, target: str, *headers: str | bytes) -> Response:
        """Send a request that spoofs an identity."""
        return await self.envoy.send(target, *headers, *SPOOFED)

    async def refusal(self, target: str, *headers: str | bytes) -> Response:
        """Send a request that must not reach the backend."""
        seen = len(self.backend.seen)
        response = await self.get(target, *headers)
        assert len(self.backend.seen) == seen
        return response

    async def identity(self, target: str, *headers: str | bytes) -> dict[str, str]:
        """Send a request that must reach the backend, and return the identity that arrives there."""
        response = await self.get(target, *headers)
        assert (response.status, response.body) == (200, b"served")
        return self.backend.seen[-1].identity


@pytest.fixture
async def gateway(
    secured: ServeSettings, serve_secured: ServeSecured, in_front: RunEnvoy, backend: Backend
) -> AsyncIterator[Gateway]:
    async with serve_secured(secured) as client, in_front(client.address) as envoy:
        yield Gateway(client, envoy, backend)
