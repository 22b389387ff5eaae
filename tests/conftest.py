"""Fixtures of all tests."""

import functools
import gc
import logging
import os
import uuid
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Any

import aiobotocore.httpsession
import botocore.session
import hypothesis
import pytest
from botocore.hooks import EventAliaser

from authsvc import request_context
from authsvc.config import ServeSettings
from authsvc.models import utc_now
from authsvc.server.app import Limits
from authsvc.telemetry import logs
from authsvc.tokens.key_file import generate_key_file
from tests.bare import build_wheel
from tests.engines import CONCURRENT_ENGINES, ENGINES, QUICK_ENGINE, Engine, require_or_skip
from tests.support import PASSWORD, PATIENT_LIMITS, WITNESS, Client, FakeClock, make_settings, served

# A busy machine is slow, which is no failure. Each run tries other examples, so few of them do.
hypothesis.settings.register_profile(
    "patient", deadline=None, max_examples=40, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

# The loops of one process share grpc.aio's poller: one may be woken for what another has taken, and asyncio says so.
logging.getLogger("asyncio").addFilter(lambda record: "PollerCompletionQueue" not in record.getMessage())


# As the command sets it; gRPC reads it once, before a test runs the command in this process.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

TESTS = Path(__file__).parent
MOTO_IN_EVERY_RUN = {
    TESTS / "rpc" / "test_main_job.py",
    TESTS / "stores" / "contract" / "test_store.py",
    TESTS / "stores" / "contract" / "test_lost_responses.py",
}
"""The main job, the basic contract, and what an engine with idempotency tokens cannot show."""
OTHER_ENGINES = {*ENGINES, "failing"} - {QUICK_ENGINE}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than processors, for a test that runs processes waits most of the time."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests on other engines than SQLite and dynoxide, and those that are long on dynoxide.

    `make test-engines` runs them, `make test` does not.
    """
    node_ids = {item.nodeid for item in items}
    for item in items:
        others = OTHER_ENGINES - {"moto"} if item.path in MOTO_IN_EVERY_RUN else OTHER_ENGINES
        if item.get_closest_marker("long_on_dynoxide") or _is_repeated_on_dynoxide(item, node_ids):
            others = others | {"dynoxide"}
        if isinstance(item, pytest.Function) and not others.isdisjoint(_engines_of(item)):
            item.add_marker(pytest.mark.engines)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives as long as the run: tests and modules, 300,000 objects."""
    gc.collect()
    gc.freeze()


def _is_repeated_on_dynoxide(item: pytest.Item, node_ids: Collection[str]) -> bool:
    """Return whether a test of the API runs on dynoxide after it ran on SQLite.

    What the API needs of a store is the contract that tests/stores checks in every run.
    """
    is_on_dynoxide = "[dynoxide" in item.name and item.path not in MOTO_IN_EVERY_RUN
    is_of_the_api = item.path.is_relative_to(TESTS / "rpc")
    return is_of_the_api and is_on_dynoxide and item.nodeid.replace("[dynoxide", "[sqlite") in node_ids


def _engines_of(item: pytest.Function) -> set[str]:
    """Return the names of a test's engines, among those of its other fixtures and parameters."""
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {*item.fixturenames, *(value for value in params if isinstance(value, str))}


@pytest.fixture(scope="session", autouse=True)
def _aws_files_read_once() -> Iterator[None]:
    """Share what every DynamoDB client finds out for itself, in more time than most tests take.

    Engines need no TLS.
    """
    of_this_machine = {True, os.environ.get("AWS_CA_BUNDLE"), os.environ.get("REQUESTS_CA_BUNDLE")}
    aliaser: Any = EventAliaser  # the stubs leave the method out
    alias_event_name = aliaser(None)._alias_event_name  # noqa: SLF001 - it depends on the name alone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventAliaser, "_alias_event_name", lambda _, name: alias_event_name(name))
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        patch.setattr(
            aiobotocore.httpsession, "get_cert_path", lambda verify: None if verify in of_this_machine else verify
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_secret_in_any_log() -> Iterator[None]:
    """No password, token, key, hash or address is in any log line of the whole run (ASVS-16.2.5)."""
    WITNESS.hide(PASSWORD)
    yield
    WITNESS.check()


@pytest.fixture(autouse=True)
def _logs_to_the_witness() -> None:
    logs.configure("json", "debug", stream=WITNESS.lines)


@pytest.fixture
def limits(request: pytest.FixtureRequest) -> Limits:
    """Limits of the test's services and stores: long, for a busy machine is slow, unless a marker says otherwise."""
    marker = request.node.get_closest_marker("limits")
    return PATIENT_LIMITS if marker is None else marker.args[0]


@pytest.fixture(autouse=True)
def _default_deadline(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for calls that a test makes of a store or a use case itself, outside a request."""
    monkeypatch.setattr(request_context, "DEFAULT_DEADLINE_SECONDS", limits.request_seconds)
    monkeypatch.setattr(request_context, "STORE_DEADLINE_SECONDS", limits.request_seconds)


@pytest.fixture(scope="session")
def signing_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    generate_key_file(path, "ES256", utc_now())
    return path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def settings(tmp_path: Path, signing_keys: Path) -> ServeSettings:
    """A service on SQLite."""
    return make_settings(signing_keys, f"sqlite:{tmp_path / 'authsvc.db'}")


@pytest.fixture
async def client(settings: ServeSettings, clock: FakeClock, limits: Limits) -> AsyncIterator[Client]:
    """A client of a running service on SQLite."""
    async with served(settings, clock, limits) as client:
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
