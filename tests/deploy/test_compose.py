"""deploy/compose.yaml: Compose accepts it, and the commands of its containers run together as processes."""

import base64
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests import tools
from tests.deploy.containers import address_of, container, in_folders, is_well
from tests.e2e.process import AUTHSVC, GIVE_UP_SECONDS, environment, poll
from tests.engines import dynoxide
from tests.engines.process import free_port
from tests.tools import required_or_skip

FOLDER = Path(__file__).parents[2] / "deploy"
SERVICES = ("authsvc-1", "authsvc-2")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The services as Compose understands the file: anchors and shorthands resolved."""
    program, file = str(required_or_skip(tools.docker_compose)), str(FOLDER / "compose.yaml")
    command = [program, "--file", file, "config", "--format=json"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


@pytest.mark.engines
def test_names_that_others_use(compose: dict[str, Any]) -> None:
    """Envoy's configuration has auth.internal and backend.internal; Prometheus scrapes each service by name."""
    aliases = {name: each["networks"]["default"] for name, each in compose.items()}
    assert all(aliases[name]["aliases"] == ["auth.internal"] for name in SERVICES)
    assert aliases["backend"]["aliases"] == ["backend.internal"]
    (scraped,) = yaml.safe_load((FOLDER / "compose" / "prometheus.yaml").read_text())["scrape_configs"]
    assert scraped["job_name"] == "authsvc"  # the alerts need it
    port = compose[SERVICES[0]]["environment"]["AUTHSVC_HTTP_LISTEN"].rpartition(":")[2]
    assert scraped["static_configs"] == [{"targets": [f"{name}:{port}" for name in SERVICES]}]


def test_engine_is_the_one_of_the_tests() -> None:
    dockerfile = (FOLDER / "compose" / "dynoxide.Dockerfile").read_text()
    assert re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, re.MULTILINE) == [
        ("VERSION", dynoxide.VERSION),
        ("SHA512", base64.b64decode(dynoxide.INTEGRITY).hex()),
    ]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A folder for each path that a container mounts."""
    mounts = {"/etc/authsvc": "secrets", "/etc/gateway": "gateway", "/data": "data", "/tmp": "tmp"}  # noqa: S108 - names
    made = {path: tmp_path / name for path, name in mounts.items()}
    for folder in made.values():
        folder.mkdir()
    return made


@pytest.fixture
def endpoint(compose: dict[str, Any], folders: dict[str, Path]) -> Iterator[str]:
    """The engine's URL, run by the command of its container."""
    command = compose["dynamodb"]["command"]
    assert command[:5] == ["serve", "--host", "0.0.0.0", "--port", "8000"]  # noqa: S104 - of the container
    option, path = command[5:]
    database = in_folders({option: path}, folders)[option]
    with dynoxide.served(["serve", "--host", "127.0.0.1", "--port", "{port}", option, database]) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.mark.engines
def test_setup_and_services_run_together(
    compose: dict[str, Any], endpoint: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    local = {"AWS_ENDPOINT_URL_DYNAMODB": endpoint}
    for _ in range(2):  # `up` runs it each time
        set_up({**compose["setup"]["environment"], **local}, folders, tmp_path)
    ca = (folders["/etc/gateway"] / "ca.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials(ca)
    key_sets = []
    with ExitStack() as stack:
        for name in SERVICES:
            assert compose[name].get("command") is None  # the image's own
            environ = {**compose[name]["environment"], **local}
            process = stack.enter_context(container(["serve"], environ, folders))
            health = f"http://{address_of(process, 'http_address')}/healthz"
            poll(lambda: is_well(health), "served")  # noqa: B023 - called before the next round
            options = (("grpc.ssl_target_name_override", "auth.internal"),)
            address = address_of(process, "address")
            channel = stack.enter_context(grpc.secure_channel(address, credentials, options))
            stub = auth_grpc.AuthServiceStub(channel)
            key_sets.append(stub.GetJwks(auth_pb2.GetJwksRequest(), timeout=GIVE_UP_SECONDS))
            for file in ("api_key", "client_api_key"):
                key = (folders["/etc/gateway"] / file).read_text().strip()
                metadata = (("authorization", f"Bearer {key}"),)
                request = auth_pb2.ValidateTokenRequest(token="x")
                answer = stub.ValidateToken(request, timeout=GIVE_UP_SECONDS, metadata=metadata)
                assert answer.state == auth_pb2.TOKEN_STATE_INACTIVE
    assert key_sets[0] == key_sets[1]


def set_up(environ: dict[str, str], folders: dict[str, Path], tmp_path: Path) -> None:
    """Run the script as Compose does, with paths of the test's own; its files have no other owner."""
    script = tmp_path / "setup.sh"
    text = in_folders({"script": (FOLDER / "compose" / "setup.sh").read_text()}, folders)["script"]
    script.write_text(re.sub(r"^chown .*$", "", text, flags=re.MULTILINE))
    path = {"PATH": f"{Path(AUTHSVC).parent}:{environment()['PATH']}"}
    done = subprocess.run(
        ["/bin/sh", script], env={**path, **in_folders(environ, folders)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.engines
def test_backend_shows_the_headers_that_it_gets(compose: dict[str, Any], tmp_path: Path) -> None:
    (mount,) = compose["backend"]["volumes"]
    assert compose["backend"]["entrypoint"] == ["python", mount["target"]]
    program, port = tmp_path / "backend.py", free_port()
    program.write_text(Path(mount["source"]).read_text().replace('("", 8080)', f'("127.0.0.1", {port})'))
    with subprocess.Popen([sys.executable, program], env={}, stderr=subprocess.DEVNULL) as backend:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"x-auth-role": "admin"})
            assert "X-Auth-Role: admin" in poll(lambda: answer_to(request), "answered")
        finally:
            backend.terminate()


def answer_to(request: urllib.request.Request) -> str:
    try:
        with urllib.request.urlopen(request, timeout=GIVE_UP_SECONDS) as response:  # noqa: S310 - of this machine
            return str(response.read().decode())
    except OSError:
        return ""
