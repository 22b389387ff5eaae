"""Renewal ahead: in the steady state no request waits, and the service sees a few batches a second."""

import asyncio

import pytest

from authsvc.client import UnavailableError
from tests.client.doubles import Rig, Service, identity
from tests.virtual_clock import jumping, now


@jumping
async def test_an_entry_used_in_the_second_half_is_renewed_in_the_background() -> None:
    rig = Rig()
    await rig.validate("a", 5)
    await asyncio.sleep(2.4)
    await rig.validate("a", 5)
    await asyncio.sleep(1)
    assert len(rig.service.batches) == 1
    before = now()
    await rig.validate("a", 5)
    await rig.validate("a", 5)
    assert now() == before
    await asyncio.sleep(0.2)
    assert rig.service.batches == [["a"], ["a"]]
    assert rig.service.times[1] == pytest.approx(before + 0.1)
    await asyncio.sleep(2)
    before = now()
    await rig.validate("a", 5)
    assert now() == before


@jumping
async def test_renewals_are_gathered_for_a_tenth_of_the_budget() -> None:
    rig = Rig()
    for token in ("a", "b", "c"):
        await rig.validate(token, 0.5)
    await asyncio.sleep(0.3)
    begin = now()
    await rig.validate("a", 0.5)
    await asyncio.sleep(0.04)
    await rig.validate("b", 0.5)
    await rig.validate("c", 0.35)  # sooner than the others
    await asyncio.sleep(0.1)
    assert rig.service.batches[3:] == [["a", "b", "c"]]
    assert rig.service.times[3] == pytest.approx(begin + 0.05)


@jumping
async def test_a_smaller_budget_brings_the_renewals_forward() -> None:
    rig = Rig()
    for token in ("a", "b"):
        await rig.validate(token, 5)
    await asyncio.sleep(2.6)
    begin = now()
    await rig.validate("a", 5)
    await rig.validate("b", 3)
    await asyncio.sleep(0.09)
    assert len(rig.service.batches) == 2
    await asyncio.sleep(0.02)
    assert rig.service.times[2] == pytest.approx(begin + 0.1)
    await asyncio.sleep(0.19)
    begin = now()
    await rig.validate("a", 0.3)
    await rig.validate("b", 0.25)
    await asyncio.sleep(0.04)
    assert rig.service.times[3] == pytest.approx(begin + 0.025)


@jumping
async def test_two_thousand_requests_a_second() -> None:
    rig = Rig()
    rig.cache._size = 10_000  # noqa: SLF001 - the rig's is small
    tokens = [str(number) for number in range(100)]
    waited = 0
    for step in range(4000):  # 200 requests a second for 20 s
        token = tokens[step * 7 % len(tokens)]
        before = now()
        await rig.validate(token, 5)
        waited += now() > before
        await asyncio.sleep(0.005)
    assert waited == len(tokens)
    assert len(rig.service.batches) - len(tokens) < 20 / 0.1


@jumping
async def test_a_renewal_that_fails_is_tried_again() -> None:
    rig = Rig()
    await rig.validate("a", 5)
    rig.service.answer = lambda token: UnavailableError(cause="down")
    await asyncio.sleep(3)
    await rig.validate("a", 5)
    await asyncio.sleep(0.15)
    assert len(rig.service.batches) == 2
    await rig.validate("a", 5)  # the outage is known, and its first probe is not due
    rig.service.answer = identity
    await asyncio.sleep(0.1)
    await rig.validate("a", 5)  # the probe
    await asyncio.sleep(0.01)
    assert rig.service.batches == [["a"]] * 3
    await asyncio.sleep(2)
    before = now()
    await rig.validate("a", 5)
    assert now() == before


@jumping
async def test_no_renewal_after_close() -> None:
    rig = Rig()
    await rig.validate("a", 5)
    await asyncio.sleep(3)
    await rig.validate("a", 5)
    await rig.validator.close()
    await asyncio.sleep(1)
    assert len(rig.service.batches) == 1
    await rig.validator.close()


@jumping
async def test_a_degraded_renewal_is_not_stored() -> None:
    rig = Rig(Service())
    await rig.validate("a", 5, stale_if_error=60)
    rig.service.answer = lambda token: identity(token, degraded=True)
    await asyncio.sleep(3)
    await rig.validate("a", 5, stale_if_error=60)
    await asyncio.sleep(0.2)
    assert len(rig.service.batches) == 2
    assert not (await rig.validate("a", 5, stale_if_error=60)).degraded
    await asyncio.sleep(2)
    assert (await rig.validate("a", 5, stale_if_error=60)).degraded
