"""Clients that answer from a dictionary: a backend's tests need no service."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from authsvc.client.async_client import AsyncClient, garbage_reason
from authsvc.client.errors import DEFAULT_RETRY_DELAY, InvalidTokenError, UnavailableError
from authsvc.client.identity import Identity
from authsvc.client.sync_client import Client, ThreadedClient

_ISSUE_TIME = datetime(2030, 1, 1, tzinfo=UTC)
_NOWHERE = "127.0.0.1:1"
"""Where no service is: RPCs of a fake fail."""


def make_identity(user_id: str = "alice", *, role: str = "user", email: str = "") -> Identity:
    """Return an identity, for tests that do not care about all of it; `dataclasses.replace` changes the rest.

    Args:
        user_id: Identifier of the user.
        role: Role of the user.
        email: Email address of the user; empty for one made of the identifier.
    """
    return Identity(
        user_id=user_id,
        email=email or f"{user_id}@example.com",
        role=role,
        session_id=f"{user_id}-session",
        token_id=f"{user_id}-token",
        issue_time=_ISSUE_TIME,
        expire_time=_ISSUE_TIME + timedelta(hours=1),
        checked_time=_ISSUE_TIME,
    )


class FakeClient(AsyncClient):
    """Stands in for AsyncClient: `FakeClient({"token": make_identity(role="admin")})`.

    Args:
        identities: The valid tokens, and who each is from. Every other token is invalid.
        stale_if_error: As for AsyncClient: in an outage, zero raises UnavailableError; else answers are `degraded`.
    """

    def __init__(self, identities: Mapping[str, Identity], *, stale_if_error: timedelta | float = 0.0) -> None:
        super().__init__(_NOWHERE, stale_if_error=stale_if_error)
        self.identities = dict(identities)
        """The valid tokens, and who each is from. Change it to let users log in and out."""
        self._retry_delay: timedelta | None = None

    @contextmanager
    def outage(self, retry_delay: timedelta = DEFAULT_RETRY_DELAY) -> Iterator[None]:
        """Let the service be down within a `with` block.

        Args:
            retry_delay: What UnavailableError says.
        """
        before, self._retry_delay = self._retry_delay, retry_delay
        try:
            yield
        finally:
            self._retry_delay = before

    async def _ask(
        self,
        token: str,
        digest: bytes,  # noqa: ARG002 - no answer is stored
        budget: float,  # noqa: ARG002 - every answer is new
        stale: float,
        timeout: float,  # noqa: ARG002 - every answer comes at once
    ) -> Identity:
        self._counts.misses += 1
        self._sessions.require_usable()
        identity = self.identities.get(token)
        if self._retry_delay is None:
            if identity is None:
                raise InvalidTokenError(garbage_reason(token))
            return identity
        if identity is None or not stale:
            raise UnavailableError(self._retry_delay)
        self._counts.stale_answers += 1
        return replace(identity, degraded=True)


class _ThreadedFake(FakeClient, ThreadedClient):
    """A FakeClient on a background thread."""


class SyncFakeClient(Client):
    """Stands in for Client, as FakeClient does for AsyncClient.

    Args:
        identities: The valid tokens, and who each is from. Every other token is invalid.
        stale_if_error: As for Client: in an outage, zero raises UnavailableError; else answers are `degraded`.
    """

    def __init__(self, identities: Mapping[str, Identity], *, stale_if_error: timedelta | float = 0.0) -> None:
        self._fake = _ThreadedFake(identities, stale_if_error=stale_if_error)
        self._use(self._fake)

    @property
    def identities(self) -> dict[str, Identity]:
        """The valid tokens, and who each is from. Change it to let users log in and out."""
        return self._fake.identities

    def outage(self, retry_delay: timedelta = DEFAULT_RETRY_DELAY) -> AbstractContextManager[None]:
        """Let the service be down within a `with` block, as FakeClient.outage does."""
        return self._fake.outage(retry_delay)
