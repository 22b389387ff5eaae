"""Rounds of revocation over two services: no acceptance beyond the budget, none at all without one."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from authsvc.client import AsyncClient, InvalidTokenError
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.client.conftest import Two
from tests.support import WITNESS

ROUNDS = [100, pytest.param(500, marks=pytest.mark.engines), pytest.param(10_000, marks=pytest.mark.soak)]
AT_ONCE = 20
BUDGET_SECONDS = 0.03
REVOCATIONS_OF_A_USER = 25
MAX_CALLS = 10_000


async def user_ids(two: Two, times: int) -> AsyncIterator[list[str]]:
    """Yield AT_ONCE users so many times, now and then new ones: too many revocations end all sessions of a user."""
    users: list[str] = []
    for time_ in range(times):
        if time_ % REVOCATIONS_OF_A_USER == 0:
            emails = [f"u{time_}-{number}@example.com" for number in range(AT_ONCE)]
            users = [(await two.first.create_user(email)).user_id for email in emails]
        yield users


async def new_session(two: Two, user_id: str) -> str:
    """Begin a session without a password, whose hash would take most of the test's time."""
    user = await two.first.service.users.get_user(user_id)
    tokens = await two.first.service.sessions.begin(user, "", "")
    WITNESS.hide(tokens.access_token.text, tokens.refresh_token.text)
    return tokens.access_token.text


async def is_accepted(client: AsyncClient, token: str, **options: float) -> bool:
    try:
        await client.validate(token, **options)
    except InvalidTokenError:
        return False
    return True


@pytest.mark.parametrize("rounds", ROUNDS)
async def test_revocations(two: Two, rounds: int) -> None:
    """Another program revokes on either service while this client validates all the time."""
    chance = random.Random(16)  # noqa: S311 - a test
    accepted_within = refused = 0
    async with AsyncClient(two.target) as client:

        async def one_round(user_id: str) -> None:
            nonlocal accepted_within, refused
            token = await new_session(two, user_id)
            assert await is_accepted(client, token, max_staleness=BUDGET_SECONDS)
            revoker = chance.choice([two.first, two.second]).auth
            revoked = asyncio.create_task(_revoke(revoker, token))
            while not revoked.done():
                await is_accepted(client, token, max_staleness=BUDGET_SECONDS)
                await asyncio.sleep(0.002)
            revoked_at = await revoked
            assert not await is_accepted(client, token)
            begin = time.monotonic()
            accepted = await is_accepted(client, token, max_staleness=BUDGET_SECONDS)
            assert not accepted or begin <= revoked_at + BUDGET_SECONDS
            accepted_within += accepted
            refused += not accepted

        async for users in user_ids(two, rounds // AT_ONCE):
            await asyncio.gather(*map(one_round, users))
    assert refused == rounds // AT_ONCE * AT_ONCE


@pytest.mark.parametrize("rounds", ROUNDS)
async def test_revocations_that_the_cache_alone_answers(two: Two, rounds: int) -> None:
    """No fresh call helps the cache: what it says beyond the budget must come from a read begun within it."""
    late = 0
    async with AsyncClient(two.target, max_staleness=BUDGET_SECONDS) as client:

        async def one_round(user_id: str) -> None:
            nonlocal late
            token = await new_session(two, user_id)
            assert await is_accepted(client, token)
            revoked_at = await _revoke(two.second.auth, token)
            for _ in range(MAX_CALLS):
                begin = time.monotonic()
                accepted = await is_accepted(client, token)
                if begin > revoked_at + BUDGET_SECONDS:
                    assert not accepted
                    late += 1
                    break
                await asyncio.sleep(BUDGET_SECONDS / 8)

        async for users in user_ids(two, rounds // AT_ONCE // 5):
            await asyncio.gather(*map(one_round, users))
    assert late == rounds // AT_ONCE // 5 * AT_ONCE


async def _revoke(service: Any, token: str) -> float:
    """Return when the revocation was acknowledged."""
    await service.RevokeToken(auth_pb2.RevokeTokenRequest(token=token))
    return time.monotonic()
