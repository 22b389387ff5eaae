"""A program with authsvc.client, as a backend writes it.

    python with_client.py ADDRESS TOKEN

Prints a line each: whom the token belongs to, why another text is refused, why the backend is, and the first once more.
"""

import asyncio
import sys

from authsvc.client import AsyncClient, CallerRefusedError, Client, InvalidTokenError
from authsvc.v1.user_service_pb2 import GetUserRequest


async def main(address: str, token: str) -> None:
    async with AsyncClient(address) as client:
        identities = await asyncio.gather(*(client.validate(token) for _ in range(20)))
        print(*{identity.user_id for identity in identities})
        try:
            await client.validate("garbage")
        except InvalidTokenError as error:
            print(error.reason)
        try:
            await client.users.GetUser(GetUserRequest(user_id=identities[0].user_id))
        except CallerRefusedError as error:
            print(error.reason)


def main_in_threads(address: str, token: str) -> None:
    with Client(address) as client:
        print(client.validate(token).user_id)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    main_in_threads(*sys.argv[1:])
