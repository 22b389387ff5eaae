"""deploy/kubernetes: every file is valid in every documented version, fits the others, and its container runs."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from authsvc.server.app import PRODUCTION_LIMITS
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.bare import locked_packages
from tests.deploy.containers import DOCKERFILE, SecretVolume, address_of, container, is_well
from tests.e2e.certificates import Authority
from tests.e2e.process import GIVE_UP_SECONDS, invoke
from tests.engines import Engine
from tests.tools import required_or_skip

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
EXAMPLES = FOLDER / "examples"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
SERVED_BY_OPERATORS = EXAMPLES / "servicemonitor.yaml"


def read(name: str) -> Any:
    (document,) = yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text())
    return document


DEPLOYMENT = read("deployment")
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def documented_versions() -> list[str]:
    """Return the versions that deployment.yaml promises, in full."""
    promised = re.search(r"Kubernetes 1\.(\d+) to 1\.(\d+)", (FOLDER / "deployment.yaml").read_text())
    assert promised
    return [f"1.{minor}" for minor in range(int(promised[1]), int(promised[2]) + 1)]


@pytest.mark.engines
def test_files_are_valid_in_every_documented_version() -> None:
    packages = required_or_skip(locked_packages, "kubernetes")
    versions, files = documented_versions(), [*FILES, EXAMPLES / "secrets.yaml"]
    program = str(Path(__file__).with_name("validate_kubernetes.py"))
    done = subprocess.run(
        [sys.executable, program, ",".join(versions), *map(str, files)],
        env={"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(versions) == 8
    assert len(done.stdout.splitlines()) == len(versions) * 8
    assert set(EXAMPLES.glob("*.yaml")) - set(files) == {SERVED_BY_OPERATORS}


def test_documents_name_the_same_versions() -> None:
    named = re.findall(r"Kubernetes (1\.\d+ to 1\.\d+)", (FOLDER.parents[1] / "docs" / "deploy.md").read_text())
    versions = documented_versions()
    assert set(named) == {f"{versions[0]} to {versions[-1]}"}


def test_pods_are_found_by_everything_that_selects_them() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    selectors = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        read("service")["spec"]["selector"],
        read("poddisruptionbudget")["spec"]["selector"]["matchLabels"],
        read("networkpolicy")["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in POD["topologySpreadConstraints"]),
    ]
    assert selectors == [labels] * 6
    monitor = yaml.safe_load(SERVED_BY_OPERATORS.read_text())["spec"]
    service = read("service")
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports
    assert monitor["endpoints"][0]["port"] in ports
    allowed = [port["port"] for rule in read("networkpolicy")["spec"]["ingress"] for port in rule["ports"]]
    assert allowed == ["grpc", "http"]
    settings = read("configmap")["data"]
    assert settings["AUTHSVC_LISTEN"] == f"0.0.0.0:{ports['grpc']}"
    assert settings["AUTHSVC_HTTP_LISTEN"] == f"0.0.0.0:{ports['http']}"


def test_names_that_files_refer_to_exist() -> None:
    assert POD["serviceAccountName"] == read("serviceaccount")["metadata"]["name"]
    assert CONTAINER["envFrom"] == [{"configMapRef": {"name": read("configmap")["metadata"]["name"]}}]
    keys = {
        (secret["metadata"]["name"], key)
        for secret in yaml.safe_load_all((EXAMPLES / "secrets.yaml").read_text())
        for key in secret["stringData"]
    }
    (reference,) = [variable["valueFrom"]["secretKeyRef"] for variable in CONTAINER["env"]]
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert (reference["name"], reference["key"]) in keys
    assert {("authsvc", item["key"]) for item in volumes["secrets"]["secret"]["items"]} < keys
    assert {name for name, _ in keys} == {volumes[name]["secret"]["secretName"] for name in ("secrets", "tls")}


def test_container_has_no_rights_that_it_does_not_need() -> None:
    user, group = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[-1]
    assert POD["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(group),
        "fsGroup": int(group),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False


def test_orderly_end_needs_no_hook_and_fits_the_grace_period() -> None:
    assert "lifecycle" not in CONTAINER
    needed = PRODUCTION_LIMITS.drain_seconds + PRODUCTION_LIMITS.stop_grace_seconds
    assert POD["terminationGracePeriodSeconds"] > 2 * needed


@pytest.fixture
def volumes(tmp_path: Path) -> dict[str, SecretVolume]:
    """The volumes of secrets, by name, as the kubelet makes them."""
    made = {}
    for volume in POD["volumes"]:
        folder = tmp_path / volume["name"]
        folder.mkdir()
        made[volume["name"]] = SecretVolume(folder)
    return made


@pytest.fixture
def environ(dynoxide: Engine, table_prefix: str) -> dict[str, str]:
    """The container's environment; region, credentials, engine and table names are the test's own."""
    settings = {
        **read("configmap")["data"],
        **dynoxide.environ(),
        "AWS_ENDPOINT_URL_DYNAMODB": dynoxide.endpoint_url,
        "AUTHSVC_TABLE_PREFIX": table_prefix,
    }
    assert invoke("tables", "create", **settings).exit_code == 0
    return {**settings, **{variable["name"]: "a key from a secret" for variable in CONTAINER["env"]}}


@pytest.mark.engines
def test_container_serves_is_probed_and_ends_in_order(
    environ: dict[str, str], volumes: dict[str, SecretVolume], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("authsvc")
    callers = f'[callers.checkout]\napi_key_sha256 = ["{"0" * 64}"]\npermissions = ["validate"]\n'
    volumes["secrets"].write({"keys.json": new_keys(tmp_path / "1.json"), "callers.toml": callers})
    volumes["tls"].write({"tls.crt": pair.certificate.read_text(), "tls.key": pair.key.read_text()})
    mounts = {mount["mountPath"]: volumes[mount["name"]].folder for mount in CONTAINER["volumeMounts"]}
    with container(CONTAINER["args"], environ, mounts) as process:
        http = address_of(process, "http_address")
        for name in PROBES:
            action = CONTAINER[name]["httpGet"]
            assert action["port"] == "http"
            process.wait_for(partial(is_well, f"http://{http}{action['path']}"), "was ready")
        credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        with grpc.secure_channel(address_of(process, "address"), credentials) as channel:
            stub = auth_grpc.AuthServiceStub(channel)
            request = auth_pb2.GetJwksRequest()
            first = stub.GetJwks(request, timeout=GIVE_UP_SECONDS)
            volumes["secrets"].write({"keys.json": new_keys(tmp_path / "2.json"), "callers.toml": callers})
            process.wait_for(
                lambda: stub.GetJwks(request, timeout=GIVE_UP_SECONDS) != first, "took up the new version of the secret"
            )
        # The kubelet kills what has not ended by then.
        assert POD["terminationGracePeriodSeconds"] >= GIVE_UP_SECONDS
        assert process.end() == 0
        assert '"event": "stopped"' in process.log


def new_keys(path: Path) -> str:
    assert invoke("keys", "generate", str(path)).exit_code == 0
    return path.read_text()
