"""A rolling upgrade from the first complete service to this version, and back, on one store and under load."""

import asyncio
import functools
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from authsvc.client import (
    AsyncClient,
    InvalidRefreshTokenError,
    InvalidTokenError,
    RetryLaterError,
)
from authsvc.passwords import hashes
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import resources_pb2
from authsvc.v1 import user_service_pb2 as user_pb2
from tests import tools
from tests.e2e.process import FREE, GIVE_UP_SECONDS, Process, environment, invoke, run, started
from tests.earlier import earlier_version
from tests.engines.process import free_port
from tests.support import ADMIN_EMAIL, PASSWORD

pytestmark = pytest.mark.engines

T = TypeVar("T")
Version = Sequence[str]
"""The command that runs it."""
THIS: Version = (sys.executable, "-P", "-m", "authsvc")
NEW_PASSWORD = "another password of many words"
LOGGER_OF_EARLIER = "authsvc.server"
OTHER_SPELLING = "josef@xn--exmple-cua.de"
"""An address that the earlier version stores as typed, and this one in Unicode."""
VALIDATIONS_PER_SECOND = 50
CREATIONS_PER_SECOND = 5


@pytest.fixture(scope="session")
def earlier() -> Version:
    return tools.required_or_skip(earlier_version)


@dataclass(frozen=True)
class Deployment:
    """Instances that share a store and a key file.

    Args:
        environ: Their settings, but for the port.
        folder: Their working folder.
    """

    environ: dict[str, str]
    folder: Path

    async def command(self, *arguments: str) -> str:
        """Run a command of this version, which must succeed, and return its output."""
        done = await asyncio.to_thread(invoke, *arguments, **self.environ)
        assert (done.exit_code, done.stderr) == (0, "")
        return done.stdout

    @asynccontextmanager
    async def serving(self, version: Version, port: int) -> AsyncIterator["Instance"]:
        """Serve on a port."""
        environ = self.environ | {"AUTHSVC_LISTEN": f"127.0.0.1:{port}"}
        program, *options = version
        with started(*options, "serve", cwd=self.folder, environ=environ, program=program) as process:
            await asyncio.to_thread(process.wait_for, lambda: '"event": "serving"' in process.log, "serves")
            async with AsyncClient(f"127.0.0.1:{port}") as client:
                yield Instance(process, client)


@dataclass(frozen=True)
class Instance:
    """A serving process.

    Args:
        client: A client of it alone.
    """

    process: Process
    client: AsyncClient

    async def stop(self) -> None:
        assert await asyncio.to_thread(self.process.end) == 0


