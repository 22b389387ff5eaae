"""The HTTP side port: public keys and discovery for offline verification; metrics and health for operators."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from authsvc.config import DEFAULT_HTTP_LISTEN, Address, ServeSettings
from authsvc.errors import ConfigError
from authsvc.telemetry import metrics
from authsvc.tokens.keys import ALGORITHMS

_log = structlog.get_logger(__name__)

JWKS_PATH = "/.well-known/jwks.json"
METRICS_PATH = "/metrics"
HEALTH_PATH = "/healthz"
DISCOVERY_PATH = "/.well-known/openid-configuration"
MAX_AGE_SECONDS = 300
"""How long caches may keep an answer: far shorter than the hours between a key's publication and its first token."""


@asynccontextmanager
async def serve_http(
    settings: ServeSettings, jwks: Callable[[], str], registry: CollectorRegistry
) -> AsyncIterator[Address | None]:
    """Serve the side port while the body runs; do nothing where it is off.

    Args:
        settings: The address, and the issuer for the discovery document.
        jwks: Returns the current public keys.
        registry: The metrics.

    Yields:
        The address with the real port; None where the port is off.

    Raises:
        ConfigError: The address is taken.
    """
    if settings.http_listen is None:
        yield None
        return
    runner = web.AppRunner(_app(settings, jwks, registry), access_log=None)
    await runner.setup()
    try:
        yield await _bind_or_go_without(runner, settings.http_listen)
    finally:
        await runner.cleanup()


async def _bind_or_go_without(runner: web.AppRunner, listen: Address) -> Address | None:
    """Bind the port; a second service on a host goes without where the default port is taken."""
    try:
        return await _bind(runner, listen)
    except ConfigError as error:
        if str(listen) != DEFAULT_HTTP_LISTEN:
            raise
        _log.warning("http_port_off", problem=str(error))
        return None


async def _bind(runner: web.AppRunner, listen: Address) -> Address:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        listener = socket.create_server((listen.host, listen.port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # some Python versions append the address
        remedy = "set another address, or an empty value to turn it off"
        raise ConfigError([f"AUTHSVC_HTTP_LISTEN: cannot listen on {listen}: {reason}; {remedy}"]) from None
    await web.SockSite(runner, listener).start()
    return Address(listen.host, runner.addresses[0][1])


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

    async def hide_versions(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "authsvc"

    app = web.Application()
    app.on_response_prepare.append(hide_versions)
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
