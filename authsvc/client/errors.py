"""Every error that the client raises on purpose.

AuthsvcError
├── InvalidTokenError            the token is invalid, and says why: answer 401
├── CallerRefusedError           the service refuses this backend's own credentials or permission: answer 500
├── RetryLaterError              the request is right, the moment is not
│   ├── UnavailableError         the service cannot answer: answer 503, never 401
│   ├── TooManyAttemptsError     a budget of failed logins is used up
│   └── OverloadedError          the service's password-hashing queue is full
├── InvalidFieldError            a request field is empty, too long or malformed
│   └── PasswordRejectedError    a new password violates the policy
├── MalformedRequestError        request bytes that the service cannot decode
├── InvalidCredentialsError      wrong email or password, or a user who may not log in
├── PasswordChangeRequiredError  the right temporary password, which must be changed first
├── InvalidRefreshTokenError     a refresh token that is unknown, expired, reused or revoked
├── EmailAlreadyExistsError      another user has the email
├── UserNotFoundError            no such user
└── InternalError                the service failed: its logs have the cause by the trace id

No error's text holds a token, a password, a key or a digest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

DEFAULT_RETRY_DELAY = timedelta(seconds=1)


class AuthsvcError(Exception):
    """Base class of every error of the client.

    Attributes:
        trace_id: Trace id of the request in the service's logs, 32 hexadecimal digits; empty where the service sent
            none.
        summary: What its text says, unless it has more to say.
    """

    summary: ClassVar[str] = "the call failed"
    trace_id: str = ""

    def __str__(self) -> str:
        """Return the summary, and where the service's logs have more."""
        return f"{self.summary} (trace id {self.trace_id})" if self.trace_id else self.summary


class InvalidTokenError(AuthsvcError):
    """The token is invalid: answer 401.

    Args:
        reason: Name of an InactiveReason without its prefix, for instance EXPIRED.

    Attributes:
        degraded: Whether the service decided by an older read because its store could not answer.
    """

    degraded: bool = False

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        """Return the reason in a sentence."""
        return f"the token is invalid: {self.reason}"


class CallerRefusedError(AuthsvcError):
    """The service refuses this backend itself: its API key or certificate is missing or wrong, or lacks a permission.

    Args:
        reason: CALLER_UNAUTHENTICATED or CALLER_NOT_PERMITTED; another text where a proxy refused.
    """

    def __init__(self, reason: str = "CALLER_UNAUTHENTICATED") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        """Return what an operator must do."""
        return f"the service refuses this backend: {self.reason}; check the API key or certificate, and its permissions"


class RetryLaterError(AuthsvcError):
    """The request is right, but cannot be served now.

    Args:
        retry_delay: How long to wait before the next try.
        cause: What failed; a fixed text.
    """

    def __init__(self, retry_delay: timedelta = DEFAULT_RETRY_DELAY, cause: str = "") -> None:
        super().__init__(retry_delay, cause)
        self.retry_delay = retry_delay
        self.cause = cause

    def __str__(self) -> str:
        """Return the delay and the cause."""
        cause = self.cause or "the service cannot answer now"
        return f"{cause}; try again in {self.retry_delay.total_seconds():g} s"


class UnavailableError(RetryLaterError):
    """The service, or its store, cannot answer: answer 503. It says nothing about the token."""


class TooManyAttemptsError(RetryLaterError):
    """A budget of failed logins is used up."""


class OverloadedError(RetryLaterError):
    """The service's password-hashing queue is full."""


class InvalidFieldError(AuthsvcError):
    """A request field is empty, too long or malformed.

    Args:
        field: Name of the field as in the API; empty where the service did not say.
        problem: What is wrong with it, without its value.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        """Return field and problem."""
        return f"{self.field or 'a field of the request'}: {self.problem or 'is invalid'}"


class PasswordRejectedError(InvalidFieldError):
    """A new password violates the policy."""


class MalformedRequestError(AuthsvcError):
    """The service cannot decode the bytes of the request."""

    summary = "the service cannot decode the request: it may be of another version"


class InvalidCredentialsError(AuthsvcError):
    """The email or the password is wrong, or the user may not log in."""

    summary = "the email or the password is wrong, or the user may not log in"


class PasswordChangeRequiredError(AuthsvcError):
    """The temporary password is right, and must be changed before tokens are issued."""

    summary = "the temporary password is right, and must be changed first, with ChangePassword"


class InvalidRefreshTokenError(AuthsvcError):
    """The refresh token is unknown, expired, reused or revoked, or its user is disabled or deleted."""

    summary = "the refresh token is invalid: the user must log in again"


class EmailAlreadyExistsError(AuthsvcError):
    """Another user has the email."""

    summary = "another user has the email"


class UserNotFoundError(AuthsvcError):
    """There is no such user."""

    summary = "there is no such user"


class InternalError(AuthsvcError):
    """The service failed; its logs have the cause by the trace id."""

    summary = "the service failed: its logs have the cause"


ERROR_BY_REASON: Mapping[str, type[AuthsvcError]] = {
    "INVALID_FIELD": InvalidFieldError,
    "MALFORMED_REQUEST": MalformedRequestError,
    "PASSWORD_REJECTED": PasswordRejectedError,
    "INVALID_CREDENTIALS": InvalidCredentialsError,
    "PASSWORD_CHANGE_REQUIRED": PasswordChangeRequiredError,
    "INVALID_REFRESH_TOKEN": InvalidRefreshTokenError,
    "TOO_MANY_ATTEMPTS": TooManyAttemptsError,
    "OVERLOADED": OverloadedError,
    "CALLER_UNAUTHENTICATED": CallerRefusedError,
    "CALLER_NOT_PERMITTED": CallerRefusedError,
    "EMAIL_ALREADY_EXISTS": EmailAlreadyExistsError,
    "USER_NOT_FOUND": UserNotFoundError,
    "STORE_UNAVAILABLE": UnavailableError,
    "INTERNAL": InternalError,
}
"""The exception of each ErrorReason, by its name without prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What the service said about a failed request.

    Args:
        reason: Name of an ErrorReason without its prefix.
        trace_id: As in the service's logs; empty where it sent none.
        field: Field that is wrong.
        problem: What is wrong with it.
        retry_delay: How long to wait before the next try.
    """

    reason: str
    trace_id: str = ""
    field: str = ""
    problem: str = ""
    retry_delay: timedelta = DEFAULT_RETRY_DELAY

    def to_error(self) -> AuthsvcError:
        """Return the exception; a reason that this version does not know becomes an UnavailableError."""
        error = self._of(ERROR_BY_REASON.get(self.reason, UnavailableError))
        error.trace_id = self.trace_id
        return error

    def _of(self, kind: type[AuthsvcError]) -> AuthsvcError:
        if issubclass(kind, InvalidFieldError):
            return kind(self.field, self.problem)
        if issubclass(kind, RetryLaterError):
            return kind(self.retry_delay, f"the service answered {self.reason}")
        if issubclass(kind, CallerRefusedError):
            return kind(self.reason)
        return kind()
