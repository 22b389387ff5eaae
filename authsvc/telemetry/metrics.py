"""The service's metrics by their Prometheus names. `worker_metrics` adds those of several processes up.

docs/operations.md explains each one.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder of the workers' metrics files; prometheus_client reads it when it is imported."""
SAMPLE_SECONDS = 0.25
LAG_WARNING_SECONDS = 0.5

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

_log = structlog.get_logger(__name__)

disable_created_metrics()  # type: ignore[no-untyped-call]

SERVING = Gauge("authsvc_serving", "Processes that report SERVING", multiprocess_mode="livesum")
STARTS = Counter("authsvc_starts", "Processes that have started to listen")
WORKER_ENDS = Counter("authsvc_worker_ends", "Worker processes that have ended while the service was to run")
RPCS = Counter("authsvc_rpc", "Finished RPCs", ["method", "code", "reason"])
RPC_DURATION = Histogram("authsvc_rpc_duration_seconds", "Duration of an RPC in seconds", ["method"], buckets=_SECONDS)
TOKEN_VALIDATIONS = Counter("authsvc_token_validations", "Validated tokens by outcome", ["outcome"])
STORE_CALLS = Counter("authsvc_store_calls", "Finished store calls", ["operation", "error"])
STORE_CALL_DURATION = Histogram(
    "authsvc_store_call_duration_seconds",
    "Duration of a store call in seconds, including retries",
    ["operation"],
    buckets=_SECONDS,
)
STORE_FAILED_ATTEMPTS = Counter(
    "authsvc_store_failed_attempts", "Failed attempts of store calls that may be retried", ["operation", "cause"]
)
CONSUMED_UNITS = Counter(
    "authsvc_dynamodb_consumed_capacity_units", "Capacity units that DynamoDB reports as consumed", ["table", "kind"]
)
UNREADABLE_RESPONSES = Counter("authsvc_store_unreadable_responses", "Malformed responses of the store")
CORRUPT_ITEMS = Counter("authsvc_store_broken_rows", "Reads of corrupt rows")
KEY_READS_BATCH_SIZE = Histogram(
    "authsvc_key_reads_batch_size", "Keys per batched read", buckets=(1, 2, 4, 8, 16, 32, 64, 100)
)
HASHES_PENDING = Gauge(
    "authsvc_hashes_pending",
    "Slots of the password-hashing queue in use: running or waiting",
    multiprocess_mode="livesum",
)
HASHES_REFUSED = Counter("authsvc_hashes_refused", "Password hashes refused: queue full, or deadline too near")
CACHE_ENTRIES = Gauge("authsvc_cache_entries", "Entries in a cache", ["cache"], multiprocess_mode="livesum")
CACHE_MISSES = Counter("authsvc_cache_misses", "Look-ups that a cache could not answer", ["cache"])
EVENT_LOOP_LAG = Histogram("authsvc_event_loop_lag_seconds", "Event loop lag in seconds", buckets=_SECONDS)
LOG_LINES_DROPPED = Counter("authsvc_log_lines_dropped", "Log lines that could not be written, by kind", ["kind"])
SPANS_DROPPED = Counter("authsvc_spans_dropped", "Spans of sampled calls that were not exported, by cause", ["cause"])
RELOAD_FAILING = Gauge(
    "authsvc_reload_failing",
    "1 while the newest version of a followed file cannot be used, else 0",
    ["file"],
    multiprocess_mode="livemax",
)
CERTIFICATE_EXPIRY = Gauge(
    "authsvc_certificate_expiry_timestamp_seconds",
    "End of a certificate that is served with, in seconds since 1970",
    ["certificate"],
    multiprocess_mode="livemin",
)


class MethodCalls:
    """Counts the calls of one RPC; looks up the labels of a successful call once.

    Args:
        method: Full name of the RPC.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._count_success = RPCS.labels(method, "OK", "").inc
        self._observe = RPC_DURATION.labels(method).observe
        # Prometheus sees no increase in a series that begins with its first count, and one bug is worth an alert.
        RPCS.labels(method, "INTERNAL", "INTERNAL")

    def succeeded(self, begin: float) -> None:
        """Count a call that succeeded; `begin` is its start by time.perf_counter."""
        self._count_success()
        self._observe(time.perf_counter() - begin)

    def failed(self, begin: float, code: str, reason: str = "") -> None:
        """Count a call that failed, with its gRPC status code and error reason."""
        RPCS.labels(self._method, code, reason).inc()
        self._observe(time.perf_counter() - begin)


@contextmanager
def store_call(operation: str) -> Iterator[None]:
    """Count the body as one store call, an error by the name of its class."""
    begin = time.perf_counter()
    error = ""
    try:
        yield
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        count, observe = _store_call_samples(operation, error)
        count()
        observe(time.perf_counter() - begin)


@functools.cache
def _store_call_samples(operation: str, error: str) -> tuple[Callable[[], None], Callable[[float], None]]:
    """Look up the labels once per combination, because every validation makes a store call."""
    return STORE_CALLS.labels(operation, error).inc, STORE_CALL_DURATION.labels(operation).observe


async def sample(cache_sizes: Mapping[str, Callable[[], int]]) -> None:
    """Measure the event loop's lag and the caches' sizes every SAMPLE_SECONDS, until cancelled.

    Args:
        cache_sizes: Returns each cache's number of entries, by its name.
    """
    while True:
        due = time.monotonic() + SAMPLE_SECONDS
        await asyncio.sleep(SAMPLE_SECONDS)
        lag = max(time.monotonic() - due, 0.0)
        EVENT_LOOP_LAG.observe(lag)
        if lag >= LAG_WARNING_SECONDS:
            _log.warning("event_loop_blocked", seconds=round(lag, 3))
        for cache, size in cache_sizes.items():
            CACHE_ENTRIES.labels(cache).set(size())


def is_serving(registry: CollectorRegistry) -> bool:
    """Return whether any process reports SERVING."""
    return bool(registry.get_sample_value("authsvc_serving"))
