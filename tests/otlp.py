"""A receiver of spans: OTLP over gRPC on a real socket, made of OpenTelemetry's protos."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

GIVE_UP_SECONDS = 30.0


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what is exported to it.

    Args:
        hangs: It takes requests, and answers none of them.
        code: Of its answers.
    """

    def __init__(self, code: grpc.StatusCode = grpc.StatusCode.OK, *, hangs: bool = False) -> None:
        self.address = ""
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.headers: dict[str, str | bytes] = {}
        self.arrived = threading.Event()
        self.released = threading.Event()
        self._code = code
        if not hangs:
            self.released.set()

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}"

    @property
    def spans(self) -> list[Span]:
        """The spans of all requests."""
        scopes = (scope for each in self.requests for resource in each.resource_spans for scope in resource.scope_spans)
        return [span for scope in scopes for span in scope.spans]

    @property
    def resources(self) -> list[dict[str, Any]]:
        """The attributes of the processes that exported."""
        found = (resource.resource for each in self.requests for resource in each.resource_spans)
        return [attributes(resource.attributes) for resource in found]

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - as OTLP has it
        self.headers = dict(context.invocation_metadata())
        self.requests.append(request)
        self.arrived.set()
        self.released.wait(GIVE_UP_SECONDS)
        if self._code is not grpc.StatusCode.OK:
            context.abort(self._code, "not taken")
        return trace_service_pb2.ExportTraceServiceResponse()


def attributes(pairs: Any) -> dict[str, Any]:
    """Return the attributes of a span or a resource; all of ours are texts."""
    return {pair.key: pair.value.string_value for pair in pairs if isinstance(pair, KeyValue)}


@contextmanager
def receiving(receiver: Receiver) -> Iterator[Receiver]:
    """Serve a receiver on a free port."""
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    receiver.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.stop(None).wait()
