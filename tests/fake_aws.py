"""Parameter Store and Secrets Manager in this process: what the service uses of them, as AWS documents it.

`FakeAws` holds what is stored; a server in a thread answers for it over HTTP, `AsyncApi` in the test's own loop.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError

REGION = "eu-west-1"
DEFAULT_KEY_ID = "alias/aws/ssm"
MAX_VALUE = 4096
KEPT_VERSIONS = 100


class RefusalError(Exception):
    """AWS refuses a request."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Secret:
    versions: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    """The version of each label."""


class FakeAws:
    """What is stored, and the operations on it.

    Attributes:
        refusals: Code with which an operation is refused, by its name.
        before: Called before each operation, with its name and request.
        operations: Names of the operations that were asked for.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, list[dict[str, Any]]] = {}
        self.secrets: dict[str, Secret] = {}
        self.refusals: dict[str, str] = {}
        self.before: Callable[[str, dict[str, Any]], object] = lambda *_: None
        self.operations: list[str] = []
        self.url = ""

    def environ(self) -> dict[str, str]:
        """Return the variables with which AWS's libraries come here."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL_SSM": self.url,
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": self.url,
        }

    def do(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Do an operation.

        Raises:
            RefusalError: AWS would refuse it.
        """
        self.before(operation, request)
        self.operations.append(operation)
        if operation in self.refusals:
            raise RefusalError(self.refusals[operation])
        done: dict[str, Any] = getattr(self, f"_{operation}")(**request)
        return done

    # Parameter Store

    def _GetParameter(self, Name: str, WithDecryption: bool) -> dict[str, Any]:
        assert WithDecryption
        name, _, version = Name.partition(":")
        if not (versions := self.parameters.get(name)):
            raise RefusalError("ParameterNotFound")
        if not version:
            return {"Parameter": versions[-1]}
        found = [each for each in versions[-KEPT_VERSIONS:] if each["Version"] == int(version)]
        if not found:
            raise RefusalError("ParameterVersionNotFound")
        return {"Parameter": found[0]}

    def _PutParameter(
        self,
        Name: str,
        Value: str,
        Type: str,
        Overwrite: bool = False,
        KeyId: str = DEFAULT_KEY_ID,
        Tier: str = "Standard",
        Description: str = "",
    ) -> dict[str, Any]:
        versions = self.parameters.setdefault(Name, [])
        if versions and not Overwrite:
            raise RefusalError("ParameterAlreadyExists")
        if len(Value) > MAX_VALUE:
            raise RefusalError("ValidationException")
        version = versions[-1]["Version"] + 1 if versions else 1
        versions.append({"Name": Name, "Value": Value, "Type": Type, "Version": version, "KeyId": KeyId})
        return {"Version": version, "Tier": "Standard"}

    def _GetParameterHistory(self, Name: str, NextToken: str = "0", **_: object) -> dict[str, Any]:
        begin = int(NextToken)
        versions = self.parameters[Name][-KEPT_VERSIONS:]
        page = [{**version, "Value": "encrypted"} for version in versions[begin : begin + 2]]
        return {"Parameters": page} | ({"NextToken": str(begin + 2)} if begin + 2 < len(versions) else {})

    # Secrets Manager

    def _CreateSecret(self, Name: str, SecretString: str, ClientRequestToken: str, **_: object) -> dict[str, Any]:
        if Name in self.secrets:
            raise RefusalError("ResourceExistsException")
        self.secrets[Name] = Secret({ClientRequestToken: SecretString}, {"AWSCURRENT": ClientRequestToken})
        return {"Name": Name, "VersionId": ClientRequestToken}

    def _GetSecretValue(self, SecretId: str, VersionStage: str) -> dict[str, Any]:
        secret = self._secret(SecretId)
        version = secret.labels[VersionStage]
        return {"Name": SecretId, "VersionId": version, "SecretString": secret.versions[version]}

    def _PutSecretValue(
        self,
        SecretId: str,
        SecretString: str,
        ClientRequestToken: str,
        VersionStages: list[str],
    ) -> dict[str, Any]:
        secret = self._secret(SecretId)
        secret.versions[ClientRequestToken] = SecretString
        secret.labels |= dict.fromkeys(VersionStages, ClientRequestToken)
        return {"VersionId": ClientRequestToken}

    def _UpdateSecretVersionStage(
        self,
        SecretId: str,
        VersionStage: str,
        RemoveFromVersionId: str,
        MoveToVersionId: str,
    ) -> dict[str, Any]:
        secret = self._secret(SecretId)
        if secret.labels.get(VersionStage) != RemoveFromVersionId or MoveToVersionId not in secret.versions:
            raise RefusalError("InvalidParameterException")
        secret.labels |= {VersionStage: MoveToVersionId, "AWSPREVIOUS": RemoveFromVersionId}
        return {"Name": SecretId}

    def _secret(self, name: str) -> Secret:
        if name not in self.secrets:
            raise RefusalError("ResourceNotFoundException")
        return self.secrets[name]


class AsyncApi:
    """The clients of both services on a FakeAws, for a test's own loop.

    Args:
        aws: What is stored.
        pause: Returns for how many seconds a request and its response are on their way.
    """

    meta = SimpleNamespace(region_name=REGION)

    def __init__(self, aws: FakeAws, pause: Callable[[], float] = lambda: 0.0) -> None:
        self._aws = aws
        self._pause = pause

    def __getattr__(self, method: str) -> Callable[..., Any]:
        operation = method.title().replace("_", "")

        async def call(**request: Any) -> Any:
            await asyncio.sleep(self._pause())
            try:
                return self._aws.do(operation, request)
            except RefusalError as error:
                raise ClientError({"Error": {"Code": error.code}}, operation) from None
            finally:
                await asyncio.sleep(self._pause())

        return call

    def get_paginator(self, method: str) -> Any:
        async def pages(**request: Any) -> AsyncIterator[Any]:
            token: dict[str, str] = {}
            while True:
                page = await getattr(self, method)(**request, **token)
                yield page
                if "NextToken" not in page:
                    break
                token = {"NextToken": page["NextToken"]}

        return SimpleNamespace(paginate=pages)


@contextmanager
def serving_aws() -> Iterator[FakeAws]:
    """Run a server of both services; it repeats the request in its refusals, as AWS may."""
    aws, lock = FakeAws(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            with lock:
                try:
                    status, answer = 200, aws.do(self.headers["X-Amz-Target"].partition(".")[2], json.loads(body))
                except RefusalError as error:
                    status, answer = 400, {"__type": error.code, "message": f"1 validation error: Value '{body}'"}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    aws.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield aws
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
