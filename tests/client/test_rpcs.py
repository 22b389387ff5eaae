"""Every RPC through the client: credentials, deadlines, errors, and what a call drops from the cache."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import bcrypt
import grpc
import pytest
from google.protobuf import field_mask_pb2
from opentelemetry import trace

from authsvc.client import (
    AsyncClient,
    EmailAlreadyExistsError,
    InvalidCredentialsError,
    InvalidFieldError,
    InvalidRefreshTokenError,
    InvalidTokenError,
    PasswordRejectedError,
    UnavailableError,
    UserNotFoundError,
)
from authsvc.client.invalidation import DROP_AFTER, session_of
from authsvc.client.transport.methods import AUTH_METHODS, USER_METHODS
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import resources_pb2
from authsvc.v1 import user_service_pb2 as user_pb2
from tests.client.conftest import Two
from tests.client.test_outages import impostor
from tests.support import ADMIN_EMAIL, PASSWORD, WITNESS

EMAIL = "alice@example.com"
OTHER_PASSWORD = "another password of many words"
NEVER_OBSOLETE = {
    "Authenticate",
    "ValidateToken",
    "BatchValidateTokens",
    "RefreshTokens",
    "GetJwks",
    "CreateUser",
    "GetUser",
    "ListUsers",
    "ListUserSessions",
}


@pytest.fixture
async def admin(two: Two) -> AsyncIterator[AsyncClient]:
    """A client whose credential is an admin's token, with a budget."""
    token = await two.first.access_token(ADMIN_EMAIL)
    async with AsyncClient(two.target, api_key=token, max_staleness=timedelta(minutes=5)) as client:
        yield client


async def log_in(client: AsyncClient, password: str = PASSWORD) -> resources_pb2.Tokens:
    WITNESS.hide(password)
    answer = await client.auth.Authenticate(auth_pb2.AuthenticateRequest(email=EMAIL, password=password))
    WITNESS.hide_fields(answer)
    return answer.tokens


def test_every_rpc_drops_answers_or_changes_none() -> None:
    assert set(DROP_AFTER) | NEVER_OBSOLETE == {*AUTH_METHODS, *USER_METHODS}
    assert not set(DROP_AFTER) & NEVER_OBSOLETE


async def test_the_life_of_a_user(admin: AsyncClient) -> None:
    created = await admin.create_user(EMAIL, role="editor", password=PASSWORD)
    user_id = created.user.user_id
    assert (await admin.users.GetUser(user_pb2.GetUserRequest(email=EMAIL))).user.role == "editor"
    assert len((await admin.users.ListUsers(user_pb2.ListUsersRequest())).users) == 2
    tokens = await log_in(admin)
    assert (await admin.validate(tokens.access_token)).user_id == user_id
    refreshed = (
        await admin.auth.RefreshTokens(auth_pb2.RefreshTokensRequest(refresh_token=tokens.refresh_token))
    ).tokens
    WITNESS.hide_fields(refreshed)
    sessions = await admin.users.ListUserSessions(user_pb2.ListUserSessionsRequest(user_id=user_id))
    assert [session.session_id for session in sessions.sessions] == [tokens.session_id]
    assert "keys" in (await admin.auth.GetJwks(auth_pb2.GetJwksRequest())).jwks
    await admin.users.DeleteUser(user_pb2.DeleteUserRequest(user_id=user_id))
    with pytest.raises(InvalidTokenError, match="USER_NOT_FOUND"):
        await admin.validate(refreshed.access_token)


async def test_create_user(admin: AsyncClient) -> None:
    first = await admin.create_user(EMAIL, request_id="r1", timeout=timedelta(seconds=30))
    WITNESS.hide(first.temporary_password)
    again = await admin.create_user(EMAIL, request_id="r1", timeout=30)
    assert first.user == again.user
    with pytest.raises(EmailAlreadyExistsError) as caught:
        await admin.create_user(EMAIL)
    assert len(caught.value.trace_id) == 32
    imported = await admin.create_user(
        "b@example.com", password_hash=bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    )
    assert imported.user.email == "b@example.com"
    assert admin.stats().errors == {"EmailAlreadyExistsError": 1}


