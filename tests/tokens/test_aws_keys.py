"""Signing keys in AWS, through the real client: on a server in this process, on moto and on ministack."""

import asyncio
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest

from authsvc.config import AwsKeys
from authsvc.errors import ConfigError, KeyFileError
from authsvc.models import utc_now
from authsvc.tokens import aws_keys
from authsvc.tokens.key_set import new_key_set, parse_key_set
from authsvc.tokens.key_store import generate_keys, remove_key, rotate_keys
from authsvc.tokens.keys import KeyStatus, new_jwk
from authsvc.tokens.opening import open_key_store
from tests.engines import Capability, Engine
from tests.fake_aws import REGION, FakeAws, serving_aws
from tests.support import WITNESS

TTL = timedelta(minutes=15)
YESTERDAY = utc_now() - timedelta(days=1)
SERVICES = pytest.mark.parametrize("service", ["ssm", "secretsmanager"])


def set_environ(monkeypatch: pytest.MonkeyPatch, environ: Mapping[str, str]) -> None:
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", **environ}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAws]:
    with serving_aws() as aws:
        set_environ(monkeypatch, aws.environ())
        yield aws


@pytest.fixture(params=["fake", "moto", "ministack"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine | None:
    """The engine; None for the server in this process."""
    if request.param == "fake":
        request.getfixturevalue("aws")
        return None
    engine: Engine = request.getfixturevalue(request.param)
    urls = dict.fromkeys(("AWS_ENDPOINT_URL_SSM", "AWS_ENDPOINT_URL_SECRETS_MANAGER"), engine.endpoint_url)
    set_environ(monkeypatch, {**engine.environ(), **urls})
    return engine


@pytest.fixture
def location(service: str) -> AwsKeys:
    return AwsKeys(service, f"authsvc/{uuid.uuid4().hex}" if service == "secretsmanager" else f"/a/{uuid.uuid4().hex}")


def kids(keys: Any, *statuses: KeyStatus) -> set[str]:
    return {key.kid for key in keys if key.status in (statuses or tuple(KeyStatus))}


# What is the same everywhere


@SERVICES
async def test_keys_are_generated_read_rotated_and_removed(place: Engine | None, location: AwsKeys) -> None:
    async with open_key_store(location) as store:
        assert str(store) == str(location)
        old, following = await generate_keys(store, "ES256", YESTERDAY)
        stored = await store.read()
        assert stored.key_set.keys == [old, following]
        WITNESS.hide(*(jwk["d"] for jwk in stored.key_set.jwks))
        for _ in range(2):
            await rotate_keys(store, TTL, utc_now())
        change = await rotate_keys(store, TTL, utc_now())
        assert (await store.read()).key_set.keys == change.after
        assert kids(change.after, KeyStatus.RETIRED) > {old.kid, following.kid}
        change = await remove_key(store, following.kid, utc_now())
        assert (await store.read()).key_set.keys == change.after
        assert following.kid not in kids(change.after)
        with pytest.raises(KeyFileError, match=f"^{location}: has no key {following.kid}$"):
            await remove_key(store, following.kid, utc_now())


@SERVICES
async def test_keys_are_never_overwritten(place: Engine | None, location: AwsKeys) -> None:
    async with open_key_store(location) as store:
        keys = await generate_keys(store, "ES256", YESTERDAY)
        with pytest.raises(KeyFileError, match=f"^{location}: exists; keys are never overwritten$"):
            await generate_keys(store, "ES256", YESTERDAY)
        assert (await store.read()).key_set.keys == keys


@SERVICES
async def test_what_is_missing_is_reported_with_the_remedy(place: Engine | None, location: AwsKeys) -> None:
    what = "parameter" if location.service == "ssm" else "secret"
    reported = (
        f"{location}: no such {what} in [a-z0-9-]+; create it: authsvc keys generate {location}; or correct AWS_REGION"
    )
    async with open_key_store(location) as store:
        with pytest.raises(KeyFileError, match=f"^{reported}$"):
            await store.read()


@SERVICES
async def test_rotations_and_removals_at_once_lose_no_key(place: Engine | None, location: AwsKeys) -> None:
    if place is not None:
        place.skip_unless(Capability.CONCURRENT)
    async with open_key_store(location) as store:
        leaked, _ = await generate_keys(store, "ES256", YESTERDAY)

        async def change(number: int) -> set[str]:
            async with open_key_store(location) as own:
                if number == 0:
                    return kids((await remove_key(own, leaked.kid, utc_now())).after)
                return kids((await rotate_keys(own, TTL, utc_now())).after)

        printed = await asyncio.gather(*(change(number) for number in range(4)))
        keys = (await store.read()).key_set.keys
    assert set().union(*printed) - {leaked.kid} == kids(keys)
    assert len(kids(keys, KeyStatus.SIGNING)) == 1


# What only a server of our own can show


async def test_a_secret_holds_rsa_keys_and_a_parameter_says_that_it_does(aws: FakeAws) -> None:
    key_set = parse_key_set(json.dumps({"keys": [new_jwk("RS256", KeyStatus.SIGNING, YESTERDAY)]}))
    async with open_key_store(AwsKeys("secretsmanager", "keys")) as store:
        await store.create(key_set)
        assert (await store.read()).key_set.keys == key_set.keys
    reported = (
        "a parameter holds ES256 keys alone, for others do not fit into its 4 KB; keep them in secretsmanager:NAME"
    )
    async with open_key_store(AwsKeys("ssm", "keys")) as store:
        with pytest.raises(KeyFileError, match=f"^ssm:keys: {reported}$"):
            await store.create(key_set)
        assert aws.parameters == {}
        put(aws, key_set.to_json())
        with pytest.raises(KeyFileError, match=f"^ssm:keys: {reported}$"):
            await store.read()


def put(aws: FakeAws, value: str, **more: str) -> None:
    aws.parameters["keys"] = [{"Name": "keys", "Value": value, "Type": "SecureString", "Version": 1, **more}]


async def test_more_keys_than_a_parameter_holds_are_refused_before_they_are_sent(aws: FakeAws) -> None:
    async with open_key_store(AwsKeys("ssm", "keys")) as store:
        await generate_keys(store, "ES256", YESTERDAY)
        for _ in range(6):
            await rotate_keys(store, TTL, utc_now())
        kept = (await rotate_keys(store, TTL, utc_now())).after
        reported = r"^ssm:keys: \d+ keys do not fit into a parameter of 4096 bytes; rotate again when retired keys"
        with pytest.raises(KeyFileError, match=reported):
            await asyncio.gather(*(rotate_keys(store, TTL, utc_now()) for _ in range(10)))
        assert kids(kept) <= kids((await store.read()).key_set.keys)


@pytest.mark.parametrize("type_", ["String", "StringList"])
async def test_a_parameter_in_plain_text_is_refused(aws: FakeAws, type_: str) -> None:
    """Whoever may list parameters could read it without the right to decrypt."""
    put(aws, new_key_set("ES256", YESTERDAY).to_json(), Type=type_)
    reported = f"ssm:keys: is a {type_}, which keeps the keys in plain text; delete it, and create a SecureString: "
    async with open_key_store(AwsKeys("ssm", "keys")) as store:
        with pytest.raises(KeyFileError, match=f"^{reported}authsvc keys generate ssm:keys$"):
            await store.read()


@SERVICES
@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("AccessDeniedException", "allow {action} on it, and the use of its KMS key if that is one of yours"),
        ("UnrecognizedClientException", "check AWS_REGION, the credentials and the name"),
    ],
)
async def test_a_refusal_names_the_permission_and_never_the_keys(
    aws: FakeAws, service: str, code: str, remedy: str
) -> None:
    """AWS may repeat the request in its text, as the server of this test does."""
    async with open_key_store(AwsKeys(service, "keys")) as store:
        await generate_keys(store, "ES256", YESTERDAY)
        for jwk in (await store.read()).key_set.jwks:
            WITNESS.hide(jwk["d"])
        names = {
            "ssm": ["GetParameter", "GetParameterHistory", "PutParameter"],
            "secretsmanager": ["GetSecretValue", "PutSecretValue", "UpdateSecretVersionStage"],
        }
        for name in names[service]:
            aws.refusals = {name: code}
            action = f"{service}:{name}"
            reported = f"{service}:keys: {action} is refused: {code}; {remedy.format(action=action)}"
            with pytest.raises(KeyFileError, match=f"^{re.escape(reported)}$"):
                await rotate_keys(store, TTL, utc_now())
        aws.refusals = {"PutParameter": code, "CreateSecret": code}
        with pytest.raises(KeyFileError, match=code):
            await generate_keys(store, "ES256", YESTERDAY)


