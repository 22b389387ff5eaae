"""Outages: an older answer stands in within stale_if_error, and one probe at a time asks whether there still is one."""

import asyncio
import itertools
import logging

import pytest

from authsvc.client import Identity, InvalidTokenError, UnavailableError
from authsvc.client.validation.cache import Answer
from tests.client.doubles import Rig, Service, identity
from tests.virtual_clock import jumping, now

DOWN = UnavailableError(cause="connection refused")
HANGS = 1000.0


def down(token: str) -> Answer:
    return DOWN


async def timed(rig: Rig, **options: float) -> tuple[Identity | str, float]:
    """The answer or the name of the error, and how long it took."""
    begin = now()
    try:
        answer: Identity | str = await rig.validate("a", **options)
    except (UnavailableError, InvalidTokenError) as error:
        answer = type(error).__name__
    return answer, round(now() - begin, 6)


STALE = identity("a", degraded=True)


@jumping
async def test_without_a_budget_an_outage_is_an_error() -> None:
    rig = Rig(Service(answer=down))
    with pytest.raises(UnavailableError, match="connection refused; try again in 1 s"):
        await rig.validate("a")
    rig.service.answer = identity
    await rig.validate("a", 5)
    rig.service.answer = down
    assert await timed(rig) == ("UnavailableError", 0.001)


@jumping
async def test_a_failure_is_answered_from_the_entry() -> None:
    rig = Rig()
    await rig.validate("a")
    rig.service.answer = down
    assert await timed(rig, stale_if_error=60) == (STALE, 0.001)
    assert rig.counts.stale_answers == 1


@jumping
async def test_a_service_that_hangs_costs_a_quarter_of_a_second_once() -> None:
    rig = Rig()
    await rig.validate("a")
    rig.service.seconds = HANGS
    assert await timed(rig, stale_if_error=60) == (STALE, 0.25)
    assert await timed(rig, stale_if_error=60) == (STALE, 0.0)
    assert await timed(rig) == ("UnavailableError", 2.5)


@jumping
async def test_a_slow_answer_still_counts() -> None:
    rig = Rig()
    await rig.validate("a")
    rig.service.seconds = 0.3
    assert await timed(rig, stale_if_error=60) == (STALE, 0.25)
    await asyncio.sleep(0.06)
    rig.service.seconds = 0.001
    assert await timed(rig, stale_if_error=60) == (identity("a"), 0.001)


@jumping
async def test_a_short_timeout_is_no_outage() -> None:
    rig = Rig(Service(seconds=0.2))
    await rig.validate("a")
    assert await timed(rig, stale_if_error=60, timeout=0.1) == (STALE, 0.1)
    assert (await timed(rig, stale_if_error=60))[0] == identity("a")


@jumping
async def test_never_beyond_stale_if_error() -> None:
    rig = Rig()
    await rig.validate("a")
    rig.service.answer = down
    await asyncio.sleep(10)
    assert await timed(rig, stale_if_error=10.0) == ("UnavailableError", 0.001)
    assert await timed(rig, stale_if_error=10.1) == (STALE, 0.0)


@jumping
async def test_never_beyond_the_expiry() -> None:
    rig = Rig(Service(answer=lambda token: identity(token, lifetime_seconds=10)))
    await rig.validate("a")
    rig.service.answer = down
    await asyncio.sleep(9.9)
    assert (await timed(rig, stale_if_error=60))[0] == identity("a", lifetime_seconds=10, degraded=True)
    await asyncio.sleep(0.1)
    assert (await timed(rig, stale_if_error=60))[0] == "UnavailableError"


@jumping
async def test_an_entry_dropped_while_a_call_waits_does_not_stand_in() -> None:
    rig = Rig()
    await rig.validate("a")
    rig.service.seconds = HANGS
    call = asyncio.create_task(timed(rig, stale_if_error=60))
    await asyncio.sleep(0.1)
    rig.cache.drop_token(b"a")
    assert await call == ("UnavailableError", 0.25)


