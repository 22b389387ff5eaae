"""Clients that answer from a dictionary: a backend's tests need no service."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Self

from authsvc.client.errors import DEFAULT_RETRY_DELAY, InvalidTokenError, UnavailableError
from authsvc.client.identity import Identity

_ISSUE_TIME = datetime(2030, 1, 1, tzinfo=UTC)
_NEVER = timedelta(0)


def make_identity(
    user_id: str = "alice", *, email: str = "", role: str = "user", session_id: str = "session", token_id: str = "token"
) -> Identity:
    """Return an identity, for tests that do not care about all of it.

    Args:
        user_id: Identifier of the user.
        email: Email address of the user; empty for one made of the identifier.
        role: Role of the user.
        session_id: Identifier of the session.
        token_id: Identifier of the access token.
    """
    return Identity(
        user_id=user_id,
        email=email or f"{user_id}@example.com",
        role=role,
        session_id=session_id,
        token_id=token_id,
        issue_time=_ISSUE_TIME,
        expire_time=_ISSUE_TIME + timedelta(hours=1),
        checked_time=_ISSUE_TIME,
    )


class _Answers:
    """What both fakes answer.

    Args:
        identities: The valid tokens, and who each is from. Every other token is invalid.
        stale_if_error: As for the real client: during an outage, zero raises UnavailableError, and more answers with
            `degraded` set.
    """

    def __init__(self, identities: Mapping[str, Identity], *, stale_if_error: timedelta = _NEVER) -> None:
        self.identities = dict(identities)
        """Change it to let users log in and out."""
        self._stale_if_error = stale_if_error
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

    def forget(self, token: str) -> None:
        """Do nothing: every answer is new."""

    def _answer(self, token: str, stale_if_error: timedelta | None) -> Identity:
        budget = self._stale_if_error if stale_if_error is None else stale_if_error
        identity = self.identities.get(token)
        if self._retry_delay is None:
            if identity is None:
                raise InvalidTokenError("MALFORMED")
            return identity
        if identity is None or budget <= _NEVER:
            raise UnavailableError(self._retry_delay)
        return replace(identity, degraded=True)


class FakeClient(_Answers):
    """Stands in for AsyncClient: `FakeClient({"token": make_identity(role="admin")})`.

    Args:
        identities: The valid tokens, and who each is from. Every other token is invalid.
        stale_if_error: As for the real client: during an outage, zero raises UnavailableError, and more answers with
            `degraded` set.
    """

    async def validate(
        self,
        token: str,
        *,
        max_staleness: timedelta | None = None,  # noqa: ARG002 - every answer is new
        stale_if_error: timedelta | None = None,
        timeout: float | timedelta | None = None,  # noqa: ARG002, ASYNC109 - as the real client
    ) -> Identity:
        """Return who a token is from.

        Raises:
            InvalidTokenError: The token is not among the valid ones.
            UnavailableError: There is an outage.
        """
        return self._answer(token, stale_if_error)

    async def close(self) -> None:
        """Do nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class SyncFakeClient(_Answers):
    """Stands in for Client, as FakeClient does for AsyncClient.

    Args:
        identities: The valid tokens, and who each is from. Every other token is invalid.
        stale_if_error: As for the real client: during an outage, zero raises UnavailableError, and more answers with
            `degraded` set.
    """

    def validate(
        self,
        token: str,
        *,
        max_staleness: timedelta | None = None,  # noqa: ARG002 - every answer is new
        stale_if_error: timedelta | None = None,
        timeout: float | timedelta | None = None,  # noqa: ARG002 - as the real client
    ) -> Identity:
        """Return who a token is from.

        Raises:
            InvalidTokenError: The token is not among the valid ones.
            UnavailableError: There is an outage.
        """
        return self._answer(token, stale_if_error)

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
