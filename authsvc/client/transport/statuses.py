"""gRPC errors to exceptions."""

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from authsvc.client.errors import DEFAULT_RETRY_DELAY, AuthsvcError, CallerRefusedError, Failure, UnavailableError

DOMAIN = "authsvc"
DETAILS_KEY = "grpc-status-details-bin"
MAX_DETAIL_LENGTH = 300
_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def to_error(error: grpc.aio.AioRpcError) -> AuthsvcError:
    """Return the exception for a failed call.

    An error without the service's details is gRPC's own or a proxy's: it refuses this backend, or it is an outage.
    """
    failure = _failure(error)
    if failure is not None:
        return failure.to_error()
    if error.code() in _REFUSALS:
        return CallerRefusedError(error.code().name)
    cause = f"the call failed with {error.code().name}"
    if error.code() is grpc.StatusCode.UNAVAILABLE:  # says which address refused, or why TLS failed
        cause += f": {(error.details() or '')[:MAX_DETAIL_LENGTH]}"
    return UnavailableError(cause=cause)


def _failure(error: grpc.aio.AioRpcError) -> Failure | None:
    """Return what the service says in google.rpc details; None where it is not the service that failed the call."""
    status = status_pb2.Status()
    delay = DEFAULT_RETRY_DELAY
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    try:
        for key, value in error.trailing_metadata() or ():
            if key == DETAILS_KEY and isinstance(value, bytes):
                status.ParseFromString(value)
        for detail in status.details:
            for kind in (info, bad, retry):
                detail.Unpack(kind)
        if retry.HasField("retry_delay"):
            delay = retry.retry_delay.ToTimedelta()
    except (DecodeError, OverflowError):
        return None
    if info.domain != DOMAIN:
        return None
    violation = bad.field_violations[0] if bad.field_violations else error_details_pb2.BadRequest.FieldViolation()
    return Failure(
        reason=info.reason,
        trace_id=info.metadata["trace_id"],
        field=violation.field,
        problem=violation.description,
        retry_delay=delay,
    )
