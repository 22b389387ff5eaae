"""Distinct tokens in any number: memory stays bounded, and nothing of a call stays behind."""

import asyncio
import contextlib
import gc
from collections.abc import Sequence

import pytest

from authsvc.client import AsyncClient, InvalidTokenError
from authsvc.client.loop_session import LoopSession
from authsvc.client.validation.batches import Question
from authsvc.client.validation.cache import REFUSALS_SIZE, Answer
from tests.client.doubles import identity

TOKENS = [10_000, pytest.param(100_000, marks=pytest.mark.engines), pytest.param(1_000_000, marks=pytest.mark.soak)]
CACHE_SIZE = 1000
CALLERS = 50
GROWTH_OBJECTS = 500


async def send(self: LoopSession, questions: Sequence[Question], timeout: float) -> Sequence[Answer]:
    """Answer like a service that knows every second token."""
    await asyncio.sleep(0)
    return [
        identity(each.token) if each.token.endswith(("0", "2", "4", "6", "8")) else InvalidTokenError("MALFORMED")
        for each in questions
    ]


@pytest.mark.parametrize("tokens", TOKENS)
async def test_distinct_tokens(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoopSession, "_send", send)
    async with AsyncClient("127.0.0.1:1", max_staleness=60, stale_if_error=600, cache_size=CACHE_SIZE) as client:
        numbers = iter(range(tokens))

        async def caller(until: int) -> None:
            for number in numbers:
                with contextlib.suppress(InvalidTokenError):
                    await client.validate(f"token {number}")
                if number >= until:
                    return

        async def load(until: int) -> int:
            await asyncio.gather(*(caller(until) for _ in range(CALLERS)))
            gc.collect()
            return len(gc.get_objects())

        await load(tokens // 4)
        before = await load(tokens // 2)
        after = await load(tokens)
        assert after - before < GROWTH_OBJECTS
        assert len(client._cache) == CACHE_SIZE + REFUSALS_SIZE  # noqa: SLF001
        assert client.stats().misses == tokens
        assert not asyncio.all_tasks() - {asyncio.current_task()}
