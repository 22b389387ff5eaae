"""What a validation rests on while reads overtake one another, in the order that a test chooses."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from authsvc import request_context
from authsvc.errors import CorruptItemError, StoreUnavailableError
from authsvc.models import UserState
from authsvc.server.app import PRODUCTION_LIMITS
from authsvc.tokens.access_tokens import AccessTokens
from authsvc.tokens.key_file import read_keys
from authsvc.tokens.keys import KeyRing
from authsvc.tokens.verification import InactiveReason
from authsvc.usecases.user_state_cache import STALE_FALLBACK_TIMEOUT_SECONDS, StalenessLimits, UserStateCache
from authsvc.usecases.validation import (
    ActiveToken,
    Check,
    Validation,
    Validations,
)
from tests.support import WITNESS, FakeClock

MINUTE = timedelta(minutes=1)
States = Mapping[str, UserState | Exception | None]


class Reads:
    """A store whose reads end as a test says."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.budgets: list[float] = []
        self.results: list[asyncio.Future[States]] = []

    async def get_user_states(self, user_ids: Collection[str]) -> States:
        if not user_ids:
            return {}
        assert len(user_ids) == len(set(user_ids))
        self.asked.append(set(user_ids))
        self.budgets.append(request_context.remaining_seconds())
        self.results.append(asyncio.get_running_loop().create_future())
        return await self.results[-1]


@dataclass
class Stage:
    """Validations on such a store."""

    reads: Reads
    cache: UserStateCache
    validations: Validations
    clock: FakeClock

    def token(self, user_id: str = "alice") -> str:
        issued = self.validations.tokens.issue(
            user_id=user_id,
            session_id="session",
            token_generation=0,
            client_id="authsvc",
            now=self.clock(),
            not_after=self.clock() + timedelta(days=1),
        )
        WITNESS.hide(issued.text)
        return issued.text

    async def begin(self, *checks: Check) -> "asyncio.Task[list[Validation | Exception]]":
        """Validate, until the store is asked."""
        before = len(self.reads.asked)
        task = asyncio.ensure_future(self.validations.validate_all(checks))
        await asyncio.sleep(0)
        assert len(self.reads.asked) == before + 1
        return task

    def end(self, number: int = -1, **reported: UserState | Exception | None) -> None:
        """End a read."""
        self.reads.results[number].set_result(reported)

    async def recalled(self) -> str:
        """The role in the cached read; this test needs no read."""
        return role_of(await self.validations.validate(Check(self.token(), max_staleness=MINUTE)))


def user_state(role: str = "user", user_id: str = "alice") -> UserState:
    return UserState(user_id=user_id, email="alice@example.com", role=role)


def role_of(validation: Validation | Exception) -> str:
    assert isinstance(validation, Validation)
    assert isinstance(validation.outcome, ActiveToken)
    return validation.outcome.user.role


@pytest.fixture
def stage(signing_keys: Path, clock: FakeClock) -> Stage:
    reads, cache = Reads(), UserStateCache(clock.monotonic)
    tokens = AccessTokens(KeyRing(read_keys(signing_keys)), "https://auth.example.com", "backends", 15 * MINUTE)
    validations = Validations(
        reads,  # type: ignore[arg-type]  # the one method that is needed
        tokens,
        cache,
        clock,
        StalenessLimits(MINUTE, 15 * MINUTE),
    )
    return Stage(reads, cache, validations, clock)


async def test_a_read_that_is_overtaken_replaces_nothing(stage: Stage) -> None:
    early = await stage.begin(Check(stage.token()))
    late = await stage.begin(Check(stage.token()))
    stage.end(1, alice=user_state("new"))
    stage.end(0, alice=user_state("old"))
    assert [role_of(each) for each in (*await early, *await late)] == ["old", "new"]
    assert await stage.recalled() == "new"


async def test_a_write_beats_the_reads_under_way(stage: Stage) -> None:
    under_way = await stage.begin(Check(stage.token()))
    stage.cache.invalidate("alice")
    stage.end(alice=user_state("old"))
    await under_way
    fresh = await stage.begin(Check(stage.token(), max_staleness=MINUTE))
    stage.end(alice=user_state("new"))
    assert [role_of(each) for each in await fresh] == ["new"]
    assert await stage.recalled() == "new"


