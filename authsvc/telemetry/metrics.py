"""The service's metrics: every one by its Prometheus name, and how the counts of several processes are read as one.

Whoever counts imports the metric; docs/operations.md says what each one means.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import structlog
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    multiprocess,
)

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names a folder in which each process of several counts in files of its own; read when prometheus_client is loaded."""
SAMPLE_SECONDS = 0.25
LAG_WARNING_SECONDS = 0.5

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

_log = structlog.get_logger(__name__)

disable_created_metrics()  # type: ignore[no-untyped-call]

SERVING = Gauge("authsvc_serving", "Processes that serve", multiprocess_mode="livesum")
STARTS = Counter("authsvc_starts", "Processes that came to listen")
RPCS = Counter("authsvc_rpc", "RPCs that ended", ["method", "code", "reason"])
RPC_DURATION = Histogram("authsvc_rpc_duration_seconds", "Time that an RPC took", ["method"], buckets=_SECONDS)
TOKEN_VALIDATIONS = Counter("authsvc_token_validations", "Tokens that were validated", ["outcome"])
STORE_CALLS = Counter("authsvc_store_calls", "Calls of the store that ended", ["operation", "error"])
STORE_CALL_DURATION = Histogram(
    "authsvc_store_call_duration_seconds",
    "Time that a call of the store took, with its retries",
    ["operation"],
    buckets=_SECONDS,
)
STORE_FAILED_ATTEMPTS = Counter(
    "authsvc_store_failed_attempts", "Attempts of store calls after which another may come", ["operation", "cause"]
)
CONSUMED_UNITS = Counter(
    "authsvc_dynamodb_consumed_capacity_units", "Capacity that DynamoDB says was consumed", ["table", "kind"]
)
UNREADABLE_RESPONSES = Counter("authsvc_store_unreadable_responses", "Responses that are not what DynamoDB sends")
CORRUPT_ITEMS = Counter("authsvc_store_broken_rows", "Reads of rows that are not what they must be")
KEY_READS_BATCH_SIZE = Histogram(
    "authsvc_key_reads_batch_size", "Keys that were read together", buckets=(1, 2, 4, 8, 16, 32, 64, 100)
)
HASHES_PENDING = Gauge(
    "authsvc_hashes_pending",
    "Places taken for password hashes that are to come, wait or run",
    multiprocess_mode="livesum",
)
HASHES_REFUSED = Counter("authsvc_hashes_refused", "Password hashes that were not done in time")
CACHE_ENTRIES = Gauge("authsvc_cache_entries", "Entries of a cache", ["cache"], multiprocess_mode="livesum")
EVENT_LOOP_LAG = Histogram("authsvc_event_loop_lag_seconds", "How late the event loop is", buckets=_SECONDS)
LOG_LINES_DROPPED = Counter("authsvc_log_lines_dropped", "Log lines that could not be written")


class MethodCalls:
    """Counts the calls of one RPC; what nearly all of them count is looked up once.

    Args:
        method: Its full name.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._count_good = RPCS.labels(method, "OK", "").inc
        self._observe = RPC_DURATION.labels(method).observe

    def good(self, begin: float) -> None:
        """Count one that ended well; `begin` is its beginning by time.perf_counter."""
        self._count_good()
        self._observe(time.perf_counter() - begin)

    def failed(self, begin: float, code: str, reason: str = "") -> None:
        """Count one that did not."""
        RPCS.labels(self._method, code, reason).inc()
        self._observe(time.perf_counter() - begin)


@contextmanager
def store_call(operation: str) -> Iterator[None]:
    """Count what runs inside as one call of the store; an error counts by the name of its class."""
    begin = time.perf_counter()
    error = ""
    try:
        yield
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        count, observe = _of_store_call(operation, error)
        count()
        observe(time.perf_counter() - begin)


@functools.cache
def _of_store_call(operation: str, error: str) -> tuple[Callable[[], None], Callable[[float], None]]:
    """Look the labels up once: there are few of both, and each validation is such a call."""
    return STORE_CALLS.labels(operation, error).inc, STORE_CALL_DURATION.labels(operation).observe


async def sample(cache_sizes: Mapping[str, Callable[[], int]]) -> None:
    """Look at the event loop and at caches now and then, for ever.

    Args:
        cache_sizes: Tells each cache's number of entries, by its name.
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


def registry_of(folder: Path | None = None) -> CollectorRegistry:
    """Return what the processes that count in a folder have counted together; None: what this process has."""
    if folder is None:
        return REGISTRY
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return registry


def forget_process(pid: int, folder: Path) -> None:
    """Let the gauges of a process that ended count no more; what it counted stays."""
    multiprocess.mark_process_dead(pid, path=str(folder))  # type: ignore[no-untyped-call]


def is_serving(registry: CollectorRegistry) -> bool:
    """Tell whether a process serves."""
    return bool(registry.get_sample_value("authsvc_serving"))
