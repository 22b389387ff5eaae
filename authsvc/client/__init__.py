"""The client library of the service: validates a token for each request of a backend, and calls every RPC."""

from authsvc.client.errors import (
    AuthsvcError,
    CallerRefusedError,
    EmailAlreadyExistsError,
    InternalError,
    InvalidCredentialsError,
    InvalidFieldError,
    InvalidRefreshTokenError,
    InvalidTokenError,
    MalformedRequestError,
    OverloadedError,
    PasswordChangeRequiredError,
    PasswordRejectedError,
    RetryLaterError,
    TooManyAttemptsError,
    UnavailableError,
    UserNotFoundError,
)
from authsvc.client.identity import Identity, current_identity

__all__ = [
    "AuthsvcError",
    "CallerRefusedError",
    "EmailAlreadyExistsError",
    "Identity",
    "InternalError",
    "InvalidCredentialsError",
    "InvalidFieldError",
    "InvalidRefreshTokenError",
    "InvalidTokenError",
    "MalformedRequestError",
    "OverloadedError",
    "PasswordChangeRequiredError",
    "PasswordRejectedError",
    "RetryLaterError",
    "TooManyAttemptsError",
    "UnavailableError",
    "UserNotFoundError",
    "current_identity",
]
