"""Fixtures and doubles of many tests: a settable clock, a running service with a client, and a check of its logs."""

import asyncio
import contextlib
import io
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import field_mask_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from authsvc.config import Address, KeyLocation, ServeSettings
from authsvc.models import Budget
from authsvc.server import app
from authsvc.server.app import Limits
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.stores.opening import open_store
from authsvc.tokens.key_file import KeyFile
from authsvc.tokens.key_store import rotate_keys
from authsvc.tokens.keys import Key, KeyStatus
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from authsvc.v1 import resources_pb2
from authsvc.v1 import user_service_pb2 as user_pb2
from authsvc.v1 import user_service_pb2_grpc as user_grpc
from tests.engines import Engine

PASSWORD = "a password of many words"
ADMIN_EMAIL = "root@example.com"
TEST_COST = 4
"""The lowest cost of bcrypt; the settings refuse it, so only tests use it."""
SECRET_MIN_LENGTH = 8
ADMIN_LOGIN_ATTEMPTS = 5
SECRET_FIELDS = frozenset(
    {
        "password",
        "password_hash",
        "current_password",
        "new_password",
        "temporary_password",
        "token",
        "access_token",
        "refresh_token",
    }
)
SECRET_SHAPES = re.compile(
    r"[^\s'\"]@[^\s'\"]"  # an email address
    r"|ask_[\w-]{43}"  # an API key
    r"|rt_[\w-]+(\.[\w-]{22}){2}\.[\w-]{43}"  # a refresh token
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\."  # an access token
    r"|\$(2[abxy]|bcrypt-sha256)\$"  # a password hash
    r"|(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])"  # a SHA-256 digest
)
"""Forms of secrets and email addresses that no log line may hold, declared or not. Command output may have some."""


PATIENT_LIMITS = Limits(
    request_seconds=30.0,
    hashing_seconds=30.0,
    stale_fallback_seconds=30.0,
    dynamodb=DynamoDBTimeouts(connect_seconds=30.0, read_seconds=30.0, batch_seconds=30.0),
)
"""Long time limits, so that a slow machine fails no test."""
SHORT_READS = replace(PATIENT_LIMITS, dynamodb=DynamoDBTimeouts())
"""Production's store timeouts, for stores that lose responses."""


