"""The backend of docs/other_languages.md, in Go, against a service."""

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from google.protobuf.message import Message

from authsvc import errors
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests import tools
from tests.rpc.test_middleware import Handler, raising, served
from tests.rpc.test_retries import SERVICE_CONFIG
from tests.support import WITNESS, Client

pytestmark = pytest.mark.engines
API_KEY = "ask_" + "k" * 43
TOKEN = "the-token-of-a-user"
LATER = auth_pb2.ValidateTokenResponse(state=auth_pb2.TOKEN_STATE_ACTIVE, user_id="user-1", role="user")
LATER.expire_time.FromSeconds(4_000_000_000)
INVALID_TOKEN = 'Bearer error="invalid_token"'


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of a backend's response."""

    status: int
    challenge: str | None
    retry_after: str | None
    body: str


@dataclass(frozen=True)
class Backend:
    """A running backend."""

    session: aiohttp.ClientSession
    url: str
    log: Callable[[], str]

    async def get_me(self, *authorizations: str) -> Answer:
        return await self._request("GET", "/me", authorizations)

    async def log_out(self, *authorizations: str) -> Answer:
        return await self._request("POST", "/logout", authorizations)

    async def _request(self, method: str, path: str, authorizations: tuple[str, ...]) -> Answer:
        headers = [("Authorization", value) for value in authorizations]
        async with self.session.request(method, self.url + path, headers=headers) as response:
            get = response.headers.get
            return Answer(response.status, get("WWW-Authenticate"), get("Retry-After"), await response.text())


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run a backend with options, without limit to its connections."""
    program = tools.required_or_skip(tools.go_backend)
    (tmp_path / "authsvc.json").write_text(SERVICE_CONFIG)
    log = tmp_path / "log"

    @asynccontextmanager
    async def start(address: str, *options: str) -> AsyncIterator[Backend]:
        WITNESS.hide(API_KEY, TOKEN)
        command = [str(program), f"-authsvc={address}", "-listen=127.0.0.1:0", *options]
        environ = {**os.environ, "AUTHSVC_API_KEY": API_KEY}
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=tmp_path, env=environ, stdin=DEVNULL, stdout=PIPE, stderr=stderr
            )
        assert process.stdout is not None
        try:
            url = (await process.stdout.readline()).decode().strip()
            assert url, log.read_text()
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                yield Backend(session, url, log.read_text)
        finally:
            process.terminate()
            await process.communicate()
            WITNESS.add_log(log.read_text())

    return start


def answering(*answers: Message | Exception) -> Handler:
    """Answer one request after the other, and the last one again and again."""
    left = list(answers)

    async def handler(_request: Any, _context: Any) -> Any:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handler


async def test_serves_users_until_they_log_out(start: Start, client: Client) -> None:
    user = await client.create_user()
    token = await client.access_token()
    async with start(client.address) as backend:
        served = await backend.get_me(f"Bearer {token}")
        assert (served.status, user.user_id in served.body) == (200, True)
        assert (await backend.log_out(f"Bearer {token}")).status == 204
        assert await backend.get_me(f"Bearer {token}") == Answer(401, INVALID_TOKEN, None, "the token is invalid\n")


@pytest.mark.parametrize(
    "authorizations", [(), ("Basic eDp5",), ("Bearer ",), ("Bearer a", "Bearer b"), (TOKEN,)], ids=len
)
async def test_without_one_bearer_token_asks_for_one(start: Start, authorizations: tuple[str, ...]) -> None:
    async with served(answering(LATER)) as service, start(service.address) as backend:
        answer = await backend.get_me(*authorizations)
        assert (answer.status, answer.challenge) == (401, "Bearer")
        assert service.servicer.requests == []


@pytest.mark.parametrize("token", [b"not \xff UTF-8", b"x" * 8193], ids=["bytes", "length"])
async def test_sends_no_token_that_would_fail_its_batch(start: Start, token: bytes) -> None:
    async with served(answering(LATER)) as service, start(service.address) as backend:
        host, _, port = backend.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /me HTTP/1.0\r\nAuthorization: Bearer " + token + b"\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith("HTTP/1.0 401 ")
        assert INVALID_TOKEN in answer
        assert service.servicer.requests == []


async def test_is_fresh_by_default(start: Start) -> None:
    revoked = auth_pb2.ValidateTokenResponse(
        state=auth_pb2.TOKEN_STATE_INACTIVE, reason=auth_pb2.INACTIVE_REASON_SESSION_REVOKED
    )
    async with served(answering(LATER, revoked)) as service, start(service.address) as backend:
        assert (await backend.get_me(f"Bearer {TOKEN}")).status == 200
        assert (await backend.get_me(f"Bearer {TOKEN}")).status == 401


async def test_coalesces_what_is_asked_meanwhile(start: Start) -> None:
    users = 120
    waiting = asyncio.Event()

    async def handler(request: Any, _context: Any) -> Any:
        await waiting.wait()
        if isinstance(request, auth_pb2.ValidateTokenRequest):
            return answer_to(request)
        results = [auth_pb2.BatchValidateTokensResponse.Result(response=answer_to(item)) for item in request.requests]
        return auth_pb2.BatchValidateTokensResponse(results=results)

    def answer_to(request: auth_pb2.ValidateTokenRequest) -> auth_pb2.ValidateTokenResponse:
        answer = auth_pb2.ValidateTokenResponse()
        answer.CopyFrom(LATER)
        answer.user_id = request.token
        return answer

    async with served(handler) as service, start(service.address) as backend:
        calls = [asyncio.ensure_future(backend.get_me(f"Bearer user-{number}")) for number in range(users)]
        while len(service.servicer.requests) < 4:
            await asyncio.sleep(0.001)
        waiting.set()
        answers = await asyncio.gather(*calls)
        assert [f'"user-{number}"' in answer.body for number, answer in enumerate(answers)] == [True] * users
        sizes = [len(getattr(request, "requests", "1")) for request in service.servicer.requests]
        assert sum(sizes) == users
        assert len(sizes) < users / 2
        assert max(sizes) <= 100


async def test_answers_within_the_budget_from_the_cache_until_a_logout(start: Start) -> None:
    async with (
        served(answering(LATER, auth_pb2.RevokeTokenResponse(), LATER)) as service,
        start(service.address, "-max-staleness=1h") as backend,
    ):
        for _ in range(3):
            assert (await backend.get_me(f"Bearer {TOKEN}")).status == 200
        assert [request.max_staleness.ToSeconds() for request in service.servicer.requests] == [0]
        await backend.log_out(f"Bearer {TOKEN}")
        await backend.get_me(f"Bearer {TOKEN}")
        assert len(service.servicer.requests) == 3


async def test_serves_no_expired_token_from_the_cache(start: Start) -> None:
    expired = auth_pb2.ValidateTokenResponse()
    expired.CopyFrom(LATER)
    expired.expire_time.FromSeconds(1)
    async with (
        served(answering(expired)) as service,
        start(service.address, "-max-staleness=1h", "-stale-if-error=1h") as backend,
    ):
        for _ in range(2):
            await backend.get_me(f"Bearer {TOKEN}")
        assert len(service.servicer.requests) == 2


async def test_uses_nothing_older_than_the_budgets(start: Start) -> None:
    async with (
        served(answering(LATER, LATER, store_unavailable())) as service,
        start(service.address, "-max-staleness=1ns", "-stale-if-error=1ns") as backend,
    ):
        assert [(await backend.get_me(f"Bearer {TOKEN}")).status for _ in range(3)] == [200, 200, 503]


def store_unavailable() -> errors.StoreUnavailableError:
    error = errors.StoreUnavailableError("down")
    error.retry_delay = timedelta(milliseconds=10)
    return error


async def test_an_outage_is_no_bad_token(start: Start) -> None:
    async with served(raising(store_unavailable())) as service, start(service.address) as backend:
        answer = await backend.get_me(f"Bearer {TOKEN}")
        assert (answer.status, answer.challenge, answer.retry_after) == (503, None, "1")


async def test_an_outage_is_bridged_within_its_budget(start: Start) -> None:
    async with (
        served(answering(LATER, store_unavailable())) as service,
        start(service.address, "-stale-if-error=1h") as backend,
    ):
        assert '"degraded":false' in (await backend.get_me(f"Bearer {TOKEN}")).body
        degraded = await backend.get_me(f"Bearer {TOKEN}")
        assert (degraded.status, '"degraded":true' in degraded.body) == (200, True)
        assert (await backend.get_me("Bearer another-token")).status == 503
        assert service.servicer.requests[0].stale_if_error.ToSeconds() == 3600


async def test_a_service_that_hangs_is_an_outage(start: Start) -> None:
    hanging = asyncio.Event()

    async def handler(_request: Any, _context: Any) -> Any:
        await hanging.wait()

    async def first(_request: Any, _context: Any) -> Any:
        service.servicer.handler = handler
        return LATER

    async with served(first) as service, start(service.address, "-stale-if-error=1h") as backend:
        await backend.get_me(f"Bearer {TOKEN}")
        assert '"degraded":true' in (await backend.get_me(f"Bearer {TOKEN}")).body


async def test_keeps_no_degraded_answer(start: Start) -> None:
    degraded = auth_pb2.ValidateTokenResponse(degraded=True)
    degraded.MergeFrom(LATER)
    async with served(answering(degraded)) as service, start(service.address, "-max-staleness=1h") as backend:
        for _ in range(2):
            assert '"degraded":true' in (await backend.get_me(f"Bearer {TOKEN}")).body
        assert len(service.servicer.requests) == 2


@pytest.mark.parametrize("error", [errors.CallerUnauthenticatedError, errors.CallerNotPermittedError])
async def test_a_refused_backend_blames_itself(start: Start, error: type[errors.CallerRefusedError]) -> None:
    async with served(raising(error("wrong key"))) as service, start(service.address) as backend:
        answer = await backend.get_me(f"Bearer {TOKEN}")
        assert (answer.status, answer.challenge) == (500, None)
        assert "check its API key" in backend.log()


async def test_something_else_that_answers_says_nothing_about_tokens(start: Start) -> None:
    async with served(answering(auth_pb2.ValidateTokenResponse())) as service, start(service.address) as backend:
        assert (await backend.get_me(f"Bearer {TOKEN}")).status == 503
