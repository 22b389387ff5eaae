"""Deterministic interleavings: one use case runs at every step of another, or between a write and its retry."""

import functools
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from authsvc.errors import AuthsvcError, RetryableStoreError, UserNotFoundError
from authsvc.models import Email, User
from authsvc.passwords.hash_queue import HashQueue
from authsvc.stores.dynamodb.client import DynamoDBClient, open_client
from authsvc.stores.dynamodb.responses import ConditionFailedError, api_name
from authsvc.stores.dynamodb.store import DynamoDBStore, open_dynamodb_store
from authsvc.stores.dynamodb.tables import Tables as TableNames
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.stores.interface import ignore
from authsvc.usecases.sessions import Tokens
from tests.dynamodb import tables_of
from tests.engines import Engine
from tests.faults import WRITES
from tests.stores.contract.use_cases import NEW_PASSWORD, UseCases, key_ring
from tests.support import PASSWORD, TEST_COST, FakeClock, use_engine

LOOK_UP = 5
"""Store calls of a login until it has read the user; later calls rely on what it read."""


class Interrupted:
    """A client that runs something else at one of its calls."""

    def __init__(self, client: DynamoDBClient) -> None:
        self._inner = client
        itself: Any = self
        self.client = DynamoDBClient(itself, itself, client.timeouts)
        self._meanwhile: Callable[[], Awaitable[object]] | None = None
        self._steps = itertools.count()
        self._is_lost = False
        self.made = 0
        """Attempts before the interrupted one."""

    def interrupt(self, step: int, meanwhile: Callable[[], Awaitable[object]], *, is_lost: bool) -> None:
        """Interrupt one of the next calls.

        Args:
            step: Its number, from 0; if `is_lost`, among the writes alone.
            meanwhile: What runs at the interruption.
            is_lost: Apply the write, lose its response, and interrupt before its retry; otherwise interrupt before
                the call.
        """
        self.made = 0
        self._steps = itertools.count(-step)
        self._meanwhile, self._is_lost = meanwhile, is_lost

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        api = self._inner.direct if hasattr(self._inner.direct, name) else self._inner.api
        operation: Callable[..., Awaitable[Any]] = getattr(api, name)

        @functools.wraps(operation)
        async def attempt(**request: Any) -> Any:
            return await self._attempt(partial(operation, **request), is_write=api_name(name) in WRITES)

        return attempt

    async def _attempt(self, attempt: Callable[[], Awaitable[Any]], *, is_write: bool) -> Any:
        if self._meanwhile is None:
            return await attempt()
        if (self._is_lost and not is_write) or next(self._steps) < 0:
            self.made += 1
            return await attempt()
        meanwhile, self._meanwhile = self._meanwhile, None
        if self._is_lost:
            with suppress(ConditionFailedError):  # this response is lost, too
                await attempt()
            await meanwhile()
            raise RetryableStoreError("lost")
        await meanwhile()
        return await attempt()

    @property
    def is_unused(self) -> bool:
        """Whether the use case ended before the step of the interruption."""
        return self._meanwhile is not None


class Scene:
    """A user with a session, and two processes, the first of which is interrupted."""

    def __init__(self, first: UseCases, second: UseCases, stronger: UseCases, client: Interrupted) -> None:
        self.first = first
        self.second = second
        self.stronger = stronger
        self.client = client
        self._numbers = itertools.count()

    async def set(self) -> None:
        number = next(self._numbers)
        self.email, self.other_email = f"alice{number}@example.com", f"bob{number}@example.com"
        self.alice = await self.second.create(self.email)
        self.before = await self.second.log_in(self.email)


Step = Callable[[Scene, UseCases], Awaitable[object]]


async def disable_and_enable(scene: Scene, by: UseCases) -> None:
    await by.users.update_user(scene.alice.user_id, is_active=False)
    await by.users.update_user(scene.alice.user_id, is_active=True)


async def delete_and_create_again(scene: Scene, by: UseCases) -> None:
    await by.users.delete_user(scene.alice.user_id)
    await by.create(scene.email)


async def move_and_create_again(scene: Scene, by: UseCases) -> None:
    await by.users.update_user(scene.alice.user_id, email=f"moved-{scene.email}")
    await by.create(scene.email)


async def log_in_with_rehash(scene: Scene, by: UseCases) -> Tokens:
    return await (scene.stronger if by is scene.first else by).log_in(scene.email)


STEPS: Mapping[str, Step] = {
    "log in": log_in_with_rehash,
    "refresh": lambda scene, by: by.refresh(scene.before),
    "change password": lambda scene, by: by.change_password(PASSWORD, NEW_PASSWORD, scene.email),
    "reset password": lambda scene, by: by.users.reset_password(scene.alice.user_id),
    "revoke all": lambda scene, by: by.users.end_all_sessions(scene.alice.user_id),
    "revoke one": lambda scene, by: by.sessions.revoke(scene.before.access_token.text),
    "disable and enable": disable_and_enable,
    "set role": lambda scene, by: by.users.update_user(scene.alice.user_id, role="editor"),
    "move": lambda scene, by: by.users.update_user(scene.alice.user_id, email=scene.other_email),
    "move and create again": move_and_create_again,
    "create": lambda scene, by: by.create(scene.other_email),
    "delete": lambda scene, by: by.users.delete_user(scene.alice.user_id),
    "delete and create again": delete_and_create_again,
}
ENDING = frozenset(STEPS) - {"log in", "refresh", "set role", "move", "move and create again", "create"}
INTERRUPTED = (
    "log in",
    "refresh",
    "change password",
    "reset password",
    "revoke all",
    "revoke one",
    "set role",
    "move",
    "create",
    "delete",
)
INTERRUPTING = (
    "refresh",
    "change password",
    "revoke all",
    "revoke one",
    "disable and enable",
    "set role",
    "create",
    "move and create again",
    "delete and create again",
)
AT_EVERY_STEP = ("change password", "revoke one", "disable and enable", "create", "delete and create again")
"""Fewer, because a use case has many steps: those that end sessions or claim addresses, each by other writes."""


