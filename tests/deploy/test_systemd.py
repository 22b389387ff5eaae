"""deploy/systemd: the unit is valid and hardened, and its command runs with its environment."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from authsvc.server.app import PRODUCTION_LIMITS
from tests.deploy.containers import address_of, container, in_folders, is_well
from tests.e2e.certificates import Authority
from tests.e2e.process import AUTHSVC, GIVE_UP_SECONDS, invoke
from tests.engines import EngineUnavailableError
from tests.tools import required_or_skip

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = FOLDER / "authsvc.service"
MAX_EXPOSURE = "15"
"""In tenths of the 10 that a service without any hardening has."""


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(value)


def systemd_analyze() -> str:
    """Return its path.

    Raises:
        EngineUnavailableError: This machine is without systemd's tools.
    """
    path = shutil.which("systemd-analyze")
    if path is None:
        raise EngineUnavailableError("systemd-analyze is not installed (Debian's package systemd)")
    return path


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [required_or_skip(systemd_analyze), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.engines
def test_unit_is_valid(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/authsvc/bin/authsvc", AUTHSVC))
    done = analyze("verify", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("Type=", "Tipe="))
    assert "Tipe" in analyze("verify", str(unit)).stderr


@pytest.mark.engines
def test_unit_is_hardened() -> None:
    done = analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager", str(UNIT))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.engines
def test_command_runs_with_the_environment_and_ends_in_order(tmp_path: Path) -> None:
    assert setting("EnvironmentFile") == "/etc/authsvc/authsvc.env"
    lines = (FOLDER / "authsvc.env").read_text().splitlines()
    environ = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    etc, state = tmp_path / "etc", tmp_path / "state"
    mounts = {"/etc/authsvc": etc, f"/var/lib/{setting('StateDirectory')}": state}
    for folder in mounts.values():
        folder.mkdir()
    pair = Authority(tmp_path).issue("server")
    shutil.copy(pair.certificate, etc)
    shutil.copy(pair.key, etc)
    (etc / "callers.toml").write_text(f'[callers.a]\napi_key_sha256 = ["{"0" * 64}"]\npermissions = ["validate"]\n')
    assert invoke("keys", "generate", str(etc / "keys.json")).exit_code == 0
    assert invoke("tables", "create", **in_folders(environ, mounts)).exit_code == 0
    program, *arguments = setting("ExecStart").split()
    assert program == "/opt/authsvc/bin/authsvc"
    with container(arguments, environ, mounts) as process:
        health = f"http://{address_of(process, 'http_address')}/healthz"
        process.wait_for(lambda: is_well(health), "served")
        needed = PRODUCTION_LIMITS.drain_seconds + PRODUCTION_LIMITS.stop_grace_seconds
        assert int(setting("TimeoutStopSec")) >= max(GIVE_UP_SECONDS, needed)
        assert process.end() == 0
    assert {path.name for path in state.iterdir()} == {"authsvc.db"}
