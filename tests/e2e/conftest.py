"""Fixtures of the tests that run `authsvc` as a process."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests import tools
from tests.e2e.certificates import Authority
from tests.e2e.process import Process, environment, started


class Start(Protocol):
    """Starts a process that ends with the test."""

    def __call__(self, *arguments: str, **settings: str) -> Process: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `authsvc` in the test's folder, with settings named as in the environment."""
    with ExitStack() as stack:

        def start(*arguments: str, **settings: str) -> Process:
            process = started(*arguments, cwd=tmp_path, environ=environment(**settings))
            return stack.enter_context(process)

        yield start


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """grpcurl's path."""
    return tools.required_or_skip(tools.grpcurl)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))
