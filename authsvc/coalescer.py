"""Concurrent reads of single keys, coalesced into batches.

- Freshness: a key joins a batch that is not yet sent, never one in flight, so its read begins after it was asked for.
- Deduplication: a batch has a key once, however many callers wait for it, and at most MAX_KEYS keys, oldest first.
- Flush policy: at once if no further key is expected (after a batch of one, with none in flight) or a batch is full;
  else after IDLE_FLUSH_SECONDS without a new key, at the latest after MAX_WAIT_SECONDS. At most MAX_IN_FLIGHT batches
  are in flight.
- Cancellation: a caller that is cancelled or out of time leaves without harm to others; a key that no caller waits for
  is not sent.
- Retry: a key without an answer is read again after a pause, within the attempts of each caller. After a batch without
  any answer all sending pauses, so that a failing store is not flooded.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextvars import Context
from typing import Generic, TypeAlias, TypeVar

from authsvc import request_context
from authsvc.errors import RetryableStoreError, StoreUnavailableError

MAX_KEYS = 100  # BatchGetItem takes no more
MAX_IN_FLIGHT = 16
MAX_WAIT_SECONDS = 0.005
IDLE_FLUSH_SECONDS = 0.001

V = TypeVar("V")
Read: TypeAlias = Callable[[Sequence[str]], Awaitable[Mapping[str, V]]]
_Waiters: TypeAlias = dict[asyncio.Future[V | Exception], int]
"""The futures that wait for a key, each with the number of attempts made for it."""


class Coalescer(Generic[V]):
    """Reads keys in batches.

    Args:
        read: Makes one attempt. A key that is missing from its result got no answer; with RetryableStoreError no key
            did; any other error is final for all keys of the batch.
        max_attempts: Per caller and key.
        pause_seconds: Returns the pause after a number of attempts without an answer.
        max_read_seconds: Of one attempt.
    """

    def __init__(
        self, read: Read[V], max_attempts: int, pause_seconds: Callable[[int], float], max_read_seconds: float = 1.0
    ) -> None:
        self._read = read
        self._max_read_seconds = max_read_seconds
        self._max_attempts = max_attempts
        self._pause_seconds = pause_seconds
        self._waiting: dict[str, _Waiters[V]] = {}
        self._in_flight: set[asyncio.Task[None]] = set()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._failures = 0  # batches without any answer, in a row
        self._is_paused = self._is_idle_timer_set = self._expects_more = False

    async def get(self, keys: Collection[str]) -> Mapping[str, V | Exception]:
        """Return the value of each key, or its error, by the request's deadline."""
        loop = asyncio.get_running_loop()
        waiters: dict[str, asyncio.Future[V | Exception]] = {key: loop.create_future() for key in keys}
        for key, waiter in waiters.items():
            self._waiting.setdefault(key, {})[waiter] = 0
        if self._flush_timer is None or len(self._waiting) >= MAX_KEYS:  # else a timer is set already
            self._maybe_flush()
        timer = loop.call_at(
            request_context.store_deadline(), _resolve, waiters.values(), StoreUnavailableError("no answer in time")
        )
        try:
            return {key: await waiter for key, waiter in waiters.items()}
        finally:
            timer.cancel()
            for waiter in waiters.values():
                waiter.cancel()

    @property
    def _may_send(self) -> bool:
        return bool(self._waiting) and not self._is_paused and len(self._in_flight) < MAX_IN_FLIGHT

    def _maybe_flush(self) -> None:
        """Send batches that are due; set timers for the rest."""
        while self._may_send and (len(self._waiting) >= MAX_KEYS or not (self._in_flight or self._expects_more)):
            self._send()
        if not self._may_send:
            return
        loop = asyncio.get_running_loop()
        self._flush_timer = self._flush_timer or loop.call_later(MAX_WAIT_SECONDS, self._send)
        if not self._in_flight and not self._is_idle_timer_set:
            self._is_idle_timer_set = True
            loop.call_later(IDLE_FLUSH_SECONDS, self._flush_when_idle, len(self._waiting))

    def _flush_when_idle(self, seen: int) -> None:
        """Send once no new key has arrived for IDLE_FLUSH_SECONDS."""
        self._is_idle_timer_set = self._may_send and not self._in_flight and seen < len(self._waiting)
        if self._is_idle_timer_set:
            asyncio.get_running_loop().call_later(IDLE_FLUSH_SECONDS, self._flush_when_idle, len(self._waiting))
        elif not self._in_flight:
            self._send()

    def _send(self) -> None:
        if self._flush_timer:
            self._flush_timer.cancel()
            self._flush_timer = None
        keys = list(itertools.islice(self._waiting, MAX_KEYS)) if self._may_send else ()
        asked = ((key, self._waiting.pop(key)) for key in keys)
        if batch := {key: waiters for key, waiters in asked if not all(waiter.done() for waiter in waiters)}:
            self._expects_more = len(batch) > 1
            # In a context of its own: a batch does not belong to one request.
            task = asyncio.get_running_loop().create_task(self._run(batch), context=Context())
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
            task.add_done_callback(lambda _: self._maybe_flush())

    async def _run(self, batch: Mapping[str, _Waiters[V]]) -> None:
        answers: Mapping[str, V | Exception] = {}
        cause = "keys were left out"
        try:
            async with asyncio.timeout(self._max_read_seconds):
                answers = await self._read(list(batch))
        except (RetryableStoreError, TimeoutError) as error:
            cause = error.cause if isinstance(error, RetryableStoreError) else "no answer in time"
        except Exception as error:  # noqa: BLE001 - any error is delivered to the waiting callers
            answers = dict.fromkeys(batch, error)
        if answers:
            self._failures = 0
        elif not self._is_paused:  # of several that fail together only one counts
            self._pause()
        for key, waiters in batch.items():
            if key in answers:
                _resolve(waiters, answers[key])
            else:
                self._fail(key, waiters, cause)

    def _fail(self, key: str, waiters: _Waiters[V], cause: str) -> None:
        """Retry for callers that have attempts left; fail the others."""
        again = {waiter: made + 1 for waiter, made in waiters.items() if made + 1 < self._max_attempts}
        _resolve(waiters.keys() - again.keys(), StoreUnavailableError(cause))
        if again:
            pause = self._pause_seconds(max(again.values()))
            asyncio.get_running_loop().call_later(pause, self._requeue, key, again)

    def _requeue(self, key: str, waiters: _Waiters[V]) -> None:
        self._waiting.setdefault(key, {}).update(waiters)
        self._maybe_flush()

    def _pause(self) -> None:
        self._is_paused = True
        self._failures = min(self._failures + 1, self._max_attempts)
        asyncio.get_running_loop().call_later(self._pause_seconds(self._failures), self._resume)

    def _resume(self) -> None:
        self._is_paused = False
        self._maybe_flush()


def _resolve(waiters: "Iterable[asyncio.Future[V | Exception]]", value: V | Exception) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(value)
