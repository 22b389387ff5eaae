"""Handlers of authsvc.v1.AuthService: proto to use case and back, nothing else."""

from authsvc.errors import InvalidFieldError
from authsvc.rpc import messages
from authsvc.rpc.authorization import Context
from authsvc.usecases.login import Logins
from authsvc.usecases.sessions import Sessions
from authsvc.usecases.validation import Check, Validations
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc

MAX_BATCH = 100


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
        return auth_pb2.AuthenticateResponse(tokens=messages.tokens_message(tokens), user=messages.user_message(user))

    async def ValidateToken(
        self, request: auth_pb2.ValidateTokenRequest, context: Context
    ) -> auth_pb2.ValidateTokenResponse:
        """Validate an access token."""
        return messages.validation_message(await self._validations.validate(messages.parse_check(request)))

    async def BatchValidateTokens(
        self, request: auth_pb2.BatchValidateTokensRequest, context: Context
    ) -> auth_pb2.BatchValidateTokensResponse:
        """Validate several access tokens."""
        if not 1 <= len(request.requests) <= MAX_BATCH:
            raise InvalidFieldError("requests", f"must be 1 to {MAX_BATCH}")
        checks = [messages.parse_check_or_error(each) for each in request.requests]
        validations = iter(await self._validations.validate_all([c for c in checks if isinstance(c, Check)]))
        return auth_pb2.BatchValidateTokensResponse(
            results=[
                messages.batch_result(next(validations) if isinstance(check, Check) else check) for check in checks
            ]
        )

    async def RefreshTokens(
        self, request: auth_pb2.RefreshTokensRequest, context: Context
    ) -> auth_pb2.RefreshTokensResponse:
        """Return new tokens for a refresh token."""
        tokens = await self._sessions.refresh(request.refresh_token, request.client_address)
        return auth_pb2.RefreshTokensResponse(tokens=messages.tokens_message(tokens))

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
        return auth_pb2.ChangePasswordResponse(tokens=messages.tokens_message(tokens))

    async def GetJwks(self, request: auth_pb2.GetJwksRequest, context: Context) -> auth_pb2.GetJwksResponse:
        """Return the public keys."""
        return auth_pb2.GetJwksResponse(jwks=self._sessions.jwks)
