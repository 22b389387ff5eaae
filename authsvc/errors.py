"""Everything that can go wrong, as exceptions.

AuthsvcError
├── InvalidFieldError            a request field is empty, too long or malformed
│   └── PasswordRejectedError    a new password is against the policy
├── MalformedRequestError        request bytes that do not decode
├── LoginRefusedError            an address and a password begin no session
│   ├── InvalidCredentialsError  they do not let anybody in
│   └── PasswordChangeRequiredError  the temporary password is right and must be changed first
├── InvalidRefreshTokenError     the refresh token is unknown, expired, reused, revoked, or of a disabled user
├── CallerRefusedError           whoever calls may not
│   ├── CallerUnauthenticatedError  the caller gave no or wrong credentials
│   └── CallerNotPermittedError  the caller lacks the permission
├── EmailAlreadyExistsError      a user has that address
├── UserNotFoundError            there is no such user
├── UserChangedError             a user changed between a read and the write that rested on it
├── CorruptItemError               a stored row that cannot be read
├── RetryLaterError              nothing is wrong with the request, only with the moment
│   ├── OverloadedError          too many passwords wait to be hashed
│   ├── TooManyAttemptsError     too many passwords were wrong
│   └── StoreUnavailableError    the store cannot answer in time
│       └── RetryableStoreError        one attempt got no answer, and another one may
└── OperatorError                what an operator has to mend: shown as it is, on a terminal or in the log
    ├── ConfigError              settings that are missing, malformed or unsafe together
    ├── KeyFileError             a signing-key file that cannot be used
    ├── CallersFileError         a callers file that cannot be used
    └── StoreSetupError          a store that exists but is not what it must be

The texts of errors never hold a password, a token, a key or a hash.
"""

from datetime import timedelta
from pathlib import Path


class AuthsvcError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidFieldError(AuthsvcError):
    """A request field is empty, too long or malformed.

    Args:
        field: Name of the field as in the API.
        problem: What is wrong with it, fixed text, without the value.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class PasswordRejectedError(InvalidFieldError):
    """A new password is against the policy."""


class MalformedRequestError(AuthsvcError):
    """The bytes of a request do not decode."""


class LoginRefusedError(AuthsvcError):
    """An address and a password begin no session.

    Args:
        reason: Why, for the log alone.
        user_id: Whose address it is, for the log alone; None where nobody has it.
    """

    def __init__(self, reason: str, user_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.user_id = user_id


class InvalidCredentialsError(LoginRefusedError):
    """The address and the password do not let anybody in."""


class PasswordChangeRequiredError(LoginRefusedError):
    """The temporary password is right, and must be changed before tokens are issued."""


class InvalidRefreshTokenError(AuthsvcError):
    """The refresh token gives no new tokens.

    Args:
        reason: Why, for the log alone.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CallerRefusedError(AuthsvcError):
    """Whoever calls may not.

    Args:
        reason: Why, for the log alone.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CallerUnauthenticatedError(CallerRefusedError):
    """The caller gave no or wrong credentials."""


class CallerNotPermittedError(CallerRefusedError):
    """The caller lacks the permission."""


class EmailAlreadyExistsError(AuthsvcError):
    """A user has that address."""


class UserNotFoundError(AuthsvcError):
    """There is no such user."""


class UserChangedError(AuthsvcError):
    """A user changed between a read and the write that rested on it; the write was not done."""


class CorruptItemError(AuthsvcError):
    """A stored row cannot be read: an attribute is missing, of a wrong type, or unreadable.

    Args:
        key: The row's key, a user id for users.
        attribute: The attribute that is wrong.
    """

    def __init__(self, key: str, attribute: str) -> None:
        super().__init__(f"row {key!r}: attribute {attribute} is missing or unreadable")
        self.key = key
        self.attribute = attribute


class RetryLaterError(AuthsvcError):
    """Nothing is wrong with the request, only with the moment.

    Args:
        retry_delay: How long the caller should wait before it tries again.
    """

    def __init__(self, retry_delay: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(f"try again in {retry_delay.total_seconds():g} s")
        self.retry_delay = retry_delay


class OverloadedError(RetryLaterError):
    """Too many passwords wait to be hashed."""


class TooManyAttemptsError(RetryLaterError):
    """Too many passwords were wrong, of this account or from this source.

    Args:
        counter: Which budget is used up, for the log; never sent to a client.
        retry_delay: How long until it has room.
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
        """Return what an operator should read."""
        return f"the store cannot answer: {self.cause}"


class RetryableStoreError(StoreUnavailableError):
    """One attempt to ask the store got no answer, and another one may get one."""


class OperatorError(AuthsvcError):
    """What an operator has to mend; its text is made to be shown."""


class ConfigError(OperatorError):
    """Settings are missing, malformed or unsafe together.

    Args:
        problems: One line for each.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class KeyFileError(OperatorError):
    """A signing-key file cannot be used."""


class CallersFileError(OperatorError):
    """A callers file cannot be used.

    Args:
        path: The file.
        problems: One line for each, without what could be a key.
    """

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))
        self.problems = problems


class StoreSetupError(OperatorError):
    """The store exists but is not what it must be, or cannot be made so."""
