"""A validation that the cache does not answer: asks the service, and stands in for it during an outage."""

import asyncio
import logging
from collections.abc import Sequence
from contextvars import Context
from copy import copy
from dataclasses import replace

from authsvc.client.clock import Clock
from authsvc.client.errors import InvalidTokenError, UnavailableError
from authsvc.client.identity import Identity
from authsvc.client.stats import Counts
from authsvc.client.validation.batches import Batcher, Question, Send
from authsvc.client.validation.cache import USER_REASONS, Answer, Cache
from authsvc.client.validation.outage import Outage

STALE_FALLBACK_SECONDS = 0.25
"""How long a call waits for the service where an older answer may stand in."""
RENEWAL_TIMEOUT_SECONDS = 2.5
RENEWAL_SHARE = 0.1
"""Renewals are gathered for that share of the budget."""
MAX_GATHER_SECONDS = 0.1
STORE_REASONS = USER_REASONS | {"SESSION_REVOKED"}
"""Refusals that rest on a read of the store."""

_log = logging.getLogger("authsvc.client")


class Validator:
    """Validates tokens on one event loop.

    Args:
        send: Sends questions to the service.
        cache: Holds the older answers; gets the new ones.
        clock: Its monotonic clock for ages.
        counts: Counts what happens.
    """

    def __init__(self, send: Send, cache: Cache, clock: Clock, counts: Counts) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._cache = cache
        self._counts = counts
        self._outage = Outage(clock.monotonic)
        self._batcher = Batcher(self._send_and_watch, cache, clock, counts)
        self._due: list[Question] = []
        self._due_timer: asyncio.TimerHandle | None = None
        self._probes: set[asyncio.Task[None]] = set()

    async def validate(self, question: Question, budget: float, timeout: float) -> Identity:
        """Return the identity of a token.

        Args:
            question: The token.
            budget: Greatest age in seconds of a request in flight that may answer.
            timeout: Seconds until the call gives up.

        Raises:
            InvalidTokenError: The token is invalid.
            UnavailableError: The service cannot answer, nor can an older answer.
            AuthsvcError: The service refused to answer.
        """
        if self._cache.get_stale(question.digest, question.stale_if_error) is None:
            return _identity(await self._batcher.ask(question, budget, timeout))
        if self._outage.is_on:
            self._probe_if_due(question)
            return self._stale_or_raise(question, UnavailableError())
        answer = await self._batcher.ask(question, budget, min(timeout, STALE_FALLBACK_SECONDS))
        if not isinstance(answer, UnavailableError):
            return _identity(answer)
        if timeout >= STALE_FALLBACK_SECONDS:
            self._fail(answer)
        return self._stale_or_raise(question, answer)

    def renew(self, question: Question, budget: float) -> None:
        """Ask for a newer answer in the background, together with others that are due soon.

        Args:
            question: The token.
            budget: How old its answer may get, in seconds; half of it is over.
        """
        if self._outage.is_on:
            self._cache.release_renewal(question.digest)
            self._probe_if_due(question)
            return
        self._due.append(question)
        send_at = self._loop.time() + min(budget * RENEWAL_SHARE, MAX_GATHER_SECONDS)
        if self._due_timer is None or send_at < self._due_timer.when():
            self._cancel_renewals()
            self._due_timer = self._loop.call_at(send_at, self._renew_due)

    async def close(self) -> None:
        """Renew nothing more, and wait until nothing is in flight."""
        self._cancel_renewals()
        await self._batcher.close()

    def _renew_due(self) -> None:
        self._due_timer = None
        due, self._due = self._due, []
        self._batcher.renew(due, RENEWAL_TIMEOUT_SECONDS)

    def _cancel_renewals(self) -> None:
        if self._due_timer is not None:
            self._due_timer.cancel()

    def _stale_or_raise(self, question: Question, error: UnavailableError) -> Identity:
        """Return the older answer, unless it has expired or was dropped meanwhile."""
        entry = self._cache.get_stale(question.digest, question.stale_if_error)
        if entry is None:
            raise copy(error)
        self._counts.stale_answers += 1
        return replace(entry.identity, degraded=True)

    def _probe_if_due(self, question: Question) -> None:
        """Ask the service in the background whether it is back."""
        if self._outage.begin_probe():
            # In a context of its own: it does not belong to the request.
            task = self._loop.create_task(self._probe(question), context=Context())
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)

    async def _probe(self, question: Question) -> None:
        try:
            await self._batcher.ask(question, 0.0, RENEWAL_TIMEOUT_SECONDS)
        finally:
            self._outage.end_probe()

    async def _send_and_watch(self, questions: Sequence[Question], timeout: float) -> Sequence[Answer]:
        """Send questions, and conclude from the answers whether there is an outage."""
        try:
            answers = await self._send(questions, timeout)
        except UnavailableError as error:
            self._fail(error)
            raise
        failure = next((answer for answer in answers if isinstance(answer, UnavailableError)), None)
        if failure is not None:
            self._fail(failure)
        elif self._outage.is_on and any(map(_rests_on_store, answers)):
            self._outage.recover()
            _log.info("the service answers again")
        return answers

    def _fail(self, error: UnavailableError) -> None:
        if not self._outage.is_on:
            _log.warning("the service cannot answer: %s", error.cause)
        self._outage.fail()


def _identity(answer: Answer) -> Identity:
    """Return an answer that is an identity; raise a copy of any other, for several callers may share it."""
    if isinstance(answer, Identity):
        return answer
    raise copy(answer)


def _rests_on_store(answer: Answer) -> bool:
    """Return whether an answer proves that the store answers: refusals of garbage need none."""
    if isinstance(answer, Identity):
        return not answer.degraded
    return isinstance(answer, InvalidTokenError) and answer.reason in STORE_REASONS and not answer.degraded
