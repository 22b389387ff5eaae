"""The main path over real sockets, on every store: create a user, log in, validate the token."""

import json

import jwt

from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.support import PASSWORD, Client, FakeClock, failure


async def test_create_log_in_validate(anywhere: Client, clock: FakeClock) -> None:
    created = await anywhere.create_user("Alice@Example.com", role="editor")
    login = await anywhere.log_in("aLICE@example.COM", client_address="192.0.2.7", client_label="laptop")
    answer = await anywhere.validate(login.tokens.access_token)

    assert created.email == "alice@example.com"
    assert created.role == "editor"
    assert created.is_active
    assert login.user == created
    assert answer.state == auth_pb2.TOKEN_STATE_ACTIVE
    assert answer.reason == auth_pb2.INACTIVE_REASON_UNSPECIFIED
    assert (answer.user_id, answer.email, answer.role) == (created.user_id, "alice@example.com", "editor")
    assert answer.session_id == login.tokens.session_id
    assert answer.expire_time == login.tokens.access_token_expire_time
    assert answer.checked_time.ToDatetime(clock.now.tzinfo) == clock.now


async def test_get_user_by_id_and_by_address(anywhere: Client) -> None:
    created = await anywhere.create_user("Straße@Example.com")
    assert await anywhere.get_user(user_id=created.user_id) == created
    assert await anywhere.get_user(email="STRASSE@example.com".replace("SS", "ß")) == created


async def test_any_jwt_library_verifies_the_token_by_the_published_keys(anywhere: Client) -> None:
    await anywhere.create_user()
    token = await anywhere.access_token()
    jwks = json.loads((await anywhere.auth.GetJwks(auth_pb2.GetJwksRequest())).jwks)
    assert all("d" not in key for key in jwks["keys"])
    key = jwt.PyJWKSet.from_dict(jwks)[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(
        token,
        key,
        ["ES256"],
        audience="backends",
        issuer="https://auth.example.com",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert set(claims) == {"iss", "aud", "sub", "client_id", "iat", "exp", "jti", "sid", "gen"}


async def test_wrong_password_and_unknown_address_look_alike(anywhere: Client) -> None:
    await anywhere.create_user()
    wrong = await failure(anywhere.log_in(password=PASSWORD + "x"))
    unknown = await failure(anywhere.log_in("nobody@example.com"))
    assert wrong.reason == unknown.reason == "INVALID_CREDENTIALS"
    assert (wrong.code, wrong.text) == (unknown.code, unknown.text)
    assert wrong.trace_id != unknown.trace_id
    assert len(wrong.trace_id) == 32
