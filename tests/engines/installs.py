"""Installing pinned engines once per checkout, safely from several test processes."""

import fcntl
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.engines.engine import EngineUnavailableError

CACHE = Path(__file__).parents[2] / ".cache"
INSTALL_TIMEOUT_SECONDS = 300.0


def installed(name: str, install: Callable[[Path], None], cache: Path = CACHE) -> Path:
    """Return the folder `cache/name`, filled by `install` where it does not exist yet.

    `install` gets an empty folder that takes its final name only after it succeeded; it must not
    write the folder's path into what it installs.
    """
    home = cache / name
    if home.is_dir():
        return home
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    with _locked(cache / f"{name}.lock"):
        if not home.is_dir():
            _install_atomically(home, install)
    return home


def run_installer(command: Sequence[str], cwd: Path, timeout_seconds: float = INSTALL_TIMEOUT_SECONDS) -> None:
    """Run one installer to its end.

    Raises:
        EngineUnavailableError: it is missing, fails, or takes longer than the limit.
    """
    tool = Path(command[0]).name
    try:
        subprocess.run(
            command,
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
        )
    except FileNotFoundError:
        raise EngineUnavailableError(f"{tool} is not installed") from None
    except subprocess.TimeoutExpired:
        raise EngineUnavailableError(f"{tool} took over {timeout_seconds:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise EngineUnavailableError(f"{tool} failed: {error.stderr.strip()[-500:]}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install_atomically(home: Path, install: Callable[[Path], None]) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
    try:
        install(partial)
        partial.replace(home)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
