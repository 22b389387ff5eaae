"""Programs that tests call, pinned, installed once per checkout."""

import shutil
from pathlib import Path

from tests.engines import EngineUnavailableError
from tests.engines.installs import installed, run_installer

GRPCURL_VERSION = "1.9.4"
_GRPCURL = f"github.com/fullstorydev/grpcurl/cmd/grpcurl@v{GRPCURL_VERSION}"


def grpcurl() -> Path:
    """Return grpcurl's path, built from source where it is not yet.

    Raises:
        EngineUnavailableError: Go is missing, or cannot build it.
    """
    return installed(f"grpcurl-{GRPCURL_VERSION}", _install_grpcurl) / "grpcurl"


def _install_grpcurl(home: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise EngineUnavailableError("grpcurl is built with Go, which is not installed")
    run_installer(["env", f"GOBIN={home}", "CGO_ENABLED=0", go, "install", _GRPCURL], home)
