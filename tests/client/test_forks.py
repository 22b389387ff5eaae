"""Forks after use, as gunicorn's workers: a Client goes on in both processes, an AsyncClient says what to do."""

import asyncio
import sys

from tests.support import Client

SECONDS = 60


async def run(mode: str, address: str, token: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.client.forker",
        mode,
        address,
        token,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return [*output.decode().splitlines(), f"exit {process.returncode}"]


async def test_a_client_goes_on_in_both_processes(client: Client) -> None:
    await client.create_user()
    assert await run("sync", client.address, await client.access_token()) == ["[0, 0, 0]", "exit 0"]


async def test_an_async_client_names_post_fork(client: Client) -> None:
    await client.create_user()
    lines = await run("async", client.address, await client.access_token())
    reported = [line for line in lines if "this AsyncClient was in use when the process forked" in line]
    assert len(reported) == 1
    assert "post_fork" in reported[0]
    assert lines[-2:] == ["7", "exit 0"], lines


async def test_of_two_threads_that_fork_one_waits_for_the_other() -> None:
    """Else one lets calls begin again that the other has stopped."""
    assert await run("threads", "", "") == ["['before', 'after', 'before', 'after']", "exit 0"]
