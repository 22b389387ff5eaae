"""moto: a server thread in the test process, for one request at a time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from moto.dynamodb.models import dynamodb_backends
from moto.server import ThreadedMotoServer

from tests.engines.engine import Capability, Engine
from tests.engines.process import answers

LACKS = {
    Capability.CONCURRENT: "moto loses acknowledged writes under concurrent requests",
    Capability.RESTART: "moto runs in the test process and has no process to end",
    Capability.REQUEST_TOKEN: "moto ignores ClientRequestToken and applies a replay again",
    Capability.INDEX_KEY_TYPES: "moto accepts an index key of any type",
    Capability.CONSUMED_UNITS: "moto reports constant units that know no size or consistency",
    Capability.BATCH_CONSUMED_UNITS: "moto reports constant units that know no size or consistency",
    Capability.FULL_ITEM_UNITS: "moto reports constant units that know no size or consistency",
}


@contextmanager
def launch() -> Iterator[Engine]:
    """Run an empty moto."""
    dynamodb_backends.reset()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request otherwise
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        if not answers(port):
            raise RuntimeError("moto does not answer")
        yield Engine("moto", f"http://127.0.0.1:{port}", LACKS)
    finally:
        server.stop()
