"""Programs that tests call, pinned, installed once per checkout."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from tests.engines import EngineUnavailableError
from tests.engines.installs import installed, run_installer

GRPCURL_VERSION = "1.9.3"
_GRPCURL = f"github.com/fullstorydev/grpcurl/cmd/grpcurl@v{GRPCURL_VERSION}"
GO_CLIENT_SOURCES = Path(__file__).parent / "clients" / "go"
P = ParamSpec("P")
T = TypeVar("T")


def grpcurl() -> Path:
    """Return grpcurl's path, built from source where it is not yet.

    Raises:
        EngineUnavailableError: Go is missing, or cannot build it.
    """
    return installed(f"grpcurl-{GRPCURL_VERSION}", _install_grpcurl) / "grpcurl"


def go_client() -> Path:
    """Return the path of the Go client in tests/clients/go, built where these sources have not been yet.

    Raises:
        EngineUnavailableError: Go is missing, or cannot build it.
    """
    sources = b"".join(path.read_bytes() for path in sorted(GO_CLIENT_SOURCES.iterdir()))
    return installed(f"go-client-{hashlib.sha256(sources).hexdigest()[:12]}", _build_go_client) / "client"


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


def _build_go_client(home: Path) -> None:
    command = [_go("the Go client"), "build", "-buildvcs=false", "-o", str(home / "client"), "."]
    run_installer(["env", "CGO_ENABLED=0", *command], GO_CLIENT_SOURCES)


def _go(built: str) -> str:
    go = shutil.which("go")
    if go is None:
        raise EngineUnavailableError(f"{built} is built with Go, which is not installed")
    return go
