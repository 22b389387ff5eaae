"""The spans of sampled calls, as a receiver gets them over OTLP."""

import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from authsvc import __version__, request_context
from authsvc.config import ServeSettings
from authsvc.errors import ConfigError, StoreUnavailableError
from authsvc.otel_variables import Sampling
from authsvc.rpc import ext_authz_pb2
from authsvc.rpc.callers import api_key_digest, new_api_key
from authsvc.server import app
from authsvc.server.app import Limits
from authsvc.stores.opening import open_store
from authsvc.telemetry import spans
from authsvc.telemetry.spans import Spans
from authsvc.usecases.validation import Validations
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.otlp import GIVE_UP_SECONDS, Receiver, attributes, receiving
from tests.rpc.test_metrics import Since
from tests.support import PASSWORD, PATIENT_LIMITS, WITNESS, Client, FakeClock, connected, failure

EMAIL = "alice@example.com"
SOURCE = "192.0.2.7"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
SAMPLED = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)
UNSAMPLED = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-00"),)
AUTH = "authsvc.v1.AuthService/"
CHECK = "envoy.service.auth.v3.Authorization/Check"
METHODS = (f"{AUTH}ValidateToken", CHECK)
"""Those that validate one token."""
OTHERS: Mapping[str, str] = {}
"""No variables of OpenTelemetry but the endpoint."""
Code = grpc.StatusCode
Metadata = tuple[tuple[str, str], ...]


@pytest.fixture(autouse=True)
def _no_variables_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(Receiver()) as receiver:
        yield receiver


@pytest.fixture
def api_key() -> str:
    key = new_api_key()
    WITNESS.hide(key)
    return key


@pytest.fixture
async def known(settings: ServeSettings, tmp_path: Path, api_key: str) -> ServeSettings:
    """A service with a store, and a caller that may do everything."""
    callers = tmp_path / "callers.toml"
    callers.write_text(
        f'[callers.shop]\napi_key_sha256 = ["{api_key_digest(api_key)}"]\n'
        'permissions = ["validate", "login", "sessions", "users"]\n'
    )
    settings = replace(settings, callers=callers)
    async with open_store(settings) as store:
        await store.create_tables()
    return settings


