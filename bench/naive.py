"""The yardstick: the obvious ValidateToken, which decodes one JWT and makes one strong GetItem a call."""

import os
from pathlib import Path

import aioboto3
import jwt
import uvloop

from authsvc.models import utc_now
from authsvc.tokens.key_file import read_key_ring
from authsvc.v1 import auth_service_pb2 as auth_pb2
from bench.empty import Context, serve


async def main() -> None:
    """Serve with the service's own settings."""
    issuer, audience = os.environ["AUTHSVC_ISSUER"], os.environ["AUTHSVC_AUDIENCE"]
    table = os.environ["AUTHSVC_TABLE_PREFIX"] + "users"
    ring = read_key_ring(Path(os.environ["AUTHSVC_SIGNING_KEYS"]), utc_now())
    keys = {key.key_id: key for key in jwt.PyJWKSet.from_json(ring.jwks(utc_now().timestamp())).keys}

    async with aioboto3.Session().client("dynamodb") as dynamodb:

        async def validate(request: auth_pb2.ValidateTokenRequest, _: Context) -> auth_pb2.ValidateTokenResponse:
            key = keys[jwt.get_unverified_header(request.token)["kid"]]
            claims = jwt.decode(request.token, key, ["ES256"], audience=audience, issuer=issuer)
            answer = await dynamodb.get_item(
                TableName=table, Key={"user_id": {"S": claims["sub"]}}, ConsistentRead=True
            )
            user = answer["Item"]
            is_active = user["is_active"]["BOOL"] and int(user["token_generation"]["N"]) == claims["gen"]
            return auth_pb2.ValidateTokenResponse(
                state=auth_pb2.TOKEN_STATE_ACTIVE if is_active else auth_pb2.TOKEN_STATE_INACTIVE,
                user_id=claims["sub"],
                email=user["email"]["S"],
                role=user["role"]["S"],
                session_id=claims["sid"],
                token_id=claims["jti"],
            )

        await serve(validate)


if __name__ == "__main__":
    uvloop.run(main())
