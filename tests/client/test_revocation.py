"""Rounds of revocation over two services: no acceptance beyond the budget, none at all without one.

`AUTHSVC_TEST_REVOCATION_ROUNDS=10000` is the long form, which `make soak` runs.
"""

import asyncio
import os
import random
import time

from authsvc.client import AsyncClient, InvalidTokenError
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.client.conftest import Two
from tests.support import WITNESS

ROUNDS = int(os.environ.get("AUTHSVC_TEST_REVOCATION_ROUNDS", "500"))
AT_ONCE = 20
BUDGET_SECONDS = 0.03
CALLS = 12


async def new_session(two: Two, user_id: str) -> str:
    """Begin a session without a password, whose hash would take most of the test's time."""
    user = await two.first.service.users.get_user(user_id)
    tokens = await two.first.service.sessions.begin(user, "", "")
    WITNESS.hide(tokens.access_token.text, tokens.refresh_token.text)
    return tokens.access_token.text


async def is_accepted(client: AsyncClient, token: str, **options: float) -> bool:
    try:
        await client.validate(token, **options)  # type: ignore[arg-type]
    except InvalidTokenError as error:
        assert error.reason == "SESSION_REVOKED"
        return False
    return True


async def test_revocations(two: Two) -> None:
    """Another program revokes on either service while this client validates all the time."""
    users = [(await two.first.create_user(f"u{number}@example.com")).user_id for number in range(AT_ONCE)]
    chance = random.Random(16)  # noqa: S311 - a test
    accepted_within = refused = 0
    async with AsyncClient(two.target) as client:

        async def one_round() -> None:
            nonlocal accepted_within, refused
            token = await new_session(two, chance.choice(users))
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

        for _ in range(ROUNDS // AT_ONCE):
            await asyncio.gather(*(one_round() for _ in range(AT_ONCE)))
    assert refused == ROUNDS // AT_ONCE * AT_ONCE


async def test_revocations_that_the_cache_alone_answers(two: Two) -> None:
    """No fresh call helps the cache: what it says beyond the budget must come from a read begun within it."""
    users = [(await two.first.create_user(f"u{number}@example.com")).user_id for number in range(AT_ONCE)]
    late = early = 0
    async with AsyncClient(two.target, max_staleness=BUDGET_SECONDS) as client:

        async def one_round() -> None:
            nonlocal late, early
            token = await new_session(two, random.choice(users))  # noqa: S311 - a test
            assert await is_accepted(client, token)
            revoked_at = await _revoke(two.second.auth, token)
            for _ in range(CALLS):
                begin = time.monotonic()
                accepted = await is_accepted(client, token)
                if begin > revoked_at + BUDGET_SECONDS:
                    assert not accepted
                    late += 1
                else:
                    early += accepted
                await asyncio.sleep(BUDGET_SECONDS / 8)

        for _ in range(max(1, ROUNDS // AT_ONCE // 5)):
            await asyncio.gather(*(one_round() for _ in range(AT_ONCE)))
    assert late
    assert early


async def _revoke(service: "object", token: str) -> float:
    """Return when the revocation was acknowledged."""
    await service.RevokeToken(auth_pb2.RevokeTokenRequest(token=token))  # type: ignore[attr-defined]
    return time.monotonic()
