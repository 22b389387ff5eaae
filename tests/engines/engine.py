"""What a test may know about a DynamoDB engine: where it listens and what it cannot do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypedDict

import pytest


class EngineUnavailableError(Exception):
    """This machine cannot have the engine; the text says why."""


class Capability(StrEnum):
    """What some tests ask of an engine beyond reading and writing."""

    CONCURRENT = "keeps every acknowledged write under concurrent requests"
    RESTART = "can be stopped and started again with its data"
    REQUEST_TOKEN = "applies a transaction once when its ClientRequestToken is repeated"
    INDEX_KEY_TYPES = "refuses an item whose index key has another type"
    CONSUMED_UNITS = "reports the units that GetItem, Query and the single-item writes consume"
    BATCH_CONSUMED_UNITS = "reports the units that BatchGetItem consumes"
    FULL_ITEM_UNITS = "counts the whole item where a projection returns a part of it"
    PITR = "describes and updates continuous backups"


class Server(Protocol):
    """A server whose outage a test can bring about."""

    def start(self) -> None:
        """Return when it answers again, on the same port."""

    def stop(self) -> None:
        """Return when nothing listens any more."""


class ClientOptions(TypedDict):
    """Keyword arguments for a boto3 or aioboto3 client."""

    endpoint_url: str
    region_name: str
    aws_access_key_id: str
    aws_secret_access_key: str


@dataclass(frozen=True)
class Engine:
    """A running engine.

    Args:
        name: as in the test ids.
        endpoint_url: for boto3's `endpoint_url`.
        lacks: the reason for each capability that this engine does not have.
        server: what `stop` and `start` act on, for engines with RESTART.
        settings: AWS region and credentials, named as in the environment.
    """

    name: str
    endpoint_url: str
    lacks: Mapping[Capability, str] = field(default_factory=dict)
    server: Server | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    def can(self, capability: Capability) -> bool:
        return capability not in self.lacks

    def skip_unless(self, capability: Capability) -> None:
        """Skip the calling test, with the reason, where the engine lacks the capability."""
        if reason := self.lacks.get(capability):
            pytest.skip(f"{self.name}: {reason}")

    def stop(self) -> None:
        """End the engine's process, keeping its port and data; blocks for some milliseconds."""
        self._restartable().stop()

    def start(self) -> None:
        """Start it again after `stop`; blocks until it answers."""
        self._restartable().start()

    def environ(self) -> dict[str, str]:
        """AWS variables for a server process under test."""
        region = self.settings.get("AWS_REGION", "us-east-1")
        return {
            "AWS_ACCESS_KEY_ID": self.settings.get("AWS_ACCESS_KEY_ID", "test"),
            "AWS_SECRET_ACCESS_KEY": self.settings.get("AWS_SECRET_ACCESS_KEY", "test"),
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
        }

    def client_options(self) -> ClientOptions:
        """Arguments for `boto3.client("dynamodb", **…)` and aioboto3's equivalent."""
        environ = self.environ()
        return {
            "endpoint_url": self.endpoint_url,
            "region_name": environ["AWS_REGION"],
            "aws_access_key_id": environ["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": environ["AWS_SECRET_ACCESS_KEY"],
        }

    def _restartable(self) -> Server:
        if self.server is None:
            raise RuntimeError(f"{self.name}: {self.lacks[Capability.RESTART]}")
        return self.server