async def test_an_empty_request_id_is_filled_in_a_copy(admin: AsyncClient) -> None:
    request = user_pb2.CreateUserRequest(email=EMAIL, password=PASSWORD)
    await admin.users.CreateUser(request)
    assert not request.request_id
    with pytest.raises(EmailAlreadyExistsError):
        await admin.users.CreateUser(request)


async def test_errors_have_their_data(admin: AsyncClient) -> None:
    with pytest.raises(InvalidFieldError) as field:
        await admin.create_user("no address")
    assert field.value.field == "email"
    assert field.value.problem
    with pytest.raises(PasswordRejectedError):
        await admin.create_user(EMAIL, password="short")
    with pytest.raises(UserNotFoundError):
        await admin.users.GetUser(user_pb2.GetUserRequest(user_id="nobody"))
    with pytest.raises(InvalidCredentialsError):
        await log_in(admin)
    with pytest.raises(InvalidRefreshTokenError):
        await admin.auth.RefreshTokens(auth_pb2.RefreshTokensRequest(refresh_token="x"))


async def test_credentials_of_one_call_take_the_place_of_the_clients(two: Two, backend: AsyncClient) -> None:
    for metadata in (two.first.admin, grpc.aio.Metadata(*two.first.admin)):
        answer = await backend.users.GetUser(user_pb2.GetUserRequest(email=ADMIN_EMAIL), metadata=metadata)
        assert answer.user.role == "admin"
    async with AsyncClient(two.target, api_key="ask_wrong") as wrong:
        await wrong.users.GetUser(user_pb2.GetUserRequest(email=ADMIN_EMAIL), metadata=two.first.admin)


async def test_a_call_has_all_that_a_grpc_call_has(backend: AsyncClient) -> None:
    call: Any = backend.auth.GetJwks(auth_pb2.GetJwksRequest(), timeout=30)
    assert (await call).jwks
    assert await call.code() is grpc.StatusCode.OK
    with pytest.raises(UnavailableError, match="DEADLINE_EXCEEDED"):
        await backend.auth.GetJwks(auth_pb2.GetJwksRequest(), timeout=-1)


async def test_an_answer_that_does_not_decode_is_an_outage() -> None:
    async with impostor(b"\xff") as address, AsyncClient(address) as client:
        with pytest.raises(UnavailableError, match="not one of the service"):
            await client.auth.GetJwks(auth_pb2.GetJwksRequest())


async def test_what_ends_a_session_ends_its_answers_at_once(  # noqa: C901 - one function for each end
    two: Two, admin: AsyncClient
) -> None:
    user = await two.first.create_user()

    async def revoke(tokens: resources_pb2.Tokens) -> None:
        await admin.auth.RevokeToken(auth_pb2.RevokeTokenRequest(token=tokens.access_token))

    async def revoke_by_refresh_token(tokens: resources_pb2.Tokens) -> None:
        await admin.auth.RevokeToken(auth_pb2.RevokeTokenRequest(token=tokens.refresh_token))

    async def revoke_by_next_token(tokens: resources_pb2.Tokens) -> None:
        request = auth_pb2.RefreshTokensRequest(refresh_token=tokens.refresh_token)
        refreshed = (await admin.auth.RefreshTokens(request)).tokens
        WITNESS.hide_fields(refreshed)
        await admin.auth.RevokeToken(auth_pb2.RevokeTokenRequest(token=refreshed.access_token))

    async def revoke_sessions(tokens: resources_pb2.Tokens) -> None:
        await admin.users.RevokeUserSessions(user_pb2.RevokeUserSessionsRequest(user_id=user.user_id))

    async def disable(tokens: resources_pb2.Tokens) -> None:
        await update(is_active=False)

    async def update(**values: Any) -> None:
        mask = field_mask_pb2.FieldMask(paths=list(values))
        request = user_pb2.UpdateUserRequest(user_id=user.user_id, user=resources_pb2.User(**values), update_mask=mask)
        await admin.users.UpdateUser(request)

    async def change_password(tokens: resources_pb2.Tokens) -> None:
        request = auth_pb2.ChangePasswordRequest(email=EMAIL, current_password=PASSWORD, new_password=OTHER_PASSWORD)
        WITNESS.hide_fields(request)
        WITNESS.hide_fields((await admin.auth.ChangePassword(request)).tokens)
        await two.first.change_password(PASSWORD, OTHER_PASSWORD)

    async def reset_password(tokens: resources_pb2.Tokens) -> None:
        answer = await admin.users.ResetPassword(user_pb2.ResetPasswordRequest(user_id=user.user_id))
        WITNESS.hide_fields(answer)

    ends = (revoke, revoke_by_refresh_token, revoke_by_next_token, revoke_sessions, change_password, disable)
    for end in (*ends, reset_password):
        tokens = await log_in(admin)
        assert await admin.validate(tokens.access_token) is await admin.validate(tokens.access_token)
        await end(tokens)
        with pytest.raises(InvalidTokenError):
            await admin.validate(tokens.access_token)
        if end is disable:
            await update(is_active=True)


