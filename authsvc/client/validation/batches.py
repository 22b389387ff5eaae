"""Validations of concurrent calls, coalesced into few requests.

- A lone call is sent at once, as ValidateToken. What is asked while requests are in flight waits until one returns,
  MAX_TOKENS wait, or MAX_WAIT_SECONDS are over, and is sent as one BatchValidateTokens.
- Calls share an answer if token and stale_if_error are equal. A fresh call joins a request that is not yet sent; a call
  with a budget also one that was sent within it.
- A caller that is cancelled or out of time leaves without harm to others; a token without a waiting caller is not sent.
- Renewals, which no caller waits for, are sent in the space that calls leave.
- At most MAX_IN_FLIGHT requests are in flight, but one that takes longer than SLOT_SECONDS gives its slot up: a server
  that hangs must not hold up what its neighbour would answer.
"""

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context
from typing import TypeAlias

from authsvc.client.clock import Clock
from authsvc.client.errors import AuthsvcError, UnavailableError
from authsvc.client.stats import Counts
from authsvc.client.validation.cache import Answer, Cache

MAX_TOKENS = 100  # BatchValidateTokens takes no more
MAX_IN_FLIGHT = 8
MAX_WAIT_SECONDS = 0.005
SLOT_SECONDS = 0.25
SHARE_SECONDS = 0.25
"""A request's deadline is so much later than its callers', so that later calls can join it."""

Key: TypeAlias = tuple[bytes, float]


class Question:
    """A token to validate, for one or more callers.

    Args:
        token: Its text. Secret.
        digest: Its key in the cache.
        stale_if_error: For the service, in seconds.
        context: Of the first caller; it holds the trace.
    """

    __slots__ = (
        "began",
        "callers",
        "context",
        "deadline",
        "digest",
        "epoch",
        "is_renewal",
        "key",
        "stale_if_error",
        "token",
    )

    def __init__(self, token: str, digest: bytes, stale_if_error: float, context: Context) -> None:
        self.token = token
        self.digest = digest
        self.stale_if_error = stale_if_error
        self.context = context
        self.key: Key = (digest, stale_if_error)
        """What calls that share the answer have in common."""
        self.callers: list[asyncio.Future[Answer]] = []
        self.deadline = 0.0
        self.is_renewal = False
        self.began = 0.0
        self.epoch = 0

    @property
    def is_wanted(self) -> bool:
        """Whether the answer is still of use."""
        if self.is_renewal:
            return True
        for caller in self.callers:  # noqa: SIM110 - any() takes three times as long
            if not caller.done():
                return True
        return False


Send: TypeAlias = Callable[[Sequence[Question], float], Awaitable[Sequence[Answer]]]
"""Sends 1 to MAX_TOKENS questions with a timeout in seconds, and returns their answers in order."""


