"""Environments of backends: authsvc's wheel and its dependencies at locked versions, and nothing else."""

import hashlib
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.engines.installs import installed, run_installer

ROOT = Path(__file__).parents[1]
UV = str(Path(sys.executable).with_name("uv"))


@dataclass(frozen=True)
class BareEnvironment:
    """An environment with nothing but what `pip install authsvc` brings.

    Args:
        home: Its folder.
    """

    home: Path

    @property
    def python(self) -> Path:
        return self.home / "bin" / "python"

    @property
    def packages(self) -> Path:
        """The folder that its packages are in."""
        return _packages(self.home)

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run its Python, with warnings as errors, outside the checkout."""
        command = [str(self.python), "-W", "error", *arguments]
        return subprocess.run(command, cwd=self.home, env={}, capture_output=True, text=True, check=False)


def build_wheel(folder: Path, source: Path = ROOT) -> Path:
    """Build authsvc's wheel into a folder, with the locked build tools of this environment."""
    _build(folder, source, "--wheel")
    (wheel,) = folder.glob("*.whl")
    return wheel


def build_sdist(folder: Path, source: Path = ROOT) -> Path:
    """Build authsvc's source distribution in the same way."""
    _build(folder, source, "--sdist")
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def _build(folder: Path, source: Path, kind: str) -> None:
    command = [UV, "build", "--quiet", kind, "--no-build-isolation", f"--python={sys.executable}"]
    run_installer([*command, f"--out-dir={folder}", str(source)], ROOT)


def bare_environment(home: Path, lock: str, wheel: Path) -> BareEnvironment:
    """Create an environment with the versions of `requirements/{lock}.txt`.

    Raises:
        EngineUnavailableError: The versions cannot be installed.
    """
    dependencies = locked_packages(lock)
    venv.create(home, symlinks=True)
    shutil.copytree(dependencies, _packages(home), dirs_exist_ok=True)
    environment = BareEnvironment(home)
    run_installer([*_INSTALL, f"--python={environment.python}", "--no-deps", "--no-index", str(wheel)], home)
    return environment


def locked_packages(lock: str) -> Path:
    """Return a folder, for PYTHONPATH, with the packages of `requirements/{lock}.txt`.

    Raises:
        EngineUnavailableError: They cannot be installed.
    """
    requirements = ROOT / "requirements" / f"{lock}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    name = f"{lock}-{sys.implementation.cache_tag}-{digest}"
    return installed(name, partial(_install_locked, requirements=requirements))


def _packages(home: Path) -> Path:
    (packages,) = home.glob("lib/python*/site-packages")
    return packages


_INSTALL = [UV, "pip", "install", "--quiet"]


def _install_locked(home: Path, requirements: Path) -> None:
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--compile-bytecode"]
    command = [*_INSTALL, *options, f"--python={sys.executable}", "--target=.", f"--requirement={requirements}"]
    run_installer(command, home)
