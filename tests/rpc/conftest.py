"""Running services on every kind of store."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from authsvc.config import ServeSettings
from authsvc.server import app
from authsvc.server.app import Limits
from tests.dynamodb import Tables, tables_of
from tests.engines import CONCURRENT_ENGINES, ENGINES, Engine
from tests.faults import FaultyProxy
from tests.support import Client, FakeClock, connected, make_settings, served, use_engine


@pytest.fixture(params=["sqlite", *ENGINES])
async def anywhere(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    signing_keys: Path,
    table_prefix: str,
    clock: FakeClock,
    limits: Limits,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Client]:
    """A client of a service, on each store in turn."""
    settings = _settings_on(request, tmp_path, signing_keys, table_prefix, monkeypatch)
    async with served(settings, clock, limits) as client:
        yield client


@pytest.fixture(params=["sqlite", *CONCURRENT_ENGINES])
async def concurrently(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    signing_keys: Path,
    table_prefix: str,
    clock: FakeClock,
    limits: Limits,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Client]:
    """A client of a service, on each store that serves requests concurrently."""
    settings = _settings_on(request, tmp_path, signing_keys, table_prefix, monkeypatch)
    async with served(settings, clock, limits) as client:
        yield client


def _settings_on(
    request: pytest.FixtureRequest, folder: Path, signing_keys: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> ServeSettings:
    if request.param == "sqlite":
        return make_settings(signing_keys, f"sqlite:{folder / 'authsvc.db'}")
    use_engine(request.getfixturevalue(request.param), monkeypatch)
    return make_settings(signing_keys, "dynamodb", table_prefix=prefix)


@dataclass(frozen=True)
class Pair:
    """Clients of two services that share one store."""

    first: Client
    second: Client


@pytest.fixture(params=["sqlite", *ENGINES])
async def pair(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    signing_keys: Path,
    table_prefix: str,
    clock: FakeClock,
    limits: Limits,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Pair]:
    """Two services that share a store, on each store in turn."""
    settings = _settings_on(request, tmp_path, signing_keys, table_prefix, monkeypatch)
    async with (
        served(settings, clock, limits) as first,
        app.run_app(settings, clock, limits=limits) as service,
        connected(service) as second,
    ):
        yield Pair(first, replace(second, admin=first.admin))


@dataclass(frozen=True)
class Shared:
    """A service, and its tables, which another program uses too."""

    client: Client
    tables: Tables


@pytest.fixture
async def shared(
    engine: Engine,
    signing_keys: Path,
    table_prefix: str,
    clock: FakeClock,
    limits: Limits,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Shared]:
    """A service on a users table that another program created, on each DynamoDB engine in turn."""
    tables = tables_of(engine, table_prefix)
    tables.create_users_table()
    use_engine(engine, monkeypatch)
    async with served(make_settings(signing_keys, "dynamodb", table_prefix=table_prefix), clock, limits) as client:
        yield Shared(client, tables)


@dataclass(frozen=True)
class Proxied:
    """A service on dynoxide behind a proxy that injects faults."""

    client: Client
    proxy: FaultyProxy
    tables: Tables


@pytest.fixture
async def proxied(
    dynoxide: Engine,
    signing_keys: Path,
    table_prefix: str,
    clock: FakeClock,
    limits: Limits,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Proxied]:
    """A service whose store fails when a test says so."""
    async with FaultyProxy(dynoxide.endpoint_url) as proxy:
        use_engine(dynoxide, monkeypatch, proxy.endpoint_url)
        async with served(make_settings(signing_keys, "dynamodb", table_prefix=table_prefix), clock, limits) as client:
            proxy.forget()
            yield Proxied(client, proxy, tables_of(dynoxide, table_prefix))
