"""The pytest fixture `authsvc_dev`. Every pytest run where authsvc is installed loads this: it imports little."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from authsvc.client.testing import DevService


@pytest.fixture(scope="session")
def authsvc_dev() -> "Iterator[DevService]":
    """Run the real service, `authsvc dev`, for the session's tests; it needs the extra `authsvc[server]`."""
    from authsvc.client.testing import run_dev_service  # noqa: PLC0415 - for the tests that ask for it

    with run_dev_service() as service:
        yield service
