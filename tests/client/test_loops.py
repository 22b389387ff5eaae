"""One client in several event loops, closed, and dropped without a word."""

import asyncio
import gc
import threading
import weakref

import pytest

from authsvc.client import AsyncClient, InvalidTokenError
from tests.client.conftest import Two


def run_in_thread(work: object) -> None:
    thread = threading.Thread(target=lambda: asyncio.run(work))  # type: ignore[arg-type]
    thread.start()
    thread.join()


async def validate(client: AsyncClient, token: str, results: list[str]) -> None:
    results.append((await client.validate(token)).email)


async def test_a_second_event_loop(two: Two) -> None:
    """The first loop is closed, or still runs in another thread."""
    await two.first.create_user()
    token = await two.first.access_token()
    results: list[str] = []
    client = AsyncClient(two.target)
    await validate(client, token, results)
    for _ in range(3):
        await asyncio.to_thread(asyncio.run, validate(client, token, results))
        assert len(client._sessions._by_loop) == 2  # noqa: SLF001 - those of closed loops do not pile up
    await validate(client, token, results)
    assert results == ["alice@example.com"] * 5
    await client.close()


async def test_close_ends_the_channels_of_other_loops(two: Two) -> None:
    client = AsyncClient(two.target)
    ready, done = threading.Event(), threading.Event()

    async def other() -> None:
        with pytest.raises(InvalidTokenError):
            await client.validate("garbage")
        ready.set()
        while not done.is_set():
            await asyncio.sleep(0.01)

    work = asyncio.create_task(asyncio.to_thread(asyncio.run, other()))
    await asyncio.to_thread(ready.wait)
    await client.close()
    done.set()
    await work
    with pytest.raises(RuntimeError, match="the client is closed"):
        await client.validate("garbage")
    await client.close()


async def test_a_closed_client_answers_nothing(two: Two) -> None:
    await two.first.create_user()
    token = await two.first.access_token()
    async with AsyncClient(two.target, max_staleness=60) as client:
        calls = [asyncio.create_task(client.validate(token)) for _ in range(3)]
        await asyncio.sleep(0)
    assert len({identity.user_id for identity in await asyncio.gather(*calls)}) == 1
    with pytest.raises(RuntimeError, match="the client is closed"):
        await client.validate(token)


async def test_a_client_that_is_dropped_leaves_nothing_behind(two: Two) -> None:
    client = AsyncClient(two.target)
    with pytest.raises(InvalidTokenError):
        await client.validate("garbage")
    reference = weakref.ref(client)
    del client
    await asyncio.sleep(0)
    gc.collect()
    assert reference() is None
