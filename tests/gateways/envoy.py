"""Envoy with the configurations of deploy/envoy, and the backend behind it."""

import asyncio
import http.client
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from tests.engines.process import READY_SECONDS, ServerProcess, free_port

CONFIGURATIONS = Path(__file__).parents[2] / "deploy" / "envoy"
NAMES = sorted(path.name for path in CONFIGURATIONS.glob("*.yaml"))
FILES = "/etc/envoy"
LISTENER = re.compile(r"address: (?:0\.0\.0\.0|127\.0\.0\.1), port_value: 800\d\b")
ADMIN = "address: 127.0.0.1, port_value: 9901"
SERVICE = "address: auth.internal, port_value: 50051"
SIDE_PORT = "address: auth.internal, port_value: 8080"
BACKEND = "address: backend.internal, port_value: 8080"
"""What the head of a configuration says to replace."""


def configuration(name: str, replaced: Mapping[str, object]) -> str:
    """Return a configuration of the repository with what it says to replace replaced, and nothing else.

    Args:
        name: Of the file.
        replaced: Addresses as above to the port of 127.0.0.1 in their place, and other texts to others.
    """
    text = (CONFIGURATIONS / name).read_text()
    for old, new in replaced.items():
        assert old in text, f"{name} has no {old}"
        text = text.replace(old, f"address: 127.0.0.1, port_value: {new}" if isinstance(new, int) else str(new))
    return text


def with_client_certificate(text: str) -> str:
    """Follow the comments of envoy.yaml: authenticate by a certificate instead of an API key."""
    text, removed = re.subn(r"^ +initial_metadata:\n.*\n", "", text, flags=re.MULTILINE)
    text, uncommented = re.subn(
        r"^( +)# ((?:  )*(?:tls_certificates|- certificate_chain|private_key):.*)$", r"\1\2", text, flags=re.MULTILINE
    )
    assert (removed, uncommented) == (1, 3)
    return text


@dataclass(frozen=True)
class Response:
    """What a client received."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Seen:
    """A request as the backend received it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    size: int

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def identity(self) -> dict[str, str]:
        """What any framework could take for the identity: x-auth-* in any case, with underscores too."""
        named = [(key.lower().replace("_", "-"), value) for key, value in self.headers]
        found = [(key, value) for key, value in named if key.startswith("x-auth-")]
        assert len(dict(found)) == len(found), f"a header comes twice: {found}"
        return dict(found)


@dataclass
class Backend:
    """What is behind the gateway; it answers every request with 200 and records it."""

    port: int
    seen: list[Seen] = field(default_factory=list)

    async def handle(self, request: web.BaseRequest) -> web.Response:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers]
        size = len(await request.read())
        self.seen.append(Seen(request.method, request.path_qs, headers, size))
        return web.Response(text="served")


@asynccontextmanager
async def run_backend() -> AsyncIterator[Backend]:
    backend = Backend(free_port())
    # Longer headers than Envoy passes on are Envoy's to refuse.
    server = web.Server(backend.handle, access_log=None, max_field_size=1 << 20, max_line_size=1 << 20)
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", backend.port).start()
    try:
        yield backend
    finally:
        await runner.cleanup()


@dataclass(frozen=True)
class Envoy:
    """A running Envoy; its listener and its admin port on 127.0.0.1."""

    port: int
    admin_port: int
    pid: int = 0

    async def send(self, target: str = "/", *headers: str | bytes, method: str = "GET", body: bytes = b"") -> Response:
        """Send one request as it is written, on a connection of its own."""
        lines = [line if isinstance(line, bytes) else line.encode("latin-1") for line in headers]
        sized = [b"Content-Length: %d" % len(body)] if body else []
        head = [f"{method} {target} HTTP/1.1".encode(), b"Host: example.com", b"Connection: close", *lines, *sized]
        return await self.send_raw(b"\r\n".join([*head, b"", body]))

    async def send_raw(self, request: bytes) -> Response:
        """Send bytes, and return the response that they get; status 0 where Envoy hangs up."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            return await _response(reader)
        except (ConnectionError, asyncio.IncompleteReadError):
            return Response(0, {}, b"")
        finally:
            writer.close()

    async def stats(self, pattern: str) -> dict[str, int]:
        """Return its counters and gauges whose names match."""

        def get() -> str:
            connection = http.client.HTTPConnection("127.0.0.1", self.admin_port)
            connection.request("GET", f"/stats?filter={pattern}")
            text = connection.getresponse().read().decode()
            connection.close()
            return text

        lines = (await asyncio.to_thread(get)).splitlines()
        return {name: int(value) for name, _, value in (line.partition(": ") for line in lines) if value.isdigit()}


@asynccontextmanager
async def run_envoy(binary: Path, text: str, environ: Mapping[str, str] | None = None) -> AsyncIterator[Envoy]:
    """Run Envoy with a configuration whose listeners get free ports.

    Args:
        binary: Envoy's path.
        text: As `configuration` returns it.
        environ: The environment.
    """
    envoy = Envoy(free_port(), free_port())
    text, listeners = LISTENER.subn(f"address: 127.0.0.1, port_value: {envoy.port}", text)
    assert listeners == 1
    with tempfile.TemporaryDirectory(prefix="envoy-") as name:
        folder = Path(name)
        path = folder / "envoy.yaml"
        path.write_text(text.replace(ADMIN, f"address: 127.0.0.1, port_value: {envoy.admin_port}"))
        command = [str(binary), "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
        process = ServerProcess(
            [*command, "--config-path", str(path)],
            port=envoy.admin_port,
            cwd=folder,
            env=environ or {},
            ready=_is_ready,
        )
        # Readiness may need the service or the backend, which run on this loop.
        await asyncio.to_thread(process.start)
        try:
            yield replace(envoy, pid=process.pid or 0)
        finally:
            await asyncio.to_thread(process.stop)


def validate(binary: Path, text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return what `envoy --mode validate` says of a configuration that it refuses, else nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        command = [str(binary), "--mode", "validate", "--log-level", "warning", "--config-path", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ or {})
    return done.stderr if done.returncode else ""


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


async def _response(reader: asyncio.StreamReader) -> Response:
    # To its own end: Envoy keeps a connection open for a second after an answer to a request that it has not read.
    status, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while length := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(length + 2))[:length]
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Response(int(status.split(" ")[1]), headers, body)
