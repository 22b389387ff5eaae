"""Clients that answer from a dictionary: a backend's tests need no service."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from authsvc.client.async_client import AsyncClient
from authsvc.client.clock import to_seconds
from authsvc.client.errors import DEFAULT_RETRY_DELAY, InvalidTokenError, UnavailableError
from authsvc.client.identity import Identity
from authsvc.client.sync_client import Client

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


class _Fake:
    """What both fakes have in common.

    Args:
        identities: The valid tokens, and who each is from.
        stale_if_error: In seconds.
    """

    def __init__(self, identities: Mapping[str, Identity], stale_if_error: float) -> None:
        self.identities = dict(identities)
        """The valid tokens, and who each is from. Change it to let users log in and out."""
        self._default_stale_if_error = stale_if_error
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

    def _answer(self, token: str, stale_if_error: timedelta | float | None) -> Identity:
        identity = self.identities.get(token)
        if self._retry_delay is None:
            if identity is None:
                raise InvalidTokenError("MALFORMED")
            return identity
        budget = self._default_stale_if_error
        if stale_if_error is not None:
            budget = to_seconds("stale_if_error", stale_if_error)
        if identity is None or not budget:
            raise UnavailableError(self._retry_delay)
        return replace(identity, degraded=True)


class FakeClient(_Fake, AsyncClient):
    """Stands in for AsyncClient: `FakeClient({"token": make_identity(role="admin")})`.

    Args:
        identities: The valid tokens, and who each is from. Every other token is invalid.
        stale_if_error: As for AsyncClient: in an outage, zero raises UnavailableError; else answers are `degraded`.
    """

    def __init__(self, identities: Mapping[str, Identity], *, stale_if_error: timedelta | float = 0.0) -> None:
        AsyncClient.__init__(self, _NOWHERE)
        _Fake.__init__(self, identities, to_seconds("stale_if_error", stale_if_error))

    async def validate(
        self,
        token: str,
        *,
        max_staleness: timedelta | float | None = None,  # noqa: ARG002 - every answer is new
        stale_if_error: timedelta | float | None = None,
        timeout: timedelta | float | None = None,  # noqa: ARG002 - and comes at once
    ) -> Identity:
        """Return who a token is from.

        Raises:
            InvalidTokenError: The token is not among the valid ones.
            UnavailableError: There is an outage.
        """
        return self._answer(token, stale_if_error)


class SyncFakeClient(_Fake, Client):
    """Stands in for Client, as FakeClient does for AsyncClient.

    Args:
        identities: The valid tokens, and who each is from. Every other token is invalid.
        stale_if_error: As for Client: in an outage, zero raises UnavailableError; else answers are `degraded`.
    """

    def __init__(self, identities: Mapping[str, Identity], *, stale_if_error: timedelta | float = 0.0) -> None:
        Client.__init__(self, _NOWHERE)
        _Fake.__init__(self, identities, to_seconds("stale_if_error", stale_if_error))

    def validate(
        self,
        token: str,
        *,
        max_staleness: timedelta | float | None = None,  # noqa: ARG002 - every answer is new
        stale_if_error: timedelta | float | None = None,
        timeout: timedelta | float | None = None,  # noqa: ARG002 - and comes at once
    ) -> Identity:
        """Return who a token is from.

        Raises:
            InvalidTokenError: The token is not among the valid ones.
            UnavailableError: There is an outage.
        """
        return self._answer(token, stale_if_error)
