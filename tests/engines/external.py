"""An engine that somebody else runs, named by the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.engines.engine import Capability, Engine, EngineUnavailableError

VARIABLE = "AUTHSVC_TEST_DYNAMODB_ENDPOINT"
AWS_VARIABLES = ("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
LACKS = {Capability.RESTART: f"{VARIABLE} names a server that the tests do not own"}


@contextmanager
def launch() -> Iterator[Engine]:
    """Yield the named engine, with the environment's region and credentials where given."""
    endpoint = os.environ.get(VARIABLE)
    if not endpoint:
        raise EngineUnavailableError(f"{VARIABLE} is not set")
    settings = {name: value for name in AWS_VARIABLES if (value := os.environ.get(name))}
    yield Engine("external", endpoint, LACKS, settings=settings)