async def test_the_time_is_that_of_the_beginning(stage: Stage) -> None:
    begun = stage.clock()
    task = await stage.begin(Check(stage.token()))
    stage.clock.advance(seconds=2)
    stage.end(alice=user_state())
    (fresh,) = await task
    assert isinstance(fresh, Validation)
    assert fresh.checked_time == begun
    assert (await stage.validations.validate(Check(stage.token(), max_staleness=MINUTE))).checked_time == begun


async def test_of_a_batch_each_user_is_read_once_and_nobody_for_nothing(stage: Stage) -> None:
    token = stage.token()
    task = await stage.begin(Check(token), Check("garbage"), Check(token), Check(stage.token("bob")))
    assert stage.reads.asked == [{"alice", "bob"}]
    stage.end(alice=user_state("first"), bob=None)
    first, garbage, again, bob = await task
    assert [role_of(first), role_of(again)] == ["first", "first"]
    assert garbage == Validation(stage.clock(), InactiveReason.MALFORMED)
    assert bob == Validation(stage.clock(), InactiveReason.USER_NOT_FOUND)
    assert await stage.validations.validate_all([Check("garbage")]) == [garbage]
    assert await stage.validations.validate_all([]) == []
    assert len(stage.reads.asked) == 1


async def test_a_corrupt_row_fails_its_own_user_alone(stage: Stage) -> None:
    broken = CorruptItemError("bob", "role")
    task = await stage.begin(Check(stage.token("bob"), stale_if_error=MINUTE), Check(stage.token()))
    stage.end(alice=user_state(), bob=broken)
    bob, alice = await task
    assert bob is broken
    assert role_of(alice) == "user"


@pytest.mark.limits(PRODUCTION_LIMITS)
async def test_the_store_is_waited_for_less_where_all_can_do_without(stage: Stage) -> None:
    task = await stage.begin(Check(stage.token()))
    stage.end(alice=user_state())
    await task
    down = StoreUnavailableError("down")
    for checks, is_short in (
        ([Check(stage.token(), stale_if_error=MINUTE)], True),
        ([Check(stage.token(), stale_if_error=MINUTE), Check(stage.token())], False),
        ([Check(stage.token(), stale_if_error=MINUTE), Check(stage.token("bob"), stale_if_error=MINUTE)], False),
        ([Check(stage.token())], False),
    ):
        task = await stage.begin(*checks)
        assert (stage.reads.budgets[-1] <= STALE_FALLBACK_TIMEOUT_SECONDS) is is_short
        stage.end(alice=down, bob=down)
        first, *others = await task
        if checks[0].stale_if_error:
            assert isinstance(first, Validation)
            assert first.degraded
        assert others == [down] * (len(checks) - 1)


@pytest.mark.limits(PRODUCTION_LIMITS)
async def test_nobody_waits_longer_than_the_callers_deadline(stage: Stage) -> None:
    task = await stage.begin(Check(stage.token()))
    stage.end(alice=user_state())
    await task
    with request_context.time_limit(0.1):
        task = await stage.begin(Check(stage.token(), stale_if_error=MINUTE))
    assert stage.reads.budgets[-1] < 0.1
    stage.end(alice=user_state("new"))
    assert role_of((await task)[0]) == "new"


async def test_what_stands_in_is_as_it_was_but_degraded(stage: Stage) -> None:
    task = await stage.begin(Check(stage.token()))
    stage.end(alice=user_state())
    (read,) = await task
    assert isinstance(read, Validation)
    stage.clock.advance(seconds=30)
    task = await stage.begin(Check(stage.token(), stale_if_error=MINUTE))
    stage.end(alice=StoreUnavailableError("down"))
    (stood_in,) = await task
    assert isinstance(stood_in, Validation)
    assert isinstance(stood_in.outcome, ActiveToken)
    assert isinstance(read.outcome, ActiveToken)
    assert stood_in._replace(outcome=read.outcome) == read._replace(degraded=True)
    assert stood_in.outcome.user == read.outcome.user
