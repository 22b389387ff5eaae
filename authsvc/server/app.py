"""The composition root: builds the service from its settings, runs it, and stops it in order."""

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import REGISTRY

from authsvc import otel_variables, request_context
from authsvc.config import Address, ServeSettings
from authsvc.errors import OperatorError, StoreUnavailableError
from authsvc.models import Clock, utc_now
from authsvc.passwords.hash_queue import CAPACITY as HASH_QUEUE_CAPACITY
from authsvc.passwords.hash_queue import HashQueue
from authsvc.passwords.hasher import SLOW_HASH_SECONDS, Hasher
from authsvc.rpc.auth_service import AuthService
from authsvc.rpc.authorization import Authorization
from authsvc.rpc.callers import watch_callers_file
from authsvc.rpc.ext_authz.check_service import CheckService
from authsvc.rpc.middleware import Middleware
from authsvc.rpc.user_service import UserService
from authsvc.server import grpc_server, http_server
from authsvc.server.certificates import publish_expiry, watch_certificates
from authsvc.server.grpc_server import ConnectionLimits, build_server
from authsvc.server.http_connections import HttpLimits
from authsvc.server.process import on_signals, raise_open_files_limit
from authsvc.server.streams import Health
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.stores.interface import Store
from authsvc.stores.opening import open_store
from authsvc.telemetry import metrics
from authsvc.throttling.budgets import Budgets
from authsvc.throttling.login_throttle import LoginThrottle
from authsvc.tokens.access_tokens import AccessTokens
from authsvc.tokens.opening import POLL_SECONDS as KEY_POLL_SECONDS
from authsvc.tokens.opening import watch_keys
from authsvc.usecases.login import Logins
from authsvc.usecases.sessions import SessionLifetimes, Sessions
from authsvc.usecases.user_state_cache import STALE_FALLBACK_TIMEOUT_SECONDS, StalenessLimits, UserStateCache
from authsvc.usecases.users import Users
from authsvc.usecases.validation import Validations
from authsvc.watched_file import Watched

if TYPE_CHECKING:
    from authsvc.telemetry.spans import Spans

