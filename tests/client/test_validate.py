"""validate, against two real services: freshness, budgets, refusals and what the service is asked."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from authsvc.client import AsyncClient, Identity, InvalidFieldError, InvalidTokenError
from authsvc.client.clock import Clock
from tests.client.conftest import Two
from tests.support import ADMIN_EMAIL, FakeClock


@pytest.fixture
async def within_5_s(two: Two, clock: FakeClock) -> AsyncIterator[AsyncClient]:
    """A client of both services whose answers may be five seconds old, on the services' clock."""
    its_clock = Clock(clock.monotonic, lambda: clock.now.timestamp())  # noqa: PLW0108 - another `now` each time
    async with AsyncClient(two.target, max_staleness=timedelta(seconds=5), clock=its_clock) as client:
        yield client


async def reason(client: AsyncClient, token: str, **options: float) -> str:
    with pytest.raises(InvalidTokenError) as caught:
        await client.validate(token, **options)
    return caught.value.reason


async def test_the_identity_is_what_the_service_says(two: Two, backend: AsyncClient) -> None:
    user = await two.first.create_user()
    token = await two.first.access_token()
    answer = await two.first.validate(token)
    for found in (await backend.validate(token), (await asyncio.gather(*map(backend.validate, [token] * 3)))[2]):
        assert found == Identity(
            user_id=user.user_id,
            email="alice@example.com",
            role="user",
            session_id=answer.session_id,
            token_id=answer.token_id,
            issue_time=answer.issue_time.ToDatetime(found.issue_time.tzinfo),
            expire_time=answer.expire_time.ToDatetime(found.issue_time.tzinfo),
            checked_time=answer.checked_time.ToDatetime(found.issue_time.tzinfo),
            degraded=False,
        )


async def test_by_default_every_answer_is_fresh(two: Two, backend: AsyncClient) -> None:
    user = await two.first.create_user()
    token = await two.first.access_token()
    for role in ("editor", "owner", "user"):
        await two.second.update_user(user.user_id, role=role)
        assert (await backend.validate(token)).role == role
    assert backend.stats().hits == 0
    await two.second.revoke(token)
    assert await reason(backend, token) == "SESSION_REVOKED"


async def test_many_at_once_are_few_requests(two: Two, backend: AsyncClient) -> None:
    tokens = []
    for number in range(5):
        await two.first.create_user(f"u{number}@example.com")
        tokens.append(await two.first.access_token(f"u{number}@example.com"))
    garbage = [f"garbage {number}" for number in range(20)]
    results = await asyncio.gather(*map(backend.validate, tokens * 30 + garbage), return_exceptions=True)
    assert [each.email for each in results if isinstance(each, Identity)] == [
        f"u{number}@example.com" for number in range(5)
    ] * 30
    assert [each.reason for each in results if isinstance(each, InvalidTokenError)] == ["MALFORMED"] * 20
    stats = backend.stats()
    assert stats.coalesced >= 5 * 28
    assert 1 <= stats.batches <= 3
    assert stats.errors == {"InvalidTokenError": 20}
    assert stats.misses == 170


async def test_within_the_budget_nobody_is_asked(two: Two, within_5_s: AsyncClient, clock: FakeClock) -> None:
    user = await two.first.create_user()
    token = await two.first.access_token()
    first = await within_5_s.validate(token)
    await two.first.update_user(user.user_id, role="editor")
    clock.advance(seconds=2)
    assert await within_5_s.validate(token) is first
    assert within_5_s.stats().hits == 1
    assert (await within_5_s.validate(token, max_staleness=0)).role == "editor"
    assert (await within_5_s.validate(token)).role == "editor"  # the newer answer has taken its place
    clock.advance(seconds=5.1)
    await two.second.revoke(token)
    assert await reason(within_5_s, token) == "SESSION_REVOKED"


async def test_a_budget_of_one_call(two: Two, backend: AsyncClient) -> None:
    await two.first.create_user()
    token = await two.first.access_token()
    first = await backend.validate(token)
    assert await backend.validate(token, max_staleness=timedelta(minutes=5)) is first
    assert await backend.validate(token) is not first


async def test_renewal_ahead(two: Two, within_5_s: AsyncClient, clock: FakeClock) -> None:
    user = await two.first.create_user()
    token = await two.first.access_token()
    await within_5_s.validate(token)
    await two.first.update_user(user.user_id, role="editor")
    clock.advance(seconds=3)
    while (await within_5_s.validate(token)).role != "editor":
        await asyncio.sleep(0)
    assert within_5_s.stats().misses == 1


