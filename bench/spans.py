"""Measures what spans add to a call, compared with a service that exports none.

The metadata of a call come from gRPC's context. So each figure is measured inside one real call: the wrapped handler
runs there many times, with the context of that call.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from authsvc import request_context
from authsvc.otel_variables import Sampling
from authsvc.rpc.authorization import Authorization
from authsvc.rpc.callers import api_key_digest, new_api_key, watch_callers_file
from authsvc.rpc.middleware import Middleware
from authsvc.telemetry.spans import Spans
from authsvc.v1 import auth_service_pb2 as auth_pb2
from bench.empty import METHOD

ROUNDS = 8
CALLS = 10_000
SAMPLED_CALLS = 1_000
"""Fewer than the export queue holds, so that no span is dropped."""
TURN = 50
IDENTIFIERS = "every call: begin its trace"
READ = "a call that logs: read its trace id"
NOT_SAMPLED = "the caller does not sample"
NO_PARENT = "no traceparent, not picked"
UNKNOWN = "no authenticated caller, not picked"
SAMPLED = "the caller samples"
CLOSE_SECONDS = 10.0

_SERVICE = auth_pb2.DESCRIPTOR.services_by_name["AuthService"]
_TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"

Wrapped = Callable[[bytes, Any], Awaitable[bytes]]


class _Discard(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002 - the SDK's signature
        return SpanExportResult.SUCCESS


class _Servicer:
    """Answers every RPC that the token is active, without reading it."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[auth_pb2.ValidateTokenResponse]]:
        return self._answer

    async def _answer(self, *_: object) -> auth_pb2.ValidateTokenResponse:
        return auth_pb2.ValidateTokenResponse(state=auth_pb2.TOKEN_STATE_ACTIVE)


def added_microseconds() -> dict[str, list[float]]:
    """Return the CPU microseconds that spans add to a call, by kind of call, round by round."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return asyncio.run(_measure(Path(folder)))


async def _measure(folder: Path) -> dict[str, list[float]]:
    api_key, callers = new_api_key(), folder / "callers.toml"
    callers.write_text(f'[callers.shop]\napi_key_sha256 = ["{api_key_digest(api_key)}"]\npermissions = ["validate"]\n')
    known = Authorization(None, watch_callers_file(callers))  # type: ignore[arg-type]  # no admin calls
    unknown = Authorization(None, None)  # type: ignore[arg-type]  # the same
    bearer = ("authorization", f"Bearer {api_key}")
    cases: tuple[tuple[str, Authorization, tuple[tuple[str, str], ...], int], ...] = (
        (NOT_SAMPLED, known, (bearer, ("traceparent", _TRACEPARENT + "0")), CALLS),
        (NO_PARENT, known, (bearer,), CALLS),
        (UNKNOWN, unknown, (("traceparent", _TRACEPARENT + "1"),), CALLS),
        (SAMPLED, known, (bearer, ("traceparent", _TRACEPARENT + "1")), SAMPLED_CALLS),
    )
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, authorization, metadata, calls in cases:
            # New spans, whose export queue is empty.
            spans = Spans(_Discard(), Sampling(follows_parent=True, share=0.0))
            off, on = (_wrap(Middleware(authorization, spans=each)) for each in (None, spans))
            added = await _inside_a_call(metadata, _added, off, on, calls)
            found.setdefault(name, []).append(added)
            await spans.close(CLOSE_SECONDS)
        for name, read in ((IDENTIFIERS, False), (READ, True)):
            metadata = (bearer, ("traceparent", _TRACEPARENT + "1"))
            found.setdefault(name, []).append(await _inside_a_call(metadata, _identifiers, read))
    return found


def _wrap(middleware: Middleware) -> Wrapped:
    """Return the wrapped handler of ValidateToken."""
    handlers: Any = middleware.wrap_service(_SERVICE, _Servicer())
    wrapped: Wrapped = handlers._method_handlers[METHOD].unary_unary  # noqa: SLF001 - gRPC has no public way to it
    return wrapped


async def _inside_a_call(
    metadata: tuple[tuple[str, str], ...], measure: Callable[..., Awaitable[float]], *arguments: object
) -> float:
    """Run a measurement in the handler of a call with this metadata, and return its figure."""
    result: list[float] = []

    async def handle(_: bytes, context: Any) -> bytes:  # noqa: ANN401 - gRPC's
        result.append(await measure(context, *arguments))
        return b""

    server = grpc.aio.server()
    method: Any = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Spans", {"Measure": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary("/bench.Spans/Measure")
        await call(b"", metadata=metadata)
    await server.stop(None)
    return result[0]


async def _added(context: object, off: Wrapped, on: Wrapped, calls: int) -> float:
    """Return the CPU microseconds that the second handler costs above the first."""
    request = auth_pb2.ValidateTokenRequest(token="x" * 500).SerializeToString()
    added = []
    for _ in range(calls // TURN):  # alternating, so that the median hides short disturbances
        used = []
        for wrapped in (off, on):
            begin = time.thread_time()
            for _ in range(TURN):
                await wrapped(request, context)
            used.append(time.thread_time() - begin)
        added.append(used[1] - used[0])
    return statistics.median(added) / TURN * 1e6


async def _identifiers(context: Any, read: bool) -> float:  # noqa: ANN401, FBT001 - gRPC's type; passed on as it is
    """Return the CPU microseconds of beginning a trace and, with `read`, of reading the caller's trace id."""
    begin = time.thread_time()
    for _ in range(CALLS):
        trace = request_context.start_trace(context.invocation_metadata)
        if read:
            trace.trace_id  # noqa: B018 - read for what it costs
    return (time.thread_time() - begin) / CALLS * 1e6
