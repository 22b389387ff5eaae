"""The client library of the service: validates a token for each request of a backend, and calls every RPC."""

from authsvc.client.async_client import AsyncClient
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
from authsvc.client.stats import Stats
from authsvc.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "AuthsvcError",
    "CallerRefusedError",
    "Client",
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
    "Stats",
    "TooManyAttemptsError",
    "UnavailableError",
    "UserNotFoundError",
    "current_identity",
]