class FakeClock:
    """A clock that only a test advances."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
        self.seconds = 0.0

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **span: float) -> None:
        self.now += timedelta(**span)
        self.seconds += timedelta(**span).total_seconds()

    def monotonic(self) -> float:
        return self.seconds


class LogWitness:
    """Collects every log line of the test run, and every secret that none of them may hold."""

    def __init__(self) -> None:
        self.lines = io.StringIO()
        self.messages = io.StringIO()
        self.secrets: set[str] = set()

    def hide(self, *secrets: str) -> None:
        """Declare secrets that no log line may hold; short ones are ignored, for they could occur by chance."""
        for secret in secrets:
            if len(secret) >= SECRET_MIN_LENGTH:
                self.secrets |= {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}

    def hide_fields(self, message: Message) -> None:
        """Declare the secret fields of a request or response, nested ones too."""
        for descriptor, value in message.ListFields():
            if descriptor.name in SECRET_FIELDS and isinstance(value, str):
                self.hide(value)
            elif descriptor.name == "tokens":
                self.hide_fields(value)

    def add_log(self, text: str) -> None:
        """Add the log of another process."""
        self.lines.write(text + "\n")

    def add_messages(self, text: str) -> None:
        """Add the output of a command, which may hold email addresses and digests, but no declared secret."""
        self.messages.write(text + "\n")

    def leaks(self) -> list[str]:
        """Return the lines that hold a secret."""
        # There are thousands of secrets and millions of characters, so a line costs one look-up for eight characters.
        size = SECRET_MIN_LENGTH
        short = [secret for secret in self.secrets if len(secret) < 2 * size - 1]
        by_piece: defaultdict[str, set[str]] = defaultdict(set)
        for secret in self.secrets.difference(short):
            for at in range(
                size
            ):  # wherever a line holds the secret, one of these pieces begins at a multiple of `size`
                by_piece[secret[at : at + size]].add(secret)

        def holds_secret(line: str) -> bool:
            pieces = by_piece.keys() & {line[at : at + size] for at in range(0, len(line), size)}
            suspects = chain(short, *(by_piece[piece] for piece in pieces))
            return any(secret in line for secret in suspects)

        lines, messages = self.lines.getvalue().splitlines(), self.messages.getvalue().splitlines()
        logged = [line for line in lines if SECRET_SHAPES.search(line) or holds_secret(line)]
        return logged + [message for message in messages if holds_secret(message)]

    def check(self) -> None:
        """Fail if a line holds a secret."""
        leaks = self.leaks()
        assert not leaks, f"{len(leaks)} log lines hold a secret, the first: {leaks[0]}"


WITNESS = LogWitness()


class _Recorder(grpc.aio.UnaryUnaryClientInterceptor):
    """Declares the secret fields of every request and response to WITNESS."""

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        if isinstance(request, Message):
            WITNESS.hide_fields(request)
        call = await continuation(details, request)
        if await call.code() is grpc.StatusCode.OK:
            response = await call
            if isinstance(response, Message):
                WITNESS.hide_fields(response)
        return call


class _Caller(grpc.aio.UnaryUnaryClientInterceptor):
    """Sends an API key with every call."""

    def __init__(self, api_key: str) -> None:
        self._header = ("authorization", f"Bearer {api_key}")

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), self._header)
        return await continuation(details._replace(metadata=metadata), request)


@dataclass(frozen=True)
class Client:
    """A client of a running service.

    Args:
        admin: Metadata with an admin's access token, for UserService.
    """

    address: str
    channel: grpc.aio.Channel
    auth: "auth_grpc.AuthServiceAsyncStub"
    users: "user_grpc.UserServiceAsyncStub"
    service: app.App
    admin: tuple[tuple[str, str], ...] = ()

    async def create_user(
        self, email: str = "alice@example.com", password: str = PASSWORD, role: str = "", request_id: str = ""
    ) -> Any:
        request = user_pb2.CreateUserRequest(email=email, password=password, role=role, request_id=request_id)
        return (await self.users.CreateUser(request, metadata=self.admin)).user

    async def get_user(self, **key: str) -> Any:
        return (await self.users.GetUser(user_pb2.GetUserRequest(**key), metadata=self.admin)).user

    async def log_in(self, email: str = "alice@example.com", password: str = PASSWORD, **fields: str) -> Any:
        return await self.auth.Authenticate(auth_pb2.AuthenticateRequest(email=email, password=password, **fields))

    async def access_token(self, email: str = "alice@example.com", password: str = PASSWORD) -> str:
        token: str = (await self.log_in(email, password)).tokens.access_token
        return token

    async def validate(self, token: str) -> auth_pb2.ValidateTokenResponse:
        return await self.auth.ValidateToken(auth_pb2.ValidateTokenRequest(token=token))

    async def refresh(self, refresh_token: str, client_address: str = "") -> Any:
        request = auth_pb2.RefreshTokensRequest(refresh_token=refresh_token, client_address=client_address)
        return (await self.auth.RefreshTokens(request)).tokens

    async def revoke(self, token: str) -> None:
        await self.auth.RevokeToken(auth_pb2.RevokeTokenRequest(token=token))

    async def change_password(
        self, new_password: str, current_password: str = PASSWORD, email: str = "alice@example.com", **fields: str
    ) -> Any:
        request = auth_pb2.ChangePasswordRequest(
            email=email, current_password=current_password, new_password=new_password, **fields
        )
        return (await self.auth.ChangePassword(request)).tokens

    async def as_admin(self) -> "Client":
        """Return the same client with a new access token of the admin."""
        token = await self.access_token(ADMIN_EMAIL)
        return replace(self, admin=(("authorization", f"Bearer {token}"),))

    async def create_with_temporary_password(self, email: str = "alice@example.com", request_id: str = "") -> Any:
        request = user_pb2.CreateUserRequest(email=email, request_id=request_id)
        return await self.users.CreateUser(request, metadata=self.admin)

    async def import_user(self, password_hash: str, email: str = "alice@example.com") -> Any:
        request = user_pb2.CreateUserRequest(email=email, password_hash=password_hash)
        return (await self.users.CreateUser(request, metadata=self.admin)).user

    async def update_user(self, user_id: str, *paths: str, **values: Any) -> Any:
        """Set the values; the update mask has the paths, or the names of the values where there are none."""
        mask = field_mask_pb2.FieldMask(paths=paths or list(values))
        request = user_pb2.UpdateUserRequest(user_id=user_id, user=resources_pb2.User(**values), update_mask=mask)
        return (await self.users.UpdateUser(request, metadata=self.admin)).user

    async def delete_user(self, user_id: str) -> None:
        await self.users.DeleteUser(user_pb2.DeleteUserRequest(user_id=user_id), metadata=self.admin)

    async def reset_password(self, user_id: str) -> Any:
        return await self.users.ResetPassword(user_pb2.ResetPasswordRequest(user_id=user_id), metadata=self.admin)

    async def list_users(self, page_size: int = 0, page_token: str = "") -> Any:
        request = user_pb2.ListUsersRequest(page_size=page_size, page_token=page_token)
        return await self.users.ListUsers(request, metadata=self.admin)

    async def list_sessions(self, user_id: str, page_size: int = 0, page_token: str = "") -> Any:
        request = user_pb2.ListUserSessionsRequest(user_id=user_id, page_size=page_size, page_token=page_token)
        return await self.users.ListUserSessions(request, metadata=self.admin)

    async def revoke_sessions(self, user_id: str, *session_ids: str) -> None:
        request = user_pb2.RevokeUserSessionsRequest(user_id=user_id, session_ids=session_ids)
        await self.users.RevokeUserSessions(request, metadata=self.admin)


@asynccontextmanager
async def connected(
    service: app.App, credentials: grpc.ChannelCredentials | None = None, api_key: str = ""
) -> AsyncIterator[Client]:
    interceptors: Any = [_Recorder(), *([_Caller(api_key)] if api_key else [])]
    async with (
        grpc.aio.insecure_channel(service.address, interceptors=interceptors)
        if credentials is None
        else grpc.aio.secure_channel(service.address, credentials, interceptors=interceptors)
    ) as channel:
        yield Client(
            service.address, channel, auth_grpc.AuthServiceStub(channel), user_grpc.UserServiceStub(channel), service
        )


async def _admin_token(client: Client) -> str:
    """Log the admin in; repeat a login that a busy machine made time out."""
    for _ in range(ADMIN_LOGIN_ATTEMPTS):
        with contextlib.suppress(grpc.aio.AioRpcError):
            return await client.access_token(ADMIN_EMAIL)
    return await client.access_token(ADMIN_EMAIL)


@asynccontextmanager
async def served(
    settings: ServeSettings,
    clock: FakeClock,
    limits: Limits = PATIENT_LIMITS,
    credentials: grpc.ChannelCredentials | None = None,
    api_key: str = "",
) -> AsyncIterator[Client]:
    """Run a service with tables and an admin, and yield a client of it.

    Args:
        settings: Of the service.
        clock: Of the service.
        limits: Of the service.
        credentials: Of the client, where the service speaks TLS.
        api_key: Of the client, where the service knows callers; it stands for the admin's token, too.
    """
    async with open_store(settings, timeouts=limits.dynamodb) as store:
        await store.create_tables()
    async with (
        app.run_app(settings, clock, clock.monotonic, limits) as service,
        connected(service, credentials, api_key) as client,
    ):
        await service.users.create_user(email=ADMIN_EMAIL, role="admin", password=PASSWORD)
        admin = () if api_key else (("authorization", f"Bearer {await _admin_token(client)}"),)
        yield replace(client, admin=admin)


@dataclass(frozen=True)
class Rotation:
    """The keys that a rotation of a file changed."""

    retired: Key | None
    signing: Key
    following: Key


async def rotate(path: Path, ttl: timedelta, now: datetime) -> Rotation:
    change = await rotate_keys(KeyFile(path), ttl, now)
    before = {key.kid: key.status for key in change.before}
    (signing,) = (key for key in change.after if key.status is KeyStatus.SIGNING)
    (added,) = (key for key in change.after if key.kid not in before)
    retired = [key for key in change.after if key.status is KeyStatus.RETIRED != before[key.kid]]
    return Rotation(retired[0] if retired else None, signing, added)


def make_settings(signing_keys: KeyLocation, store: str, **changes: Any) -> ServeSettings:
    """Return settings of a service on a free port, with hashes of the lowest cost."""
    settings = ServeSettings(
        store=store,
        table_prefix="auth-",
        listen=Address("127.0.0.1", 0),
        http_listen=None,
        workers=1,
        issuer="https://auth.example.com",
        audience="backends",
        signing_keys=signing_keys,
        access_token_ttl=timedelta(minutes=15),
        session_idle_ttl=timedelta(days=7),
        session_max_ttl=timedelta(days=30),
        refresh_grace=timedelta(seconds=60),
        max_staleness=timedelta(seconds=60),
        max_stale_if_error=timedelta(minutes=15),
        bcrypt_cost=TEST_COST,
        password_min_length=15,
        failures_per_pair=Budget(10, timedelta(minutes=15)),
        failures_per_account=Budget(100, timedelta(hours=24)),
        failures_per_source=Budget(300, timedelta(minutes=15)),
        callers=None,
        tls_cert=None,
        tls_key=None,
        tls_client_ca=None,
        allow_plaintext=False,
        allow_open=False,
        reflection=True,
        log_format="json",
        log_level="debug",
        log_digest_key="",
    )
    return replace(settings, **changes)


def use_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch, endpoint_url: str = "") -> None:
    """Set the variables of AWS so that clients use an engine, or the proxy in front of it."""
    for name, value in engine.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", endpoint_url or engine.endpoint_url)


@dataclass(frozen=True)
class Failure:
    """Status and details of an error that a client received."""

    code: grpc.StatusCode
    reason: str
    text: str
    trace_id: str
    field: str = ""
    problem: str = ""
    retry_seconds: float | None = None


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """Return the status and details of an error, parsed as a client does."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, f"an error without details: {error}"
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        has_retry = detail.Unpack(retry) or has_retry
    assert info.domain == "authsvc"
    violation = bad.field_violations[0] if bad.field_violations else None
    return Failure(
        code=error.code(),
        reason=info.reason,
        text=error.details() or "",
        trace_id=info.metadata["trace_id"],
        field=violation.field if violation else "",
        problem=violation.description if violation else "",
        retry_seconds=retry.retry_delay.ToTimedelta().total_seconds() if has_retry else None,
    )


async def failure(call: Awaitable[object]) -> Failure:
    """Expect a call to fail, and return its error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return failure_of(caught.value)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds that no event announces; the test's time-out limits it."""
    while not condition():  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.005)
