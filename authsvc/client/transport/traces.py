"""The trace of the current request, where OpenTelemetry's API is installed."""

try:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # then there are no traces
    _inject = None
else:
    _inject = TraceContextTextMapPropagator().inject


def current_traceparent() -> str:
    """Return the W3C traceparent of the current span; empty where there is none."""
    if _inject is None:
        return ""
    carrier: dict[str, str] = {}
    _inject(carrier)
    return carrier.get("traceparent", "")
