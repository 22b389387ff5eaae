"""Who a request is from: the answer to a valid token."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The user and the session of a valid access token. It has what Starlette expects of a user.

    Args:
        user_id: Identifier of the user.
        email: Email address of the user, from the store. Personal data, so it is not in the repr.
        role: Role of the user, from the store.
        session_id: Identifier of the session.
        token_id: Identifier of the access token. Not a secret.
        issue_time: When the token was issued, in UTC.
        expire_time: When the token expires, in UTC.
        checked_time: When the read that decided began, in UTC.
        degraded: Whether an older answer stands in because the service or its store could not answer.
    """

    user_id: str
    email: str = field(repr=False)
    role: str
    session_id: str
    token_id: str
    issue_time: datetime
    expire_time: datetime
    checked_time: datetime
    degraded: bool = False

    @property
    def is_authenticated(self) -> bool:
        """Whether there is a user: always."""
        return True

    @property
    def display_name(self) -> str:
        """The email address of the user."""
        return self.email

    @property
    def identity(self) -> str:
        """The identifier of the user."""
        return self.user_id


current_identity: ContextVar[Identity | None] = ContextVar("current_identity", default=None)
"""The identity of the request being served. The middleware sets it for the request and resets it after it."""
