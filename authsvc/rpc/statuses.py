"""The status that a client gets for each error: code, reason, text and google.rpc details."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from authsvc import errors
from authsvc.v1.errors_pb2 import ErrorReason

DOMAIN = "authsvc"
"""Domain of every google.rpc.ErrorInfo of this service."""
RETRY_PUSHBACK = "grpc-retry-pushback-ms"
"""Trailer with the delay after which a gRPC client's retry policy retries (gRFC A6)."""
PUSHBACK_JITTER = 0.5
"""Largest deviation of a pushback from its delay, as a share: clients that failed together do not return together."""
DO_NOT_RETRY = "-1"

Metadata = tuple[tuple[str, str | bytes], ...]

_jitter = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Status:
    """The status of an error.

    Args:
        code: gRPC status code.
        reason: Name of an ErrorReason without its prefix.
        text: Fixed text of the reason, so that no status holds request data or internals.
    """

    code: grpc.StatusCode
    reason: str
    text: str

    @property
    def reason_number(self) -> ErrorReason.ValueType:
        """The number of the reason in the enum ErrorReason."""
        return ErrorReason.Value(f"ERROR_REASON_{self.reason}")


INTERNAL = Status(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")

STATUS_BY_ERROR: Mapping[type[BaseException], Status] = {
    errors.InvalidFieldError: Status(
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "a field of the request is invalid"
    ),
    errors.PasswordRejectedError: Status(
        grpc.StatusCode.INVALID_ARGUMENT, "PASSWORD_REJECTED", "the password is against the policy"
    ),
    errors.MalformedRequestError: Status(
        grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST", "the request does not decode"
    ),
    errors.InvalidCredentialsError: Status(
        grpc.StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS", "the email or the password is wrong"
    ),
    errors.PasswordChangeRequiredError: Status(
        grpc.StatusCode.FAILED_PRECONDITION,
        "PASSWORD_CHANGE_REQUIRED",
        "the password must be changed first",
    ),
    errors.InvalidRefreshTokenError: Status(
        grpc.StatusCode.UNAUTHENTICATED, "INVALID_REFRESH_TOKEN", "the refresh token is not valid"
    ),
    errors.OverloadedError: Status(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "too many passwords wait to be hashed"
    ),
    errors.TooManyAttemptsError: Status(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_ATTEMPTS", "there were too many failed attempts"
    ),
    errors.CallerUnauthenticatedError: Status(
        grpc.StatusCode.UNAUTHENTICATED,
        "CALLER_UNAUTHENTICATED",
        "the caller gave no or wrong credentials",
    ),
    errors.CallerNotPermittedError: Status(
        grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_PERMITTED", "the caller lacks the permission"
    ),
    errors.EmailAlreadyExistsError: Status(
        grpc.StatusCode.ALREADY_EXISTS, "EMAIL_ALREADY_EXISTS", "a user has that email"
    ),
    errors.UserNotFoundError: Status(grpc.StatusCode.NOT_FOUND, "USER_NOT_FOUND", "there is no such user"),
    errors.StoreUnavailableError: Status(
        grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "the store cannot answer in time"
    ),
    errors.CorruptItemError: INTERNAL,
    # A bug: its text may hold anything, and a client cannot act on it.
    BaseException: INTERNAL,
}


def status_for(error: BaseException) -> Status:
    """Return the status of an error, by its class or the nearest base class in STATUS_BY_ERROR."""
    return next(STATUS_BY_ERROR[c] for c in type(error).__mro__ if c in STATUS_BY_ERROR)


def error_metadata(status: Status, error: BaseException, trace_id: str) -> Metadata:
    """Return the trailing metadata that carries a google.rpc.Status, and the pushback of clients' retries.

    Args:
        status: Result of status_for for the error.
        error: Its field becomes BadRequest, its retry delay RetryInfo and the pushback, where it has one.
        trace_id: Trace id of the request, 32 hexadecimal digits.
    """
    rich = status_pb2.Status(
        code=status.code.value[0],
        message=status.text,
        details=[_pack(detail) for detail in _details(status, error, trace_id)],
    )
    return (*(rpc_status.to_status(rich).trailing_metadata or ()), *_retry_pushback(error))


def _retry_pushback(error: BaseException) -> Metadata:
    """Return the pushback of an error that a client could retry by its code.

    Only TOO_MANY_ATTEMPTS, which shares its code with OVERLOADED, forbids retries: grpc-go counts each prohibition
    against the retry budget of the whole channel.
    """
    match error:
        case errors.TooManyAttemptsError():
            return ((RETRY_PUSHBACK, DO_NOT_RETRY),)
        case errors.OverloadedError() | errors.StoreUnavailableError():
            share = _jitter.uniform(1 - PUSHBACK_JITTER, 1 + PUSHBACK_JITTER)
            return ((RETRY_PUSHBACK, str(round(error.retry_delay / timedelta(milliseconds=1) * share))),)
        case _:
            return ()


def _details(status: Status, error: BaseException, trace_id: str) -> list[Message]:
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=status.reason, domain=DOMAIN, metadata={"trace_id": trace_id})
    ]
    if isinstance(error, errors.InvalidFieldError):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.problem)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.RetryLaterError):
        details.append(_retry_info(error.retry_delay))
    return details


def _retry_info(delay: timedelta) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromTimedelta(delay)
    return info


def _pack(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