class Batcher:
    """Sends the validations of one event loop.

    Args:
        send: Sends questions; an AuthsvcError that it raises is the answer to all of them.
        cache: Gets every answer.
        clock: Its monotonic clock times the begin of requests.
        counts: Counts requests and joined calls.
    """

    def __init__(self, send: Send, cache: Cache, clock: Clock, counts: Counts) -> None:
        self._loop = asyncio.get_running_loop()
        self._send_questions = send
        self._cache = cache
        self._monotonic = clock.monotonic
        self._counts = counts
        self._waiting: dict[Key, Question] = {}
        self._renewals: dict[Key, Question] = {}
        self._sent: dict[Key, Question] = {}
        self._slots: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, question: Question, budget: float, timeout: float) -> Answer:
        """Return the answer to a question, or to an equal one of another call; an UnavailableError when time is up.

        Args:
            question: Sent unless the call can join another.
            budget: How many seconds ago a request may have been sent that the call joins; zero: it joins none.
            timeout: Seconds until the call gives up.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._find(question, budget, self._monotonic() + timeout).callers.append(future)
        self._flush()
        timer = self._loop.call_later(timeout, give_up, future, timeout)
        try:
            return await future
        finally:
            timer.cancel()

    def renew(self, questions: Iterable[Question], timeout: float) -> None:
        """Send questions that no caller waits for; the answers go to the cache.

        Args:
            questions: Those that wait already are not asked twice.
            timeout: Seconds that the request may take.
        """
        deadline = self._monotonic() + timeout
        for question in questions:
            question.is_renewal = True
            question.deadline = deadline
            if question.key not in self._waiting:
                self._renewals.setdefault(question.key, question)
        self._flush()

    async def close(self) -> None:
        """Wait until nothing is in flight."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _find(self, question: Question, budget: float, deadline: float) -> Question:
        """Return the question that a call waits for: one in flight, one that waits, or its own, which then waits."""
        key = question.key
        sent = self._sent.get(key) if budget > 0 else None
        if sent is not None and self._answers_in_time(sent, budget, deadline):
            self._counts.coalesced += 1
            return sent
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = self._renewals.pop(key, question)
        else:
            self._counts.coalesced += 1
        waiting.deadline = max(waiting.deadline, deadline)
        return waiting

    def _answers_in_time(self, sent: Question, budget: float, deadline: float) -> bool:
        """Return whether a question in flight was sent within a budget, and nothing was dropped since."""
        is_young = self._monotonic() - sent.began <= budget
        return is_young and sent.epoch == self._cache.epoch and deadline <= sent.deadline

    def _flush(self) -> None:
        """Send the batches that are due; let the rest wait for the timer."""
        while (count := len(self._waiting) + len(self._renewals)) and len(self._slots) < MAX_IN_FLIGHT:
            if self._slots and count < MAX_TOKENS:
                if self._timer is None:
                    self._timer = self._loop.call_later(MAX_WAIT_SECONDS, self._flush_late)
                break
            self._send()

    def _flush_late(self) -> None:
        self._timer = None
        self._send()
        self._flush()

    def _send(self) -> None:
        """Send the oldest questions that are still wanted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = [question for question in self._take(self._waiting, MAX_TOKENS) if question.is_wanted]
        batch += self._take(self._renewals, MAX_TOKENS - len(batch))
        if not batch:
            return
        began, epoch = self._monotonic(), self._cache.epoch
        deadline = max(question.deadline for question in batch) + SHARE_SECONDS
        for question in batch:
            question.began, question.epoch, question.deadline = began, epoch, deadline
            self._sent[question.key] = question
        self._counts.batches += len(batch) > 1
        # In a context of its own: a batch does not belong to one request.
        task = self._loop.create_task(self._run(batch, deadline - began), context=Context())
        self._tasks.add(task)
        self._slots.add(task)
        slot_timer = self._loop.call_later(SLOT_SECONDS, self._free_slot, task)
        task.add_done_callback(functools.partial(self._returned, slot_timer))

    def _returned(self, slot_timer: asyncio.TimerHandle, task: asyncio.Task[None]) -> None:
        slot_timer.cancel()
        self._tasks.discard(task)
        self._free_slot(task)

    def _free_slot(self, task: asyncio.Task[None]) -> None:
        self._slots.discard(task)
        self._flush()

    async def _run(self, batch: Sequence[Question], timeout: float) -> None:
        """Send a batch and hand the answers to the cache and the callers."""
        try:
            answers = await self._send_questions(batch, timeout)
        except AuthsvcError as error:
            answers = [error] * len(batch)
        except asyncio.CancelledError:  # the channel was closed
            answers = [UnavailableError(cause="the client was closed")] * len(batch)
        for question, answer in zip(batch, answers, strict=True):
            if self._sent.get(question.key) is question:
                del self._sent[question.key]
            self._cache.store(question.digest, answer, question.began, question.epoch)
            if question.is_renewal:
                self._cache.release_renewal(question.digest)
            for caller in question.callers:
                if not caller.done():
                    caller.set_result(answer)

    @staticmethod
    def _take(questions: dict[Key, Question], count: int) -> list[Question]:
        return [questions.pop(key) for key in list(itertools.islice(questions, count))]


def give_up(caller: "asyncio.Future[Answer]", timeout: float) -> None:
    """Answer a caller whose time is up."""
    if not caller.done():
        caller.set_result(UnavailableError(cause=f"no answer within {timeout:g} s"))
