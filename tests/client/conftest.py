"""Running services for the client library."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from authsvc.client import AsyncClient
from authsvc.config import ServeSettings
from authsvc.server import app
from authsvc.server.app import Limits
from tests.support import Client, FakeClock, connected, served


@dataclass(frozen=True)
class Two:
    """Two services that share a store.

    Args:
        first: A client of the first, by plain stubs.
        second: A client of the other.
    """

    first: Client
    second: Client

    @property
    def target(self) -> str:
        """Both of them, as gRPC names them."""
        return f"ipv4:{self.first.address},{self.second.address}"


@pytest.fixture
async def two(settings: ServeSettings, clock: FakeClock, limits: Limits) -> AsyncIterator[Two]:
    """Two services on one SQLite database."""
    async with (
        served(settings, clock, limits) as first,
        app.run_app(settings, clock, clock.monotonic, limits) as service,
        connected(service) as second,
    ):
        yield Two(first, replace(second, admin=first.admin))


@pytest.fixture
async def backend(two: Two) -> AsyncIterator[AsyncClient]:
    """A client with the default settings, of both services."""
    async with AsyncClient(two.target) as client:
        yield client