@asynccontextmanager
async def on_stage(
    engine: Engine, prefix: str, signing_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    use_engine(engine, monkeypatch)
    timeouts = DynamoDBTimeouts(
        read_seconds=30.0, batch_seconds=60.0
    )  # the interruption takes longer than production's
    of_first, of_second, stronger = HashQueue(TEST_COST), HashQueue(TEST_COST), HashQueue(TEST_COST + 1)
    clock = FakeClock()
    async with open_dynamodb_store(prefix, timeouts=timeouts) as store, open_client(timeouts) as client:
        await store.create_tables()
        interrupted = Interrupted(client)
        ring = key_ring(signing_keys, clock)
        second = UseCases(store, ring, clock, of_second, tables_of(engine, prefix))
        first = second.on(DynamoDBStore(interrupted.client, TableNames(prefix), ignore)).with_hash_queue(of_first)
        yield Scene(first, second, first.with_hash_queue(stronger), interrupted)
    of_first.close()
    of_second.close()
    stronger.close()


async def play_at_every_step(scene: Scene, name: str, interrupting: str, *, is_lost: bool) -> None:
    for step in itertools.count():
        if not await play(scene, name, interrupting, step, is_lost=is_lost):
            break
    assert step > 0


async def play(scene: Scene, name: str, interrupting: str, step: int, *, is_lost: bool) -> bool:
    """Play a scene and check the contract; return whether it had such a step."""
    await scene.set()

    async def meanwhile() -> None:
        outcomes.append(await outcome_of(STEPS[interrupting](scene, scene.second)))

    outcomes: list[object] = []
    scene.client.interrupt(step, meanwhile, is_lost=is_lost)
    mine = await outcome_of(STEPS[name](scene, scene.first))
    if scene.client.is_unused:
        assert not isinstance(mine, AuthsvcError)
        return False
    (others,) = outcomes
    await check(scene, name, mine, interrupting, others)
    return True


async def outcome_of(call: Awaitable[object]) -> object:
    try:
        return await call
    except AuthsvcError as error:
        return error


async def check(scene: Scene, name: str, mine: object, interrupting: str, others: object) -> None:
    """Check the contract; a login or change by address may have reached the address's next owner."""
    done = {n for n, outcome in ((name, mine), (interrupting, others)) if not isinstance(outcome, AuthsvcError)}
    if "create again" in interrupting:
        done -= {"change password"}
    await scene.second.check_rows()
    tokens = [outcome for outcome in (mine, others) if isinstance(outcome, Tokens)]
    alive = {id(each): await scene.second.is_alive(each) for each in tokens}
    if done & ENDING:
        assert not await scene.second.is_alive(scene.before)
    if "refresh" in (name, interrupting) and done & ENDING:
        refreshed = mine if name == "refresh" else others
        assert not alive.get(id(refreshed))
    if name == "log in" and interrupting in ENDING - {"revoke one"} and scene.client.made >= LOOK_UP:
        assert not alive.get(id(mine))
    if done & {"delete", "delete and create again"}:
        with pytest.raises(UserNotFoundError):
            await scene.second.users.get_user(scene.alice.user_id)
    if interrupting in {"delete and create again", "move and create again"} and not isinstance(others, AuthsvcError):
        owner = await scene.second.store.get_user_by_email(Email(scene.email))
        assert owner.user.user_id != scene.alice.user_id
        assert owner.is_claimed
        assert name == "change password" or await scene.second.can_log_in(PASSWORD, scene.email)


@pytest.mark.engines
@pytest.mark.parametrize("name", INTERRUPTED)
async def test_at_every_step(
    name: str, dynoxide: Engine, table_prefix: str, signing_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(dynoxide, table_prefix, signing_keys, monkeypatch) as scene:
        for interrupting in AT_EVERY_STEP:
            await play_at_every_step(scene, name, interrupting, is_lost=False)


@pytest.mark.engines
@pytest.mark.parametrize("name", INTERRUPTED)
async def test_before_the_second_try_of_every_write(
    name: str, moto: Engine, table_prefix: str, signing_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On moto, which ignores idempotency tokens and applies a retry again."""
    async with on_stage(moto, table_prefix, signing_keys, monkeypatch) as scene:
        for interrupting in INTERRUPTING:
            await play_at_every_step(scene, name, interrupting, is_lost=True)


async def test_one_request_twice_at_once_makes_one_user(
    dynoxide: Engine, table_prefix: str, signing_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call begins at each step of the first."""
    async with on_stage(dynoxide, table_prefix, signing_keys, monkeypatch) as scene:
        for step in itertools.count():
            request = partial(UseCases.create, email=f"user{step}@example.com", request_id=f"request-{step}")
            made: list[User] = []

            async def meanwhile(request: partial[Coroutine[Any, Any, User]] = request, made: list[User] = made) -> None:
                made.append(await request(scene.second))

            scene.client.interrupt(step, meanwhile, is_lost=False)
            made.append(await request(scene.first))
            await scene.second.check_rows()
            if scene.client.is_unused:
                break
            assert len({user.user_id for user in made}) == 1
    assert step > 3
