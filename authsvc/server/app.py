"""The composition root: builds the service from its settings, serves it, and ends it in order."""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from authsvc.config import Address, Settings
from authsvc.errors import ConfigError, OperatorError, StoreUnavailableError
from authsvc.models import Clock, utc_now
from authsvc.passwords.hash_queue import HashQueue
from authsvc.rpc.auth_service import AuthService, UserService
from authsvc.rpc.callers import Callers, watch_callers_file
from authsvc.rpc.middleware import Middleware
from authsvc.server import http_server
from authsvc.stores.interface import Store
from authsvc.stores.opening import open_store
from authsvc.telemetry import metrics
from authsvc.throttling.budgets import Budgets
from authsvc.throttling.login_throttle import LoginThrottle
from authsvc.tokens.access_tokens import AccessTokens
from authsvc.tokens.key_file import watch_key_file
from authsvc.tokens.keys import KeyRing
from authsvc.usecases.login import Logins
from authsvc.usecases.sessions import SessionLifetimes, Sessions
from authsvc.usecases.user_state_cache import UserStateCache
from authsvc.usecases.users import Users
from authsvc.usecases.validation import Validations
from authsvc.v1 import auth_service_pb2, user_service_pb2
from authsvc.watched_file import WatchedFile

DRAIN_WAIT_SECONDS = 2.0
"""From NOT_SERVING to the end of new calls beyond loopback: balancers need a moment to look elsewhere."""
GRACE_SECONDS = 10.0
GC_THRESHOLDS = (700, 10, 1000)
"""Python's own, but for the last: a look at all objects holds every call up for 20 ms once the caches are full."""
STORE_POLL_SECONDS = 0.5
FILES_POLL_SECONDS = 0.5

_SERVICES: tuple[ServiceDescriptor, ...] = (
    auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
    user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
)
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
"""Of one call. A user's token, which is what takes most of it, has at most half of that."""
MAX_CONNECTIONS = 1000
MAX_CONCURRENT_CALLS = 1000
"""On one connection; more wait in the client."""
HANDSHAKE_SECONDS = 10
"""From a connection's begin to the end of TLS and of HTTP/2's first frames."""
MIN_PING_SECONDS = 10
"""Between keepalive pings of a client; one that pings more often three times is sent away."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """A running service.

    Args:
        address: Where it listens, with the real port.
        http_address: Where the side port listens; None where it is off.
    """

    address: str
    http_address: Address | None
    logins: Logins
    sessions: Sessions
    validations: Validations
    accounts: Users
    health: health.aio.HealthServicer


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock = utc_now, monotonic: Callable[[], float] = time.monotonic
) -> AsyncIterator[Service]:
    """Run the service while the body runs; at its end, calls in flight are finished.

    Raises:
        ConfigError: It cannot listen there, or a TLS file is not what it must be.
        KeyFileError: The signing keys cannot be used.
        CallersFileError: The callers file cannot be used.
        StoreSetupError: The store cannot be opened.
    """
    key_file = watch_key_file(settings.signing_keys, clock)
    callers_file = None if settings.callers is None else watch_callers_file(settings.callers)
    tokens = AccessTokens(key_file.content, settings.issuer, settings.audience, settings.access_token_ttl)
    lifetimes = SessionLifetimes(settings.session_idle_ttl, settings.session_max_ttl)
    async with contextlib.AsyncExitStack() as stack:
        hashing = stack.enter_context(contextlib.closing(HashQueue(settings.bcrypt_cost)))
        cache = UserStateCache(monotonic)
        store = await stack.enter_async_context(open_store(settings, cache.invalidate))
        sessions = Sessions(store, tokens, lifetimes, clock)
        validations = Validations(
            store,
            tokens,
            cache,
            clock,
            max_staleness=settings.max_staleness,
            max_stale_if_error=settings.max_stale_if_error,
        )
        attempts = await stack.enter_async_context(
            contextlib.aclosing(LoginThrottle(store, hashing, _budgets(settings), clock))
        )
        logins = Logins(store, attempts, hashing, sessions, clock, settings.password_min_length)
        accounts = Users(store, hashing, clock, settings.password_min_length)
        http_address = await stack.enter_async_context(
            http_server.listening(settings, lambda: sessions.jwks, metrics.registry_of())
        )
        servicers = (AuthService(logins, sessions, validations), UserService(accounts, sessions))
        guard = Middleware(validations, callers_file)
        server, health_servicer = await _grpc_server(guard, servicers, settings)
        with _low_descriptors_taken() if settings.workers > 1 else contextlib.nullcontext():
            port = _bind(server, settings)
            await server.start()
        stack.push_async_callback(server.stop, GRACE_SECONDS)
        metrics.STARTS.inc()
        stack.callback(metrics.SERVING.set, 0)
        sampling = metrics.sample({"verified_tokens": lambda: tokens.cache_size, "standings": lambda: len(cache)})
        following = _follow_files(key_file, tokens, callers_file)
        for work in (_set_serving_when_store_answers(store, health_servicer), following, sampling):
            stack.push_async_callback(_cancel, asyncio.create_task(work))
        address = str(Address(settings.listen.host, port))
        yield Service(address, http_address, logins, sessions, validations, accounts, health_servicer)


def _budgets(settings: Settings) -> Budgets:
    return Budgets(settings.failures_per_pair, settings.failures_per_account, settings.failures_per_source)


async def serve(settings: Settings, on_start: Callable[[Service], Awaitable[None]] | None = None) -> None:
    """Run the service until SIGTERM or SIGINT, then end it in order.

    Args:
        settings: All of them.
        on_start: Called once the service listens.

    Raises:
        OperatorError: As `running` does.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings) as service:
        http_address = service.http_address and str(service.http_address)
        _log.info("listening", address=service.address, http_address=http_address)
        if on_start is not None:
            await on_start(service)
        # What was made until now lives as long as the process: the garbage collector need not look at it again, which
        # would hold calls up for tens of milliseconds.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        await stop.wait()
        _log.info("stopping")
        metrics.SERVING.set(0)
        await service.health.enter_graceful_shutdown()
        if not settings.listen.is_loopback:
            await asyncio.sleep(DRAIN_WAIT_SECONDS)
    _log.info("stopped")


