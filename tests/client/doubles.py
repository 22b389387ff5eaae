"""Doubles for the client library: identities, a virtual clock and a transport that answers as a test says."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from authsvc.client import Identity
from authsvc.client.clock import Clock
from authsvc.client.stats import Counts
from authsvc.client.validation.batches import Question
from authsvc.client.validation.cache import Answer, Cache
from authsvc.client.validation.validator import Validator

NOON = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)


def identity(name: str = "t", *, lifetime_seconds: float = 900.0, degraded: bool = False, user: str = "") -> Identity:
    """The identity that the double of the service sees in a token of that name."""
    return Identity(
        user_id=user or f"user of {name}",
        email="alice@example.com",
        role="user",
        session_id=f"session of {name}",
        token_id=name,
        issue_time=NOON,
        expire_time=NOON + timedelta(seconds=lifetime_seconds),
        checked_time=NOON,
        degraded=degraded,
    )


def loop_clock() -> Clock:
    """The running loop's time; it is noon when the loop begins."""
    loop = asyncio.get_running_loop()
    return Clock(loop.time, lambda: NOON.timestamp() + loop.time())


@dataclass
class Service:
    """A transport that takes its time and gives the answers that a test sets.

    Args:
        seconds: How long a request takes.
        answer: To each token.
    """

    seconds: float = 0.001
    answer: Callable[[str], Answer] = identity
    batches: list[list[str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    async def send(self, questions: Sequence[Question], timeout: float) -> Sequence[Answer]:
        self.batches.append([question.token for question in questions])
        self.times.append(asyncio.get_running_loop().time())
        answers = [self.answer(question.token) for question in questions]
        await asyncio.sleep(self.seconds)
        return answers


def question(token: str, stale_if_error: float = 0.0) -> Question:
    return Question(token, token.encode(), stale_if_error, Context())


@dataclass
class Rig:
    """A validator on a virtual clock."""

    service: Service = field(default_factory=Service)
    cache: Cache = field(init=False)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        clock = loop_clock()
        self.cache = Cache(100, clock)
        self.validator = Validator(self.service.send, self.cache, clock, self.counts)

    async def validate(
        self, token: str, budget: float = 0.0, stale_if_error: float = 0.0, timeout: float = 2.5
    ) -> Identity:
        """Validate as the client does: by the cache, else by the service."""
        entry = self.cache.get(token.encode(), budget)
        if entry is None:
            return await self.validator.validate(question(token, stale_if_error), budget, timeout)
        if entry.is_due:
            entry.is_due, entry.is_renewing = False, True
            self.validator.renew(question(token, stale_if_error), budget)
        return entry.identity
