"""Writes the lock files beside it from pyproject.toml, and tells whether they are up to date.

    .venv/bin/python requirements/lock.py [--upgrade | --check]

Without an option, pins that still satisfy pyproject.toml stay; `--upgrade` takes the newest.
"""

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
MARK = "# seal: "
HEADER = "# Written by requirements/lock.py from pyproject.toml; do not edit.\n"

# In this order: others take their versions from `dev`: what is tested is what ships.
LOCKS = {
    "bootstrap": ["--group", "pyproject.toml:bootstrap"],
    "dev": ["pyproject.toml", "--extra", "server", "--extra", "otel", "--group", "pyproject.toml:dev"],
    "build": ["--group", "pyproject.toml:build", "--constraint", "requirements/dev.txt"],
    "bench": ["--group", "pyproject.toml:bench", "--constraint", "requirements/dev.txt"],
    "kubernetes": ["--group", "pyproject.toml:kubernetes", "--constraint", "requirements/dev.txt"],
    "run": ["pyproject.toml", "--extra", "server", "--extra", "otel", "--constraint", "requirements/dev.txt"],
    # Environments of their own: what generates authsvc/v1, and the ends of what a backend may have.
    "stubs": ["--group", "pyproject.toml:stubs"],
    "client-oldest": ["pyproject.toml", "--resolution=lowest"],
    "client-newest": ["pyproject.toml"],
}


def main(arguments: list[str]) -> int:
    """Lock, or with `--check` return 1 if a lock does not belong to pyproject.toml."""
    if arguments == ["--check"]:
        stale = [name for name in LOCKS if not is_sealed(FOLDER / f"{name}.txt")]
        for name in stale:
            print(f"{name}.txt is out of date: run .venv/bin/python requirements/lock.py")
        return 1 if stale else 0
    if arguments not in ([], ["--upgrade"]):
        print(__doc__, file=sys.stderr)
        return 2
    for name, sources in LOCKS.items():
        resolve(FOLDER / f"{name}.txt", [*sources, *arguments])
    return 0


def resolve(lock: Path, arguments: list[str]) -> None:
    """Let uv resolve for every supported Python and system, then seal the result."""
    options = "--quiet --universal --python-version=3.11 --generate-hashes --no-header"
    command = [sys.executable, "-m", "uv", "pip", "compile", *options.split(), *arguments]
    subprocess.run([*command, "--output-file", lock], cwd=ROOT, check=True)
    body = lock.read_text()
    lock.write_text(f"{HEADER}{MARK}{seal(body)}\n{body}")


def is_sealed(lock: Path) -> bool:
    """Tell whether neither the lock nor what it was made from has changed since."""
    if not lock.exists():
        return False
    written, _, body = lock.read_text().removeprefix(HEADER + MARK).partition("\n")
    return written == seal(body)


def seal(body: str) -> str:
    """Digest a lock's pins together with everything in pyproject.toml that decides them.

    A digest needs no network and, unlike resolving again, does not change when packages are
    released or withdrawn.
    """
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    decisive = [
        project["requires-python"],
        project["dependencies"],
        project["optional-dependencies"],
        pyproject["dependency-groups"],
    ]
    return hashlib.sha256((json.dumps(decisive) + body).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
