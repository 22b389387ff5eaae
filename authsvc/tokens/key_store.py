"""Where signing keys are kept: what a store of keys must do, and the changes that commands make in any of them.

Commands may run at the same time, on several hosts. None of them takes back what another one did.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from authsvc.errors import KeyFileError
from authsvc.tokens import key_set as key_sets
from authsvc.tokens.key_set import KeySet, StoredKeys, located
from authsvc.tokens.keys import Key

PUBLISHED_BEFORE_SIGNING = timedelta(hours=2)
"""How long gateways may cache the public keys."""
MAX_WRITES = 12
"""Of one change, with pauses of 30 s in all on the average."""
_PAUSE_SECONDS = 0.05
_MAX_PAUSE_SECONDS = 10.0

_jitter = random.SystemRandom()


class KeyStore(Protocol):
    """A place that keeps one key set. Its text is the location, as the setting has it."""

    async def read(self) -> StoredKeys:
        """Read the key set.

        Raises:
            KeyFileError: It cannot be read, or a key in it cannot be used.
        """

    async def create(self, key_set: KeySet) -> None:
        """Store the first key set.

        Raises:
            KeyFileError: There is one already, or it cannot be written.
        """

    async def write(self, key_set: KeySet, version: object) -> bool:
        """Replace the key set unless it has changed since it was read.

        Args:
            key_set: The new one.
            version: As it was read.

        Returns:
            Whether nothing else was written meanwhile. Otherwise the caller must merge its set with what is stored.

        Raises:
            KeyFileError: It cannot be written.
        """


@dataclass(frozen=True, slots=True)
class Change:
    """The keys before and after a change, changes of others that ran at the same time included."""

    before: Sequence[Key]
    after: Sequence[Key]


async def generate_keys(store: KeyStore, alg: str, now: datetime) -> Sequence[Key]:
    """Create a signing key and the next one.

    Raises:
        KeyFileError: There are keys already, or they cannot be written.
    """
    key_set = key_sets.new_key_set(alg, now)
    await store.create(key_set)
    return key_set.keys


async def rotate_keys(store: KeyStore, access_token_ttl: timedelta, now: datetime) -> Change:
    """Let the next key sign, add a new next one, and retire the old one until its last token has expired.

    Where there is no next key, one is added and nothing else changes: a key must be published before it signs.
    Where several rotations of the same keys meet, they count as one.

    Args:
        store: Of the keys.
        access_token_ttl: Longest lifetime of the tokens that the old key has signed.
        now: Retired keys that are expired by then are dropped.

    Raises:
        KeyFileError: The keys cannot be used or written.
    """
    return await _change(store, lambda key_set: key_sets.rotate(key_set, access_token_ttl, now))


async def remove_key(store: KeyStore, kid: str, now: datetime) -> Change:
    """Remove a key and with it its tokens; another key takes over its status.

    Raises:
        KeyFileError: The keys cannot be used or written, or there is no such key.
    """
    return await _change(store, lambda key_set: key_sets.remove(key_set, kid, now, str(store)))


async def _change(store: KeyStore, change: Callable[[KeySet], KeySet]) -> Change:
    stored = await store.read()
    before = stored.key_set.keys
    with located(store):
        key_set = change(stored.key_set)
    for attempt in range(MAX_WRITES):
        if await store.write(key_set, stored.version):
            return Change(before, key_set.keys)
        await asyncio.sleep(_jitter.uniform(0, min(_PAUSE_SECONDS * 2**attempt, _MAX_PAUSE_SECONDS)))
        stored = await store.read()
        key_set = key_sets.merge(key_set, stored.key_set)
    raise KeyFileError(f"{store}: other commands change it all the time; see authsvc keys list, and run this again")


def was_just_published(key: Key, now: datetime) -> bool:
    """Return whether a key is so new that gateways may not know it yet."""
    return now.timestamp() - key.create_time < PUBLISHED_BEFORE_SIGNING.total_seconds()
