"""The key ring of a running service whose keys are in AWS, read again every minute."""

import asyncio
import contextlib

from authsvc.errors import KeyFileError
from authsvc.models import Clock
from authsvc.telemetry import audit, metrics
from authsvc.telemetry.audit import Event
from authsvc.tokens.key_set import StoredKeys
from authsvc.tokens.key_store import KeyStore
from authsvc.tokens.keys import KeyRing


class WatchedKeys:
    """The key ring of a store, read again every minute by a background task.

    Args:
        store: Of the keys.
        clock: Decides which retired keys are expired.
        stored: What was read at the start.
    """

    def __init__(self, store: KeyStore, clock: Clock, stored: StoredKeys) -> None:
        self._store = store
        self._clock = clock
        self._version = stored.version
        self._failure: str | None = None
        self._demanded = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._set_failing = metrics.RELOAD_FAILING.labels("keys").set
        self._set_failing(0)
        self.content = self._ring(stored)

    def reload_if_changed(self) -> KeyRing:
        """Return the last good ring: the background task reads."""
        return self.content

    def reload(self) -> None:
        """Let the background task read at once, and log the outcome; from any thread."""
        self._loop.call_soon_threadsafe(self._demanded.set)

    async def follow(self, poll_seconds: float) -> None:
        """Read the keys again and again, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._demanded.wait(), poll_seconds)
            is_demanded = self._demanded.is_set()
            self._demanded.clear()
            await self._load(is_demanded=is_demanded)

    async def _load(self, *, is_demanded: bool) -> None:
        """Read the keys; log a change, a new failure and its end, and any outcome that was demanded."""
        try:
            stored = await self._store.read()
        except KeyFileError as error:
            failure = str(error)
            if is_demanded or failure != self._failure:
                audit.record(Event.KEYS_NOT_RELOADED, reason=failure)
            self._failure = failure
            self._set_failing(1)
            return
        self._set_failing(0)
        if is_demanded or self._failure is not None or stored.version != self._version:
            self._version, self._failure = stored.version, None
            self.content = self._ring(stored)
            audit.record(Event.KEYS_RELOADED, signing_key=self.content.signing_key.kid)

    def _ring(self, stored: StoredKeys) -> KeyRing:
        now = self._clock().timestamp()
        return KeyRing([key for key in stored.key_set.keys if not key.is_expired(now)])