@asynccontextmanager
async def exporting(
    settings: ServeSettings,
    endpoint: str,
    api_key: str = "",
    variables: Mapping[str, str] = OTHERS,
    limits: Limits = PATIENT_LIMITS,
) -> AsyncIterator[Client]:
    """Run a service that exports spans, all of them when it ends; yield a client of it, with a caller's key or none.

    `variables` are those of OpenTelemetry, without their prefix.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"EXPORTER_OTLP_ENDPOINT": endpoint, **variables}.items():
            patch.setenv(f"OTEL_{name}", value)
        clock = FakeClock()
        async with (
            app.run_app(settings, clock, clock.monotonic, limits) as service,
            connected(service, api_key=api_key) as client,
        ):
            yield client


async def validate(client: Client, metadata: Metadata = (), token: str = "") -> Any:
    return await client.auth.ValidateToken(auth_pb2.ValidateTokenRequest(token=token or "x"), metadata=metadata)


async def check(client: Client, authorization: str) -> None:
    http = ext_authz_pb2.AttributeContext.HttpRequest(headers={"authorization": authorization})
    request = ext_authz_pb2.AttributeContext.Request(http=http)
    body = ext_authz_pb2.CheckRequest(attributes=ext_authz_pb2.AttributeContext(request=request)).SerializeToString()
    await client.channel.unary_unary(f"/{CHECK}")(body, metadata=SAMPLED)  # type: ignore[arg-type]


def members(span: Span) -> Mapping[str, Any]:
    return attributes(span.attributes)


async def test_a_sampled_call_gives_a_span_of_the_callers_trace(
    known: ServeSettings, receiver: Receiver, api_key: str
) -> None:
    position = len(WITNESS.lines.getvalue())
    async with exporting(known, receiver.endpoint, api_key) as client:
        await client.create_user(EMAIL)
        refused = await failure(
            client.channel.unary_unary(f"/{AUTH}RefreshTokens")(b"\x0a\x01x", metadata=SAMPLED)  # type: ignore[arg-type]
        )
    (span,) = (span for span in receiver.spans if span.parent_span_id)
    (line,) = (
        line
        for line in map(json.loads, WITNESS.lines.getvalue()[position:].splitlines())
        if line["event"] == "refresh_refused"
    )
    assert span.trace_id.hex() == line["trace_id"] == refused.trace_id == TRACE_ID
    assert span.span_id.hex() == line["span_id"]
    assert span.parent_span_id.hex() == PARENT_ID
    assert span.name == f"{AUTH}RefreshTokens"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert 0 < span.start_time_unix_nano < span.end_time_unix_nano
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert members(span) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{AUTH}RefreshTokens",
        "rpc.response.status_code": "UNAUTHENTICATED",
        "authsvc.reason": "INVALID_REFRESH_TOKEN",
    }


async def test_the_span_of_a_validation_has_its_outcome(
    known: ServeSettings, receiver: Receiver, api_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with exporting(known, receiver.endpoint, api_key) as client:
        await client.create_user(EMAIL)
        token = await client.access_token(EMAIL)
        for text in (token, "garbage"):
            await validate(client, SAMPLED, text)
            await check(client, f"Bearer {text}")
        await check(client, "")

        async def away(*_: object) -> None:
            raise StoreUnavailableError("the store is away")

        monkeypatch.setattr(Validations, "validate", away)
        await failure(validate(client, SAMPLED))
    found = [span for span in receiver.spans if span.trace_id.hex() == TRACE_ID]
    done = [{"rpc.system.name": "grpc", "rpc.method": name, "rpc.response.status_code": "OK"} for name in METHODS]
    assert [(members(span), span.status.code) for span in found] == [
        *(({**method, "authsvc.outcome": "ACTIVE"}, Status.STATUS_CODE_UNSET) for method in done),
        *(({**method, "authsvc.outcome": "MALFORMED"}, Status.STATUS_CODE_UNSET) for method in done),
        (done[1], Status.STATUS_CODE_UNSET),
        (
            {
                **done[0],
                "rpc.response.status_code": "UNAVAILABLE",
                "error.type": "UNAVAILABLE",
                "authsvc.reason": "STORE_UNAVAILABLE",
            },
            Status.STATUS_CODE_ERROR,
        ),
    ]
    assert len({span.span_id for span in found}) == len(found)


async def test_no_span_holds_an_address_or_a_secret(known: ServeSettings, receiver: Receiver, api_key: str) -> None:
    async with exporting(known, receiver.endpoint, api_key) as client:
        user = await client.create_user(EMAIL)
        tokens = (await client.log_in(EMAIL, client_address=SOURCE)).tokens
        await validate(client, SAMPLED, tokens.access_token)
        await failure(client.log_in(EMAIL, "a wrong password", client_address=SOURCE))
        await client.refresh(tokens.refresh_token, SOURCE)
    assert len(receiver.spans) == 5
    exported = b"".join(request.SerializeToString() for request in receiver.requests)
    for text in (EMAIL, SOURCE, PASSWORD, api_key, tokens.access_token, tokens.refresh_token, "127.0.0.1"):
        assert text.encode() not in exported
    assert user.user_id.encode() not in exported


async def test_the_receiver_learns_which_process_exports(known: ServeSettings, receiver: Receiver) -> None:
    async with exporting(known, receiver.endpoint, variables={"EXPORTER_OTLP_HEADERS": "x-key=abc"}) as client:
        await failure(validate(client))
    (resource,) = receiver.resources
    assert (resource["service.name"], resource["service.version"]) == ("authsvc", __version__)
    assert resource["service.instance.id"]
    assert receiver.headers["x-key"] == "abc"


async def test_opentelemetrys_variables_name_the_service(known: ServeSettings, receiver: Receiver) -> None:
    variables = {
        "SERVICE_NAME": "login",
        "RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "EXPORTER_OTLP_TIMEOUT": "",  # counts as unset
    }
    async with exporting(known, receiver.endpoint, variables=variables) as client:
        await failure(validate(client))
    (resource,) = receiver.resources
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("login", "test")


@pytest.mark.parametrize(
    ("is_known", "metadata", "sampler", "is_sampled"),
    [
        (True, SAMPLED, "parentbased_always_off", True),
        (True, UNSAMPLED, "parentbased_always_on", False),
        (True, (), "parentbased_always_on", True),
        (True, (), "parentbased_always_off", False),
        # The flag of a client that is no authenticated caller does not count.
        (False, SAMPLED, "parentbased_always_off", False),
        (False, UNSAMPLED, "parentbased_always_on", True),
    ],
)
async def test_the_flag_of_an_authenticated_caller_decides_else_the_sampler(
    known: ServeSettings,
    receiver: Receiver,
    api_key: str,
    is_known: bool,  # noqa: FBT001 - a parameter
    metadata: Metadata,
    sampler: str,
    is_sampled: bool,  # noqa: FBT001 - expected
) -> None:
    async with exporting(known, receiver.endpoint, api_key if is_known else "", {"TRACES_SAMPLER": sampler}) as client:
        if is_known:
            await validate(client, metadata)
        else:
            await failure(validate(client, metadata))
    assert len(receiver.spans) == is_sampled
    if metadata and is_sampled:
        assert receiver.spans[0].trace_id.hex() == TRACE_ID


@pytest.mark.parametrize(
    "variables",
    [{"SDK_DISABLED": "true"}, {"SDK_DISABLED": " TRUE "}, {"TRACES_EXPORTER": "none"}, {"EXPORTER_OTLP_ENDPOINT": ""}],
    ids=str,
)
async def test_nothing_is_exported_where_tracing_is_off(
    known: ServeSettings, receiver: Receiver, api_key: str, variables: dict[str, str]
) -> None:
    async with exporting(known, receiver.endpoint, api_key, variables) as client:
        await validate(client, SAMPLED)
    assert receiver.requests == []


async def test_a_receiver_that_hangs_delays_neither_calls_nor_the_end(known: ServeSettings, api_key: str) -> None:
    lost = Since("authsvc_spans_dropped_total", cause="not_exported")
    limits = replace(PATIENT_LIMITS, span_flush_seconds=0.1)
    hurry = {"BSP_SCHEDULE_DELAY": "1", "EXPORTER_OTLP_TIMEOUT": "1000"}
    with receiving(Receiver(hangs=True)) as receiver:
        async with exporting(known, receiver.endpoint, api_key, hurry, limits) as client:
            await validate(client, SAMPLED)
            assert receiver.arrived.wait(GIVE_UP_SECONDS)
            for _ in range(3):
                await validate(client, SAMPLED)
        assert not receiver.released.is_set()
    assert lost.growth == 4


@pytest.mark.parametrize("listens", [False, True], ids=["away", "mute"])
async def test_a_receiver_that_does_not_answer_delays_neither_calls_nor_the_end(
    known: ServeSettings,
    api_key: str,
    listens: bool,  # noqa: FBT001 - a parameter
) -> None:
    lost = Since("authsvc_spans_dropped_total", cause="not_exported")
    limits = replace(PATIENT_LIMITS, span_flush_seconds=0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = f"http://127.0.0.1:{mute.getsockname()[1]}"
        if not listens:
            mute.close()
        async with exporting(known, endpoint, api_key, {"EXPORTER_OTLP_TIMEOUT": "1000"}, limits) as client:
            await validate(client, SAMPLED)
    assert lost.growth == 1


async def test_a_receiver_that_refuses_is_named_in_the_log(
    known: ServeSettings, api_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It drops a line that equals the one before, for 20 s.
    monkeypatch.setattr(logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter"), "filters", [])
    lost, position = Since("authsvc_spans_dropped_total", cause="not_exported"), len(WITNESS.lines.getvalue())
    with receiving(Receiver(Code.PERMISSION_DENIED)) as receiver:
        async with exporting(known, receiver.endpoint, api_key) as client:
            await validate(client, SAMPLED)
    assert lost.growth == 1
    log = WITNESS.lines.getvalue()[position:]
    assert '"cause": "receiver", "event": "spans_not_exported"' in log
    assert f"Failed to export traces to {receiver.address}, error code: StatusCode.PERMISSION_DENIED" in log


async def test_spans_that_find_the_queue_full_are_dropped_and_counted(
    known: ServeSettings, api_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "MAX_SPANS", 3)
    full = Since("authsvc_spans_dropped_total", cause="queue_full")
    hurry = {"BSP_SCHEDULE_DELAY": "1", "BSP_MAX_EXPORT_BATCH_SIZE": "1"}
    with receiving(Receiver(hangs=True)) as receiver:
        async with exporting(known, receiver.endpoint, api_key, hurry) as client:
            await validate(client, SAMPLED)
            assert receiver.arrived.wait(GIVE_UP_SECONDS)
            for _ in range(4):
                await validate(client, SAMPLED)
            assert full.growth == 2
            receiver.released.set()
    assert len(receiver.spans) == 3


@pytest.mark.parametrize("name", ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"])
async def test_what_opentelemetry_refuses_is_an_error_at_the_start(
    known: ServeSettings, receiver: Receiver, name: str
) -> None:
    refused = {name.removeprefix("OTEL_"): "-1"}
    with pytest.raises(ConfigError, match=r"OTEL_\*: .*(max_export_batch_size|OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT)"):
        async with exporting(known, receiver.endpoint, variables=refused):
            pass


# Without a service


class FakeExporter(SpanExporter):
    """Fails in the given way."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.results: list[SpanExportResult] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.error is not None:
            raise self.error
        return self.results.pop(0)


