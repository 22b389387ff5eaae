"""Spans of `authsvc serve` with two workers, each of which exports its own."""

import json
from pathlib import Path

import pytest

from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.e2e.conftest import Start
from tests.e2e.test_serve import create_store
from tests.e2e.test_workers import connected, serving
from tests.otlp import Receiver, receiving

CONNECTIONS = 24
"""That the kernel gives all of them to one of two workers happens once in 2**23 times."""
TRACEPARENT = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


@pytest.mark.engines
def test_each_worker_exports_its_spans_before_it_ends(start: Start, tmp_path: Path, signing_keys: Path) -> None:
    settings = {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
        "AUTHSVC_WORKERS": "2",
    }
    create_store(settings)
    with receiving(Receiver()) as receiver:
        serve = start("serve", **settings, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
        address = serving(serve)
        for _ in range(CONNECTIONS):
            with connected(address) as channel:
                request = auth_pb2.ValidateTokenRequest(token="x")
                auth_grpc.AuthServiceStub(channel).ValidateToken(request, metadata=(TRACEPARENT,), wait_for_ready=True)
        assert serve.end() == 0
    assert len(receiver.spans) == CONNECTIONS
    assert {span.trace_id.hex() for span in receiver.spans} == {TRACEPARENT[1].split("-")[1]}
    assert len({resource["service.instance.id"] for resource in receiver.resources}) == 2
    assert [line["event"] for line in map(json.loads, serve.log.splitlines()) if line["level"] == "error"] == []