GC_THRESHOLDS = (700, 10, 1000)
"""Python's own but for the last: a full collection stops all calls for 20 ms once the caches are full."""
STORE_POLL_SECONDS = 0.5

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits that no setting changes. Tests pass their own.

    Args:
        request_seconds: Deadline of a request whose client set no earlier one.
        hashing_seconds: The same for requests that hash a password.
        stale_fallback_seconds: How long a validation waits for the store where an older read may answer instead.
        drain_seconds: From NOT_SERVING to the end of new calls beyond loopback: balancers need time to notice.
        stop_grace_seconds: Calls in flight have this long to finish.
        span_flush_seconds: Then the spans that wait have this long to be exported.
        file_poll_seconds: Between two checks of the watched files.
        key_poll_seconds: Between two reads of signing keys in AWS.
        hash_queue_capacity: Slots of the hash queue.
        connections: Of the gRPC port.
        http: Of the side port.
        dynamodb: Time-outs and retries.
    """

    request_seconds: float = request_context.DEFAULT_DEADLINE_SECONDS
    hashing_seconds: float = request_context.HASHING_DEADLINE_SECONDS
    stale_fallback_seconds: float = STALE_FALLBACK_TIMEOUT_SECONDS
    drain_seconds: float = 2.0
    stop_grace_seconds: float = 10.0
    span_flush_seconds: float = 3.0
    file_poll_seconds: float = 0.5
    key_poll_seconds: float = KEY_POLL_SECONDS
    hash_queue_capacity: int = HASH_QUEUE_CAPACITY
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    http: HttpLimits = field(default_factory=HttpLimits)
    dynamodb: DynamoDBTimeouts = field(default_factory=DynamoDBTimeouts)


PRODUCTION_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class App:
    """The running service.

    Args:
        address: Of the gRPC port, with the real port number.
        http_address: Of the HTTP side port; None where it is off.
    """

    address: str
    http_address: Address | None
    logins: Logins
    sessions: Sessions
    validations: Validations
    users: Users
    health: Health


@asynccontextmanager
async def run_app(
    settings: ServeSettings,
    clock: Clock = utc_now,
    monotonic: Callable[[], float] = time.monotonic,
    limits: Limits = PRODUCTION_LIMITS,
    reload: asyncio.Event | None = None,
) -> AsyncIterator[App]:
    """Run the service while the body runs; calls in flight are finished at its end.

    Args:
        settings: All of them.
        clock: Returns the time of day.
        monotonic: Monotonic clock in seconds, for the age of cached reads and refusals.
        limits: Those of production, or a test's own.
        reload: Set to read the watched files at once, changed or not.

    Raises:
        ConfigError: A port is taken, or the TLS files cannot be used.
        KeyFileError: The signing keys cannot be used.
        CallersFileError: The callers file cannot be used.
        StoreSetupError: The store cannot be opened.
    """
    callers_file = None if settings.callers is None else watch_callers_file(settings.callers)
    certificates = watch_certificates(settings)
    async with AsyncExitStack() as stack:
        keys = await stack.enter_async_context(watch_keys(settings.signing_keys, clock, limits.key_poll_seconds))
        tokens = AccessTokens(keys.content, settings.issuer, settings.audience, settings.access_token_ttl)

        def use_content() -> None:
            tokens.ring = keys.content
            if certificates is not None:
                publish_expiry(certificates.content)

        use_content()
        cache = UserStateCache(monotonic)
        store = await stack.enter_async_context(open_store(settings, cache.invalidate, limits.dynamodb))
        lifetimes = SessionLifetimes(settings.session_idle_ttl, settings.session_max_ttl, settings.refresh_grace)
        sessions = Sessions(store, tokens, lifetimes, clock)
        staleness = StalenessLimits(
            settings.max_staleness,
            settings.max_stale_if_error,
            timedelta(seconds=limits.stale_fallback_seconds),
        )
        validations = Validations(store, tokens, cache, clock, staleness)
        throttle = await stack.enter_async_context(
            contextlib.aclosing(LoginThrottle(store, _budgets(settings), clock, monotonic))
        )
        hash_queue = await stack.enter_async_context(
            contextlib.aclosing(HashQueue(settings.bcrypt_cost, limits.hash_queue_capacity))
        )
        _warn_of_slow_hashes(hash_queue.hasher)
        logins = Logins(store, throttle, hash_queue, sessions, clock, settings.password_min_length)
        users = Users(store, hash_queue, clock, settings.password_min_length)
        http_address = await stack.enter_async_context(
            http_server.serve_http(settings, lambda: sessions.jwks, REGISTRY, limits.http)
        )
        middleware = Middleware(
            Authorization(validations, callers_file),
            limits.request_seconds,
            limits.hashing_seconds,
            _open_spans(stack, limits.span_flush_seconds),
        )
        servicers = (
            AuthService(logins, sessions, validations),
            UserService(users, sessions),
            CheckService(validations),
        )
        server, health = build_server(middleware, servicers, settings, limits.connections)
        port = await grpc_server.start(server, settings, limits.connections, certificates)
        stack.push_async_callback(server.stop, limits.stop_grace_seconds)
        stack.callback(health.end_streams)
        metrics.STARTS.inc()
        files = [file for file in (keys, callers_file, certificates) if file is not None]
        for work in (
            metrics.sample({"verified_tokens": lambda: tokens.cache_size, "user_states": lambda: len(cache)}),
            _reload_files(files, reload or asyncio.Event(), limits.file_poll_seconds, use_content),
            _set_serving_when_store_answers(store, health),
        ):
            _run_in_background(stack, work)
        address = str(Address(settings.listen.host, port))
        yield App(address, http_address, logins, sessions, validations, users, health)


def _open_spans(stack: AsyncExitStack, flush_seconds: float) -> "Spans | None":
    """Open the export of spans, which is closed when the stack unwinds; None where it is off."""
    if not otel_variables.exports_spans(os.environ):
        return None
    from authsvc.telemetry.spans import open_spans  # noqa: PLC0415 - of the extra `otel`

    spans = open_spans()
    stack.push_async_callback(spans.close, flush_seconds)
    return spans


def _warn_of_slow_hashes(hasher: Hasher) -> None:
    if hasher.seconds_per_hash > SLOW_HASH_SECONDS:
        seconds = round(hasher.seconds_per_hash, 1)
        _log.warning("slow_hashes", setting="AUTHSVC_BCRYPT_COST", cost=hasher.cost, seconds=seconds)


def _budgets(settings: ServeSettings) -> Budgets:
    return Budgets(settings.failures_per_pair, settings.failures_per_account, settings.failures_per_source)


async def serve(
    settings: ServeSettings,
    on_start: Callable[[App], Awaitable[None]] | None = None,
    limits: Limits = PRODUCTION_LIMITS,
) -> None:
    """Run the service until SIGTERM or SIGINT, then stop it in order. SIGHUP reads the watched files again.

    Args:
        settings: All of them.
        on_start: Called once the service listens.
        limits: As for run_app.

    Raises:
        OperatorError: As for run_app.
    """
    stop, reload = asyncio.Event(), asyncio.Event()
    on_signals(stop.set, reload.set)
    raise_open_files_limit()
    async with run_app(settings, limits=limits, reload=reload) as app:
        http_address = app.http_address and str(app.http_address)
        _log.info("listening", address=app.address, http_address=http_address)
        if on_start is not None:
            await on_start(app)
        # What exists now lives as long as the process: collections that look at it stop all calls for tens of
        # milliseconds.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        await stop.wait()
        _log.info("stopping")
        app.health.stop()
        if not settings.listen.is_loopback:
            await asyncio.sleep(limits.drain_seconds)
    _log.info("stopped")


async def _set_serving_when_store_answers(store: Store, health: Health) -> None:
    """Report SERVING from the store's first answer on.

    A later outage changes nothing: a dead store must not take every instance out of rotation.
    """
    while True:
        try:
            await store.ping()
        except (StoreUnavailableError, OperatorError) as error:
            _log.warning("waiting_for_store", cause=str(error))
            await asyncio.sleep(STORE_POLL_SECONDS)
        else:
            break
    health.set_serving()
    _log.info("serving")


async def _reload_files(
    files: Sequence[Watched[Any]], demanded: asyncio.Event, poll_seconds: float, use_content: Callable[[], None]
) -> None:
    """Follow the files' changes; read all of them, changed or not, where that is demanded."""
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(demanded.wait(), poll_seconds)
        is_demanded = demanded.is_set()
        demanded.clear()
        for file in files:
            await asyncio.to_thread(file.reload if is_demanded else file.reload_if_changed)
        use_content()


def _run_in_background(stack: AsyncExitStack, work: Coroutine[None, None, None]) -> None:
    """Run a task until the stack unwinds."""
    task = asyncio.create_task(work)

    async def cancel() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(cancel)