@pytest.fixture(scope="session")
def keys(earlier: Version, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("earlier") / "keys.json"
    assert run(*earlier, "keys", "generate", str(path), environ=environment()).returncode == 0
    return path


@pytest.fixture(params=["sqlite", "dynoxide"])
def deployment(
    request: pytest.FixtureRequest, earlier: Version, keys: Path, tmp_path: Path, table_prefix: str
) -> Deployment:
    """A deployment whose keys and tables the earlier version made."""
    store = {"AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}"}
    if request.param != "sqlite":
        engine = request.getfixturevalue(request.param)
        tables = {"AUTHSVC_STORE": "dynamodb", "AUTHSVC_TABLE_PREFIX": table_prefix}
        store = engine.environ() | tables | {"AWS_ENDPOINT_URL_DYNAMODB": engine.endpoint_url}
    settings = {"AUTHSVC_ISSUER": "https://auth.example.com", "AUTHSVC_AUDIENCE": "backends"}
    environ = environment(**store, **settings, AUTHSVC_SIGNING_KEYS=str(keys))
    assert run(*earlier, "tables", "create", environ=environ).returncode == 0
    admin = ["--email", ADMIN_EMAIL, "--role", "admin"]
    assert invoke("users", "create", *admin, stdin=PASSWORD, **environ).exit_code == 0
    return Deployment(environ, tmp_path)


@dataclass
class Session:
    """A session that lives through everything."""

    user_id: str
    tokens: resources_pb2.Tokens


@dataclass
class Load:
    """What backends do all the time with whatever instance answers.

    Args:
        client: Of all instances.
        admin: Metadata with an admin's token.
        sessions: Those whose tokens are validated.
        created: Ids of the users whose creation was acknowledged.
        validations: How many were done.
    """

    client: AsyncClient
    admin: tuple[tuple[str, str], ...]
    sessions: list[Session] = field(default_factory=list)
    created: set[str] = field(default_factory=set)
    validations: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Call all the time; on leaving, no call may have failed."""
        stopped = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(_repeat(self._validate, VALIDATIONS_PER_SECOND, stopped))
            group.create_task(_repeat(self._create_user, CREATIONS_PER_SECOND, stopped))
            try:
                yield
            finally:
                stopped.set()

    async def _validate(self) -> None:
        session = self.sessions[self.validations % len(self.sessions)]
        self.validations += 1
        identity = await self.client.validate(session.tokens.access_token)
        assert identity.user_id == session.user_id

    async def _create_user(self) -> None:
        request = user_pb2.CreateUserRequest(email=_new_email(), password_hash=_hash())
        response = await self.client.users.CreateUser(request, metadata=self.admin)
        self.created.add(response.user.user_id)


async def _repeat(call: Callable[[], Awaitable[None]], rate: int, stopped: asyncio.Event) -> None:
    """Make so many calls a second, whether or not earlier ones have ended, until stopped."""
    loop = asyncio.get_running_loop()
    begin, calls = loop.time(), 0
    async with asyncio.TaskGroup() as group:
        while not stopped.is_set():
            while calls < (loop.time() - begin) * rate:
                group.create_task(_awaited(call))
                calls += 1
            await asyncio.sleep(0.5 / rate)


async def _awaited(call: Callable[[], Awaitable[None]]) -> None:
    await call()


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Call again while the service is too busy to hash a password."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while True:
        try:
            return await call()
        except RetryLaterError:
            if time.monotonic() > give_up:
                raise


@functools.cache
def _hash() -> str:
    """Return a hash of PASSWORD as the services make them."""
    return hashes.hash_password(PASSWORD, int(FREE["AUTHSVC_BCRYPT_COST"]))


def _new_email() -> str:
    return f"{uuid.uuid4().hex}@example.com"


async def log_in(client: AsyncClient, email: str) -> Session:
    request = auth_pb2.AuthenticateRequest(email=email, password=PASSWORD)
    response = await patiently(lambda: client.auth.Authenticate(request))
    return Session(response.user.user_id, response.tokens)


async def create_user(client: AsyncClient, load: Load, email: str = "") -> resources_pb2.User:
    request = user_pb2.CreateUserRequest(email=email or _new_email(), password_hash=_hash())
    user = (await client.users.CreateUser(request, metadata=load.admin)).user
    load.created.add(user.user_id)
    return user


async def refresh(client: AsyncClient, session: Session) -> None:
    request = auth_pb2.RefreshTokensRequest(refresh_token=session.tokens.refresh_token)
    session.tokens = (await client.auth.RefreshTokens(request)).tokens


async def is_active(client: AsyncClient, session: Session) -> bool:
    """Validate and refresh, which agree."""
    try:
        await client.validate(session.tokens.access_token)
    except InvalidTokenError:
        with pytest.raises(InvalidRefreshTokenError):
            await refresh(client, session)
        return False
    await refresh(client, session)
    return True


async def exercise(one: AsyncClient, other: AsyncClient, load: Load) -> None:
    """What one instance does, the other knows."""
    await live_on(one, other, load.sessions)
    user = await create_user(one, load)
    load.sessions.append(await log_in(other, user.email))

    user = await create_user(other, load)
    revoked, ended = await log_in(one, user.email), await log_in(other, user.email)
    await other.auth.RevokeToken(auth_pb2.RevokeTokenRequest(token=revoked.tokens.refresh_token))
    assert not await is_active(one, revoked)
    assert await is_active(one, ended)
    change = auth_pb2.ChangePasswordRequest(email=user.email, current_password=PASSWORD, new_password=NEW_PASSWORD)
    changed = await patiently(lambda: one.auth.ChangePassword(change))
    assert not await is_active(other, ended)
    ended = Session(user.user_id, changed.tokens)
    assert await is_active(other, ended)
    disable = user_pb2.UpdateUserRequest(
        user_id=user.user_id, user=resources_pb2.User(is_active=False), update_mask=FieldMask(paths=["is_active"])
    )
    await other.users.UpdateUser(disable, metadata=load.admin)
    assert not await is_active(one, ended)


async def live_on(one: AsyncClient, other: AsyncClient, sessions: Sequence[Session]) -> None:
    """Each of the two accepts and replaces the tokens that the other issued."""
    for session in sessions:
        assert await is_active(one, session)
        assert await is_active(other, session)


async def user_ids(client: AsyncClient, load: Load) -> set[str]:
    ids, page = set[str](), None
    while page is None or page.next_page_token:
        request = user_pb2.ListUsersRequest(page_size=100, page_token=page.next_page_token if page else "")
        page = await client.users.ListUsers(request, metadata=load.admin)
        ids |= {user.user_id for user in page.users}
    return ids


async def test_versions_replace_each_other_under_load(deployment: Deployment, earlier: Version) -> None:
    """As "Upgrade" in docs/operations.md describes it, and back."""
    ports = free_port(), free_port()
    async with (
        AsyncExitStack() as instances,
        AsyncClient(f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}") as client,
    ):

        async def serve(version: Version, port: int) -> Instance:
            return await instances.enter_async_context(deployment.serving(version, port))

        old = await serve(earlier, ports[0])
        assert f'"logger": "{LOGGER_OF_EARLIER}"' in old.process.log
        admin = await log_in(old.client, ADMIN_EMAIL)
        load = Load(client, (("authorization", f"Bearer {admin.tokens.access_token}"),), [admin], {admin.user_id})
        await create_user(old.client, load, OTHER_SPELLING)
        async with load.running():
            new = await serve(THIS, ports[1])
            await exercise(old.client, new.client, load)
            await exercise(new.client, old.client, load)
            await old.stop()
            load.sessions.append(await log_in(new.client, OTHER_SPELLING))
            await live_on(new.client, new.client, load.sessions)

            old = await serve(earlier, ports[0])
            await exercise(old.client, new.client, load)
            await new.stop()
            load.sessions.append(await log_in(old.client, OTHER_SPELLING))
            await deployment.command("tables", "create")
            await live_on(old.client, old.client, load.sessions)
        assert load.validations > VALIDATIONS_PER_SECOND
        assert await user_ids(old.client, load) == load.created
