"""The cache: budgets, expiry, order of answers, drops, and both LRUs; also against a model."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from authsvc.client import Identity, InvalidTokenError, UnavailableError
from authsvc.client.clock import Clock
from authsvc.client.validation.cache import FINAL_REASONS, REFUSALS_SIZE, USER_REASONS, Answer, Cache, Entry
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.client.doubles import NOON, identity

NEVER_KEPT = {"NOT_YET_VALID", "BAD_SIGNATURE"}
KEY = b"digest"


@dataclass
class Time:
    seconds: float = 1000.0
    cache_size: int = 3
    cache: Cache = field(init=False)

    def __post_init__(self) -> None:
        clock = Clock(lambda: self.seconds, lambda: NOON.timestamp() + self.seconds - 1000.0)
        self.cache = Cache(self.cache_size, clock)

    def store(self, answer: Answer, key: bytes = KEY, age: float = 0.0, epoch: int | None = None) -> None:
        self.cache.store(key, answer, self.seconds - age, self.cache.epoch if epoch is None else epoch)

    def get(self, budget: float, key: bytes = KEY) -> Identity | str | None:
        """The identity, or the reason of the refusal, or None."""
        try:
            entry = self.cache.get(key, budget)
        except InvalidTokenError as error:
            return error.reason
        return None if entry is None else entry.identity


@pytest.fixture
def time() -> Time:
    return Time()


def test_every_reason_has_its_rule() -> None:
    reasons = {name.removeprefix("INACTIVE_REASON_") for name, number in auth_pb2.InactiveReason.items() if number}
    assert reasons == FINAL_REASONS | USER_REASONS | NEVER_KEPT


@pytest.mark.parametrize(("age", "budget", "answers"), [(0, 5, True), (5, 5, True), (5.001, 5, False), (0, 0, False)])
def test_an_identity_answers_within_the_budget(time: Time, age: float, budget: float, answers: bool) -> None:
    time.store(identity(), age=age)
    assert time.get(budget) == (identity() if answers else None)


@pytest.mark.parametrize(("lifetime", "answers"), [(10.001, True), (10, False), (9, False)])
def test_never_at_or_beyond_its_expiry(time: Time, lifetime: float, answers: bool) -> None:
    time.store(identity(lifetime_seconds=lifetime))
    time.seconds += 10
    assert time.get(60) == (identity(lifetime_seconds=lifetime) if answers else None)
    assert (time.cache.get_stale(KEY, 60) is not None) is answers


@pytest.mark.parametrize("reason", sorted(FINAL_REASONS))
def test_final_refusals_stay_for_a_minute_whatever_the_budget(time: Time, reason: str) -> None:
    time.store(InvalidTokenError(reason))
    time.seconds += 60
    assert time.get(0) == time.get(1) == reason
    time.seconds += 0.001
    assert time.get(0) is time.get(1000) is None


@pytest.mark.parametrize("reason", sorted(USER_REASONS))
def test_refusals_that_a_write_can_undo_answer_within_the_budget(time: Time, reason: str) -> None:
    time.store(InvalidTokenError(reason))
    assert time.get(0) is None
    time.seconds += 5
    assert time.get(5) == reason
    assert time.get(4.9) is None


@pytest.mark.parametrize("reason", sorted(NEVER_KEPT))
def test_refusals_that_are_never_kept_still_end_an_identity(time: Time, reason: str) -> None:
    time.store(identity(), age=1)
    time.store(InvalidTokenError(reason))
    assert time.get(1000) is None
    time.store(identity(), age=0.5)
    assert time.get(1000) is None


def test_the_later_request_decides(time: Time) -> None:
    time.store(InvalidTokenError("SESSION_REVOKED"), age=1)
    time.store(identity(), age=2)
    time.store(identity(), age=1)
    assert time.get(1000) == "SESSION_REVOKED"
    time.store(identity(), age=0)
    assert time.get(1000) == identity()
    time.store(InvalidTokenError("USER_DISABLED"), age=0.5)
    assert time.get(1000) == identity()


def test_neither_degraded_answers_nor_errors_are_stored(time: Time) -> None:
    refusal = InvalidTokenError("USER_DISABLED")
    refusal.degraded = True
    for answer in (identity(degraded=True), refusal, UnavailableError()):
        time.store(answer)
    assert not len(time.cache)
    time.store(identity(), age=1)
    time.store(identity(degraded=True))
    assert time.get(1000) == identity()


def test_a_drop_outlives_requests_begun_before_it(time: Time) -> None:
    epoch = time.cache.epoch
    time.store(identity())
    time.cache.drop_token(KEY)
    assert time.get(1000) is None
    time.store(identity(), epoch=epoch)
    assert time.get(1000) is None
    time.store(identity())
    assert time.get(1000) == identity()


def test_drops_of_sessions_users_and_all(time: Time) -> None:
    def fill() -> None:
        time.store(identity("a", user="u1"), b"a")
        time.store(identity("b", user="u1"), b"b")
        time.store(identity("c", user="u2"), b"c")
        time.store(InvalidTokenError("USER_DISABLED"), b"d")
        time.store(InvalidTokenError("EXPIRED"), b"e")

    def kept() -> set[bytes]:
        return {key for key in (b"a", b"b", b"c", b"d", b"e") if time.get(1000, key) is not None}

    fill()
    time.cache.drop_session("session of a")
    assert kept() == {b"b", b"c", b"e"}
    time.seconds += 1
    fill()
    time.cache.drop_user("u1")
    assert kept() == {b"c", b"e"}
    time.cache.clear()
    assert kept() == set()


def test_the_least_recently_used_identity_goes(time: Time) -> None:
    for name in ("a", "b", "c"):
        time.store(identity(name), name.encode())
    assert time.get(5, b"a") == identity("a")
    time.store(identity("d"), b"d")
    assert time.get(5, b"b") is None
    assert time.get(5, b"a") == identity("a")


def test_garbage_evicts_no_identity_and_is_bounded(time: Time) -> None:
    time.store(identity())
    for number in range(REFUSALS_SIZE + 10):
        time.store(InvalidTokenError("MALFORMED"), str(number).encode())
    assert time.get(5) == identity()
    assert len(time.cache) == REFUSALS_SIZE + 1
    assert time.get(0, b"9") is None
    assert time.get(0, b"10") == "MALFORMED"
    time.store(InvalidTokenError("MALFORMED"), b"new")
    assert time.get(0, b"10") == "MALFORMED"  # used just before


def test_an_entry_that_another_thread_drops_meanwhile(time: Time) -> None:
    class Losing(OrderedDict[bytes, Any]):
        """What another thread does between a look-up and the move to the end."""

        def move_to_end(self, key: bytes, last: bool = True) -> None:  # noqa: FBT002 - as in OrderedDict
            raise KeyError

    time.cache._entries, time.cache._refusals = Losing(), Losing()  # noqa: SLF001 - no thread can be made to do it
    time.store(identity("a"), b"a")
    time.store(InvalidTokenError("MALFORMED"), b"b")
    assert time.get(5, b"a") == identity("a")
    assert time.get(5, b"b") == "MALFORMED"


def is_due(entry: Entry) -> bool:
    return entry.is_due


def test_an_entry_is_due_in_the_second_half_of_a_budget(time: Time) -> None:
    time.store(identity())
    time.seconds += 2.5
    entry = time.cache.get(KEY, 5)
    assert entry is not None
    assert not is_due(entry)
    time.seconds += 0.01
    assert time.cache.get(KEY, 10) is entry
    assert not is_due(entry)
    assert time.cache.get(KEY, 5) is entry
    assert is_due(entry)
    entry.is_due, entry.is_renewing = False, True
    time.cache.get(KEY, 5)
    assert not is_due(entry)
    time.cache.release_renewal(KEY)
    time.cache.release_renewal(b"another")
    time.cache.get(KEY, 5)
    assert is_due(entry)


REASONS = st.sampled_from(sorted(FINAL_REASONS | USER_REASONS | NEVER_KEPT))


class CacheMachine(RuleBasedStateMachine):
    """The cache, beside a list of all answers in the order of their requests."""

    def __init__(self) -> None:
        super().__init__()
        self.time = Time(cache_size=1000)
        self.history: list[tuple[float, Answer]] = []
        self.begun: list[tuple[float, int]] = []
        self.drops = 0

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 30.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.time.seconds += seconds

    @rule()
    def begin(self) -> None:
        self.time.seconds += 0.001
        self.begun.append((self.time.seconds, self.time.cache.epoch))

    @precondition(lambda self: self.begun)
    @rule(
        pick=st.integers(min_value=0),
        answer=st.one_of(
            st.builds(identity, lifetime_seconds=st.sampled_from([30.0, 10_000.0]), degraded=st.booleans()),
            st.builds(InvalidTokenError, REASONS),
            st.builds(UnavailableError),
        ),
    )
    def end(self, pick: int, answer: Answer) -> None:
        began, epoch = self.begun.pop(pick % len(self.begun))
        self.time.store(answer, age=self.time.seconds - began, epoch=epoch)
        counts = isinstance(answer, Identity | InvalidTokenError) and not answer.degraded
        if counts and epoch == self.drops:
            self.history.append((began, answer))

    @rule(how=st.sampled_from(["token", "session", "user", "all"]))
    def drop(self, how: str) -> None:
        cache = self.time.cache
        self.drops += 1
        match how:
            case "token":
                cache.drop_token(KEY)
            case "session":
                cache.drop_session("session of t")
            case "user":
                cache.drop_user("user of t")
            case _:
                cache.clear()
        latest = max(self.history, key=lambda pair: pair[0], default=None)
        # A session's or a user's end leaves a refusal that nothing undoes.
        stays = latest is not None and how in {"session", "user"} and _is_final(latest[1])
        self.history = [latest] if latest is not None and stays else []

    @invariant()
    def answers_as_the_model(self) -> None:
        latest = max(self.history, key=lambda pair: pair[0], default=None)
        for budget in (0.0, 1.0, 5.0, 100.0):
            assert self.time.get(budget) == self.expected(latest, budget)

    def expected(self, latest: tuple[float, Answer] | None, budget: float) -> Identity | str | None:
        if latest is None:
            return None
        age, answer = self.time.seconds - latest[0], latest[1]
        if isinstance(answer, Identity):
            expires = answer.expire_time.timestamp() - NOON.timestamp() + 1000.0
            return answer if 0 < budget >= age and self.time.seconds < expires else None
        assert isinstance(answer, InvalidTokenError)
        limit = 60.0 if answer.reason in FINAL_REASONS else budget if answer.reason in USER_REASONS else -1.0
        return answer.reason if 0 < limit >= age else None


def _is_final(answer: Answer) -> bool:
    return isinstance(answer, InvalidTokenError) and answer.reason in FINAL_REASONS


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