def start_request(caller: str = "", traceparent: str = "") -> request_context.Trace:
    """Begin a request in the context of the test."""
    metadata = (("traceparent", traceparent),)
    if caller:
        request_context.caller.set(caller)
    return request_context.start_trace(lambda: metadata)


SUCCESS, FAILURE = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
ALL = Sampling(follows_parent=True, share=1.0)
LOW, HIGH = "0" * 31 + "1", "f" * 32
"""Trace ids that a sampler of a ratio picks, and passes over."""


@pytest.mark.parametrize(
    ("sampling", "caller", "trace_id", "flags", "is_sampled"),
    [
        (Sampling(follows_parent=False, share=0.5), "shop", LOW, "00", True),
        (Sampling(follows_parent=False, share=0.5), "shop", HIGH, "01", False),
        (Sampling(follows_parent=False, share=0.0), "shop", LOW, "01", False),
        (Sampling(follows_parent=False, share=1.0), "shop", HIGH, "00", True),
        (Sampling(follows_parent=True, share=0.0), "shop", HIGH, "01", True),
        (Sampling(follows_parent=True, share=1.0), "shop", LOW, "00", False),
        # The trace id of a client that is no authenticated caller does not count either.
        (Sampling(follows_parent=False, share=2**-60), "", LOW, "01", False),
        (Sampling(follows_parent=True, share=2**-60), "", LOW, "01", False),
        (Sampling(follows_parent=True, share=1.0), "", HIGH, "00", True),
    ],
)
async def test_who_decides_which_calls_are_sampled(
    sampling: Sampling,
    caller: str,
    trace_id: str,
    flags: str,
    is_sampled: bool,  # noqa: FBT001 - expected
) -> None:
    trace = start_request(caller, f"00-{trace_id}-{PARENT_ID}-{flags}")
    recorder = Spans(FakeExporter(), sampling)
    assert recorder.is_sampled(trace) is is_sampled
    await recorder.close(GIVE_UP_SECONDS)


