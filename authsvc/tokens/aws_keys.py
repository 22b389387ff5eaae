"""Signing keys in AWS: in SSM Parameter Store or in Secrets Manager.

Secrets Manager refuses to move the label of the current version where another command has moved it: the loser merges.
Parameter Store has no such condition: a write replaces whatever was written since the read, and only the new version's
number shows it. So each set has the last version that is merged into it (`merged_version`). Each read merges the later
versions, which are in the parameter's history. So no read misses a key, even if the command that wrote the set died
before it wrote the merged one.

No text of AWS goes into an error: it may repeat the keys.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from authsvc import aws
from authsvc.config import AwsKeys
from authsvc.errors import KeyFileError, StoreUnavailableError
from authsvc.tokens.key_set import KeySet, StoredKeys, located, merge, parse_key_set
from authsvc.tokens.key_store import KeyStore

if TYPE_CHECKING:
    from types_aiobotocore_secretsmanager import SecretsManagerClient
    from types_aiobotocore_ssm import SSMClient
    from types_aiobotocore_ssm.type_defs import ParameterTypeDef

CALL_SECONDS = 10.0
"""One call with its attempts, and with the first load of the credentials."""
CONNECT_SECONDS = 2.0
READ_SECONDS = 5.0
MAX_ATTEMPTS = 3
PARAMETER_MAX_BYTES = 4096
"""Of a standard parameter, which costs nothing."""
PARAMETER_ALG = "ES256"
"""A ring of RSA keys does not fit into a parameter."""
DEFAULT_KEY_ID = "alias/aws/ssm"
DESCRIPTION = "Signing keys of authsvc"
HISTORY_VERSIONS = 99
"""Parameter Store keeps no more beside the current one."""
CURRENT = "AWSCURRENT"
PENDING = "AUTHSVC_PENDING"
"""The label of a version that is not current yet; without one of its own, a new version is current at once."""

_DENIED = frozenset({"AccessDenied", "AccessDeniedException"})

P = ParamSpec("P")
R = TypeVar("R")


@asynccontextmanager
async def open_aws_keys(location: AwsKeys) -> AsyncIterator[KeyStore]:
    """Open the store of a parameter or a secret, configured by AWS's own variables and files.

    Raises:
        ConfigError: No region is configured, or AWS's settings are malformed.
    """
    config = AioConfig(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": MAX_ATTEMPTS, "mode": "standard"},
    )
    store: Callable[[AwsKeys, Any], KeyStore] = ParameterKeys if location.service == "ssm" else SecretKeys
    async with aws.open_session() as session, aws.open_client(session, location.service, config) as api:
        yield store(location, api)


class _Calls:
    """Calls of AWS, whose failures become errors for operators.

    Args:
        location: Of the keys.
        region: Where they are.
    """

    def __init__(self, location: AwsKeys, region: str) -> None:
        self._location = location
        self._region = region

    def __str__(self) -> str:
        """Return the location, as the setting has it."""
        return str(self._location)

    async def _call(self, operation: Callable[P, Awaitable[R]], *args: P.args, **request: P.kwargs) -> R:
        """Call an operation.

        Raises:
            _RefusedError: AWS refuses the request.
            KeyFileError: There is no answer.
        """
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await operation(*args, **request)
        except ClientError as error:
            raise self._refusal(error) from None
        except (BotoCoreError, ResponseParserError, StoreUnavailableError, TimeoutError) as error:
            cause = error.cause if isinstance(error, StoreUnavailableError) else type(error).__name__
            variable = f"AWS_ENDPOINT_URL_{'SSM' if self._location.service == 'ssm' else 'SECRETS_MANAGER'}"
            remedy = f"check the network, AWS_REGION ({self._region}), the credentials and {variable}"
            raise KeyFileError(f"{self}: cannot be reached: {cause}; {remedy}") from None

    def _refusal(self, error: ClientError) -> "_RefusedError":
        code = error.response.get("Error", {}).get("Code", "unknown error")
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        action = f"{self._location.service}:{error.operation_name}"
        problem = f"{action} is refused: {aws.describe_refusal(code, headers)}"
        remedy = "check AWS_REGION, the credentials and the name"
        if code in _DENIED:
            remedy = f"allow {action} on it, and the use of its KMS key if that is one of yours"
        return _RefusedError(f"{self}: {problem}; {remedy}", code)

    def _missing(self, what: str) -> KeyFileError:
        remedy = f"create it: authsvc keys generate {self}; or correct AWS_REGION"
        return KeyFileError(f"{self}: no such {what} in {self._region}; {remedy}")

    def _exists(self) -> KeyFileError:
        return KeyFileError(f"{self}: exists; keys are never overwritten")

    def _unreadable(self) -> KeyFileError:
        return KeyFileError(f"{self}: an unreadable response; check the endpoint: something answers in place of AWS")

    def _parse(self, text: str) -> KeySet:
        with located(self):
            return parse_key_set(text)


class _RefusedError(KeyFileError):
    """AWS refuses a request.

    Args:
        text: The error's.
        code: AWS's.
    """

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class ParameterKeys(_Calls):
    """Keys in a SecureString of Parameter Store; the version is its number.

    Args:
        location: Of the keys.
        api: The typed client.
    """

    def __init__(self, location: AwsKeys, api: "SSMClient") -> None:
        super().__init__(location, api.meta.region_name)
        self._api = api
        self._key_id: str | None = None

    async def read(self) -> StoredKeys:
        """See KeyStore."""
        try:
            parameter = await self._get(self._location.name)
        except _RefusedError as error:
            raise self._missing("parameter") if error.code == "ParameterNotFound" else error from None
        if parameter.get("Type") != "SecureString":
            problem = f"is a {parameter.get('Type')}, which keeps the keys in plain text"
            raise KeyFileError(f"{self}: {problem}; delete it, and create a SecureString: authsvc keys generate {self}")
        key_set, version = self._parse(parameter["Value"]), parameter["Version"]
        for skipped in _unmerged(key_set, version):
            key_set = await self._add_version(key_set, skipped)
        return StoredKeys(key_set, version)

    async def create(self, key_set: KeySet) -> None:
        """See KeyStore."""
        text = self._text(key_set)
        try:
            await self._call(
                self._api.put_parameter,
                Name=self._location.name,
                Value=text,
                Type="SecureString",
                Tier="Standard",
                Description=DESCRIPTION,
            )
        except _RefusedError as error:
            raise self._exists() if error.code == "ParameterAlreadyExists" else error from None

    async def write(self, key_set: KeySet, version: object) -> bool:
        """See KeyStore. What was written meanwhile is replaced, but stays in the history, from which `read` adds it."""
        assert isinstance(version, int)  # noqa: S101 - from `read`
        text = self._text(key_set, merged_version=version)
        if self._key_id is None:  # once: the shorter the time since the read, the rarer are writes of others in it
            self._key_id = await self._call(self._read_key_id)
        try:
            response = await self._call(
                self._api.put_parameter,
                Name=self._location.name,
                Value=text,
                Type="SecureString",
                KeyId=self._key_id,
                Overwrite=True,
            )
        except _RefusedError as error:
            if error.code == "TooManyUpdates":  # another write at the same moment; this one was not made
                return False
            raise
        return response["Version"] == version + 1

    async def _get(self, name: str) -> "ParameterTypeDef":
        response = await self._call(self._api.get_parameter, Name=name, WithDecryption=True)
        parameter = response.get("Parameter", {})
        if not {"Value", "Version"} <= parameter.keys():
            raise self._unreadable()
        return parameter

    async def _add_version(self, key_set: KeySet, version: int) -> KeySet:
        """Return a key set with the keys of a version of the history, where those can be used."""
        text = (await self._get(f"{self._location.name}:{version}"))["Value"]
        try:
            return merge(key_set, self._parse(text))
        except KeyFileError:  # written by hand: no service could use it
            return key_set

    async def _read_key_id(self) -> str:
        """Return the key that encrypts the parameter: a write that names none would go back to AWS's own."""
        pages = self._api.get_paginator("get_parameter_history").paginate(Name=self._location.name)
        versions = [version async for page in pages for version in page["Parameters"]]
        return max(versions, key=lambda version: version["Version"]).get("KeyId", DEFAULT_KEY_ID)

    def _parse(self, text: str) -> KeySet:
        key_set = super()._parse(text)
        self._require_small_keys(key_set)
        return key_set

    def _text(self, key_set: KeySet, merged_version: int | None = None) -> str:
        self._require_small_keys(key_set)
        text = key_set.to_json(merged_version=merged_version)
        if len(text) > PARAMETER_MAX_BYTES:
            problem = f"{len(key_set.keys)} keys do not fit into a parameter of {PARAMETER_MAX_BYTES} bytes"
            remedy = "rotate again when retired keys are expired, or keep the keys in secretsmanager:NAME"
            raise KeyFileError(f"{self}: {problem}; {remedy}")
        return text

    def _require_small_keys(self, key_set: KeySet) -> None:
        if any(key.alg != PARAMETER_ALG for key in key_set.keys):
            problem = f"a parameter holds {PARAMETER_ALG} keys alone, for others do not fit into its 4 KB"
            raise KeyFileError(f"{self}: {problem}; keep them in secretsmanager:NAME")


