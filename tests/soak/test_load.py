"""Half an hour of load on a process: nothing fails, and memory, files and latency stay where they are (L1, L5)."""

import asyncio
import contextlib
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from authsvc.tokens.access_tokens import CACHE_SIZE
from authsvc.usecases.user_state_cache import MAX_USERS
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from bench.deployment import AUDIENCE, ISSUER, write_tokens
from tests.e2e.process import Process, environment, invoke, open_files, resident_kib, started
from tests.soak.conftest import SCALE
from tests.support import PASSWORD, WITNESS, failure_of

SECONDS = 1800 * SCALE
SAMPLES = 60
WARM_UP = SAMPLES // 6
VALIDATORS = 16
GUESSERS = 4
ALLOWED_GROWTH = 0.05
"""Of memory and files, from the end of the warm-up to the end, along the line that fits best."""
ALLOWED_SLOWDOWN = 0.5
"""The same of latency, which the machine's other work moves as well."""
BATCH = 100
EMAIL = "alice@example.com"
BAD_SIGNS = ("Task exception was never retrieved", "internal_error", "Traceback")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(0),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


@dataclass
class Observed:
    """What was seen: one figure of each for a sample."""

    outcomes: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    rss_kib: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)

    def sample(self, pid: int) -> None:
        self.rss_kib.append(resident_kib(pid))
        self.files.append(open_files(pid))
        self.p99_ms.append(statistics.quantiles(self.seconds, n=100)[98] * 1000)
        self.seconds.clear()


def growth(figures: Sequence[float]) -> float:
    """How far the line that fits best rises, as a share of where it begins; the warm-up is left out."""
    settled = figures[WARM_UP:]
    slope, start = statistics.linear_regression(range(len(settled)), settled)
    return slope * (len(settled) - 1) / start


@pytest.fixture
def process(tmp_path: Path, signing_keys: Path) -> Iterator[Process]:
    settings = {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": ISSUER,
        "AUTHSVC_AUDIENCE": AUDIENCE,
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
    }
    WITNESS.hide(PASSWORD)
    assert invoke("tables", "create", **settings).exit_code == 0
    created = invoke("users", "create", "--email", EMAIL, "--role", "user", stdin=PASSWORD + "\n", **settings)
    assert created.exit_code == 0
    with started("serve", cwd=tmp_path, environ=environment(**settings)) as process:
        yield process


@pytest.fixture
def tokens(tmp_path: Path, signing_keys: Path) -> list[str]:
    """Return as many tokens, of as many users, as a process caches."""
    path = tmp_path / "tokens"
    number = max(CACHE_SIZE, MAX_USERS)
    write_tokens(path, signing_keys, users=number, tokens=number)
    return path.read_text().split()


async def fill_caches(stub: Any, tokens: Sequence[str]) -> None:
    """Show the process the tokens, so that its full caches grow no more."""
    requests = [auth_pb2.ValidateTokenRequest(token=token) for token in tokens]
    for start in range(0, len(requests), BATCH):
        batch = auth_pb2.BatchValidateTokensRequest(requests=requests[start : start + BATCH])
        answer = await stub.BatchValidateTokens(batch)
        assert {each.response.reason for each in answer.results} == {auth_pb2.INACTIVE_REASON_USER_NOT_FOUND}


@contextlib.asynccontextmanager
async def repeated(number: int, act: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Do something again and again, by so many at once, while the body runs; a failure of one fails the test."""

    async def again() -> None:
        while True:
            await act()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(again()) for _ in range(number)]
        yield
        for task in tasks:
            task.cancel()


async def test_half_an_hour_of_load(process: Process, tokens: Sequence[str], report: Callable[[str], None]) -> None:
    match = process.wait_for(lambda: re.search(r'"address": "([^"]+)"', process.log), "listened")
    assert match
    seen = Observed()

    async def count(name: str, call: Awaitable[Any]) -> Any:
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            name, answer = f"{name}: {failure_of(error).reason}", None
        seen.outcomes[name] = seen.outcomes.get(name, 0) + 1
        return answer

    async with grpc.aio.insecure_channel(match[1]) as channel:
        stub: Any = auth_grpc.AuthServiceStub(channel)
        await fill_caches(stub, tokens)
        log_in = auth_pb2.AuthenticateRequest(email=EMAIL, password=PASSWORD, client_address="192.0.2.7")
        guess = auth_pb2.AuthenticateRequest(email=EMAIL, password="wrong password", client_address="198.51.100.7")
        validation = auth_pb2.ValidateTokenRequest(token=(await stub.Authenticate(log_in)).tokens.access_token)

        async def validate() -> None:
            begin = time.perf_counter()
            answer = await count("validation", stub.ValidateToken(validation))
            seen.seconds.append(time.perf_counter() - begin)
            assert answer.state == auth_pb2.TOKEN_STATE_ACTIVE

        async def live() -> None:
            """Begin a session, and let the others use its tokens."""
            login = await count("login", stub.Authenticate(log_in))
            if login is None:
                return
            validation.token = login.tokens.access_token
            refresh = auth_pb2.RefreshTokensRequest(refresh_token=login.tokens.refresh_token)
            refreshed = await count("refresh", stub.RefreshTokens(refresh))
            validation.token = refreshed.tokens.access_token
            await asyncio.sleep(0.1)

        async def flood() -> None:
            await count("guess", stub.Authenticate(guess))

        async with repeated(VALIDATORS, validate), repeated(1, live), repeated(GUESSERS, flood):
            for _ in range(SAMPLES):
                await asyncio.sleep(SECONDS / SAMPLES)
                seen.sample(process.pid)
    report(f"{seen.outcomes}")
    for name, figures in (("RSS, KiB", seen.rss_kib), ("files", seen.files), ("p99, ms", seen.p99_ms)):
        settled = statistics.median(figures[WARM_UP:])
        report(f"{name}: median {settled:.1f}, last {figures[-1]:.1f}, growth {growth(figures):+.1%}")
    assert not {name for name in seen.outcomes if name.startswith(("validation:", "refresh:"))}
    assert growth(seen.rss_kib) < ALLOWED_GROWTH
    assert growth(seen.files) < ALLOWED_GROWTH
    assert growth(seen.p99_ms) < ALLOWED_SLOWDOWN
    assert not [sign for sign in BAD_SIGNS if sign in process.log]
    assert process.end() == 0
