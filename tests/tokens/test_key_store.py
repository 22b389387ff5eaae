"""Changes of keys in AWS by several commands at the same time, in many orders: none takes back what another one did.

AUTHSVC_TEST_RACE_ROUNDS multiplies the rounds, for a longer search.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from authsvc.config import AwsKeys
from authsvc.errors import KeyFileError
from authsvc.tokens.aws_keys import ParameterKeys, SecretKeys
from authsvc.tokens.key_set import new_key_set
from authsvc.tokens.key_store import KeyStore, generate_keys, remove_key, rotate_keys
from authsvc.tokens.keys import KeyStatus
from tests.fake_aws import AsyncApi, FakeAws, RefusalError
from tests.support import FakeClock
from tests.virtual_clock import jumping

TTL = timedelta(minutes=15)
NOW = FakeClock().now
ROUNDS = 12 * int(os.environ.get("AUTHSVC_TEST_RACE_ROUNDS", "1"))
SERVICES = pytest.mark.parametrize("service", ["ssm", "secretsmanager"])


def store_of(service: str, api: object) -> KeyStore:
    make: Callable[[AwsKeys, Any], KeyStore] = ParameterKeys if service == "ssm" else SecretKeys
    return make(AwsKeys(service, "keys"), api)


async def kids(store: KeyStore) -> set[str]:
    return {key.kid for key in (await store.read()).key_set.keys}


@dataclass
class Operators:
    """Commands, by what they did: keys that they printed, that they began to remove, and that they have removed."""

    store: KeyStore
    choices: random.Random
    published: set[str] = field(default_factory=set)
    removing: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)

    async def work(self, commands: int) -> None:
        for _ in range(commands):
            await asyncio.sleep(self.choices.random() * 0.2)
            if self.choices.random() < 0.7:
                self.published |= {key.kid for key in (await rotate_keys(self.store, TTL, NOW)).after}
            else:
                kid = self.choices.choice(sorted(await kids(self.store)))
                self.removing.add(kid)
                with contextlib.suppress(KeyFileError):  # another command was faster
                    await remove_key(self.store, kid, NOW)
                self.removed.add(kid)

    async def watch(self) -> None:
        """Read as a service does: what commands that have ended did is seen by every read that begins then."""
        while True:
            published, removed = set(self.published), set(self.removed)
            stored = await self.store.read()
            seen = {key.kid for key in stored.key_set.keys}
            assert not seen & removed
            assert published - self.removing <= seen
            assert [key.status for key in stored.key_set.keys].count(KeyStatus.SIGNING) == 1
            await asyncio.sleep(self.choices.random() * 0.05)


@SERVICES
@pytest.mark.parametrize("dies", [False, True], ids=["all end", "one dies"])
@jumping
async def test_no_key_is_lost_and_none_that_was_removed_comes_back(service: str, dies: bool) -> None:  # noqa: FBT001
    """Every request and response takes its time, so that each round has another order; one command may be killed."""
    for seed in range(ROUNDS):
        choices = random.Random(seed)  # noqa: S311 - repeatable
        store = store_of(service, AsyncApi(FakeAws(), lambda: choices.random() * 0.1))  # noqa: B023 - of this round
        await generate_keys(store, "ES256", NOW - timedelta(days=1))
        operators = Operators(store, choices)
        watching = asyncio.create_task(operators.watch())
        work = [asyncio.create_task(operators.work(2)) for _ in range(3)]
        if dies:
            victim = asyncio.create_task(rotate_keys(store, TTL, NOW))
            await asyncio.sleep(choices.random() * 0.8)
            victim.cancel()
            await asyncio.wait([victim])
        await asyncio.gather(*work)
        assert not watching.done(), watching.exception()
        watching.cancel()
        seen = await kids(store)
        assert operators.published - operators.removing <= seen
        assert not operators.removed & seen


def at(times: Sequence[float]) -> Callable[[], float]:
    """Return pauses that let requests arrive at these times; their responses, and later requests, are immediate."""
    steps = (later - earlier for earlier, later in itertools.pairwise((0.0, *times)))
    pauses = itertools.chain.from_iterable((step, 0.0) for step in steps)
    return lambda: next(pauses, 0.0)


@SERVICES
@jumping
async def test_in_every_order_of_two_rotations_both_new_keys_are_kept(service: str) -> None:
    """A rotation makes three requests. Those of the second one come between any of the first one's."""
    for times in itertools.combinations_with_replacement((0.5, 1.5, 2.5, 3.5), 3):
        aws = FakeAws()
        first, second = (store_of(service, AsyncApi(aws, at(each))) for each in ((1.0, 2.0, 3.0), times))
        old, following = await generate_keys(store_of(service, AsyncApi(aws)), "ES256", NOW - timedelta(days=1))
        changes = await asyncio.gather(*(rotate_keys(store, TTL, NOW) for store in (first, second)))
        stored = (await first.read()).key_set.keys
        printed = {key.kid for change in changes for key in change.after}
        status = {key.kid: key.status for key in stored}
        assert status.keys() == printed
        if service == "ssm":  # for whoever reads the parameter without its history
            assert {jwk["kid"] for jwk in json.loads(aws.parameters["keys"][-1]["Value"])["keys"]} == printed
        assert len(printed) == 4
        assert status[old.kid] is KeyStatus.RETIRED
        # One that began after the other one had ended is a further rotation.
        assert status[following.kid] is (KeyStatus.RETIRED if set(times) in ({0.5}, {3.5}) else KeyStatus.SIGNING)