async def test_the_end_of_one_session_leaves_the_answers_of_others(two: Two, admin: AsyncClient) -> None:
    await two.first.create_user()
    first, second = await log_in(admin), await log_in(admin)
    kept = await admin.validate(second.access_token)
    await admin.auth.RevokeToken(auth_pb2.RevokeTokenRequest(token=first.refresh_token))
    await admin.auth.RevokeToken(auth_pb2.RevokeTokenRequest(token="garbage"))
    assert await admin.validate(second.access_token) is kept
    await admin.auth.RevokeToken(auth_pb2.RevokeTokenRequest(token="rt_of another form"))
    assert await admin.validate(second.access_token) is not kept


@pytest.mark.parametrize(
    "token",
    ["", "garbage", "a.b", "a.!.c", "a.bnVsbA.c", "a.eyJzaWQiOjF9.c", "a.e30.c", "rt_x", "rt_.y.z"]
    + [f"a.{base64.b64encode(payload * 99_999).decode()}.c" for payload in (b"[", b'{"sid":', b"9")],
    ids=lambda token: token[:20],
)
def test_a_text_without_a_session(token: str) -> None:
    assert session_of(token) == ""


async def test_the_trace_of_a_single_call_is_passed_on(traces: list[str], backend: AsyncClient) -> None:
    context = trace.SpanContext(0x5F, 0x1, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        await asyncio.gather(
            backend.validate("a"), backend.validate("b"), backend.validate("c"), return_exceptions=True
        )
        await backend.auth.GetJwks(auth_pb2.GetJwksRequest())
        await backend.auth.GetJwks(auth_pb2.GetJwksRequest(), metadata=(("traceparent", "its own"),))
    await backend.auth.GetJwks(auth_pb2.GetJwksRequest())
    its = "00-" + "0" * 30 + "5f-" + "0" * 15 + "1-01"
    assert sorted(traces[:2]) == ["", its], "b and c share a call, which may overtake that of a"
    assert traces[2:] == [its, "its own", ""]


async def test_the_trace_of_the_backend_is_the_trace_of_the_service(backend: AsyncClient) -> None:
    position = len(WITNESS.lines.getvalue())
    context = trace.SpanContext(0x5F, 0x1, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)), pytest.raises(InvalidCredentialsError) as caught:
        await log_in(backend)
    assert caught.value.trace_id == "0" * 30 + "5f"
    lines = [json.loads(line) for line in WITNESS.lines.getvalue()[position:].splitlines()]
    (refused,) = (line for line in lines if line["event"] == "login_refused")
    assert refused["trace_id"] == caught.value.trace_id
    assert refused["span_id"] != "0" * 15 + "1"


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The traceparent of each call that reaches the services, empty where it has none."""
    from authsvc.rpc import middleware  # noqa: PLC0415 - patched here alone

    seen: list[str] = []
    wrap = middleware.Middleware._wrap  # noqa: SLF001

    def spying(self: Any, method: Any, *arguments: Any) -> Any:
        wrapped = wrap(self, method, *arguments)

        async def spy(data: bytes, context: Any) -> bytes:
            metadata = dict(context.invocation_metadata() or ())
            if "Jwks" in method.name or "Validate" in method.name:
                seen.append(str(metadata.get("traceparent", "")))
            return await wrapped(data, context)

        return spy

    monkeypatch.setattr(middleware.Middleware, "_wrap", spying)
    return seen