async def _grpc_server(
    guard: Middleware, servicers: tuple[AuthService, UserService], settings: Settings
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    server = grpc.aio.server(options=_options(settings))
    server.add_generic_rpc_handlers(tuple(guard.methods(d, s) for d, s in zip(_SERVICES, servicers, strict=True)))
    health_servicer = health.aio.HealthServicer()
    await _set_health(health_servicer, health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if settings.reflection:
        _add_reflection(server)
    return server, health_servicer


def _options(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Return gRPC's settings: what one client may take, and when connections end."""
    return (
        # Programs that do not know of each other would share a port's connections; workers do.
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # Between the two, gRPC would refuse some calls by chance.
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.max_concurrent_streams", MAX_CONCURRENT_CALLS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        # Connections end now and then, so that balancers spread them anew, and when nobody has used them for a while.
        ("grpc.max_connection_age_ms", 30 * 60 * 1000),
        ("grpc.max_connection_age_grace_ms", 30 * 1000),
        ("grpc.max_connection_idle_ms", 5 * 60 * 1000),
        # A client that is gone without a word is noticed.
        ("grpc.keepalive_time_ms", 60 * 1000),
        ("grpc.keepalive_timeout_ms", 20 * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_SECONDS * 1000),
        ("grpc.http2.max_ping_strikes", 2),
    )


def _add_reflection(server: grpc.aio.Server) -> None:
    names = [d.full_name for d in _SERVICES]
    names += [health.SERVICE_NAME, reflection.SERVICE_NAME, _REFLECTION_V1]
    reflection.enable_server_reflection(names, server)
    # v1 differs from v1alpha in its name alone; grpcio-reflection serves the older one only.
    servicer = reflection.aio.ReflectionServicer(names)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                _REFLECTION_V1,
                {
                    "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                        servicer.ServerReflectionInfo,
                        reflection_pb2.ServerReflectionRequest.FromString,
                        reflection_pb2.ServerReflectionResponse.SerializeToString,
                    )
                },
            ),
        )
    )


@contextmanager
def _low_descriptors_taken() -> Iterator[None]:
    """Let what is opened inside have a higher number than the connections that come later.

    Linux closes the files of a killed process from the highest number down. So the port goes first, and clients that
    lose their connection and come again find another worker, never the queue of the dead one.
    """
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(min(MAX_CONNECTIONS, soft_limit // 2))]
    try:
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


def _bind(server: grpc.aio.Server, settings: Settings) -> int:
    """Return the port, which is another one than in the settings where that is 0."""
    address = str(settings.listen)
    try:
        if settings.tls_cert is None or settings.tls_key is None:
            return server.add_insecure_port(address)
        credentials = grpc.ssl_server_credentials(
            [(_pem(settings.tls_key), _pem(settings.tls_cert))],
            None if settings.tls_client_ca is None else _pem(settings.tls_client_ca),
            require_client_auth=settings.tls_client_ca is not None,
        )
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise ConfigError([_bind_failure(settings)]) from None


def _bind_failure(settings: Settings) -> str:
    """Return why gRPC cannot listen on an address, which it does not tell."""
    address = settings.listen
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, settings.workers > 1)
            probe.bind((address.host, address.port))
    except OSError as error:
        return f"AUTHSVC_LISTEN: cannot listen on {address}: {error.strerror}"
    return "AUTHSVC_TLS_CERT, _KEY, _CLIENT_CA: are no PEM files that fit together; authsvc doctor says more"


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None


async def _set_serving_when_store_answers(store: Store, servicer: health.aio.HealthServicer) -> None:
    """Report SERVING from the store's first answer on; a store that fails later changes nothing.

    A dead store must not take every instance out of rotation.
    """
    while True:
        try:
            await store.ping()
        except (StoreUnavailableError, OperatorError) as error:
            _log.warning("waiting_for_store", cause=str(error))
            await asyncio.sleep(STORE_POLL_SECONDS)
        else:
            break
    await _set_health(servicer, health_pb2.HealthCheckResponse.SERVING)
    metrics.SERVING.set(1)
    _log.info("serving")


async def _follow_files(
    key_file: WatchedFile[KeyRing], tokens: AccessTokens, callers_file: WatchedFile[Callers] | None
) -> None:
    """Take up changes of the key file and the callers file within 2 s."""
    while True:
        await asyncio.sleep(FILES_POLL_SECONDS)
        tokens.ring = await asyncio.to_thread(key_file.refresh)
        if callers_file is not None:
            await asyncio.to_thread(callers_file.refresh)


async def _set_health(servicer: health.aio.HealthServicer, status: Any) -> None:  # noqa: ANN401 - its stub has no name
    for name in ("", *(d.full_name for d in _SERVICES)):
        await servicer.set(name, status)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
