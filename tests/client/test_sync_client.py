"""Client, the synchronous twin: the same words, for threads."""

import asyncio
import gc
import inspect
import subprocess
import sys
import threading
import typing
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import pytest

from authsvc.client import AsyncClient, Client, InvalidTokenError, UserNotFoundError
from authsvc.client.loop_thread import LoopThread
from authsvc.client.sync_client import ClientOptions
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import user_service_pb2 as user_pb2
from tests.client.conftest import Two
from tests.support import ADMIN_EMAIL

T = TypeVar("T")


@pytest.fixture
async def sync(two: Two) -> AsyncIterator[Client]:
    with Client(two.target, api_key=await two.first.access_token(ADMIN_EMAIL)) as client:
        yield client


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "authsvc-client"]


def public(kind: type) -> dict[str, list[str]]:
    """The methods and their parameters."""
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in inspect.getmembers(kind, callable)
        if not name.startswith("_")
    }


def test_it_has_the_same_words() -> None:
    ours, theirs = public(Client), public(AsyncClient)
    assert ours == theirs
    parameters = dict(inspect.signature(AsyncClient).parameters)
    parameters.pop("target")
    hints = typing.get_type_hints(AsyncClient.__init__)
    hints.pop("target")
    hints.pop("return")
    assert typing.get_type_hints(ClientOptions) == hints
    assert set(hints) == set(parameters)


async def in_thread(work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work)


async def test_validations(two: Two, sync: Client) -> None:
    await two.first.create_user()
    token = await two.first.access_token()
    first = await in_thread(lambda: sync.validate(token, timeout=30))
    assert first.email == "alice@example.com"
    assert sync.validate(token, max_staleness=timedelta(minutes=1)) is first  # no other thread is needed
    sync.forget(token)
    second = await in_thread(lambda: sync.validate(token, max_staleness=60))
    assert second is not first
    with pytest.raises(InvalidTokenError) as caught:
        await in_thread(lambda: sync.validate("garbage"))
    assert caught.value.reason == "MALFORMED"
    assert sync.stats().hits == 1
    assert sync.stats().errors == {"InvalidTokenError": 1}


async def test_calls_of_many_threads_coalesce(two: Two, sync: Client) -> None:
    await two.first.create_user()
    token = await two.first.access_token()
    barrier = threading.Barrier(16)

    def work() -> str:
        barrier.wait()
        return sync.validate(token).email

    def all_of_them() -> list[str]:
        with ThreadPoolExecutor(16) as pool:
            return [future.result() for future in [pool.submit(work) for _ in range(16)]]

    assert await in_thread(all_of_them) == ["alice@example.com"] * 16
    assert sync.stats().coalesced >= 5
    assert len(threads()) == 1


async def test_renewal_from_a_thread(two: Two) -> None:
    user = await two.first.create_user()
    token = await two.first.access_token()
    with Client(two.target, max_staleness=0.5) as client:
        await in_thread(lambda: client.validate(token))
        await two.first.update_user(user.user_id, role="editor")
        while (await in_thread(lambda: client.validate(token))).role != "editor":
            await asyncio.sleep(0.01)


async def test_rpcs(sync: Client) -> None:
    created = await in_thread(lambda: sync.create_user("bob@example.com", role="editor", timeout=30))
    assert created.user.role == "editor"
    found = await in_thread(lambda: sync.users.GetUser(user_pb2.GetUserRequest(email="bob@example.com"), timeout=30))
    assert found.user == created.user
    with pytest.raises(UserNotFoundError):
        await in_thread(lambda: sync.users.GetUser(user_pb2.GetUserRequest(user_id="nobody")))
    assert (await in_thread(lambda: sync.auth.GetJwks(auth_pb2.GetJwksRequest()))).jwks


async def test_close_ends_the_thread(two: Two) -> None:
    client = Client(two.target, max_staleness=60)
    client.close()
    assert not threads()
    client = Client(two.target, max_staleness=60)
    await two.first.create_user()
    token = await two.first.access_token()
    await in_thread(lambda: client.validate(token))
    assert len(threads()) == 1
    client.close()
    assert not threads()
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.validate(token)


async def test_a_client_that_is_dropped_ends_its_thread(two: Two) -> None:
    await two.first.create_user()
    token = await two.first.access_token()
    await in_thread(lambda: Client(two.target).validate(token))
    gc.collect()
    assert not threads()


def test_a_fork_before_the_first_call() -> None:
    async def nothing() -> None:
        return

    thread = LoopThread(nothing)
    thread.before_fork()
    thread.after_fork()
    assert not threads()


def test_a_thread_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> None:
        return

    def refuse(self: object) -> None:
        raise RuntimeError("can't start new thread")

    thread = LoopThread(nothing)
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            thread.run(nothing())
    thread.run(nothing())
    thread.close()


def test_a_renewal_after_close_starts_no_thread() -> None:
    async def nothing() -> None:
        return

    thread = LoopThread(nothing)
    thread.close()
    thread.post(print)
    assert not threads()


def test_an_interrupted_call_is_cancelled() -> None:
    async def nothing() -> None:
        return

    thread = LoopThread(nothing)
    cancelled = threading.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    class Interrupted(BaseException):
        pass

    def result(self: object, timeout: float | None = None) -> None:
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("concurrent.futures.Future.result", result)
        with pytest.raises(Interrupted):
            thread.run(wait())
    assert cancelled.wait(30)
    thread.close()
    thread.close()


async def test_a_program_that_ends_without_close_ends(two: Two) -> None:
    await two.first.create_user()
    token = await two.first.access_token()
    program = (
        "import sys; from authsvc.client import Client; print(Client(sys.argv[1]).validate(sys.argv[2]).role);"
        " client = Client(sys.argv[1]); print(client.validate(sys.argv[2]).role)"
    )
    command = [sys.executable, "-c", program, two.target, token]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout.split(), ended.returncode, ended.stderr) == (["user", "user"], 0, "")
