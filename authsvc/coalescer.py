"""Concurrent reads of single keys, coalesced into batches.

- Freshness: a key joins a batch that is not yet sent, never one in flight, so its read begins after it was asked for.
- Deduplication: a batch has a key once, however many callers wait for it, and at most MAX_KEYS keys, oldest first.
- Flush policy: at once with no batch in flight or MAX_KEYS keys waiting; else when a batch returns, at the latest after
  MAX_WAIT_SECONDS. At most MAX_IN_FLIGHT batches are in flight.
- Gathering: when a batch of several keys returns, its callers often ask again, so the next one is sent once no key has
  come for GATHER_SECONDS, at the latest after MAX_GATHER_SECONDS.
- Cancellation: a caller that is cancelled or out of time leaves without harm to others; a key that no caller waits for
  is not sent.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextvars import Context
from functools import partial
from typing import Generic, TypeAlias, TypeVar

MAX_KEYS = 100  # BatchGetItem takes no more
MAX_IN_FLIGHT = 8
MAX_WAIT_SECONDS = 0.005
GATHER_SECONDS = 0.001
MAX_GATHER_SECONDS = 0.002
"""Callers that come at a steady rate would be gathered for MAX_WAIT_SECONDS each time."""

V = TypeVar("V")
Read: TypeAlias = Callable[[Sequence[str]], AsyncIterator[Mapping[str, V]]]


class Coalescer(Generic[V]):
    """Reads keys in batches.

    Args:
        read: Yields the values of a batch as they come, each key's once.
    """

    def __init__(self, read: Read[V]) -> None:
        self._read = read
        self._waiting: dict[str, list[asyncio.Future[V | Exception]]] = {}
        self._in_flight: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_gathering = False

    async def get(self, keys: Collection[str], deadline: float) -> Mapping[str, V | Exception]:
        """Return the value of each key, or the error of its read; TimeoutError where neither came by the deadline.

        Args:
            keys: What is read.
            deadline: By the running loop's clock.
        """
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[V | Exception]] = {key: loop.create_future() for key in keys}
        for key, future in futures.items():
            self._waiting.setdefault(key, []).append(future)
        self._flush()
        timer = loop.call_at(deadline, _resolve, futures.values(), TimeoutError())
        try:
            return {key: await future for key, future in futures.items()}
        finally:
            timer.cancel()
            for future in futures.values():
                future.cancel()

    def _flush(self) -> None:
        """Send the batches that are due; let the rest wait for the timer."""
        is_idle = not self._in_flight and not self._is_gathering
        while self._waiting and (is_idle or len(self._waiting) >= MAX_KEYS) and self._send():
            is_idle = False
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(MAX_WAIT_SECONDS, self._send)

    def _send(self) -> bool:
        """Send a batch of the oldest keys; return False where too many are in flight."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            return False
        asked = {key: self._waiting.pop(key) for key in list(itertools.islice(self._waiting, MAX_KEYS))}
        if batch := {key: futures for key, futures in asked.items() if not all(future.done() for future in futures)}:
            # In a context of its own: a batch does not belong to one request.
            task = asyncio.get_running_loop().create_task(self._run(batch), context=Context())
            self._in_flight.add(task)
            task.add_done_callback(partial(self._returned, len(batch)))
        return True

    def _returned(self, size: int, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if size == 1 or self._is_gathering:
            self._flush()
        else:
            self._gather(-1, asyncio.get_running_loop().time() + MAX_GATHER_SECONDS)

    def _gather(self, seen: int, deadline: float) -> None:
        """Send the next batch, unless more keys wait than a moment ago."""
        loop = asyncio.get_running_loop()
        self._is_gathering = len(self._waiting) > seen and loop.time() < deadline
        if self._is_gathering:
            loop.call_later(GATHER_SECONDS, self._gather, len(self._waiting), deadline)
        self._flush()

    async def _run(self, batch: dict[str, list[asyncio.Future[V | Exception]]]) -> None:
        error: Exception = LookupError("the read ended without a value")
        try:
            async for values in self._read(list(batch)):
                for key, value in values.items():
                    _resolve(batch.pop(key), value)
        except Exception as raised:  # noqa: BLE001 - any error is delivered to the waiting callers
            error = raised
        for futures in batch.values():
            _resolve(futures, error)


def _resolve(futures: "Iterable[asyncio.Future[V | Exception]]", value: V | Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_result(value)
