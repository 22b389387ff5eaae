"""Every metric, as Prometheus reads it."""

import asyncio
import io
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf import duration_pb2
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from authsvc import request_context
from authsvc.config import Address, ServeSettings
from authsvc.server import app
from authsvc.stores.opening import open_store
from authsvc.telemetry import logs, metrics
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.engines import Engine
from tests.faults import GARBAGE, Fault, FaultyProxy, Hang, Reset, Throttle
from tests.rpc.conftest import Proxied
from tests.support import (
    PATIENT_LIMITS,
    Client,
    FakeClock,
    connected,
    failure,
    make_settings,
    served,
    until,
    use_engine,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
AUTH = "authsvc.v1.AuthService."


def value(name: str, **labels: str) -> float:
    """Return the current value of a sample; 0 where it does not exist."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Since:
    """Measures how much a sample grows after its creation."""

    def __init__(self, name: str, **labels: str) -> None:
        self._read: Callable[[], float] = lambda: value(name, **labels)
        self._before = self._read()

    @property
    def growth(self) -> float:
        return self._read() - self._before


# Calls


async def test_calls_count_by_method_code_and_reason(client: Client) -> None:
    good = Since("authsvc_rpc_total", method=AUTH + "ValidateToken", code="OK", reason="")
    bad = Since("authsvc_rpc_total", method=AUTH + "ValidateToken", code="INVALID_ARGUMENT", reason="INVALID_FIELD")
    timed = Since("authsvc_rpc_duration_seconds_count", method=AUTH + "ValidateToken")
    for token in ("x", "y", ""):
        await asyncio.gather(client.validate(token), return_exceptions=True)
    assert (good.growth, bad.growth, timed.growth) == (2, 1, 3)


async def test_a_call_whose_client_has_gone_counts_as_cancelled(proxied: Proxied) -> None:
    await proxied.client.create_user()
    token = await proxied.client.access_token()
    cancelled = Since("authsvc_rpc_total", method=AUTH + "ValidateToken", code="CANCELLED", reason="")
    with proxied.proxy.fault(Hang()) as held:
        # The interceptor of the tests' client would not pass the cancellation on.
        channel = grpc.aio.insecure_channel(proxied.client.address)
        call = auth_grpc.AuthServiceStub(channel).ValidateToken(auth_pb2.ValidateTokenRequest(token=token))
        await until(lambda: held.hits)
        call.cancel()
        await until(lambda: cancelled.growth)
        await channel.close()
    assert cancelled.growth == 1


async def test_internal_errors_are_counted_from_zero(client: Client) -> None:
    """Prometheus sees no increase in a series that begins with 1."""
    for method in (AUTH + "ValidateToken", "authsvc.v1.UserService.GetUser"):
        labels = {"method": method, "code": "INTERNAL", "reason": "INTERNAL"}
        assert REGISTRY.get_sample_value("authsvc_rpc_total", labels) is not None


async def test_validations_count_by_outcome_in_batches_too(client: Client) -> None:
    await client.create_user()
    token = await client.access_token()
    active, malformed, empty = (
        Since("authsvc_token_validations_total", outcome=outcome)
        for outcome in ("ACTIVE", "MALFORMED", "INVALID_FIELD")
    )
    await client.validate(token)
    requests = [auth_pb2.ValidateTokenRequest(token=each) for each in (token, "x", "y", "")]
    await client.auth.BatchValidateTokens(auth_pb2.BatchValidateTokensRequest(requests=requests))
    assert (active.growth, malformed.growth, empty.growth) == (2, 2, 1)


# The store


async def test_a_validation_counts_as_one_read_of_one_unit(proxied: Proxied) -> None:
    await proxied.client.create_user()
    token = await proxied.client.access_token()
    calls = Since("authsvc_store_calls_total", operation="batch_get_item", error="")
    timed = Since("authsvc_store_call_duration_seconds_count", operation="batch_get_item")
    keys = Since("authsvc_key_reads_batch_size_sum")
    units = Since("authsvc_dynamodb_consumed_capacity_units_total", table=proxied.tables.users, kind="read")
    await proxied.client.validate(token)
    assert (calls.growth, timed.growth, units.growth, keys.growth) == (1, 1, 1, 1)


async def test_writes_count_their_units_by_table(proxied: Proxied) -> None:
    tables = (proxied.tables.users, proxied.tables.unique)
    written = [Since("authsvc_dynamodb_consumed_capacity_units_total", table=t, kind="write") for t in tables]
    await proxied.client.create_user()
    assert all(each.growth >= 1 for each in written)


async def test_an_attempt_that_fails_counts_with_its_cause(proxied: Proxied) -> None:
    alice = await proxied.client.create_user()
    throttled = Since("authsvc_store_failed_attempts_total", operation="get_item", cause="ThrottlingException")
    unreadable = Since("authsvc_store_unreadable_responses_total")
    failed = Since("authsvc_store_calls_total", operation="get_item", error="StoreUnavailableError")
    for passing in (Throttle("ThrottlingException"), Reset()):
        with proxied.proxy.fault(passing, operations={"GetItem"}, times=2):
            await proxied.client.get_user(user_id=alice.user_id)
    assert (throttled.growth, failed.growth) == (2, 0)
    with proxied.proxy.fault(Throttle("ThrottlingException"), operations={"GetItem"}):
        await failure(proxied.client.get_user(user_id=alice.user_id))
    assert failed.growth == 1
    assert unreadable.growth == 0


async def test_an_attempt_to_validate_that_fails_counts_with_its_cause(proxied: Proxied) -> None:
    await proxied.client.create_user()
    token = await proxied.client.access_token()
    throttled = Since("authsvc_store_failed_attempts_total", operation="batch_get_item", cause="ThrottlingException")
    failed = Since("authsvc_store_calls_total", operation="batch_get_item", error="RetryableStoreError")
    with proxied.proxy.fault(Throttle("ThrottlingException"), times=2):
        await proxied.client.validate(token)
    assert (throttled.growth, failed.growth) == (2, 2)


@pytest.mark.parametrize("operation", ["GetItem", "BatchGetItem"])
@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
async def test_what_is_unreadable_moves_a_metric(proxied: Proxied, garbage: Fault, operation: str) -> None:
    """F7."""
    alice = await proxied.client.create_user()
    token = await proxied.client.access_token()
    responses, rows = Since("authsvc_store_unreadable_responses_total"), Since("authsvc_store_broken_rows_total")
    read = proxied.client.get_user(user_id=alice.user_id) if operation == "GetItem" else proxied.client.validate(token)
    with proxied.proxy.fault(garbage, operations={operation}, times=1):
        await asyncio.gather(read, return_exceptions=True)
    assert responses.growth + rows.growth == 1


async def test_broken_rows_count(proxied: Proxied) -> None:
    rows = Since("authsvc_store_broken_rows_total")
    proxied.tables.put_user("carol", "carol@example.com", is_active={"S": "yes"})
    await failure(proxied.client.get_user(user_id="carol"))
    assert rows.growth == 1


async def test_sqlite_counts_too(client: Client) -> None:
    reads, writes = (Since("authsvc_store_calls_total", operation=o, error="") for o in ("read", "write"))
    await client.create_user()
    assert reads.growth >= 1
    assert writes.growth == 1


# The process


async def test_hashes_that_wait_and_that_are_refused_count(
    client: Client, settings: ServeSettings, clock: FakeClock
) -> None:
    await client.create_user()
    assert value("authsvc_hashes_pending") == 0
    refused = Since("authsvc_hashes_refused_total")
    limits = replace(PATIENT_LIMITS, hash_queue_capacity=0)
    async with app.run_app(settings, clock, limits=limits) as service, connected(service) as full:
        assert (await failure(full.log_in())).reason == "OVERLOADED"
    assert (refused.growth, value("authsvc_hashes_pending")) == (1, 0)


async def test_caches_report_their_size(client: Client) -> None:
    await client.create_user()
    await client.validate(await client.access_token())
    of_admin_and_alice = 2
    await until(lambda: value("authsvc_cache_entries", cache="verified_tokens") == of_admin_and_alice)


async def test_what_caches_cannot_answer_counts(client: Client) -> None:
    await client.create_user()
    token = await client.access_token()
    signatures, states = (Since("authsvc_cache_misses_total", cache=c) for c in ("verified_tokens", "user_states"))
    for _ in range(2):
        await client.validate(token)
    assert (signatures.growth, states.growth) == (1, 2), "each validation is fresh"
    within_a_minute = auth_pb2.ValidateTokenRequest(token=token, max_staleness=duration_pb2.Duration(seconds=60))
    await client.auth.ValidateToken(within_a_minute)
    await client.auth.BatchValidateTokens(auth_pb2.BatchValidateTokensRequest(requests=[within_a_minute] * 2))
    assert (signatures.growth, states.growth) == (1, 2)


async def test_a_blocked_event_loop_is_noticed(client: Client) -> None:
    """F20."""
    log = io.StringIO()
    logs.configure("json", "warning", stream=log)
    beyond = Since("authsvc_event_loop_lag_seconds_count")
    within = Since("authsvc_event_loop_lag_seconds_bucket", le="0.5")
    time.sleep(1)  # noqa: ASYNC251 - it blocks the event loop on purpose
    await until(lambda: beyond.growth > within.growth)
    (warning,) = [line for line in map(json.loads, log.getvalue().splitlines()) if line["seconds"] >= 0.5]
    assert (warning["event"], warning["level"]) == ("event_loop_blocked", "warning")


# The side port


@pytest.fixture
def settings(settings: ServeSettings) -> ServeSettings:
    return replace(settings, http_listen=Address("127.0.0.1", 0))


@pytest.fixture
async def http(client: Client) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{client.service.http_address}") as session:
        yield session


async def test_prometheus_reads_what_was_counted(client: Client, http: aiohttp.ClientSession) -> None:
    await client.validate("x")
    async with http.get("/metrics") as answer:
        text = await answer.text()
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {(s.labels["method"], s.labels["code"]): s.value for s in families["authsvc_rpc"].samples}
    assert samples[AUTH + "ValidateToken", "OK"] == value(
        "authsvc_rpc_total", method=AUTH + "ValidateToken", code="OK", reason=""
    )


def test_every_metric_is_described_and_nothing_else() -> None:
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in REGISTRY.collect()
        if family.name.startswith("authsvc_")
    }
    assert set(re.findall(r"^\| `(authsvc_\w+)`", DOCUMENT.read_text(), re.MULTILINE)) == names


async def status(http: aiohttp.ClientSession) -> tuple[int, str]:
    async with http.get("/healthz") as answer:
        return answer.status, await answer.text()


async def test_healthz_waits_for_the_stores_first_answer_and_outlives_its_last(
    dynoxide: Engine, signing_keys: Path, table_prefix: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_context, "DEFAULT_DEADLINE_SECONDS", 0.5)
    async with FaultyProxy(dynoxide.endpoint_url) as proxy:
        use_engine(dynoxide, monkeypatch, proxy.endpoint_url)
        settings = make_settings(signing_keys, "dynamodb", table_prefix=table_prefix)
        settings = replace(settings, http_listen=Address("127.0.0.1", 0))
        async with (
            app.run_app(settings, clock, limits=PATIENT_LIMITS) as service,
            aiohttp.ClientSession(f"http://{service.http_address}") as http,
        ):
            assert await status(http) == (503, "not serving\n")
            async with open_store(settings) as store:
                await store.create_tables()
            while await status(http) != (200, "serving\n"):
                pass
            with proxy.down():
                assert await status(http) == (200, "serving\n")
    assert value("authsvc_serving") == 0


async def test_a_service_that_listens_counts_as_started(settings: ServeSettings, clock: FakeClock) -> None:
    starts = Since("authsvc_starts_total")
    async with served(settings, clock):
        assert starts.growth == 1


def test_what_cannot_be_logged_is_counted_and_no_more() -> None:
    """F17."""
    dropped = Since("authsvc_log_lines_dropped_total", kind="event")
    full: Any = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails
    logs.configure("json", "info", stream=full)
    metrics._log.warning("event_loop_blocked")  # noqa: SLF001 - any logger of authsvc
    logging.getLogger("some.library").warning("slow")
    assert dropped.growth == 2
    with pytest.raises(OSError, match="No space left"):
        full.close()
