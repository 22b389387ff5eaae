"""Handlers of authsvc.v1.AuthService: convert a request, call a use case, convert its result."""

import structlog

from authsvc.errors import InvalidFieldError
from authsvc.rpc import messages
from authsvc.rpc.authorization import Context
from authsvc.rpc.outcomes import count_outcome, record_outcome
from authsvc.rpc.statuses import status_for
from authsvc.telemetry import metrics
from authsvc.usecases.login import Logins
from authsvc.usecases.sessions import Sessions
from authsvc.usecases.validation import Check, Validation, Validations
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc

MAX_BATCH_SIZE = 100

_log = structlog.get_logger(__name__)


class AuthService(auth_grpc.AuthServiceServicer):
    """Handlers of authsvc.v1.AuthService."""

    def __init__(self, logins: Logins, sessions: Sessions, validations: Validations) -> None:
        self._logins = logins
        self._sessions = sessions
        self._validations = validations

    async def Authenticate(
        self, request: auth_pb2.AuthenticateRequest, context: Context
    ) -> auth_pb2.AuthenticateResponse:
        """Log in: verify a password and begin a session."""
        tokens, user = await self._logins.authenticate(
            email=request.email,
            password=request.password,
            client_address=request.client_address,
            client_label=request.client_label,
        )
        return auth_pb2.AuthenticateResponse(tokens=messages.tokens_to_proto(tokens), user=messages.user_to_proto(user))

    async def ValidateToken(
        self, request: auth_pb2.ValidateTokenRequest, context: Context
    ) -> auth_pb2.ValidateTokenResponse:
        """Validate an access token."""
        validation = await self._validations.validate(messages.check_from_proto(request))
        record_outcome(validation.outcome)
        return messages.validation_to_proto(validation)

    async def BatchValidateTokens(
        self, request: auth_pb2.BatchValidateTokensRequest, context: Context
    ) -> auth_pb2.BatchValidateTokensResponse:
        """Validate several access tokens; an item that fails leaves the others alone."""
        if not 1 <= len(request.requests) <= MAX_BATCH_SIZE:
            raise InvalidFieldError("requests", f"must be 1 to {MAX_BATCH_SIZE}")
        checks = [_check_or_error(item) for item in request.requests]
        validations = iter(await self._validations.validate_all([c for c in checks if isinstance(c, Check)]))
        outcomes = [next(validations) if isinstance(check, Check) else check for check in checks]
        return auth_pb2.BatchValidateTokensResponse(results=map(_batch_result, outcomes))

    async def RefreshTokens(
        self, request: auth_pb2.RefreshTokensRequest, context: Context
    ) -> auth_pb2.RefreshTokensResponse:
        """Rotate a refresh token and return new tokens."""
        tokens = await self._sessions.refresh(request.refresh_token, request.client_address)
        return auth_pb2.RefreshTokensResponse(tokens=messages.tokens_to_proto(tokens))

    async def RevokeToken(self, request: auth_pb2.RevokeTokenRequest, context: Context) -> auth_pb2.RevokeTokenResponse:
        """End the session of a token."""
        await self._sessions.revoke(request.token)
        return auth_pb2.RevokeTokenResponse()

    async def ChangePassword(
        self, request: auth_pb2.ChangePasswordRequest, context: Context
    ) -> auth_pb2.ChangePasswordResponse:
        """Replace a password, end all sessions and begin a new one."""
        tokens = await self._logins.change_password(
            email=request.email,
            current_password=request.current_password,
            new_password=request.new_password,
            client_address=request.client_address,
            client_label=request.client_label,
        )
        return auth_pb2.ChangePasswordResponse(tokens=messages.tokens_to_proto(tokens))

    async def GetJwks(self, request: auth_pb2.GetJwksRequest, context: Context) -> auth_pb2.GetJwksResponse:
        """Return the public keys."""
        return auth_pb2.GetJwksResponse(jwks=self._sessions.jwks)


def _check_or_error(request: auth_pb2.ValidateTokenRequest) -> Check | InvalidFieldError:
    try:
        return messages.check_from_proto(request)
    except InvalidFieldError as error:
        return error


def _batch_result(outcome: Validation | Exception) -> auth_pb2.BatchValidateTokensResponse.Result:
    """Count and convert the outcome of one item; an error is also logged, without its text."""
    if isinstance(outcome, Validation):
        count_outcome(outcome.outcome)
        return auth_pb2.BatchValidateTokensResponse.Result(response=messages.validation_to_proto(outcome))
    status = status_for(outcome)
    metrics.TOKEN_VALIDATIONS.labels(status.reason).inc()
    _log.warning("batch_item_failed", reason=status.reason, error=type(outcome).__name__)
    return auth_pb2.BatchValidateTokensResponse.Result(error=messages.status_to_proto(status))
