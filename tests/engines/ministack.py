"""ministack: DynamoDB's API in Python, in a venv of its own because it pins another botocore."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.engines.engine import Capability, Engine
from tests.engines.installs import installed, run_installer
from tests.engines.process import ServerProcess, free_port

VERSION = "1.5.33"
REQUIREMENTS = (
    f"ministack=={VERSION}",
    "botocore==1.43.106",
    "defusedxml==0.7.1",
    "graphql-core==3.2.12",
    "h11==0.16.0",
    "h2==4.4.1",
    "hpack==4.2.0",
    "hypercorn==0.18.0",
    "hyperframe==6.1.0",
    "jmespath==1.1.0",
    "jsonata-python==0.7.1",
    "priority==2.0.0",
    "python-dateutil==2.9.0.post0",
    "pyyaml==6.0.3",
    "six==1.17.0",
    "urllib3==2.8.0",
    "wsproto==1.3.2",
)
LACKS = {
    Capability.BATCH_CONSUMED_UNITS: "ministack reports no units for BatchGetItem",
    Capability.FULL_ITEM_UNITS: "ministack counts a projected item's returned part alone",
}


@contextmanager
def launch(services: str = "dynamodb,dynamodbstreams,secretsmanager,ssm") -> Iterator[Engine]:
    """Run a fresh ministack that keeps its data over a restart.

    Args:
        services: what of AWS it serves, separated by commas.
    """
    python = installed(f"ministack-{VERSION}", _install) / "bin" / "python"
    with tempfile.TemporaryDirectory(prefix="ministack-") as folder:
        home, port = Path(folder), free_port()
        server = ServerProcess(
            [str(python), "-m", "ministack"], port=port, cwd=home, env=_environ(home, port, services)
        )
        server.start()
        try:
            yield Engine("ministack", f"http://127.0.0.1:{port}", LACKS, server)
        finally:
            server.stop()


def _environ(home: Path, port: int, services: str) -> dict[str, str]:
    return {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": services,
        "LOG_LEVEL": "WARNING",
        # Saved when the process is asked to end, loaded when it starts.
        "PERSIST_STATE": "1",
        "STATE_DIR": str(home / "state"),
        # Its pid file and scratch files.
        "HOME": str(home),
        "TMPDIR": str(home),
        # Otherwise it opens further ports and removes containers that it takes for its own.
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "DOCKER_HOST": f"unix://{home}/no-docker.sock",
    }


def _install(home: Path) -> None:
    run_installer([sys.executable, "-m", "venv", str(home)], home)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    run_installer([*pip, "--only-binary=:all:", *REQUIREMENTS], home)
