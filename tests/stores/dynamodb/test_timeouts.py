"""The pauses between attempts, on a clock that jumps from timer to timer."""

import pytest

from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from tests.virtual_clock import jumping, now

TIMEOUTS = DynamoDBTimeouts(max_attempts=4, backoff_seconds=0.1)
NEVER = float("inf")


@jumping
async def test_pauses_grow_and_vary() -> None:
    longest = []
    for attempts in (1, 2, 3):
        lengths = set()
        for _ in range(200):
            begun = now()
            assert await TIMEOUTS.pause(attempts, NEVER)
            lengths.add(now() - begun)
        assert len(lengths) > 190
        longest.append(max(lengths))
    assert longest == pytest.approx([0.1, 0.2, 0.4], rel=0.1)


@jumping
async def test_nothing_follows_the_last_attempt() -> None:
    begun = now()
    assert not await TIMEOUTS.pause(4, NEVER)
    assert now() == begun


@jumping
async def test_no_pause_goes_beyond_the_deadline() -> None:
    begun = now()
    assert not await TIMEOUTS.pause(3, begun)
    assert now() == begun
