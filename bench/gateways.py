"""Measures what each way through Envoy costs, in about a minute: `python -m bench.gateways`.

Real processes: Envoy with two threads and the configurations of deploy/envoy, the service with TLS on dynoxide, and a
second Envoy as the backend. This process sends the load over HTTP/1.1.
"""

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from authsvc.cli.descriptor import descriptor_set
from authsvc.rpc.callers import api_key_digest, new_api_key
from bench import cores
from bench.servers import USERS, Server, Servers
from tests import tools
from tests.e2e.certificates import Authority
from tests.engines.process import free_port
from tests.gateways.envoy import BACKEND, FILES, SERVICE, SIDE_PORT, configuration, run_envoy

CALLS = 6000
WARM_UP_CALLS = 1000
"""The number of tokens, so that the service has seen each once before the measurement."""
IN_FLIGHT = 256
CALLS_ONE_BY_ONE = 500
BACKEND_CONFIGURATION = """
admin: { address: { socket_address: { address: 127.0.0.1, port_value: 9901 } } }
static_resources:
  listeners:
    - address: { socket_address: { address: 0.0.0.0, port_value: 8000 } }
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": TYPES/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: backend
                route_config:
                  virtual_hosts:
                    - name: backend
                      domains: ["*"]
                      routes: [{ match: { prefix: / }, direct_response: { status: 200 } }]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": TYPES/envoy.extensions.filters.http.router.v3.Router
""".replace("TYPES", "type.googleapis.com")
VALIDATE = "/authsvc.v1.AuthService/ValidateToken"

Request = Callable[[str], bytes]
"""Returns the request that carries a token."""


def _get(target: str) -> Request:
    return lambda token: f"GET {target} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n".encode()


def _post_json(api_key: str) -> Request:
    def request(token: str) -> bytes:
        body = f'{{"token": "{token}"}}'
        head = f"POST {VALIDATE} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {api_key}\r\ncontent-length: {len(body)}"
        return f"{head}\r\n\r\n{body}".encode()

    return request


@dataclass(frozen=True)
class Figures:
    """The cost of one way.

    Args:
        envoy_cpu: CPU microseconds per request.
        service_cpu: CPU microseconds per request.
        latency: Median in milliseconds, one request at a time.
    """

    envoy_cpu: float
    service_cpu: float
    latency: float


async def _send(requests: Iterator[bytes], calls: int, port: int, connections: int) -> list[float]:
    """Return the latency of each call in seconds."""
    latencies = []
    bounded = itertools.islice(requests, calls)

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in bounded:
            begin = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(head.decode())
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            latencies.append(time.perf_counter() - begin)
        writer.close()

    await asyncio.gather(*(work() for _ in range(connections)))
    return latencies


async def _measure(make: Request, tokens: list[str], envoy: Server, service: Server) -> Figures:
    port = int(envoy.address)
    requests = itertools.cycle([make(token) for token in tokens])
    await _send(requests, WARM_UP_CALLS, port, IN_FLIGHT)
    before = cores.cpu_seconds(envoy.pid), cores.cpu_seconds(service.pid)
    await _send(requests, CALLS, port, IN_FLIGHT)
    after = cores.cpu_seconds(envoy.pid), cores.cpu_seconds(service.pid)
    envoy_cpu, service_cpu = ((end - begin) / CALLS * 1e6 for begin, end in zip(before, after, strict=True))
    one_by_one = await _send(requests, CALLS_ONE_BY_ONE, port, 1)
    return Figures(envoy_cpu, service_cpu, statistics.median(one_by_one) * 1e3)


@asynccontextmanager
async def _envoy(text: str, api_key: str = "") -> AsyncIterator[Server]:
    async with run_envoy(tools.envoy(), text, {"AUTHSVC_API_KEY": api_key}) as envoy:
        yield Server(str(envoy.port), envoy.pid)


async def _run(servers: Servers, folder: Path) -> None:
    authority, key, side_port = Authority(folder), new_api_key(), free_port()
    pair = authority.issue("service", names=[x509.DNSName("auth.internal")])
    (folder / "authsvc.binpb").write_bytes(descriptor_set())
    callers = folder / "callers.toml"
    callers.write_text(f'[callers.envoy]\napi_key_sha256 = ["{api_key_digest(key)}"]\npermissions = ["validate"]\n')
    environ = {
        **servers.on_dynamodb(),
        "AUTHSVC_TLS_CERT": str(pair.certificate),
        "AUTHSVC_TLS_KEY": str(pair.key),
        "AUTHSVC_CALLERS": str(callers),
        "AUTHSVC_HTTP_LISTEN": f"127.0.0.1:{side_port}",
    }
    service = await asyncio.to_thread(servers.serve, environ)
    tokens = servers.tokens(USERS, WARM_UP_CALLS).read_text().split()
    port = int(service.address.rpartition(":")[2])
    async with _envoy(BACKEND_CONFIGURATION) as backend:
        places = {BACKEND: int(backend.address), SERVICE: port, SIDE_PORT: side_port, FILES: folder}
        places |= {"https://auth.example.com": environ["AUTHSVC_ISSUER"]}

        def adapted(name: str, *used: str) -> str:
            return configuration(name, {old: places[old] for old in used})

        ext_authz = adapted("envoy.yaml", BACKEND, SERVICE, FILES)
        ways = (
            ("no check (`/healthz`)", ext_authz, _get("/healthz")),
            ("`jwt_authn`", adapted("jwt_authn.yaml", BACKEND, SIDE_PORT), _get("/")),
            ("`ext_authz`, fresh", ext_authz, _get("/")),
            ("`ext_authz`, `max_staleness` 5 s", ext_authz, _get("/catalogue")),
            ("`ValidateToken` as JSON", adapted("json_api.yaml", SERVICE, FILES), _post_json(key)),
        )
        _say("| way | CPU of Envoy, µs | CPU of the service, µs | median latency, ms |")
        _say("|---|---|---|---|")
        for name, text, make in ways:
            async with _envoy(text, key) as envoy:
                figures = await _measure(make, tokens, envoy, service)
            _say(f"| {name} | {figures.envoy_cpu:.0f} | {figures.service_cpu:.0f} | {figures.latency:.2f} |")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure each way, and print a table."""
    with Servers([USERS]) as servers, tempfile.TemporaryDirectory(prefix="bench-gateways-") as name:
        asyncio.run(_run(servers, Path(name)))
    _say(f"\n{IN_FLIGHT} requests in flight for CPU, one for latency; {cores.describe()}.")


if __name__ == "__main__":
    main()