@SERVICES
async def test_a_missing_answer_is_reported_with_what_to_check(
    aws: FakeAws, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws_keys, "MAX_ATTEMPTS", 1)
    for name in ("AWS_ENDPOINT_URL_SSM", "AWS_ENDPOINT_URL_SECRETS_MANAGER"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    variable = {"ssm": "AWS_ENDPOINT_URL_SSM", "secretsmanager": "AWS_ENDPOINT_URL_SECRETS_MANAGER"}[service]
    remedy = rf"check the network, AWS_REGION \({REGION}\), the credentials and {variable}"
    async with open_key_store(AwsKeys(service, "keys")) as store:
        with pytest.raises(
            KeyFileError, match=f"^{service}:keys: cannot be reached: EndpointConnectionError; {remedy}$"
        ):
            await store.read()


async def test_missing_credentials_are_reported(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    async with open_key_store(AwsKeys("ssm", "keys")) as store:
        with pytest.raises(KeyFileError, match="cannot be reached: no AWS credentials are configured; check"):
            await store.read()


async def test_a_server_that_never_answers_is_given_up(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_keys, "CALL_SECONDS", 0.0)
    async with open_key_store(AwsKeys("ssm", "keys")) as store:
        with pytest.raises(KeyFileError, match="cannot be reached: TimeoutError; check"):
            await store.read()


@SERVICES
async def test_an_answer_of_something_else_is_reported(
    aws: FakeAws, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "do", lambda *_: {})
    async with open_key_store(AwsKeys(service, "keys")) as store:
        with pytest.raises(KeyFileError, match=f"^{service}:keys: an unreadable response; check the endpoint"):
            await store.read()


@SERVICES
@pytest.mark.parametrize("value", ["", "{", json.dumps({"keys": []})])
async def test_a_value_that_is_no_key_set_is_reported(aws: FakeAws, service: str, value: str) -> None:
    async with open_key_store(AwsKeys(service, "keys")) as store:
        await generate_keys(store, "ES256", YESTERDAY)
        put(aws, value)
        for secret in aws.secrets.values():
            secret.versions = dict.fromkeys(secret.versions, value)
        with pytest.raises(KeyFileError, match=f"^{service}:keys: (not a JWK Set|exactly one key must)"):
            await store.read()


async def test_a_region_is_needed(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(ConfigError, match="AWS_REGION: must be set for what is kept in AWS"):
        async with open_key_store(AwsKeys("ssm", "keys")):
            pass
