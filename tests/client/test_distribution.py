"""What `pip install authsvc` brings, with the oldest and the newest versions that it allows."""

import asyncio
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from authsvc import __main__ as command
from tests import bare, tools
from tests.bare import BareEnvironment
from tests.e2e.process import environment, run
from tests.support import Client

SERVICE_LIBRARIES = {"aioboto3", "bcrypt", "click", "structlog"}
PROGRAMS = Path(__file__).parent


@pytest.fixture(scope="session", params=["client-oldest", "client-newest"])
def installation(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> BareEnvironment:
    """The environment of a installation."""
    return tools.required_or_skip(bare.bare_environment, tmp_path_factory.mktemp("env"), request.param, wheel)


def test_brings_few_packages(installation: BareEnvironment) -> None:
    installed = {package.name for package in metadata.distributions(path=[str(installation.packages)])}
    needed = {"authsvc", "googleapis-common-protos", "grpcio", "protobuf"}
    assert needed <= installed <= needed | {"typing_extensions"}  # which newer grpcio needs


def test_locked_versions_are_the_oldest_allowed_and_newer_than_the_services() -> None:
    assert locked("client-oldest", "grpcio") == [1, 71, 2]
    assert locked("client-oldest", "protobuf")[:2] == [5, 29]
    assert locked("client-newest", "grpcio") >= locked("dev", "grpcio")
    assert locked("client-newest", "protobuf")[0] > locked("dev", "protobuf")[0]


def locked(lock: str, package: str) -> list[int]:
    pins = (bare.ROOT / "requirements" / f"{lock}.txt").read_text()
    (version,) = re.findall(rf"^{package}==([\d.]+) ", pins, re.MULTILINE)
    return [int(part) for part in version.split(".")]


@pytest.mark.parametrize("module", ["authsvc.client", "authsvc.v1.user_service_pb2_grpc"])
def test_loads_nothing_of_the_service(module: str) -> None:
    """Where the service is installed too."""
    code = f"import sys; before = {{*sys.modules}}; import {module}; print(*{{*sys.modules}} - before)"
    loaded = set(run(sys.executable, "-c", code, environ=environment()).stdout.split())
    assert module in loaded
    ours = {name for name in loaded if name.startswith("authsvc.")}
    assert {name for name in ours if not re.match(r"authsvc\.(client|coalescer|v1)\b", name)} == set()
    packages = {name.partition(".")[0] for name in loaded} & set(metadata.packages_distributions())
    # grpc imports its siblings that are installed, and the client OpenTelemetry's API.
    optional = {"grpc_health", "grpc_reflection", "grpc_status", "opentelemetry"}
    assert packages <= {"authsvc", "google", "grpc", "typing_extensions"} | optional


def test_types_come_along(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    stubs = {name for name in names if re.fullmatch(r"authsvc/v1/\w+_pb2(_grpc)?\.py", name)}
    assert stubs
    assert {"authsvc/py.typed", *(f"{name}i" for name in stubs)} <= names


IMPORT_ALL = """
import importlib, pkgutil, authsvc.client
for module in pkgutil.walk_packages(authsvc.client.__path__, "authsvc.client."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(error.name)
"""


def test_needs_no_other_library_but_the_framework_that_a_module_is_for(installation: BareEnvironment) -> None:
    done = installation.run("-c", IMPORT_ALL)
    assert done.stderr == ""
    assert set(done.stdout.split()) <= {"fastapi", "pytest"}


async def test_the_client_calls_the_service(installation: BareEnvironment, client: Client) -> None:
    user = await client.create_user()
    token = await client.access_token()
    done = await asyncio.to_thread(installation.run, str(PROGRAMS / "with_client.py"), client.address, token)
    assert re.fullmatch(r"the service refuses this backend: .*\n", done.stderr)  # its log, without a warning
    assert done.stdout.split() == [user.user_id, "MALFORMED", "CALLER_UNAUTHENTICATED", user.user_id]


@pytest.mark.engines
def test_types_are_strict_for_those_who_use_the_client(installation: BareEnvironment, tmp_path: Path) -> None:
    options = ["--strict", "--config-file=", f"--cache-dir={tmp_path}", f"--python-executable={installation.python}"]
    command = [sys.executable, "-m", "mypy", *options, str(PROGRAMS / "with_client.py")]
    done = subprocess.run(command, cwd=installation.home, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Success"), done.stdout


async def test_plain_stubs_call_the_service(installation: BareEnvironment, client: Client) -> None:
    user = await client.create_user()
    token = await client.access_token()
    done = await asyncio.to_thread(installation.run, str(PROGRAMS / "plain_stubs.py"), client.address, token)
    assert done.stderr == ""
    assert done.stdout.split() == ["TOKEN_STATE_ACTIVE", user.user_id, "CALLER_UNAUTHENTICATED"]


@pytest.mark.parametrize("arguments", [["serve"], ["--help"], ["users", "list"]], ids=" ".join)
def test_every_command_says_that_it_needs_the_extra(installation: BareEnvironment, arguments: list[str]) -> None:
    done = installation.run(str(installation.python.with_name("authsvc")), *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    error, packages = done.stderr.splitlines()
    assert error == "error: this command needs the extra \"server\": pip install 'authsvc[server]'"
    assert set(re.findall(r"[\w-]+", packages)) >= SERVICE_LIBRARIES


def test_a_package_of_a_backend_does_not_stand_for_the_extra(
    installation: BareEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flask, for instance, brings click."""
    (tmp_path / "click-8.3.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(installation.packages), str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: not installed: aioboto3, .*, cachetools, cryptography"):
        command.main()
