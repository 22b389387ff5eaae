"""A program with plain stubs: it validates a token, and reads the details of an error.

    python plain_stubs.py ADDRESS TOKEN

Prints the token's state, its user and the error's reason.
"""

import asyncio
import sys

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from authsvc.v1.auth_service_pb2 import TokenState, ValidateTokenRequest
from authsvc.v1.auth_service_pb2_grpc import AuthServiceStub
from authsvc.v1.user_service_pb2 import GetUserRequest
from authsvc.v1.user_service_pb2_grpc import UserServiceStub

DEADLINE_SECONDS = 30


async def main(address: str, token: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await AuthServiceStub(channel).ValidateToken(
            ValidateTokenRequest(token=token), timeout=DEADLINE_SECONDS
        )
        print(TokenState.Name(answer.state), answer.user_id)
        try:
            await UserServiceStub(channel).GetUser(GetUserRequest(user_id=answer.user_id), timeout=DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            print(reason(error))


def reason(error: grpc.aio.AioRpcError) -> str:
    """Return the reason in an error's details."""
    (details,) = (value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    assert isinstance(details, bytes)
    info = ErrorInfo()
    Status.FromString(details).details[0].Unpack(info)
    return info.reason


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
