"""dynoxide: DynamoDB's API over SQLite, one native binary, fetched from npm for linux-x64."""

import base64
import hashlib
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.engines.engine import Capability, Engine, EngineUnavailableError
from tests.engines.installs import installed, run_installer
from tests.engines.process import ServerProcess, free_port

VERSION = "1.2.1"
PACKAGE = "@dynoxide/linux-x64"
# npm's `dist.integrity` of exactly this version, without its sha512- prefix.
INTEGRITY = "sBHqlxJ9ANkLluFkYRfd5r8Y0ApFew4FhOrlhgRAgD4XzEoFOukEo1nuBTQ1+jTtofqwn4NWQ2k0Tn5mNTjgUg=="
LACKS = {
    Capability.PITR: "dynoxide has no continuous backups (UnknownOperationException)",
    Capability.FULL_ITEM_UNITS: "dynoxide counts a projected item's returned part alone",
}


@contextmanager
def launch(*, in_memory: bool = False, database: Path | None = None) -> Iterator[Engine]:
    """Run a fresh dynoxide; in memory it is faster and a restart finds it empty.

    Args:
        in_memory: instead of in a file.
        database: a file that `import_tables` has made, instead of an empty one.
    """
    with tempfile.TemporaryDirectory(prefix="dynoxide-") as folder:
        storage = [] if in_memory else ["--db-path", str(database or Path(folder) / "data.sqlite")]
        with served(["serve", "--host", "127.0.0.1", "--port", "{port}", *storage]) as server:
            yield Engine("dynoxide", f"http://127.0.0.1:{server.port}", LACKS, server)


@contextmanager
def served(arguments: Sequence[str]) -> Iterator[ServerProcess]:
    """Run dynoxide with arguments, in which `{port}` stands for a free one."""
    port = free_port()
    command = [str(_binary()), *(argument.replace("{port}", str(port)) for argument in arguments)]
    with tempfile.TemporaryDirectory(prefix="dynoxide-log-") as folder:
        server = ServerProcess(command, port=port, cwd=Path(folder), env={})
        server.start()
        try:
            yield server
        finally:
            server.stop()


def import_tables(export: Path, schema: Path, database: Path) -> None:
    """Make a database of tables with items in them, many times faster than through DynamoDB's API.

    Args:
        export: a folder `TABLE/data` for each table, with `*.json.gz` as DynamoDB exports them.
        schema: the answers of DescribeTable for all tables, as a JSON array.
        database: the file to make.
    """
    paths = {"--source": export, "--schema": schema, "--output": database}
    arguments = [str(text) for pair in paths.items() for text in pair]
    subprocess.run([str(_binary()), "import", *arguments], check=True, capture_output=True)


def _binary() -> Path:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise EngineUnavailableError("dynoxide is installed for linux-x64 only")
    return installed(f"dynoxide-{VERSION}", _install) / "package" / "dynoxide"


def _install(home: Path) -> None:
    run_installer(["npm", "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--loglevel=error"], home)
    (tarball,) = home.glob("*.tgz")
    _verify(tarball)
    with tarfile.open(tarball) as archive:
        archive.extractall(home, filter="data")
    tarball.unlink()


def _verify(tarball: Path) -> None:
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if digest != INTEGRITY:
        raise RuntimeError(f"{tarball.name} is not the pinned {PACKAGE} {VERSION}")
