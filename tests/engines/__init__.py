"""The DynamoDB engines that tests run on, and what happens where one cannot be had."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from typing import NoReturn

import pytest

from tests.engines import external
from tests.engines.engine import Capability, ClientOptions, Engine, EngineUnavailableError

__all__ = [
    "CONCURRENT_ENGINES",
    "ENGINES",
    "QUICK_ENGINE",
    "REQUIRED_IN_CI",
    "Capability",
    "ClientOptions",
    "Engine",
    "EngineUnavailableError",
    "launch",
    "require_or_skip",
]

CONCURRENT_ENGINES = ("dynoxide", "ministack", *(["external"] if os.environ.get(external.VARIABLE) else []))
ENGINES = ("moto", *CONCURRENT_ENGINES)
QUICK_ENGINE = "dynoxide"
"""The engine of `make test`; `make test-engines` runs the others."""
REQUIRED_IN_CI = frozenset({"dynoxide", "ministack", "moto"})


def launch(name: str) -> AbstractContextManager[Engine]:
    """Run the named engine while the context is open; only then is its module imported.

    Raises:
        EngineUnavailableError: on entering, where this machine cannot have it.
    """
    start: Callable[[], AbstractContextManager[Engine]]
    start = import_module(f"tests.engines.{name}").launch
    return start()


@contextmanager
def require_or_skip(name: str) -> Iterator[Engine]:
    """Run the named engine for a fixture: skip with the reason, or fail where CI requires it."""
    with ExitStack() as stack:
        try:
            engine = stack.enter_context(launch(name))
        except EngineUnavailableError as unavailable:
            _give_up(name, str(unavailable))
        yield engine


def _give_up(name: str, reason: str) -> NoReturn:
    if name in REQUIRED_IN_CI and os.environ.get("CI") == "true":
        pytest.fail(f"CI requires the engine {name}: {reason}", pytrace=False)
    pytest.skip(f"{name}: {reason}")
