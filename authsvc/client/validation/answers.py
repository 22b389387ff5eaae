"""Messages of the API to answers and back. Whatever does not look like an answer of the service counts as an outage."""

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.client.errors import AuthsvcError, Failure, InvalidTokenError, UnavailableError
from authsvc.client.identity import Identity
from authsvc.client.validation.batches import Question
from authsvc.client.validation.cache import Answer
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1.errors_pb2 import ErrorReason

_ACTIVE = auth_pb2.TOKEN_STATE_ACTIVE
_INACTIVE = auth_pb2.TOKEN_STATE_INACTIVE
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REASONS = {number: name.removeprefix("INACTIVE_REASON_") for name, number in auth_pb2.InactiveReason.items() if number}


def to_request(question: Question) -> auth_pb2.ValidateTokenRequest:
    """Return the request of a question: always a fresh validation, so that budgets do not add up."""
    request = auth_pb2.ValidateTokenRequest(token=question.token)
    if question.stale_if_error:
        request.stale_if_error.FromNanoseconds(round(question.stale_if_error * 1e9))
    return request


def to_answer(response: auth_pb2.ValidateTokenResponse | None) -> Answer:
    """Return the answer in a response; None is what gRPC makes of bytes that do not decode."""
    try:
        if response is not None and response.state == _ACTIVE and response.user_id:
            return _identity(response)
        if response is not None and response.state == _INACTIVE:
            # A reason of a newer service has no name here; the token is invalid all the same.
            error = InvalidTokenError(_REASONS.get(response.reason, str(response.reason)))
            error.degraded = response.degraded
            return error
    except (OSError, OverflowError, ValueError):  # a time out of range
        return not_the_service()
    return not_the_service()


def to_answers(response: auth_pb2.BatchValidateTokensResponse | None, count: int) -> list[Answer]:
    """Return the answers in a response for so many requests."""
    if response is None or len(response.results) != count:
        return [not_the_service()] * count
    return [_result(result) for result in response.results]


def not_the_service() -> UnavailableError:
    """Return the error for a response that the service would not give."""
    return UnavailableError(cause="the answer is not one of the service")


def _result(result: auth_pb2.BatchValidateTokensResponse.Result) -> Answer:
    if result.HasField("response"):
        return to_answer(result.response)
    return _error(result.error.reason) if result.HasField("error") else not_the_service()


def _error(reason: "ErrorReason.ValueType") -> AuthsvcError:
    try:
        name = ErrorReason.Name(reason)
    except ValueError:  # of a newer service
        name = str(reason)
    return Failure(reason=name.removeprefix("ERROR_REASON_")).to_error()


def _identity(response: auth_pb2.ValidateTokenResponse) -> Identity:
    return Identity(
        user_id=response.user_id,
        email=response.email,
        role=response.role,
        session_id=response.session_id,
        token_id=response.token_id,
        issue_time=datetime.fromtimestamp(response.issue_time.seconds, UTC),
        expire_time=datetime.fromtimestamp(response.expire_time.seconds, UTC),
        checked_time=_time(response.checked_time),
        degraded=response.degraded,
    )


def _time(timestamp: Timestamp) -> datetime:
    return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)
