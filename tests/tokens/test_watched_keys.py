"""The key ring of a running service whose keys are in AWS: polled, kept while AWS is away, read at once on demand."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from authsvc.config import AwsKeys
from authsvc.errors import KeyFileError
from authsvc.server.app import run_app
from authsvc.tokens import aws_keys
from authsvc.tokens.aws_keys import ParameterKeys
from authsvc.tokens.key_store import KeyStore, generate_keys, rotate_keys
from authsvc.tokens.keys import KeyRing
from authsvc.tokens.opening import watch_keys
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.watched_file import Watched
from tests.fake_aws import AsyncApi, FakeAws, serving_aws
from tests.support import PATIENT_LIMITS, WITNESS, Client, FakeClock, connected, make_settings
from tests.virtual_clock import jumping, now

TTL = timedelta(minutes=15)
LOCATION = AwsKeys("ssm", "keys")
CLOCK = FakeClock()


class Log:
    """The audit events of keys since this was last read."""

    def __init__(self) -> None:
        self._position = len(WITNESS.lines.getvalue())

    def read(self) -> list[dict[str, Any]]:
        text = WITNESS.lines.getvalue()[self._position :]
        self._position += len(text)
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if line["event"].startswith("keys_")]

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.read()]


def failing() -> float | None:
    return REGISTRY.get_sample_value("authsvc_reload_failing", {"file": "keys"})


@asynccontextmanager
async def watching(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[FakeAws, KeyStore, Watched[KeyRing], Log]]:
    """Follow keys on the loop's virtual clock."""
    aws = FakeAws()
    store = ParameterKeys(LOCATION, AsyncApi(aws))  # type: ignore[arg-type]

    @asynccontextmanager
    async def open_keys(location: AwsKeys) -> AsyncIterator[KeyStore]:
        assert location == LOCATION
        yield store

    monkeypatch.setattr(aws_keys, "open_aws_keys", open_keys)
    await generate_keys(store, "ES256", CLOCK() - timedelta(days=1))
    async with watch_keys(LOCATION, CLOCK) as keys:
        yield aws, store, keys, Log()


@jumping
async def test_a_rotation_is_seen_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching(monkeypatch) as (aws, store, keys, log):
        await asyncio.sleep(59.9)
        old, reads = keys.content, len(aws.operations)
        change = await rotate_keys(store, TTL, CLOCK())
        assert keys.reload_if_changed() is old
        await asyncio.sleep(0.2)
        assert keys.reload_if_changed().signing_key in change.after
        assert keys.content.signing_key != old.signing_key
        (line,) = log.read()
        assert (line["event"], line["signing_key"]) == ("keys_reloaded", keys.content.signing_key.kid)
        ring, reads = keys.content, len(aws.operations)
        await asyncio.sleep(600)
        assert keys.content is ring
        assert aws.operations[reads:] == ["GetParameter"] * 10
        assert log.events == []


@jumping
async def test_an_expired_key_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching(monkeypatch) as (_, store, keys, _log):
        retired = keys.content.signing_key
        await rotate_keys(store, TTL, CLOCK() - timedelta(hours=1))
        await asyncio.sleep(61)
        assert keys.content.get(retired.kid, 0) is None


@jumping
async def test_while_aws_is_away_the_last_good_ring_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure of another kind is logged once, and so is the end."""
    async with watching(monkeypatch) as (aws, store, keys, log):
        ring = keys.content
        for code in ("ThrottlingException", "AccessDeniedException"):
            aws.refusals = {"GetParameter": code}
            await asyncio.sleep(600)
            assert keys.content is ring
            (line,) = log.read()
            assert (line["event"], line["level"], line["outcome"]) == ("keys_not_reloaded", "error", "failed")
            assert code in line["reason"]
        aws.refusals = {}
        await asyncio.sleep(600)
        assert log.events == ["keys_reloaded"]
        change = await rotate_keys(store, TTL, CLOCK())
        await asyncio.sleep(61)
        assert keys.content.signing_key == change.after[1]


@jumping
async def test_a_broken_ring_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching(monkeypatch) as (aws, _, keys, log):
        ring, versions = keys.content, aws.parameters["keys"]
        versions.append({**versions[0], "Version": 2, "Value": "{"})
        await asyncio.sleep(300)
        assert keys.content is ring
        assert (log.events, failing()) == (["keys_not_reloaded"], 1)
        versions.append({**versions[0], "Version": 3})
        await asyncio.sleep(61)
        assert (log.events, failing()) == (["keys_reloaded"], 0)


@jumping
async def test_on_demand_it_is_read_at_once_and_the_outcome_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching(monkeypatch) as (aws, _, keys, log):
        for refusals, event in (
            ({}, "keys_reloaded"),
            ({"GetParameter": "AccessDeniedException"}, "keys_not_reloaded"),
            ({"GetParameter": "AccessDeniedException"}, "keys_not_reloaded"),
            ({}, "keys_reloaded"),
        ):
            aws.refusals = dict(refusals)
            begin = now()
            keys.reload()
            await asyncio.sleep(0.1)
            assert log.events == [event]
            assert now() - begin < 1


@jumping
async def test_a_start_without_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching(monkeypatch) as (aws, *_):
        aws.parameters.clear()
        with pytest.raises(KeyFileError, match=r"^ssm:keys: no such parameter in eu-west-1; create it: "):
            async with watch_keys(LOCATION, CLOCK):
                pass


# The service


async def kids(client: Client) -> list[str]:
    jwks = json.loads((await client.auth.GetJwks(auth_pb2.GetJwksRequest())).jwks)
    return [key["kid"] for key in jwks["keys"]]


@pytest.mark.parametrize("service", ["ssm", "secretsmanager"])
async def test_a_service_follows_keys_in_aws_and_outlives_its_outage(
    service: str, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_aws() as aws:
        for name, value in aws.environ().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(aws_keys, "MAX_ATTEMPTS", 1)
        location, reload, log = AwsKeys(service, "keys"), asyncio.Event(), Log()
        async with aws_keys.open_aws_keys(location) as store:
            keys = await generate_keys(store, "ES256", clock() - timedelta(days=1))
            for jwk in (await store.read()).key_set.jwks:
                WITNESS.hide(jwk["d"])
            settings = make_settings(location, f"sqlite:{tmp_path / 'db'}")
            limits = replace(PATIENT_LIMITS, file_poll_seconds=0.01, key_poll_seconds=0.01)
            async with run_app(settings, clock, limits=limits, reload=reload) as app, connected(app) as client:
                assert await kids(client) == [key.kid for key in keys]
                change = await rotate_keys(store, TTL, clock())
                while len(await kids(client)) == 2:
                    pass
                assert await kids(client) == [key.kid for key in change.after]
                assert log.events == ["keys_reloaded"]
                aws.refusals = dict.fromkeys(("GetParameter", "GetSecretValue"), "AccessDeniedException")
                while not (lines := log.read()):
                    await kids(client)
                assert [line["event"] for line in lines] == ["keys_not_reloaded"]
                assert await kids(client) == [key.kid for key in change.after]
                aws.refusals = {}
                reload.set()
                while not (events := log.events):
                    await kids(client)
                assert events[0] == "keys_reloaded"