@jumping
async def test_an_invalid_token_stays_invalid() -> None:
    rig = Rig()
    await rig.validate("a")
    rig.service.answer = lambda token: InvalidTokenError("SESSION_REVOKED")
    assert (await timed(rig, stale_if_error=60))[0] == "InvalidTokenError"
    rig.service.answer = down
    assert await timed(rig, stale_if_error=60) == ("InvalidTokenError", 0.0)


@jumping
async def test_an_outage_does_not_make_a_disabled_user_invalid() -> None:
    rig = Rig(Service(answer=lambda token: InvalidTokenError("USER_DISABLED")))
    assert (await timed(rig))[0] == "InvalidTokenError"
    rig.service.answer = down
    assert (await timed(rig, stale_if_error=60))[0] == "UnavailableError"


@jumping
async def test_one_probe_at_a_time_with_a_backoff() -> None:
    rig = Rig()
    await rig.validate("a")
    rig.service.answer = down
    begin = now()
    while now() < begin + 6:
        await asyncio.gather(*(timed(rig, stale_if_error=600) for _ in range(3)))
        await asyncio.sleep(0.01)
    times = rig.service.times[1:]  # of the failures, then of the probes
    gaps = [round(after - before, 2) for before, after in itertools.pairwise(times[2:])]
    assert gaps[:6] == pytest.approx([0.2, 0.4, 0.8, 1.0, 1.0, 1.0], abs=0.02)
    assert times[2] - times[1] == pytest.approx(0.1, abs=0.02)
    assert {len(batch) for batch in rig.service.batches[3:]} == {1}
    rig.service.answer = identity
    await asyncio.sleep(1)
    assert (await timed(rig, stale_if_error=600))[0] == STALE
    await asyncio.sleep(0.01)
    assert (await timed(rig, stale_if_error=600))[0] == identity("a")


@jumping
async def test_a_probe_that_hangs_is_the_only_one() -> None:
    rig = Rig()
    await rig.validate("a")
    rig.service.seconds = HANGS
    await timed(rig, stale_if_error=600)
    for _ in range(20):
        assert await timed(rig, stale_if_error=600) == (STALE, 0.0)
        await asyncio.sleep(0.1)
    assert len(rig.service.batches) == 3


@jumping
async def test_refused_garbage_does_not_end_an_outage() -> None:
    rig = Rig()
    await rig.validate("a")
    rig.service.answer = lambda token: DOWN if token == "a" else InvalidTokenError("MALFORMED")
    await timed(rig, stale_if_error=60)
    with pytest.raises(InvalidTokenError):
        await rig.validate("garbage")
    assert await timed(rig, stale_if_error=60) == (STALE, 0.0)


@jumping
async def test_an_answer_to_any_call_ends_an_outage() -> None:
    rig = Rig()
    await rig.validate("a")
    for refusal in (None, InvalidTokenError("USER_DISABLED")):
        rig.service.answer = down
        assert await timed(rig, stale_if_error=60) == (STALE, 0.001)
        rig.service.answer = lambda token, refusal=refusal: refusal or identity(token)  # type: ignore[misc]
        await asyncio.gather(rig.validate("b"), return_exceptions=True)
        rig.service.answer = identity
        assert await timed(rig, stale_if_error=60) == (identity("a"), 0.001)


@jumping
async def test_degraded_answers_are_handed_on() -> None:
    rig = Rig(Service(answer=lambda token: identity(token, degraded=True)))
    assert (await rig.validate("a", 5, stale_if_error=60)).degraded
    assert len(rig.service.batches) == 1
    assert (await rig.validate("a", 5, stale_if_error=60)).degraded
    assert len(rig.service.batches) == 2


def test_begin_and_end_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    @jumping
    async def run() -> None:
        rig = Rig(Service(answer=down))
        for _ in range(3):
            await timed(rig)
        rig.service.answer = identity
        for _ in range(3):
            await timed(rig)

    with caplog.at_level(logging.INFO, "authsvc.client"):
        run()
    assert [record.getMessage() for record in caplog.records] == [
        "the service cannot answer: connection refused",
        "the service answers again",
    ]
