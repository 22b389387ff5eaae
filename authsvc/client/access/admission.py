"""Which valid tokens may pass, and what the middleware asks of its client."""

import inspect
from collections.abc import Awaitable
from typing import Protocol

from authsvc.client.access.refusals import MissingRoleError
from authsvc.client.identity import Identity


class AsyncValidator(Protocol):
    """What asynchronous middleware asks of a client: AsyncClient, or FakeClient in tests."""

    def validate(self, token: str) -> Awaitable[Identity]:
        """Return who the token is from."""


class Validator(Protocol):
    """What synchronous middleware asks of a client: Client, or SyncFakeClient in tests."""

    def validate(self, token: str) -> Identity:
        """Return who the token is from."""


def require_async(client: AsyncValidator) -> AsyncValidator:
    """Return the client.

    Raises:
        TypeError: It is a synchronous one, which would block the event loop.
    """
    if not inspect.iscoroutinefunction(client.validate):
        raise TypeError(f"{type(client).__name__} is synchronous: asynchronous middleware needs an AsyncClient")
    return client


def require_sync(client: Validator) -> Validator:
    """Return the client.

    Raises:
        TypeError: It is an asynchronous one, whose answer is a coroutine and no identity.
    """
    if inspect.iscoroutinefunction(client.validate):
        raise TypeError(f"{type(client).__name__} is asynchronous: synchronous middleware needs a Client")
    return client


def require_admitted(identity: Identity, role: str | None) -> Identity:
    """Return the identity if it may pass.

    Args:
        identity: What the client answered.
        role: The role that it must have; None for any.

    Raises:
        MissingRoleError: It has another role.
        TypeError: The answer is no identity.
    """
    if not isinstance(identity, Identity):
        raise TypeError(f"validate() answered with {type(identity).__name__}, not with an Identity")
    if role is not None and identity.role != role:
        raise MissingRoleError
    return identity
