import pytest
from authsvc.client import AsyncClient, InvalidTokenError
from tests.client.conftest import Two


async def test_fresh(two: Two, backend: AsyncClient) -> None:
    user = await two.first.create_user()
    token = await two.first.access_token()
    print(await backend.validate(token))
    import asyncio

    print(await asyncio.gather(*(backend.validate(token) for _ in range(5))))
    await backend.auth.RevokeToken(
        __import__("authsvc.v1.auth_service_pb2").v1.auth_service_pb2.RevokeTokenRequest(token=token)
    )
    with pytest.raises(InvalidTokenError):
        await backend.validate(token)
    print(backend.stats())
