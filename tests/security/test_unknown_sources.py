"""Attacks without an account: no default account, no bypass of tokens, no predictable value, no denial of service."""

import ast
import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import authsvc
from authsvc.config import ServeSettings
from authsvc.server import app
from authsvc.stores.opening import open_store
from authsvc.usecases.users import iterate_users
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.support import ADMIN_EMAIL, PASSWORD, PATIENT_LIMITS, Client, FakeClock, connected, failure, served

ACTIVE, INACTIVE = auth_pb2.TOKEN_STATE_ACTIVE, auth_pb2.TOKEN_STATE_INACTIVE
HOME = "192.0.2.7"
GUESSERS = 40


async def test_there_is_no_account_until_somebody_makes_one(settings: ServeSettings, clock: FakeClock) -> None:
    """ASVS-6.3.2."""
    async with open_store(settings) as store:
        await store.create_tables()
        async with app.run_app(settings, clock, limits=PATIENT_LIMITS) as service, connected(service) as client:
            for email in ("admin@example.com", "admin@localhost", "root@example.com", "authsvc@authsvc"):
                for password in ("admin", "changeit", "authsvc", PASSWORD):
                    assert (await failure(client.log_in(email, password))).reason != "OK"
        assert [user async for user in iterate_users(store)] == []


@pytest.mark.parametrize(
    "metadata",
    [
        ("x-forwarded-user", ADMIN_EMAIL),
        ("x-auth-request-user", ADMIN_EMAIL),
        ("x-real-ip", "127.0.0.1"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-client-cert", "URI=spiffe://example.com/admin"),
        ("x-internal", "true"),
        ("x-authsvc-bypass", "1"),
        ("cookie", "session=admin"),
        ("x-http-method-override", "GET"),
    ],
    ids=lambda metadata: metadata[0],
)
async def test_no_metadata_replaces_a_token(client: Client, metadata: tuple[str, str]) -> None:
    """ASVS-7.2.1."""
    request = auth_pb2.ValidateTokenRequest(token="garbage")
    stub: Any = auth_grpc.AuthServiceStub(client.channel)
    assert (await stub.ValidateToken(request, metadata=(metadata,))).state == INACTIVE
    unauthenticated = replace(client, admin=(metadata,))
    assert (await failure(unauthenticated.get_user(email=ADMIN_EMAIL))).reason == "CALLER_UNAUTHENTICATED"


# No other module may use them, and these modules only the listed names.
NOT_FOR_SECRETS = {
    # Backoff, pushback, cache lifetimes, waits of refusals; which calls get a span.
    "random": {
        "timeouts": {"SystemRandom"},
        "statuses": {"SystemRandom"},
        "login_throttle": {"SystemRandom"},
        "refusal_pacer": {"SystemRandom"},
        "key_store": {"SystemRandom"},
        "spans": {"random"},
    },
    # Idempotency tokens: of a transaction, of CreateUser.
    "uuid": {"client": {"uuid4"}, "async_client": {"uuid4"}},
}


def test_nothing_secret_is_made_by_random_or_uuid() -> None:
    """ASVS-11.5.1: `secrets` alone makes tokens, keys, ids and temporary passwords."""
    used: dict[str, dict[str, set[str]]] = {}
    for path in Path(authsvc.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in NOT_FOR_SECRETS, f"{path.name} hides what it takes of {node.module}"
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = node.value.id
                if name in NOT_FOR_SECRETS:
                    used.setdefault(name, {}).setdefault(path.stem, set()).add(node.attr)
    assert used == NOT_FOR_SECRETS


@pytest.fixture
async def with_costly_hashes(settings: ServeSettings, clock: FakeClock) -> AsyncIterator[Client]:
    """A client of a service with production's lowest cost, at which the hash queue fills up."""
    async with served(replace(settings, bcrypt_cost=10), clock) as client:
        yield client


async def test_guesses_without_pause_fail_no_validation_and_no_login_from_home(with_costly_hashes: Client) -> None:
    """L3: most of forty clients, each from its own address, are refused while other hashes are computed."""
    client = with_costly_hashes
    await client.create_user()
    token = (await client.log_in(client_address=HOME)).tokens.access_token
    answers: Counter[str] = Counter()

    async def guess(number: int) -> None:
        while True:
            call = client.log_in(password=f"wrong password {number}", client_address=f"10.0.0.{number}")
            refused = await failure(call)
            answers[refused.reason] += 1
            assert refused.reason == "INVALID_CREDENTIALS" or (refused.retry_seconds or 0) >= 1

    async with asyncio.TaskGroup() as group:
        guessing = [group.create_task(guess(number)) for number in range(GUESSERS)]
        while not answers["OVERLOADED"]:
            assert (await client.validate(token)).state == ACTIVE
        for _ in range(3):
            assert (await client.log_in(client_address=HOME)).tokens.access_token
            validations = await asyncio.gather(*(client.validate(token) for _ in range(100)))
            assert {validation.state for validation in validations} == {ACTIVE}
        for task in guessing:
            task.cancel()
    assert answers.keys() <= {"OVERLOADED", "TOO_MANY_ATTEMPTS", "INVALID_CREDENTIALS"}
