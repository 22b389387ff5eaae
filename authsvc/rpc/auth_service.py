"""RPC handlers: proto → use case → proto, and nothing else."""

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc import fields
from authsvc.errors import InvalidFieldError
from authsvc.models import Session, User
from authsvc.rpc.statuses import status_for
from authsvc.telemetry import metrics
from authsvc.tokens.verification import InactiveReason
from authsvc.usecases.login import Logins
from authsvc.usecases.sessions import Sessions, Tokens
from authsvc.usecases.users import TemporaryPassword, Users
from authsvc.usecases.validation import Check, Validation, Validations
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from authsvc.v1 import resources_pb2
from authsvc.v1 import user_service_pb2 as user_pb2
from authsvc.v1 import user_service_pb2_grpc as user_grpc

_log = structlog.get_logger(__name__)

_EPOCH = datetime.fromtimestamp(0, UTC)
_DAY_SECONDS = 86_400

Context = grpc.aio.ServicerContext[Any, Any]

MAX_BATCH = 100
UPDATABLE = {"email", "role", "is_active"}
"""Fields of a user that UpdateUser changes."""

_COUNTS = {reason: metrics.TOKEN_VALIDATIONS.labels(reason.name).inc for reason in InactiveReason}
_count_active = metrics.TOKEN_VALIDATIONS.labels("ACTIVE").inc
_REASONS = {reason: auth_pb2.InactiveReason.Value(f"INACTIVE_REASON_{reason.name}") for reason in InactiveReason}


class AuthService(auth_grpc.AuthServiceServicer):
    """Handlers of authsvc.v1.AuthService."""

    def __init__(self, logins: Logins, sessions: Sessions, validations: Validations) -> None:
        self._logins = logins
        self._sessions = sessions
        self._validations = validations

    async def Authenticate(
        self, request: auth_pb2.AuthenticateRequest, context: Context
    ) -> auth_pb2.AuthenticateResponse:
        """Check an address and a password, and begin a session."""
        tokens, user = await self._logins.authenticate(
            email=request.email,
            password=request.password,
            client_address=request.client_address,
            client_label=request.client_label,
        )
        return auth_pb2.AuthenticateResponse(tokens=_tokens(tokens), user=_user(user))

    async def ValidateToken(
        self, request: auth_pb2.ValidateTokenRequest, context: Context
    ) -> auth_pb2.ValidateTokenResponse:
        """Tell whether an access token is good now."""
        return _validation(await self._validations.validate(_check(request)))

    async def BatchValidateTokens(
        self, request: auth_pb2.BatchValidateTokensRequest, context: Context
    ) -> auth_pb2.BatchValidateTokensResponse:
        """Tell of each access token whether it is good now."""
        if not 1 <= len(request.requests) <= MAX_BATCH:
            raise InvalidFieldError("requests", f"must be 1 to {MAX_BATCH}")
        checks = [_check_or_error(each) for each in request.requests]
        validations = iter(await self._validations.validate_all([c for c in checks if isinstance(c, Check)]))
        return auth_pb2.BatchValidateTokensResponse(
            results=[_result(next(validations) if isinstance(check, Check) else check) for check in checks]
        )

    async def RefreshTokens(
        self, request: auth_pb2.RefreshTokensRequest, context: Context
    ) -> auth_pb2.RefreshTokensResponse:
        """Give new tokens for a refresh token."""
        tokens = await self._sessions.refresh(request.refresh_token, request.client_address)
        return auth_pb2.RefreshTokensResponse(tokens=_tokens(tokens))

    async def RevokeToken(self, request: auth_pb2.RevokeTokenRequest, context: Context) -> auth_pb2.RevokeTokenResponse:
        """End the session of a token."""
        await self._sessions.revoke(request.token)
        return auth_pb2.RevokeTokenResponse()

    async def ChangePassword(
        self, request: auth_pb2.ChangePasswordRequest, context: Context
    ) -> auth_pb2.ChangePasswordResponse:
        """Replace a password, and begin the user's one session."""
        tokens = await self._logins.change_password(
            email=request.email,
            current_password=request.current_password,
            new_password=request.new_password,
            client_address=request.client_address,
            client_label=request.client_label,
        )
        return auth_pb2.ChangePasswordResponse(tokens=_tokens(tokens))

    async def GetJwks(self, request: auth_pb2.GetJwksRequest, context: Context) -> auth_pb2.GetJwksResponse:
        """Return the public keys."""
        return auth_pb2.GetJwksResponse(jwks=self._sessions.jwks)


