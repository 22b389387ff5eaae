"""The read-modify-write loop: repeated while the optimistic lock of a user's row fails."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from authsvc.errors import StoreUnavailableError, UserChangedError

MAX_UPDATE_ATTEMPTS = 20

T = TypeVar("T")


async def retry_on_conflict(update: Callable[[], Awaitable[T]]) -> T:
    """Read a user and write a change, again where another write got in between.

    Args:
        update: Reads and writes once; raises UserChangedError where the user changed in between.

    Raises:
        StoreUnavailableError: The user changed during each of MAX_UPDATE_ATTEMPTS attempts.
    """
    for _ in range(MAX_UPDATE_ATTEMPTS):
        try:
            return await update()
        except UserChangedError:
            continue
    raise StoreUnavailableError("the user keeps changing")
