"""`authsvc dev`, as a newcomer meets it."""

import json
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from dotenv import dotenv_values

from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from authsvc.v1 import user_service_pb2 as user_pb2
from authsvc.v1 import user_service_pb2_grpc as user_grpc
from tests.e2e.conftest import Start
from tests.e2e.process import GIVE_UP_SECONDS, Process, environment, patiently, started
from tests.engines.process import free_port
from tests.support import PASSWORD, WITNESS

# Building grpcurl takes minutes, once.
pytestmark = pytest.mark.timeout(60, func_only=True)
ROOT = Path(__file__).parents[2]
COMMANDS = 3
"""That `dev` prints."""


def screen(dev: Process) -> str:
    """Wait for all of what `dev` prints; what is secret in it must not be in its log."""
    dev.wait_for(lambda: len(commands_in(dev.output)) == COMMANDS and dev.output.endswith("\n\n"), "greeted")
    WITNESS.hide(token_in(dev.output))
    return dev.output


def token_in(output: str) -> str:
    match = re.search(r"authorization: Bearer (\S+)'", output)
    assert match, output
    return match[1]


def address_in(output: str) -> str:
    match = re.match(r"authsvc serves on (\S+): ", output)
    assert match, output
    return match[1]


def commands_in(output: str) -> list[str]:
    return [line for line in output.splitlines() if "authsvc.v1." in line]


def admin_in(folder: Path) -> dict[str, str | None]:
    values = dotenv_values(folder / "dev.env")
    WITNESS.hide(values["AUTHSVC_ADMIN_PASSWORD"] or "")
    return values


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def channel_to(output: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address_in(output)) as channel:
        yield channel


def log_in(channel: grpc.Channel, email: str, password: str) -> auth_pb2.AuthenticateResponse:
    request = auth_pb2.AuthenticateRequest(email=email, password=password)
    response = patiently(lambda: auth_grpc.AuthServiceStub(channel).Authenticate(request))
    WITNESS.hide_fields(response)
    return response


def create_alice(channel: grpc.Channel, token: str) -> None:
    request = user_pb2.CreateUserRequest(email="alice@example.com", password=PASSWORD)
    credentials = (("authorization", f"Bearer {token}"),)
    patiently(lambda: user_grpc.UserServiceStub(channel).CreateUser(request, metadata=credentials))


def test_first_start_makes_what_only_its_owner_can_read(start: Start, tmp_path: Path) -> None:
    screen(start("dev"))
    folder = tmp_path / ".authsvc"
    admin = admin_in(folder)
    assert mode(folder) == 0o700
    assert {path.name for path in folder.iterdir()} >= {"authsvc.db", "dev.env", "keys.json"}
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    assert list(admin) == ["AUTHSVC_ADMIN_EMAIL", "AUTHSVC_ADMIN_PASSWORD"]
    assert admin["AUTHSVC_ADMIN_EMAIL"] == "admin@example.com"


def paste(command: str, path: str) -> str:
    """Run a command as pasted into a shell in another folder, and return what it prints."""
    shell = ["/bin/bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(
        shell, cwd="/", env={"PATH": path}, capture_output=True, text=True, timeout=GIVE_UP_SECONDS, check=False
    )
    if "too many passwords wait" in done.stderr:
        return paste(command, path)  # the machine has much else to do
    assert done.returncode == 0, done.stderr
    for token in re.findall(r'"(?:access|refresh)_*[tT]oken": *"([^"]+)"', done.stdout):
        WITNESS.hide(token)
    return done.stdout


def assert_first_session(output: str, path: str) -> None:
    """Paste the printed commands, and paste them again."""
    commands = commands_in(output)
    assert len(commands) == COMMANDS
    first = [json.loads(paste(command, path)) for command in commands]
    again = [json.loads(paste(command, path)) for command in commands]
    created, logged_in, validated = first
    assert created["user"]["email"] == "alice@example.com"
    assert again[0] == created
    assert logged_in["user"] == created["user"]
    assert validated["state"] == again[2]["state"] == "TOKEN_STATE_ACTIVE"
    assert validated["email"] == "alice@example.com"


def test_printed_commands_work_as_pasted_and_when_pasted_again(start: Start, grpcurl: Path) -> None:
    path = f"{grpcurl.parent}:/usr/bin:/bin"
    output = screen(start("dev", "--data-dir", "a folder, it's mine", PATH=path))
    assert all(command.startswith("grpcurl ") for command in commands_in(output))
    assert_first_session(output, path)


@pytest.mark.engines
def test_a_newcomer_needs_nothing_but_the_first_command_of_the_readme(tmp_path: Path) -> None:
    """Python and make are on the path; make finds the environment that it has made."""
    for name in ("Makefile", "pyproject.toml", "requirements", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    _, _, block = (ROOT / "README.md").read_text().partition("```sh\n")
    program, *arguments = block.splitlines()[0].partition("#")[0].split()
    path = "/usr/bin:/bin"
    with started(*arguments, program=program, cwd=tmp_path, environ=environment(PATH=path)) as dev:
        output = screen(dev)
        assert all(f"{ROOT}/.venv/bin/buf curl " in command for command in commands_in(output))
        assert_first_session(output, path)


def test_sighup_reads_its_files_again_and_ends_nothing(start: Start) -> None:
    dev = start("dev")
    screen(dev)
    dev.send(signal.SIGHUP)
    dev.wait_for(lambda: "keys_reloaded" in dev.log, "read the keys again")
    assert dev.end() == 0


def test_state_survives_a_restart(start: Start, tmp_path: Path) -> None:
    dev = start("dev")
    output = screen(dev)
    admin = admin_in(tmp_path / ".authsvc")
    with channel_to(output) as channel:
        create_alice(channel, token_in(output))
        before = log_in(channel, "alice@example.com", PASSWORD)
    assert dev.end() == 0

    again = screen(start("dev"))
    assert admin_in(tmp_path / ".authsvc") == admin
    with channel_to(again) as channel:
        after = log_in(channel, "alice@example.com", PASSWORD)
        answer = auth_grpc.AuthServiceStub(channel).ValidateToken(
            auth_pb2.ValidateTokenRequest(token=before.tokens.access_token)
        )
        as_admin = log_in(channel, admin["AUTHSVC_ADMIN_EMAIL"] or "", admin["AUTHSVC_ADMIN_PASSWORD"] or "")
    assert after.user == before.user
    assert answer.state == auth_pb2.TOKEN_STATE_ACTIVE
    assert as_admin.user.role == "admin"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(start: Start, number: signal.Signals) -> None:
    dev = start("dev")
    screen(dev)
    assert dev.end(number) == 0
    assert "Traceback" not in dev.log
    assert dev.log.splitlines()[-1].count("stopped") == 1


def test_a_second_one_on_the_same_port_says_so_in_one_line(start: Start) -> None:
    address = address_in(screen(start("dev")))
    second = start("dev", "--data-dir", "second", AUTHSVC_LISTEN=address)
    assert second.wait() == 1
    # The log's own lines begin with the time of day.
    lines = [line for line in second.log.splitlines() if not line.startswith("2")]
    assert lines == [f"error: AUTHSVC_LISTEN: cannot listen on {address}: Address already in use"]
    assert not second.output


def test_the_port_may_come_from_an_env_file(start: Start, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / ".env").write_text(f"AUTHSVC_LISTEN={address}\nAUTHSVC_LISTN=x\n")
    dev = start("dev", AUTHSVC_LISTEN="")
    assert address_in(screen(dev)) == address
    assert "warning: AUTHSVC_LISTN is not a setting" in dev.log