class UserService(user_grpc.UserServiceServicer):
    """Handlers of authsvc.v1.UserService."""

    def __init__(self, accounts: Users, sessions: Sessions) -> None:
        self._accounts = accounts
        self._sessions = sessions

    async def CreateUser(self, request: user_pb2.CreateUserRequest, context: Context) -> user_pb2.CreateUserResponse:
        """Create a user, with the credential that is given or with a temporary password."""
        names = {"email": request.email, "role": request.role, "request_id": request.request_id}
        match request.WhichOneof("credential"):
            case "password":
                user = await self._accounts.create_user(password=request.password, **names)
            case "password_hash":
                user = await self._accounts.import_user(password_hash=request.password_hash, **names)
            case _:
                user, temporary = await self._accounts.create_user_with_temporary_password(**names)
                return _created(user, temporary)
        return _created(user)

    async def GetUser(self, request: user_pb2.GetUserRequest, context: Context) -> user_pb2.GetUserResponse:
        """Return one user."""
        key = request.WhichOneof("key")
        if key is None:
            raise InvalidFieldError("key", "must be given")
        user = await (
            self._accounts.get_user(request.user_id)
            if key == "user_id"
            else self._accounts.get_user_by_email(request.email)
        )
        return user_pb2.GetUserResponse(user=_user(user))

    async def ListUsers(self, request: user_pb2.ListUsersRequest, context: Context) -> user_pb2.ListUsersResponse:
        """Return a page of users."""
        users, next_page_token = await self._accounts.list_users(request.page_size, request.page_token)
        return user_pb2.ListUsersResponse(users=map(_user, users), next_page_token=next_page_token)

    async def UpdateUser(self, request: user_pb2.UpdateUserRequest, context: Context) -> user_pb2.UpdateUserResponse:
        """Change what the mask names of a user."""
        paths = set(request.update_mask.paths)
        if not paths or not paths <= UPDATABLE:
            raise InvalidFieldError("update_mask", f"must name some of {', '.join(sorted(UPDATABLE))}")
        user = await self._accounts.update_user(
            request.user_id, **{path: getattr(request.user, path) for path in paths}
        )
        return user_pb2.UpdateUserResponse(user=_user(user))

    async def DeleteUser(self, request: user_pb2.DeleteUserRequest, context: Context) -> user_pb2.DeleteUserResponse:
        """Delete a user."""
        await self._accounts.delete_user(request.user_id)
        return user_pb2.DeleteUserResponse()

    async def ResetPassword(
        self, request: user_pb2.ResetPasswordRequest, context: Context
    ) -> user_pb2.ResetPasswordResponse:
        """Give a user a temporary password."""
        temporary = await self._accounts.reset_password(request.user_id)
        return user_pb2.ResetPasswordResponse(
            temporary_password=temporary.text, temporary_password_expire_time=_time(temporary.expire_time)
        )

    async def ListUserSessions(
        self, request: user_pb2.ListUserSessionsRequest, context: Context
    ) -> user_pb2.ListUserSessionsResponse:
        """Return a page of a user's live sessions."""
        sessions, next_page_token = await self._sessions.list_sessions(
            request.user_id, request.page_size, request.page_token
        )
        return user_pb2.ListUserSessionsResponse(sessions=map(_session, sessions), next_page_token=next_page_token)

    async def RevokeUserSessions(
        self, request: user_pb2.RevokeUserSessionsRequest, context: Context
    ) -> user_pb2.RevokeUserSessionsResponse:
        """End some or all sessions of a user."""
        if request.session_ids:
            await self._sessions.revoke_sessions(request.user_id, request.session_ids)
        else:
            await self._accounts.end_all_sessions(request.user_id)
        return user_pb2.RevokeUserSessionsResponse()


def _check(request: auth_pb2.ValidateTokenRequest) -> Check:
    token = fields.token(request.token)
    if not (request.HasField("max_staleness") or request.HasField("stale_if_error")):
        return Check(token)
    return Check(token, _span(request.max_staleness, "max_staleness"), _span(request.stale_if_error, "stale_if_error"))


def _check_or_error(request: auth_pb2.ValidateTokenRequest) -> Check | Exception:
    try:
        return _check(request)
    except InvalidFieldError as error:
        return error


def _result(validation: Validation | Exception) -> auth_pb2.BatchValidateTokensResponse.Result:
    if isinstance(validation, Validation):
        return auth_pb2.BatchValidateTokensResponse.Result(response=_validation(validation))
    status = status_for(validation)
    metrics.TOKEN_VALIDATIONS.labels(status.reason).inc()
    _log.warning("batch_item_failed", reason=status.reason, error=type(validation).__name__)
    return auth_pb2.BatchValidateTokensResponse.Result(
        error=auth_pb2.ValidationError(code=status.code.value[0], reason=status.reason_number, message=status.text)
    )


def _span(duration: Duration, name: str) -> timedelta:
    return fields.span(duration.seconds, duration.nanos, name)


def _time(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    _set(timestamp, time)
    return timestamp


def _set(timestamp: Timestamp, time: datetime) -> None:
    since = time - _EPOCH  # FromDatetime takes several times as long
    timestamp.seconds = since.days * _DAY_SECONDS + since.seconds
    timestamp.nanos = since.microseconds * 1000


def _user(user: User) -> resources_pb2.User:
    return resources_pb2.User(
        user_id=user.user_id,
        email=user.email,
        role=user.role,
        is_active=user.is_active,
        create_time=None if user.create_time is None else _time(user.create_time),
        update_time=None if user.update_time is None else _time(user.update_time),
        password_change_required=user.password_change_required,
    )


def _created(user: User, temporary: TemporaryPassword | None = None) -> user_pb2.CreateUserResponse:
    response = user_pb2.CreateUserResponse(user=_user(user))
    if temporary is not None:
        response.temporary_password = temporary.text
        response.temporary_password_expire_time.FromDatetime(temporary.expire_time)
    return response


def _session(session: Session) -> resources_pb2.Session:
    return resources_pb2.Session(
        session_id=session.session_id,
        create_time=_time(session.create_time),
        last_refresh_time=None if session.last_refresh_time is None else _time(session.last_refresh_time),
        expire_time=_time(session.expire_time),
        client_label=session.client_label,
        client_address=session.client_address,
    )


def _tokens(tokens: Tokens) -> resources_pb2.Tokens:
    return resources_pb2.Tokens(
        access_token=tokens.access_token.text,
        access_token_expire_time=_time(tokens.access_token.expire_time),
        refresh_token=tokens.refresh_token.text,
        refresh_token_expire_time=_time(tokens.refresh_token_expire_time),
        session_id=tokens.refresh_token.session_id,
    )


def _validation(validation: Validation) -> auth_pb2.ValidateTokenResponse:
    # Times are set in place: messages made for them would cost as much as all the rest.
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
    _set(response.checked_time, checked_time)
    return response
