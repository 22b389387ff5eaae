"""An earlier version of the service, from this repository's history, in an environment of its own."""

import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from tests.bare import ROOT, UV, build_wheel
from tests.engines import EngineUnavailableError
from tests.engines.installs import installed, run_installer

FIRST_COMPLETE_SERVICE = "4061c2cfc803bcbf1f65f2070503bcf06ccaf901"
"""What CHANGELOG.md calls so: the last commit before what 0.1.0 lists as changed."""


def earlier_version(commit: str = FIRST_COMPLETE_SERVICE) -> tuple[str, ...]:
    """Return the command that runs `authsvc` as it was at a commit, with the dependencies that it had locked.

    Raises:
        EngineUnavailableError: The history here does not reach back to the commit, or its dependencies cannot be
            installed.
    """
    name = f"authsvc-{commit[:12]}-{sys.implementation.cache_tag}"
    home = installed(name, partial(_install, commit=commit))
    return (str(home / "bin" / "python"), "-P", "-m", "authsvc")  # -P: not the version in the working folder


def _install(home: Path, commit: str) -> None:
    with tempfile.TemporaryDirectory(prefix="authsvc-") as folder:
        source = Path(folder) / "source"
        _export(commit, source)
        python = home / "bin" / "python"
        run_installer([UV, "venv", "--quiet", "--clear", "--no-project", f"--python={sys.executable}", str(home)], home)
        install = [UV, "pip", "install", "--quiet", "--no-deps", "--compile-bytecode", f"--python={python}"]
        lock = source / "requirements" / "run.txt"
        run_installer([*install, "--require-hashes", "--only-binary=:all:", f"--requirement={lock}"], home)
        run_installer([*install, "--no-index", str(build_wheel(Path(folder), source))], home)


def _export(commit: str, folder: Path) -> None:
    """Write the files of a commit into a new folder."""
    git = ["git", "-C", str(ROOT)]
    archive = folder.with_suffix(".tar")
    try:
        subprocess.run([*git, "cat-file", "-e", f"{commit}^{{commit}}"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise EngineUnavailableError(
            f"the commit {commit[:12]} is not in this clone: run git fetch --unshallow, and let CI clone the whole "
            "history (actions/checkout: fetch-depth: 0)"
        ) from None
    run_installer([*git, "archive", f"--output={archive}", commit], ROOT)
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
