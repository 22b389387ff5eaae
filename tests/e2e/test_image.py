"""The image, built and run by a container engine.

Left out unless AUTHSVC_TEST_IMAGE_ENGINE names the engine's command, `docker` or `podman`, for it
takes the base image from a registry. AUTHSVC_TEST_IMAGE_BUILD may add options for the build.
`with_podman.sh` beside this file needs neither Docker nor a registry.
"""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ENGINE = shlex.split(os.environ.get("AUTHSVC_TEST_IMAGE_ENGINE", ""))
BUILD_OPTIONS = shlex.split(os.environ.get("AUTHSVC_TEST_IMAGE_BUILD", ""))
ROOT = Path(__file__).parents[2]
IMAGE = "authsvc-test"
HEALTHY_WITHIN_SECONDS = 30

if not ENGINE:
    pytest.skip("set AUTHSVC_TEST_IMAGE_ENGINE=docker (or podman)", allow_module_level=True)

pytestmark = pytest.mark.timeout(900)  # downloads the base image and the dependencies


def engine(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [*ENGINE, *arguments]
    return subprocess.run(command, cwd=ROOT, check=check, capture_output=True, text=True)


def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return engine("run", "--rm", "--network=none", *arguments, check=check)


@pytest.fixture(scope="module", autouse=True)
def _image() -> None:
    # Podman's own format would drop the health check.
    docker_format = ["--format=docker"] if "podman" in ENGINE[0] else []
    subprocess.run(
        [*ENGINE, "build", *docker_format, *BUILD_OPTIONS, "--tag", IMAGE, "."],
        cwd=ROOT,
        check=True,
    )


@pytest.fixture
def service() -> Iterator[str]:
    """Run the service with nothing but a loopback interface and yield its container."""
    environment = "--env=AUTHSVC_LISTEN=127.0.0.1:50051"
    command = [IMAGE, "dev", "--data-dir=/tmp/authsvc"]
    container = engine("run", "--detach", "--network=none", environment, *command).stdout.strip()
    yield container
    engine("rm", "--force", container)


def test_the_program_is_the_entry_point() -> None:
    assert "0.1.0" in run(IMAGE, "--version").stdout


def test_runs_as_a_numbered_user_without_rights() -> None:
    assert engine("inspect", "--format={{.Config.User}}", IMAGE).stdout.strip() == "10001:10001"
    assert run("--entrypoint=id", IMAGE, "-u").stdout.strip() == "10001"


def test_holds_no_installer() -> None:
    assert run("--entrypoint=sh", IMAGE, "-c", "ls /opt/authsvc/bin/pip*", check=False).returncode


def test_serves_by_default_and_names_the_missing_settings() -> None:
    refusal = run(IMAGE, check=False)
    assert refusal.returncode == 1
    assert "AUTHSVC_SIGNING_KEYS" in refusal.stderr


def test_becomes_healthy_and_ends_cleanly_when_stopped(service: str) -> None:
    inspected = engine("inspect", "--format={{json .Config.Healthcheck.Test}}", service).stdout
    kind, *health_check = json.loads(inspected)
    assert kind == "CMD"
    give_up = time.monotonic() + HEALTHY_WITHIN_SECONDS
    while engine("exec", service, *health_check, check=False).returncode:
        assert time.monotonic() < give_up, engine("logs", service)
    engine("stop", service)
    assert engine("inspect", "--format={{.State.ExitCode}}", service).stdout.strip() == "0"
