"""Every error that the service raises on purpose.

AuthsvcError
├── InvalidFieldError            a request field is empty, too long or malformed
│   └── PasswordRejectedError    a new password violates the policy
├── MalformedRequestError        request bytes that do not decode
├── LoginRefusedError            a login that begins no session
│   ├── InvalidCredentialsError  wrong address or password, or a user who may not log in
│   └── PasswordChangeRequiredError  the right temporary password, which must be changed first
├── InvalidRefreshTokenError     a refresh token that is unknown, expired, revoked, or of a disabled user
│   └── RefreshTokenReusedError  a refresh token that was replaced before: theft
├── CallerRefusedError           a caller that may not make this call
│   ├── CallerUnauthenticatedError  missing or wrong credentials
│   └── CallerNotPermittedError  a missing permission
├── EmailAlreadyExistsError      another user has the address
├── UserNotFoundError            no such user
├── UserChangedError             an optimistic lock failed: the user changed between read and write
├── CorruptItemError             a stored row that cannot be read
├── RetryLaterError              the request is right, the moment is not
│   ├── OverloadedError          the password-hashing queue is full
│   ├── TooManyAttemptsError     a budget of failed logins is used up
│   └── StoreUnavailableError    the store cannot answer in time
│       └── RetryableStoreError  one attempt failed, another one may succeed
└── OperatorError                something that an operator must repair; its text is shown as it is
    ├── ConfigError              settings that are missing, malformed or unsafe together
    ├── KeyFileError             signing keys that cannot be used
    ├── CallersFileError         a callers file that cannot be used
    └── StoreSetupError          a store that is not set up as the service needs it

No error's text holds a password, a token, a key or a hash.
"""

from datetime import timedelta
from pathlib import Path

WRONG_CLOCK = "this host's clock is wrong"
"""In the cause of a StoreUnavailableError where a clock explains it."""


class AuthsvcError(Exception):
    """Base class of every error of this package."""


class InvalidFieldError(AuthsvcError):
    """A request field is empty, too long or malformed.

    Args:
        field: Name of the field as in the API.
        problem: What is wrong with it: a fixed text, without the value.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class PasswordRejectedError(InvalidFieldError):
    """A new password violates the policy."""


class MalformedRequestError(AuthsvcError):
    """The bytes of a request do not decode."""


class LoginRefusedError(AuthsvcError):
    """A login begins no session.

    Args:
        reason: Why; for the log alone.
        user_id: The user of the address, for the log alone; None where no user has it.
    """

    def __init__(self, reason: str, user_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.user_id = user_id


class InvalidCredentialsError(LoginRefusedError):
    """The address or the password is wrong, or the user may not log in."""


class PasswordChangeRequiredError(LoginRefusedError):
    """The temporary password is right, and must be changed before tokens are issued."""


class InvalidRefreshTokenError(AuthsvcError):
    """The refresh token is unknown, expired or revoked, or its user is disabled.

    Args:
        reason: Why; for the log alone.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RefreshTokenReusedError(InvalidRefreshTokenError):
    """The refresh token was replaced before: it is stolen, or its successor is."""

    def __init__(self) -> None:
        super().__init__("reused")


class CallerRefusedError(AuthsvcError):
    """The caller may not make this call.

    Args:
        reason: Why; for the log alone.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CallerUnauthenticatedError(CallerRefusedError):
    """The caller gave no or wrong credentials."""


class CallerNotPermittedError(CallerRefusedError):
    """The caller lacks the permission."""


class EmailAlreadyExistsError(AuthsvcError):
    """Another user has the address."""


class UserNotFoundError(AuthsvcError):
    """There is no such user."""


class UserChangedError(AuthsvcError):
    """The user changed between a read and the write that depended on it; nothing was written."""


class CorruptItemError(AuthsvcError):
    """A stored row cannot be read: an attribute is missing, of a wrong type, or malformed.

    Args:
        key: The row's key; the user id for users.
        attribute: The attribute that is wrong.
    """

    def __init__(self, key: str, attribute: str) -> None:
        super().__init__(f"row {key!r}: attribute {attribute} is missing or unreadable")
        self.key = key
        self.attribute = attribute


class RetryLaterError(AuthsvcError):
    """The request is right, but cannot be served now.

    Args:
        retry_delay: How long the caller should wait before it retries.
    """

    def __init__(self, retry_delay: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(f"try again in {retry_delay.total_seconds():g} s")
        self.retry_delay = retry_delay


class OverloadedError(RetryLaterError):
    """The password-hashing queue is full, or a hash would miss its deadline."""


class TooManyAttemptsError(RetryLaterError):
    """A budget of failed logins is used up.

    Args:
        counter: Name of the budget, for the log; never sent to a client.
        retry_delay: How long until it admits attempts again.
    """

    def __init__(self, counter: str, retry_delay: timedelta) -> None:
        super().__init__(retry_delay)
        self.counter = counter


class StoreUnavailableError(RetryLaterError):
    """The store cannot answer in time.

    Args:
        cause: What the store did, for logs and operators; never sent to a client.
    """

    def __init__(self, cause: str) -> None:
        super().__init__()
        self.cause = cause

    def __str__(self) -> str:
        """Return the text for operators."""
        return f"the store cannot answer: {self.cause}"


class RetryableStoreError(StoreUnavailableError):
    """One attempt of a store call failed, and another one may succeed."""


class OperatorError(AuthsvcError):
    """Something that an operator must repair. The text is shown as it is."""


class ConfigError(OperatorError):
    """Settings are missing, malformed or unsafe together.

    Args:
        problems: One line each.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class KeyFileError(OperatorError):
    """The signing keys cannot be read, used or written: a file, a parameter or a secret."""


class CallersFileError(OperatorError):
    """A callers file cannot be used.

    Args:
        path: The file.
        problems: One line each, without anything that could be a key.
    """

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))
        self.problems = problems


class StoreSetupError(OperatorError):
    """The store exists but is not set up as the service needs it."""
