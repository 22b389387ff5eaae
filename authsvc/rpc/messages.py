"""Conversions between proto messages and domain types; each validation is counted where its message is made."""

from datetime import UTC, datetime, timedelta

import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc import fields
from authsvc.errors import InvalidFieldError
from authsvc.models import Session, User
from authsvc.rpc.statuses import status_for
from authsvc.telemetry import metrics
from authsvc.tokens.verification import InactiveReason
from authsvc.usecases.sessions import Tokens
from authsvc.usecases.users import TemporaryPassword
from authsvc.usecases.validation import Check, Validation
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import resources_pb2
from authsvc.v1 import user_service_pb2 as user_pb2

_log = structlog.get_logger(__name__)

_EPOCH = datetime.fromtimestamp(0, UTC)
_DAY_SECONDS = 86_400
_COUNTS = {reason: metrics.TOKEN_VALIDATIONS.labels(reason.name).inc for reason in InactiveReason}
_count_active = metrics.TOKEN_VALIDATIONS.labels("ACTIVE").inc
_REASONS = {reason: auth_pb2.InactiveReason.Value(f"INACTIVE_REASON_{reason.name}") for reason in InactiveReason}


def parse_check(request: auth_pb2.ValidateTokenRequest) -> Check:
    """Return the check that a request asks for.

    Raises:
        InvalidFieldError: The token is empty, or a duration is negative or malformed.
    """
    token = fields.token(request.token)
    if not (request.HasField("max_staleness") or request.HasField("stale_if_error")):
        return Check(token)
    return Check(
        token,
        _parse_duration(request.max_staleness, "max_staleness"),
        _parse_duration(request.stale_if_error, "stale_if_error"),
    )


def parse_check_or_error(request: auth_pb2.ValidateTokenRequest) -> Check | Exception:
    """Return the check that a request asks for, or its error: one item of a batch must not fail the others."""
    try:
        return parse_check(request)
    except InvalidFieldError as error:
        return error


def batch_result(validation: Validation | Exception) -> auth_pb2.BatchValidateTokensResponse.Result:
    """Return one result of a batch: a validation, or the status of its error."""
    if isinstance(validation, Validation):
        return auth_pb2.BatchValidateTokensResponse.Result(response=validation_message(validation))
    status = status_for(validation)
    metrics.TOKEN_VALIDATIONS.labels(status.reason).inc()
    _log.warning("batch_item_failed", reason=status.reason, error=type(validation).__name__)
    return auth_pb2.BatchValidateTokensResponse.Result(
        error=auth_pb2.ValidationError(code=status.code.value[0], reason=status.reason_number, message=status.text)
    )


def _parse_duration(duration: Duration, name: str) -> timedelta:
    return fields.duration(duration.seconds, duration.nanos, name)


def timestamp(time: datetime) -> Timestamp:
    """Return a time as a message."""
    message = Timestamp()
    _set_timestamp(message, time)
    return message


def _set_timestamp(message: Timestamp, time: datetime) -> None:
    since = time - _EPOCH  # FromDatetime takes several times as long
    message.seconds = since.days * _DAY_SECONDS + since.seconds
    message.nanos = since.microseconds * 1000


def user_message(user: User) -> resources_pb2.User:
    """Return a user as a message."""
    return resources_pb2.User(
        user_id=user.user_id,
        email=user.email,
        role=user.role,
        is_active=user.is_active,
        create_time=None if user.create_time is None else timestamp(user.create_time),
        update_time=None if user.update_time is None else timestamp(user.update_time),
        password_change_required=user.password_change_required,
    )


def created_message(user: User, temporary: TemporaryPassword | None = None) -> user_pb2.CreateUserResponse:
    """Return the response to CreateUser; the temporary password is in it where there is one."""
    response = user_pb2.CreateUserResponse(user=user_message(user))
    if temporary is not None:
        response.temporary_password = temporary.text
        _set_timestamp(response.temporary_password_expire_time, temporary.expire_time)
    return response


def session_message(session: Session) -> resources_pb2.Session:
    """Return a session as a message."""
    return resources_pb2.Session(
        session_id=session.session_id,
        create_time=timestamp(session.create_time),
        last_refresh_time=None if session.last_refresh_time is None else timestamp(session.last_refresh_time),
        expire_time=timestamp(session.expire_time),
        client_label=session.client_label,
        client_address=session.client_address,
    )


def tokens_message(tokens: Tokens) -> resources_pb2.Tokens:
    """Return the tokens of a session as a message."""
    return resources_pb2.Tokens(
        access_token=tokens.access_token.text,
        access_token_expire_time=timestamp(tokens.access_token.expire_time),
        refresh_token=tokens.refresh_token.text,
        refresh_token_expire_time=timestamp(tokens.refresh_token_expire_time),
        session_id=tokens.refresh_token.session_id,
    )


def validation_message(validation: Validation) -> auth_pb2.ValidateTokenResponse:
    """Return a validation as a message."""
    # Times are set in place: making messages for them would double the cost of this function.
    checked_time, outcome, degraded = validation
    if isinstance(outcome, InactiveReason):
        _COUNTS[outcome]()
        response = auth_pb2.ValidateTokenResponse(
            state=auth_pb2.TOKEN_STATE_INACTIVE, reason=_REASONS[outcome], degraded=degraded
        )
    else:
        _count_active()
        token, user = outcome
        response = auth_pb2.ValidateTokenResponse(
            state=auth_pb2.TOKEN_STATE_ACTIVE,
            user_id=user.user_id,
            email=user.email,
            role=user.role,
            session_id=token.session_id,
            token_id=token.token_id,
            degraded=degraded,
        )
        response.issue_time.seconds = token.issued_at
        response.expire_time.seconds = token.expires_at
    _set_timestamp(response.checked_time, checked_time)
    return response