async def test_without_a_parent_a_share_of_the_calls_is_sampled() -> None:
    trace = start_request("shop")
    recorder = Spans(FakeExporter(), Sampling(follows_parent=True, share=0.5))
    assert {recorder.is_sampled(trace) for _ in range(200)} == {True, False}
    await recorder.close(GIVE_UP_SECONDS)


async def test_a_failing_exporter_logs_no_secret() -> None:
    lost, position = Since("authsvc_spans_dropped_total", cause="not_exported"), len(WITNESS.lines.getvalue())
    start_request()
    recorder = Spans(FakeExporter(ValueError("the text with the key of the receiver")), ALL)
    recorder.record("a.B/C", 0.0, "OK")
    await recorder.close(GIVE_UP_SECONDS)
    assert lost.growth == 1
    log = WITNESS.lines.getvalue()[position:]
    assert "the text" not in log
    (line,) = map(json.loads, log.splitlines())
    assert (line["event"], line["cause"]) == ("spans_not_exported", "ValueError")


async def test_an_outage_of_the_receiver_is_logged_once() -> None:
    position = len(WITNESS.lines.getvalue())
    exporter = FakeExporter()
    start_request()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
        recorder = Spans(exporter, ALL)
    exporter.results = [FAILURE, FAILURE, SUCCESS, FAILURE]
    for _ in range(4):
        recorder.record("a.B/C", 0.0, "OK")
    await recorder.close(GIVE_UP_SECONDS)
    lines = list(map(json.loads, WITNESS.lines.getvalue()[position:].splitlines()))
    assert [(line["event"], line["cause"]) for line in lines] == [("spans_not_exported", "receiver")] * 2
