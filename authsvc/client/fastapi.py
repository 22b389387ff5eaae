"""A dependency of FastAPI: who a request is from, route by route, with its OpenAPI scheme."""

from collections.abc import AsyncIterator

from fastapi import HTTPException
from fastapi.openapi.models import HTTPBearer
from fastapi.requests import HTTPConnection
from fastapi.security.base import SecurityBase

from authsvc.client.access.admission import AsyncValidator, require_async
from authsvc.client.access.refusals import refusal_of
from authsvc.client.asgi import identify
from authsvc.client.errors import AuthsvcError
from authsvc.client.identity import Identity, current_identity


class Authenticated(SecurityBase):
    """Requires a valid token: `user: Annotated[Identity, Depends(Authenticated(client))]`.

    Args:
        client: Validates the tokens. What AuthMiddleware has validated with the same client is not validated again.
        role: The role that the user must have; None for any.

    Raises:
        TypeError: The client is a synchronous one.
    """

    def __init__(self, client: AsyncValidator, *, role: str | None = None) -> None:
        self.model = HTTPBearer(bearerFormat="JWT", description="An access token of authsvc.")
        self.scheme_name = "authsvc"
        self._client = require_async(client)
        self._role = role

    async def __call__(self, connection: HTTPConnection) -> AsyncIterator[Identity]:
        """Yield who the request is from.

        Raises:
            HTTPException: The request is refused, or its token could not be validated.
        """
        try:
            identity = await identify(connection.scope, self._client, self._role)
        except AuthsvcError as error:
            refusal = refusal_of(error)
            raise HTTPException(refusal.status, refusal.detail, dict(refusal.headers)) from None
        reset_token = current_identity.set(identity)
        try:
            yield identity
        finally:
            current_identity.reset(reset_token)