async def test_an_expired_token_is_asked_again(two: Two, within_5_s: AsyncClient, clock: FakeClock) -> None:
    """The service accepts it for its leeway; the cache does not answer for it any more."""
    await two.first.create_user()
    token = await two.first.access_token()
    clock.advance(minutes=14, seconds=59)
    await within_5_s.validate(token)
    clock.advance(seconds=1)
    await within_5_s.validate(token)
    assert within_5_s.stats().hits == 0
    clock.advance(seconds=31)
    assert await reason(within_5_s, token) == "EXPIRED"


async def test_disabled_and_enabled_again(two: Two, within_5_s: AsyncClient) -> None:
    user = await two.first.create_user()
    token = await two.first.access_token()
    await two.first.update_user(user.user_id, is_active=False)
    assert await reason(within_5_s, token) == "USER_DISABLED"
    await two.first.update_user(user.user_id, is_active=True)
    assert await reason(within_5_s, token) == "USER_DISABLED"
    assert await reason(within_5_s, token, max_staleness=0) == "SESSION_REVOKED"


async def test_refusals_that_stay_are_not_asked_again(two: Two, backend: AsyncClient) -> None:
    for _ in range(3):
        assert await reason(backend, "garbage") == "MALFORMED"
        assert await reason(backend, "rt_garbage") == "WRONG_TYPE"
    stats = backend.stats()
    assert (stats.misses, stats.hits) == (2, 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x" * 8193, "MALFORMED"),
        ("rt_" + "x" * 5_000_000, "WRONG_TYPE"),
        ("\ud800", "MALFORMED"),
        ("é" * 8192, "MALFORMED"),
        ("\0", "MALFORMED"),
    ],
)
async def test_whatever_text_a_user_sends_is_a_refusal(backend: AsyncClient, text: str, expected: str) -> None:
    """ASVS-2.2.2: and no single text spoils the batch of others."""
    assert await reason(backend, text) == expected
    found = await asyncio.gather(*(backend.validate(each) for each in ("a", text, "b")), return_exceptions=True)
    assert [str(each) for each in found] == [
        f"the token is invalid: {each}" for each in ("MALFORMED", expected, "MALFORMED")
    ]
    backend.forget(text)


async def test_an_empty_token_is_the_callers_bug(backend: AsyncClient) -> None:
    with pytest.raises(InvalidFieldError, match="token: is empty"):
        await backend.validate("")
    assert backend.stats().misses == 0


@pytest.mark.parametrize("option", ["max_staleness", "stale_if_error", "timeout"])
@pytest.mark.parametrize("value", [timedelta(seconds=-1), -0.1, float("nan")])
async def test_budgets_out_of_range(backend: AsyncClient, option: str, value: timedelta | float) -> None:
    with pytest.raises(ValueError, match=f"{option} must be zero or more"):
        await backend.validate("garbage", **{option: value})


@pytest.mark.parametrize("for_ever", [timedelta.max, timedelta(days=365_000), float("inf"), 1e300])
@pytest.mark.parametrize("option", ["max_staleness", "stale_if_error", "timeout"])
async def test_for_ever_is_a_budget_too(
    two: Two, backend: AsyncClient, option: str, for_ever: timedelta | float
) -> None:
    await two.first.create_user()
    token = await two.first.access_token()
    calls = [backend.validate(token, **{option: for_ever}), backend.validate(token), backend.validate("garbage")]
    alone, _, refused = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(alone, Identity)
    assert isinstance(refused, InvalidTokenError)


async def test_arguments_are_checked_where_the_cache_answers_too(two: Two, backend: AsyncClient) -> None:
    await two.first.create_user()
    token = await two.first.access_token()
    await backend.validate(token)
    with pytest.raises(ValueError, match="timeout must be zero or more"):
        await backend.validate(token, max_staleness=60, timeout=-1)


@pytest.mark.parametrize("token", [None, b"token", 7, ["token"]])
async def test_a_token_is_a_str(backend: AsyncClient, token: Any) -> None:
    with pytest.raises(TypeError, match=f"token: a str is needed, not {type(token).__name__}"):
        await backend.validate(token)


async def test_forget(two: Two, within_5_s: AsyncClient) -> None:
    await two.first.create_user()
    token = await two.first.access_token()
    await within_5_s.validate(token)
    await two.second.revoke(token)
    await within_5_s.validate(token)
    within_5_s.forget(token)
    assert await reason(within_5_s, token) == "SESSION_REVOKED"


async def test_the_role_of_an_admin(two: Two, backend: AsyncClient) -> None:
    assert (await backend.validate(await two.first.access_token(ADMIN_EMAIL))).role == "admin"
