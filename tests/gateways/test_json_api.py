"""deploy/envoy/json_api.yaml: the whole API as JSON over HTTP."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from authsvc.cli.descriptor import descriptor_set
from authsvc.config import ServeSettings
from authsvc.v1 import auth_service_pb2, user_service_pb2
from tests.gateways.conftest import ApiKeys, ServeSecured
from tests.gateways.envoy import FILES, SERVICE, Envoy, Response, configuration, run_envoy, validate
from tests.support import PASSWORD, WITNESS, Client

pytestmark = pytest.mark.engines

AUTH = "/authsvc.v1.AuthService"
USERS = "/authsvc.v1.UserService"


@dataclass(frozen=True)
class JsonApi:
    """The API as JSON.

    Args:
        envoy: In front of the service.
        key: The API key of a caller that may do everything.
    """

    envoy: Envoy
    key: str

    async def call(self, path: str, request: object, *, key: str | None = None) -> tuple[Response, dict[str, Any]]:
        credential = f"authorization: Bearer {self.key if key is None else key}"
        # As curl -d sends it.
        kind = "content-type: application/x-www-form-urlencoded"
        response = await self.envoy.send(path, credential, kind, method="POST", body=json.dumps(request).encode())
        return response, json.loads(response.body)

    async def good(self, path: str, request: object) -> dict[str, Any]:
        response, answer = await self.call(path, request)
        assert response.status == 200, answer
        return answer


@pytest.fixture
def files(files: Path) -> Path:
    """What is in /etc/envoy."""
    (files / "authsvc.binpb").write_bytes(descriptor_set())
    return files


@pytest.fixture
async def client(secured: ServeSettings, serve_secured: ServeSecured) -> AsyncIterator[Client]:
    async with serve_secured(secured) as client:
        yield client


@pytest.fixture
async def api(client: Client, envoy_binary: Path, files: Path, api_keys: ApiKeys) -> AsyncIterator[JsonApi]:
    port = int(client.address.rpartition(":")[2])
    text = configuration("json_api.yaml", {SERVICE: port, FILES: files})
    async with run_envoy(envoy_binary, text) as envoy:
        yield JsonApi(envoy, api_keys.backend)


def test_the_configuration_is_valid(envoy_binary: Path, files: Path) -> None:
    assert not validate(envoy_binary, configuration("json_api.yaml", {FILES: files}))


async def test_a_first_session(api: JsonApi) -> None:
    alice = {"email": "alice@example.com", "password": PASSWORD}
    created = await api.good(f"{USERS}/CreateUser", {**alice, "request_id": "first"})
    assert created["user"]["email"] == alice["email"]
    tokens = (await api.good(f"{AUTH}/Authenticate", alice))["tokens"]
    WITNESS.hide(tokens["access_token"], tokens["refresh_token"])
    validated = await api.good(f"{AUTH}/ValidateToken", {"token": tokens["access_token"], "maxStaleness": "5s"})
    assert validated["state"] == "TOKEN_STATE_ACTIVE"
    assert validated["user_id"] == created["user"]["user_id"]
    assert validated["degraded"] is False
    answers = await api.good(f"{AUTH}/BatchValidateTokens", {"requests": [{"token": "garbage"}]})
    assert answers["results"][0]["response"]["reason"] == "INACTIVE_REASON_MALFORMED"


async def test_a_refusal_has_its_details(api: JsonApi) -> None:
    response, refusal = await api.call(f"{AUTH}/Authenticate", {"email": "alice@example.com", "password": "wrong one"})
    assert (response.status, response.headers["content-type"]) == (401, "application/json")
    [info] = refusal["details"]
    assert (refusal["code"], info["reason"], info["domain"]) == (16, "INVALID_CREDENTIALS", "authsvc")
    assert len(info["metadata"]["trace_id"]) == 32
    response, refusal = await api.call(f"{USERS}/CreateUser", {"email": "no address"})
    violations = [detail for detail in refusal["details"] if "field_violations" in detail]
    assert (response.status, violations[0]["field_violations"][0]["field"]) == (400, "email")


async def test_credentials_are_the_callers_own(api: JsonApi, api_keys: ApiKeys) -> None:
    refusals = {"": "CALLER_UNAUTHENTICATED", "ask_wrong": "CALLER_UNAUTHENTICATED"}
    for key, reason in {**refusals, api_keys.envoy: "CALLER_NOT_PERMITTED"}.items():
        response, refusal = await api.call(f"{USERS}/ListUsers", {}, key=key)
        assert (response.status, refusal["details"][0]["reason"]) == (401 if key in refusals else 403, reason)


async def test_every_method_is_mapped(api: JsonApi) -> None:
    for path, file in {AUTH: auth_service_pb2, USERS: user_service_pb2}.items():
        for method in file.DESCRIPTOR.services_by_name[path.rpartition(".")[2]].methods:
            response, _ = await api.call(f"{path}/{method.name}", {})
            assert response.status in {200, 400}, method.name


async def test_nothing_else_is_reached(api: JsonApi) -> None:
    refused = {
        f"{AUTH}/Nonsense": 404,
        f"{AUTH}/GetJwks?nonsense=1": 400,
        "/grpc.health.v1.Health/Check": 404,
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": 404,
        "/envoy.service.auth.v3.Authorization/Check": 404,
    }
    for target, status in refused.items():
        assert (await api.envoy.send(target, method="POST", body=b"{}")).status == status
    assert (await api.envoy.send(f"{AUTH}/Authenticate", method="POST", body=b'{"email": ')).status == 400
