"""Fixtures of all tests."""

import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from authsvc import coalescer, request_context
from authsvc.config import Settings
from authsvc.models import utc_now
from authsvc.stores.dynamodb import client as dynamodb_client
from authsvc.telemetry import logs
from authsvc.tokens.key_file import generate_key_file
from authsvc.usecases import validation
from tests.engines import CONCURRENT_ENGINES, ENGINES, Engine, require_or_skip
from tests.support import PASSWORD, WITNESS, Client, FakeClock, make_settings, served

STALE_FALLBACK_TIMEOUT_SECONDS = 30.0
# A busy machine is slow, which is no failure.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")
_BUDGETS: tuple[tuple[Any, str], ...] = (
    (request_context, "DEFAULT_DEADLINE_SECONDS"),
    (validation, "STALE_FALLBACK_TIMEOUT_SECONDS"),
)
_READ_TIMEOUTS: tuple[tuple[Any, str], ...] = (
    (dynamodb_client, "CONNECT_TIMEOUT_SECONDS"),
    (dynamodb_client, "READ_TIMEOUT_SECONDS"),
    (coalescer, "MAX_READ_SECONDS"),
)
_PRODUCTION = {limit: getattr(*limit) for limit in (*_BUDGETS, *_READ_TIMEOUTS)}


# The loops of one process share grpc.aio's poller: one may be woken for what another has taken, and asyncio says so.
logging.getLogger("asyncio").addFilter(lambda record: "PollerCompletionQueue" not in record.getMessage())


@pytest.fixture(scope="session", autouse=True)
def _no_secret_in_any_log() -> Iterator[None]:
    """No password, token, key, hash or address is in any log line of the whole run (ASVS-16.2.5)."""
    WITNESS.hide(PASSWORD)
    yield
    WITNESS.check()


@pytest.fixture(autouse=True)
def _logs_to_the_witness() -> None:
    logs.configure("json", "debug", stream=WITNESS.lines)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is slow, which is no failure unless time is what a test is about."""
    for limit in _PRODUCTION:
        monkeypatch.setattr(*limit, STALE_FALLBACK_TIMEOUT_SECONDS)


@pytest.fixture
def production_read_timeout(monkeypatch: pytest.MonkeyPatch, patience: None) -> None:
    """For stores whose answers get lost."""
    for limit in _READ_TIMEOUTS:
        monkeypatch.setattr(*limit, _PRODUCTION[limit])


@pytest.fixture
def production_timeouts(monkeypatch: pytest.MonkeyPatch, production_read_timeout: None) -> None:
    """For tests whose subject is time."""
    for limit in _BUDGETS:
        monkeypatch.setattr(*limit, _PRODUCTION[limit])


@pytest.fixture(scope="session")
def signing_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    generate_key_file(path, "ES256", utc_now())
    return path


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def settings(tmp_path: Path, signing_keys: Path) -> Settings:
    """A service on SQLite."""
    return make_settings(signing_keys, f"sqlite:{tmp_path / 'authsvc.db'}")


@pytest.fixture
async def client(settings: Settings, clock: FakeClock) -> AsyncIterator[Client]:
    """A client of a running service on SQLite."""
    async with served(settings, clock) as client:
        yield client


@pytest.fixture(scope="session")
def moto() -> Iterator[Engine]:
    with require_or_skip("moto") as running:
        yield running


@pytest.fixture(scope="session")
def dynoxide() -> Iterator[Engine]:
    with require_or_skip("dynoxide") as running:
        yield running


@pytest.fixture(scope="session")
def ministack() -> Iterator[Engine]:
    with require_or_skip("ministack") as running:
        yield running


@pytest.fixture(scope="session")
def external() -> Iterator[Engine]:
    with require_or_skip("external") as running:
        yield running


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Every DynamoDB engine in turn."""
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=CONCURRENT_ENGINES)
def concurrent_engine(request: pytest.FixtureRequest) -> Engine:
    """Every DynamoDB engine that keeps what concurrent requests write."""
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def table_prefix() -> str:
    """Tables of a test's own."""
    return f"t{uuid.uuid4().hex[:12]}-"
