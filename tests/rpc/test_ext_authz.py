"""ext_authz v3: what a gateway is answered, over a real socket."""

from collections.abc import Mapping
from typing import Any

import pytest

from authsvc.rpc.ext_authz_pb2 import AttributeContext, CheckRequest, CheckResponse
from tests.support import WITNESS, Client

CHECK = "/envoy.service.auth.v3.Authorization/Check"
IDENTITY_HEADERS = ("x-auth-user-id", "x-auth-email", "x-auth-role", "x-auth-session-id")


async def check(
    client: Client, headers: Mapping[str, str], extensions: Mapping[str, str] | None = None
) -> CheckResponse:
    """Ask as a gateway does that joins headers."""
    http = AttributeContext.HttpRequest(headers=headers)
    attributes = AttributeContext(request=AttributeContext.Request(http=http), context_extensions=extensions)
    return await send(client, CheckRequest(attributes=attributes))


async def send(client: Client, request: CheckRequest) -> CheckResponse:
    method: Any = client.channel.unary_unary(CHECK, CheckRequest.SerializeToString, CheckResponse.FromString)
    response: CheckResponse = await method(request)
    return response


def bearer(token: str) -> dict[str, str]:
    WITNESS.hide(token)
    return {"authorization": f"Bearer {token}"}


async def test_a_good_token(client: Client) -> None:
    alice = await client.create_user()
    tokens = (await client.log_in()).tokens
    answer = await check(client, bearer(tokens.access_token))
    assert answer.status.code == 0
    headers = {option.header.key: option.header.value for option in answer.ok_response.headers}
    assert headers == dict(
        zip(IDENTITY_HEADERS, (alice.user_id, "alice@example.com", "user", tokens.session_id), strict=True)
    )
    assert (await check(client, {})).denied_response.status.code == 401
    refused = await check(client, bearer(tokens.access_token), {"role": "admin"})
    assert refused.denied_response.status.code == 403
