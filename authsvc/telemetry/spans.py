"""Spans: one for each sampled call, exported over OTLP by OpenTelemetry's SDK.

A span is made by hand, when its call has ended: OpenTelemetry's instrumentation of gRPC costs as much as a validation.
Only a service that exports spans imports this module.
"""

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Sequence

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from authsvc import __version__, otel_variables, request_context
from authsvc.errors import ConfigError
from authsvc.otel_variables import Sampling
from authsvc.request_context import Parent, Trace
from authsvc.telemetry import metrics

MAX_SPANS = 2048
"""That wait to be exported or are being exported; further ones are dropped. OpenTelemetry's default."""
SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Status codes that are errors of a server, by OpenTelemetry's semantic conventions for gRPC."""

_COUNT_DROPPED = {cause: metrics.SPANS_DROPPED.labels(cause).inc for cause in ("queue_full", "not_exported")}
_GIVE_UP_SECONDS = 1.0
"""From the cancellation of an export to its end."""
_NO_PARENT = Context()

_log = structlog.get_logger(__name__)


class Spans:
    """Decides which calls get a span, and exports those.

    Args:
        exporter: Sends spans to a receiver.
        sampling: Which calls get a span.
    """

    def __init__(self, exporter: SpanExporter, sampling: Sampling) -> None:
        self._exporter = _CountingExporter(exporter)
        self._follows_parent, self._share = sampling
        # It samples every span, because is_sampled has decided before.
        self._provider = TracerProvider(ALWAYS_ON, _resource(), shutdown_on_exit=False, id_generator=_RequestIds())
        self._provider.add_span_processor(_BoundedQueue(self._exporter))
        self._tracer = self._provider.get_tracer("authsvc", __version__)

    def is_sampled(self, trace: Trace) -> bool:
        """Decide whether the current request, which has this trace, gets a span.

        The SDK's samplers take 1.5 µs for it. An unauthenticated client must not choose: neither by its parent's flag,
        nor by a trace id that a sampler picks.
        """
        parent = None if request_context.caller.get(None) is None else trace.parent
        if parent is None:
            return random.random() < self._share  # noqa: S311 - no secret
        if self._follows_parent:
            return parent.is_sampled
        return int(parent.trace_id[16:], 16) < self._share * 2**64

    def record(self, method: str, begin: float, code: str, reason: str = "", outcome: str = "") -> None:
        """Record the span of the current request, which ends now.

        Args:
            method: Of the request, for instance `package.Service/Method`.
            begin: Its start by time.perf_counter.
            code: Name of its gRPC status code.
            reason: Name of its ErrorReason; empty: it succeeded, or was cancelled.
            outcome: What a validation found; empty: it was none.
        """
        end = time.time_ns()
        is_error = code in SERVER_ERRORS
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": method,
            "rpc.response.status_code": code,
            "error.type": code if is_error else "",
            "authsvc.reason": reason,
            "authsvc.outcome": outcome,
        }
        span = self._tracer.start_span(
            method,
            _context_of(request_context.trace.get().parent),
            SpanKind.SERVER,
            {name: value for name, value in attributes.items() if value},
            start_time=end - round((time.perf_counter() - begin) * 1e9),
        )
        if is_error:
            span.set_status(StatusCode.ERROR)
        span.end(end)

    async def close(self, seconds: float) -> None:
        """Export the spans that wait; after some seconds give up, and count them as dropped."""
        flush = threading.Thread(target=self._provider.shutdown, name="flush-spans", daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, seconds)
        if flush.is_alive():
            self._exporter.shutdown()  # cancels the export in flight, and fails the others
            await asyncio.to_thread(flush.join, _GIVE_UP_SECONDS)


def open_spans() -> Spans:
    """Return spans that are exported as OpenTelemetry's variables say.

    Raises:
        ConfigError: OpenTelemetry refuses one of its variables.
    """
    # An empty variable counts as unset for OpenTelemetry's specification, but not for its SDK.
    for name in [name for name, value in os.environ.items() if name.startswith("OTEL_") and not value]:
        del os.environ[name]
    # It logs each attempt that is repeated, and its own last line where an export fails.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    try:
        return Spans(OTLPSpanExporter(), otel_variables.sampling(os.environ))
    except ValueError as error:  # of its limits and sizes; its text names the limit
        raise ConfigError([f"OTEL_*: {error}"]) from None


def _resource() -> Resource:
    given = OTELResourceDetector().detect().attributes
    return Resource.create({"service.name": "authsvc", "service.version": __version__, **given})


def _context_of(parent: Parent | None) -> Context:
    if parent is None:
        return _NO_PARENT
    flags = TraceFlags(int(parent.flags, 16))
    span_context = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(span_context), _NO_PARENT)


class _RequestIds(IdGenerator):
    """Gives a span the identifiers that the log lines of its request have."""

    def generate_trace_id(self) -> int:
        return int(request_context.trace.get().trace_id, 16)

    def generate_span_id(self) -> int:
        return int(request_context.trace.get().span_id, 16)


class _CountingExporter(SpanExporter):
    """Counts the spans whose export has ended; counts as dropped, and logs, those that the receiver has not taken.

    Args:
        exporter: Sends them.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._is_failing = False
        self.finished = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See SpanExporter."""
        result, cause = SpanExportResult.FAILURE, "receiver"
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - its text may hold the headers, and the thread must go on
            cause = type(error).__name__
        was_failing, self._is_failing = self._is_failing, result is not SpanExportResult.SUCCESS
        if self._is_failing:
            _COUNT_DROPPED["not_exported"](len(spans))
            if not was_failing:  # once in an outage
                _log.warning("spans_not_exported", cause=cause)
        self.finished += len(spans)
        return result

    def shutdown(self) -> None:
        """See SpanExporter."""
        self._exporter.shutdown()


class _BoundedQueue(SpanProcessor):
    """Passes spans on to the SDK's batches, whose own bound drops them uncounted.

    Args:
        exporter: Takes the batches.
    """

    def __init__(self, exporter: _CountingExporter) -> None:
        self._exporter = exporter
        self._batches = BatchSpanProcessor(exporter, max_queue_size=MAX_SPANS)
        # Written by the event loop alone, and `finished` by the exporting thread alone, so neither needs a lock.
        self._accepted = 0

    def on_end(self, span: ReadableSpan) -> None:
        """See SpanProcessor."""
        if self._accepted - self._exporter.finished >= MAX_SPANS:
            _COUNT_DROPPED["queue_full"]()
            return
        self._accepted += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        """See SpanProcessor."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]  # the SDK leaves its return type out