@jumping
async def test_a_write_that_aws_refuses_because_of_another_one_is_repeated() -> None:
    aws = FakeAws()
    store = store_of("ssm", AsyncApi(aws))
    await generate_keys(store, "ES256", NOW - timedelta(days=1))
    refused: list[str] = []

    def refuse_once(operation: str, _: object) -> None:
        if operation == "PutParameter" and not refused:
            refused.append(operation)
            raise RefusalError("TooManyUpdates")

    aws.before = refuse_once
    change = await rotate_keys(store, TTL, NOW)
    assert refused
    assert (await store.read()).key_set.keys == change.after


@jumping
async def test_a_lost_response_to_the_last_step_is_recognised() -> None:
    """The library repeats the request, which AWS refuses: the label has been moved."""
    aws = FakeAws()
    store = store_of("secretsmanager", AsyncApi(aws))
    await generate_keys(store, "ES256", NOW - timedelta(days=1))

    def do_twice(operation: str, request: dict[str, Any]) -> None:
        aws.before = lambda *_: None
        if operation == "UpdateSecretVersionStage":
            aws.do(operation, request)
        else:
            aws.before = do_twice

    aws.before = do_twice
    change = await rotate_keys(store, TTL, NOW)
    assert (await store.read()).key_set.keys == change.after
    assert len(change.after) == 3
    assert len(aws.secrets["keys"].versions) == 2


@SERVICES
@jumping
async def test_a_change_ends_where_others_write_all_the_time(service: str) -> None:
    aws = FakeAws()
    store = store_of(service, AsyncApi(aws))
    await generate_keys(store, "ES256", NOW - timedelta(days=1))
    (leaked, _) = (await store.read()).key_set.keys

    def write_before(operation: str, _: object) -> None:
        if operation == "PutParameter":
            aws.parameters["keys"].append({**aws.parameters["keys"][-1], "Version": len(aws.parameters["keys"]) + 1})
        if operation == "UpdateSecretVersionStage":
            secret = aws.secrets["keys"]
            version = f"other {len(secret.versions)}"
            secret.versions[version] = secret.versions[secret.labels["AWSCURRENT"]]
            secret.labels["AWSCURRENT"] = version

    aws.before = write_before
    with pytest.raises(
        KeyFileError, match=rf"^{service}:keys: other commands change it all the time; see authsvc keys"
    ):
        await remove_key(store, leaked.kid, NOW)


@jumping
async def test_the_key_that_encrypts_a_parameter_stays() -> None:
    aws = FakeAws()
    store = store_of("ssm", AsyncApi(aws))
    await generate_keys(store, "ES256", NOW - timedelta(days=1))
    aws.parameters["keys"][0]["KeyId"] = "alias/ours"
    for _ in range(4):
        await rotate_keys(store, TTL, NOW)
    assert {version["KeyId"] for version in aws.parameters["keys"]} == {"alias/ours"}
    assert {version["Type"] for version in aws.parameters["keys"]} == {"SecureString"}


@jumping
async def test_of_the_history_all_that_aws_keeps_is_merged() -> None:
    aws = FakeAws()
    store = store_of("ssm", AsyncApi(aws))
    await generate_keys(store, "ES256", NOW - timedelta(days=1))
    versions = aws.parameters["keys"]
    good = json.loads(versions[0]["Value"])
    versions += [{**versions[0], "Version": number} for number in range(2, 105)]
    versions[-2]["Value"] = "edited by hand"
    versions[-1]["Value"] = json.dumps(good | {"merged_version": 0})
    aws.operations.clear()
    stored = await store.read()
    assert (stored.version, stored.key_set.jwks) == (104, good["keys"])
    assert len(aws.operations) == 100


@jumping
async def test_a_set_that_was_put_by_hand_replaces_everything() -> None:
    """For instance a backup."""
    aws = FakeAws()
    store = store_of("ssm", AsyncApi(aws))
    await generate_keys(store, "ES256", NOW - timedelta(days=1))
    versions = aws.parameters["keys"]
    versions.append({**versions[0], "Version": 2, "Value": new_key_set("ES256", NOW).to_json()})
    versions.append({**versions[0], "Version": 3})
    assert len(await kids(store)) == 2


@jumping
async def test_a_version_of_the_history_that_cannot_be_read_now_is_an_error() -> None:
    """A ring without its keys would lack some that others have published."""
    aws = FakeAws()
    store = store_of("ssm", AsyncApi(aws))
    await generate_keys(store, "ES256", NOW - timedelta(days=1))
    versions = aws.parameters["keys"]
    unmerged = json.dumps(json.loads(versions[0]["Value"]) | {"merged_version": 1})
    versions += [{**versions[0], "Version": 2}, {**versions[0], "Version": 3, "Value": unmerged}]

    del versions[1]
    with pytest.raises(KeyFileError, match="ssm:GetParameter is refused: ParameterVersionNotFound"):
        await store.read()
