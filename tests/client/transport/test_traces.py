"""Traces need OpenTelemetry's API, and nothing needs OpenTelemetry."""

import importlib
import sys

import pytest

from authsvc.client.transport import traces


def test_without_opentelemetry() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "opentelemetry.trace.propagation.tracecontext", None)
        importlib.reload(traces)
        assert traces.current_traceparent() == ""
    importlib.reload(traces)
    assert traces.current_traceparent() == ""
