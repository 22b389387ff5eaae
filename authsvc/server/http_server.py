"""The HTTP side port: public keys and discovery for offline verification; metrics and health for operators."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from authsvc.config import Address, ServeSettings
from authsvc.errors import ConfigError
from authsvc.server import listening
from authsvc.server.http_connections import Connections, HttpLimits
from authsvc.telemetry import metrics
from authsvc.tokens.keys import ALGORITHMS

_log = structlog.get_logger(__name__)
_http_log = logging.getLogger(__name__)
# aiohttp would log a traceback with the client's bytes, whatever they are, for each malformed request.
_http_log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))

JWKS_PATH = "/.well-known/jwks.json"
METRICS_PATH = "/metrics"
HEALTH_PATH = "/healthz"
DISCOVERY_PATH = "/.well-known/openid-configuration"
BACKLOG = 64
"""Connections that the kernel holds until they are accepted: each is an open file soon."""
MAX_AGE_SECONDS = 300
"""How long caches may keep an answer: far shorter than the hours between a key's publication and its first token."""


PRODUCTION_LIMITS = HttpLimits()


@asynccontextmanager
async def serve_http(
    settings: ServeSettings,
    jwks: Callable[[], str],
    registry: CollectorRegistry,
    limits: HttpLimits = PRODUCTION_LIMITS,
) -> AsyncIterator[Address | None]:
    """Serve the side port while the body runs; do nothing where it is off.

    Args:
        settings: The address, and the issuer for the discovery document.
        jwks: Returns the current public keys.
        registry: The metrics.
        limits: Those of production, or a test's own.

    Yields:
        The address with the real port; None where the port is off.

    Raises:
        ConfigError: The address is taken.
    """
    sockets = [] if settings.http_listen is None else _bind_or_go_without(settings.http_listen, limits)
    if settings.http_listen is None or not sockets:
        yield None
        return
    runner = web.AppRunner(
        _app(settings, jwks, registry), access_log=None, logger=_http_log, shutdown_timeout=limits.stop_seconds
    )
    await runner.setup()
    assert runner.server is not None  # noqa: S101 - it is set up
    port = sockets[0].getsockname()[1]
    connections = Connections(runner.server, limits)
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(connections.accept, sock=bound, backlog=BACKLOG) for bound in sockets]
    try:
        yield Address(settings.http_listen.host, port)
    finally:
        for server in servers:
            server.close()
        await runner.cleanup()


def _bind_or_go_without(listen: Address, limits: HttpLimits) -> list[socket.socket]:
    """Bind the port; a second service on a host goes without where the default port is taken."""
    remedy = "; set another address, or an empty value to turn it off"
    try:
        return listening.bind(listen, "AUTHSVC_HTTP_LISTEN", remedy=remedy)
    except ConfigError as error:
        if str(listen) != limits.optional_address:
            raise
        _log.warning("http_port_off", problem=str(error))
        return []


def _app(settings: ServeSettings, jwks: Callable[[], str], registry: CollectorRegistry) -> web.Application:
    discovery = json.dumps(
        {
            "issuer": settings.issuer,
            "jwks_uri": settings.issuer + JWKS_PATH,
            "response_types_supported": ["token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": list(ALGORITHMS),
        }
    )

    async def show_jwks(_: web.Request) -> web.Response:
        return _cacheable(jwks())

    async def show_discovery(_: web.Request) -> web.Response:
        return _cacheable(discovery)

    async def show_metrics(_: web.Request) -> web.Response:
        # Takes milliseconds, in which the event loop must go on.
        body = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def show_health(_: web.Request) -> web.Response:
        if metrics.is_serving(registry):
            return web.Response(text="serving\n")
        return web.Response(status=503, text="not serving\n")

    async def set_connection_headers(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "authsvc"
        response.headers["Connection"] = "close"
        response.force_close()

    app = web.Application()
    app.on_response_prepare.append(set_connection_headers)
    app.add_routes(
        [
            web.get(JWKS_PATH, show_jwks),
            web.get(DISCOVERY_PATH, show_discovery),
            web.get(METRICS_PATH, show_metrics),
            web.get(HEALTH_PATH, show_health),
        ]
    )
    return app


def _cacheable(body: str) -> web.Response:
    headers = {"Cache-Control": f"public, max-age={MAX_AGE_SECONDS}"}
    return web.Response(text=body, content_type="application/json", headers=headers)