def _unmerged(key_set: KeySet, version: int) -> range:
    """Return the versions below the current one that a command has replaced without having read them."""
    if key_set.merged_version is None:
        return range(0)
    return range(max(key_set.merged_version + 1, version - HISTORY_VERSIONS), version)


class SecretKeys(_Calls):
    """Keys in a secret of Secrets Manager; the version is the id of the current one.

    Args:
        location: Of the keys.
        api: The typed client.
    """

    def __init__(self, location: AwsKeys, api: "SecretsManagerClient") -> None:
        super().__init__(location, api.meta.region_name)
        self._api = api

    async def read(self) -> StoredKeys:
        """See KeyStore."""
        try:
            response = await self._call(self._api.get_secret_value, SecretId=self._location.name, VersionStage=CURRENT)
        except _RefusedError as error:
            raise self._missing("secret") if error.code == "ResourceNotFoundException" else error from None
        if "VersionId" not in response:
            raise self._unreadable()
        return StoredKeys(self._parse(response.get("SecretString", "")), response["VersionId"])

    async def create(self, key_set: KeySet) -> None:
        """See KeyStore."""
        try:
            await self._call(
                self._api.create_secret,
                Name=self._location.name,
                SecretString=key_set.to_json(),
                ClientRequestToken=secrets.token_hex(16),
                Description=DESCRIPTION,
            )
        except _RefusedError as error:
            raise self._exists() if error.code == "ResourceExistsException" else error from None

    async def write(self, key_set: KeySet, version: object) -> bool:
        """See KeyStore."""
        assert isinstance(version, str)  # noqa: S101 - from `read`
        written = secrets.token_hex(16)
        await self._call(
            self._api.put_secret_value,
            SecretId=self._location.name,
            SecretString=key_set.to_json(),
            ClientRequestToken=written,
            VersionStages=[PENDING],
        )
        try:
            await self._call(
                self._api.update_secret_version_stage,
                SecretId=self._location.name,
                VersionStage=CURRENT,
                RemoveFromVersionId=version,
                MoveToVersionId=written,
            )
        except _RefusedError as error:
            # AWS refuses a repeated attempt of what was done, too.
            current = (await self.read()).version
            if current == version:
                raise error from None
            return current == written
        return True
