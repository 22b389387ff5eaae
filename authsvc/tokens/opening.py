"""Opening the signing keys that a setting names: for a command, or for a service that follows them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from authsvc.config import KeyLocation
from authsvc.models import Clock
from authsvc.tokens.key_file import KeyFile, watch_key_file
from authsvc.tokens.key_store import KeyStore
from authsvc.tokens.keys import KeyRing
from authsvc.tokens.watched_keys import WatchedKeys
from authsvc.watched_file import Watched

POLL_SECONDS = 60.0
"""Between two reads of keys in AWS."""


@asynccontextmanager
async def open_key_store(location: KeyLocation) -> AsyncIterator[KeyStore]:
    """Open the store of a location.

    Raises:
        ConfigError: No AWS region is configured, or AWS's settings are malformed.
    """
    if isinstance(location, Path):
        yield KeyFile(location)
        return
    # AWS's libraries take a second to import, and a file needs none of them.
    from authsvc.tokens.aws_keys import open_aws_keys  # noqa: PLC0415 - imported where it is needed

    async with open_aws_keys(location) as store:
        yield store


@asynccontextmanager
async def watch_keys(
    location: KeyLocation, clock: Clock, poll_seconds: float = POLL_SECONDS
) -> AsyncIterator[Watched[KeyRing]]:
    """Follow the key ring of a location. A file is read when its owner polls it, keys in AWS by a background task.

    Args:
        location: Of the keys.
        clock: Decides which retired keys are expired.
        poll_seconds: Between two reads of keys in AWS.

    Raises:
        ConfigError: No AWS region is configured, or AWS's settings are malformed.
        KeyFileError: The keys cannot be used now. Later failures are logged and leave the last good ring.
    """
    if isinstance(location, Path):
        yield watch_key_file(location, clock)
        return
    async with open_key_store(location) as store:
        keys = WatchedKeys(store, clock, await store.read())
        following = asyncio.create_task(keys.follow(poll_seconds))
        try:
            yield keys
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
