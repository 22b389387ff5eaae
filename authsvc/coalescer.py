"""Concurrent reads of single keys, joined into batches.

- Fresh: a read joins a batch that is not yet sent, never one under way; its answer began after it was asked for.
- Once: a batch has a key once, however many wait for it, and at most MAX_KEYS keys; first asked, first sent.
- Soon: at once if no company is expected (after a batch of one, with none under way) or a batch is full; else after
  IDLE_FLUSH_SECONDS without a new key, at the latest after MAX_WAIT_SECONDS. MAX_IN_FLIGHT bounds the batches under way.
- Apart: whoever is cancelled or out of time leaves without harm to others; a key that nobody waits for is not sent.
- Again: a key without an answer is asked for again after a pause, as often as each who waits has attempts; after a
  batch without any, all pause, so that a store in trouble is asked little.
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
"""Who waits for a key, each with the attempts made meanwhile."""


class Coalescer(Generic[V]):
    """Reads keys in batches by `read`, which makes one attempt.

    A key that its result lacks got no answer; RetryableStoreError: none of them did; any other error is final for all of
    them. `pause_seconds` tells how long to pause after so many attempts without an answer.
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
        self._patience: asyncio.TimerHandle | None = None
        self._failures = 0  # batches without any answer, in a row
        self._is_paused = self._is_watching = self._expects_company = False

    async def get(self, keys: Collection[str]) -> Mapping[str, V | Exception]:
        """Return what each key holds, or why it cannot be read, by the request's deadline."""
        loop = asyncio.get_running_loop()
        waiters: dict[str, asyncio.Future[V | Exception]] = {key: loop.create_future() for key in keys}
        for key, waiter in waiters.items():
            self._waiting.setdefault(key, {})[waiter] = 0
        if self._patience is None or len(self._waiting) >= MAX_KEYS:  # else it is seen to already
            self._maybe_flush()
        timer = loop.call_at(
            request_context.deadline(), _settle, waiters.values(), StoreUnavailableError("no answer in time")
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
        """Send what waits if it is time, else see to it that its time comes."""
        while self._may_send and (len(self._waiting) >= MAX_KEYS or not (self._in_flight or self._expects_company)):
            self._send()
        if not self._may_send:
            return
        loop = asyncio.get_running_loop()
        self._patience = self._patience or loop.call_later(MAX_WAIT_SECONDS, self._send)
        if not self._in_flight and not self._is_watching:
            self._is_watching = True
            loop.call_later(IDLE_FLUSH_SECONDS, self._watch, len(self._waiting))

    def _watch(self, seen: int) -> None:
        """Send once no new key has come for a while."""
        self._is_watching = self._may_send and not self._in_flight and seen < len(self._waiting)
        if self._is_watching:
            asyncio.get_running_loop().call_later(IDLE_FLUSH_SECONDS, self._watch, len(self._waiting))
        elif not self._in_flight:
            self._send()

    def _send(self) -> None:
        if self._patience:
            self._patience.cancel()
            self._patience = None
        keys = list(itertools.islice(self._waiting, MAX_KEYS)) if self._may_send else ()
        asked = ((key, self._waiting.pop(key)) for key in keys)
        if batch := {key: waiters for key, waiters in asked if not all(waiter.done() for waiter in waiters)}:
            self._expects_company = len(batch) > 1
            # In a context of its own, for a batch belongs to no single request.
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
        except Exception as error:  # noqa: BLE001 - whatever it is, it is for those who wait
            answers = dict.fromkeys(batch, error)
        if answers:
            self._failures = 0
        elif not self._is_paused:  # of several that fail together one counts
            self._pause()
        for key, waiters in batch.items():
            if key in answers:
                _settle(waiters, answers[key])
            else:
                self._fail(key, waiters, cause)

    def _fail(self, key: str, waiters: _Waiters[V], cause: str) -> None:
        """Ask again for those who have attempts left, and give the others up."""
        again = {waiter: made + 1 for waiter, made in waiters.items() if made + 1 < self._max_attempts}
        _settle(waiters.keys() - again.keys(), StoreUnavailableError(cause))
        if again:
            pause = self._pause_seconds(max(again.values()))
            asyncio.get_running_loop().call_later(pause, self._ask_again, key, again)

    def _ask_again(self, key: str, waiters: _Waiters[V]) -> None:
        self._waiting.setdefault(key, {}).update(waiters)
        self._maybe_flush()

    def _pause(self) -> None:
        self._is_paused = True
        self._failures = min(self._failures + 1, self._max_attempts)
        asyncio.get_running_loop().call_later(self._pause_seconds(self._failures), self._go_on)

    def _go_on(self) -> None:
        self._is_paused = False
        self._maybe_flush()


def _settle(waiters: "Iterable[asyncio.Future[V | Exception]]", value: V | Exception) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(value)
