"""The audit log: one line for each event, with the members that docs/operations.md lists, for any input."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from authsvc.config import ServeSettings
from authsvc.errors import OverloadedError, StoreUnavailableError
from authsvc.rpc.callers import api_key_digest, new_api_key
from authsvc.server import app
from authsvc.server.certificates import Certificates, watch_certificates
from authsvc.stores.opening import open_store
from authsvc.telemetry import logs
from authsvc.telemetry.audit import Event
from authsvc.tokens.key_file import generate_key_file
from authsvc.tokens.refresh_tokens import new_refresh_token
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from authsvc.watched_file import WatchedFile
from tests.e2e.certificates import Authority, Pair
from tests.support import PATIENT_LIMITS, WITNESS, Client, FakeClock, connected, failure, make_settings, rotate

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
ROW = re.compile(r"\| `(\w+)` \| (\w+) \| (.*?) \| .* \|")
OF_EVERY_LINE = {"event", "level", "logger", "timestamp", "outcome"}
EMAIL = "alice@example.com"
WRONG = "a wrong password of words"
NEW_PASSWORD = "another password of words"
SOURCE = "192.0.2.7"


def documented() -> dict[str, tuple[str, set[str]]]:
    """Return outcome and members of each event, from the rows of the document."""
    _, _, section = DOCUMENT.read_text().partition("### Audit log\n")
    rows = ROW.findall(section.partition("### ")[0])
    return {event: (outcome, set(re.findall(r"`(\w+)`", members))) for event, outcome, members in rows}


def audited(position: int) -> list[dict[str, Any]]:
    """Return the audit lines since a position of the log."""
    lines = [json.loads(line) for line in WITNESS.lines.getvalue()[position:].splitlines()]
    return [line for line in lines if line["logger"] == "authsvc.audit"]


@dataclass(frozen=True)
class Stage:
    """A service with a callers file, and its files, which a test can change."""

    client: Client
    clock: FakeClock
    keys: Path
    callers: Path
    api_key: str

    def replace_callers(self, text: str) -> None:
        other = self.callers.with_name("other")
        other.write_text(text)
        other.replace(self.callers)


@pytest.fixture
async def stage(settings: ServeSettings, clock: FakeClock, tmp_path: Path) -> AsyncIterator[Stage]:
    api_key, keys, callers = new_api_key(), tmp_path / "keys.json", tmp_path / "callers.toml"
    WITNESS.hide(api_key)
    generate_key_file(keys, "ES256", clock())
    callers.write_text(
        f'[callers.shop]\napi_key_sha256 = ["{api_key_digest(api_key)}"]\n'
        'permissions = ["validate", "login", "sessions", "users"]\n'
    )
    known = replace(settings, signing_keys=keys, callers=callers)
    async with open_store(known) as store:
        await store.create_tables()
    async with (
        app.run_app(known, clock, limits=replace(PATIENT_LIMITS, file_poll_seconds=0.01)) as service,
        connected(service, api_key=api_key) as client,
    ):
        await client.create_user(EMAIL)
        yield Stage(client, clock, keys, callers, api_key)


# A scene prepares an event and returns the awaitable that causes it.
Scene = Callable[[Stage], Awaitable[Awaitable[object]]]


async def login(stage: Stage) -> Awaitable[object]:
    return stage.client.log_in(client_address=SOURCE)


async def login_refused(stage: Stage) -> Awaitable[object]:
    return failure(stage.client.log_in(password=WRONG, client_address=SOURCE))


async def login_throttled(stage: Stage) -> Awaitable[object]:
    for _ in range(10):
        await failure(stage.client.log_in(password=WRONG, client_address=SOURCE))
    return failure(stage.client.log_in(client_address=SOURCE))


async def password_changed(stage: Stage) -> Awaitable[object]:
    return stage.client.change_password(NEW_PASSWORD, client_address=SOURCE)


async def password_reset(stage: Stage) -> Awaitable[object]:
    return stage.client.reset_password((await stage.client.get_user(email=EMAIL)).user_id)


async def refresh(stage: Stage) -> Awaitable[object]:
    return stage.client.refresh((await stage.client.log_in()).tokens.refresh_token, SOURCE)


async def refresh_refused(stage: Stage) -> Awaitable[object]:
    token = (await stage.client.log_in()).tokens.refresh_token
    await stage.client.revoke(token)
    return failure(stage.client.refresh(token, SOURCE))


async def refresh_replayed_elsewhere(stage: Stage) -> Awaitable[object]:
    token = (await stage.client.log_in(client_address="198.51.100.7")).tokens.refresh_token
    await stage.client.refresh(token)
    return stage.client.refresh(token, SOURCE)


async def refresh_token_reuse(stage: Stage) -> Awaitable[object]:
    token = (await stage.client.log_in()).tokens.refresh_token
    await stage.client.refresh(token)
    stage.clock.advance(minutes=2)
    return failure(stage.client.refresh(token, SOURCE))


async def session_revoked(stage: Stage) -> Awaitable[object]:
    return stage.client.revoke((await stage.client.log_in()).tokens.refresh_token)


async def sessions_revoked(stage: Stage) -> Awaitable[object]:
    return stage.client.revoke_sessions((await stage.client.get_user(email=EMAIL)).user_id)


async def user_created(stage: Stage) -> Awaitable[object]:
    return stage.client.create_user("somebody@example.com")


async def user_updated(stage: Stage) -> Awaitable[object]:
    return stage.client.update_user((await stage.client.get_user(email=EMAIL)).user_id, role="editor")


async def user_deleted(stage: Stage) -> Awaitable[object]:
    return stage.client.delete_user((await stage.client.get_user(email=EMAIL)).user_id)


async def caller_refused(stage: Stage) -> Awaitable[object]:
    async def call() -> None:
        async with connected(stage.client.service) as unauthenticated:
            await failure(unauthenticated.validate("x"))

    return call()


async def keys_reloaded(stage: Stage) -> Awaitable[object]:
    return rotate(stage.keys, timedelta(minutes=15), stage.clock())


async def keys_not_reloaded(stage: Stage) -> Awaitable[object]:
    async def remove() -> None:
        stage.keys.unlink()

    return remove()


async def callers_reloaded(stage: Stage) -> Awaitable[object]:
    async def change() -> None:
        stage.replace_callers(stage.callers.read_text().replace("shop", "market"))

    return change()


async def callers_not_reloaded(stage: Stage) -> Awaitable[object]:
    async def damage() -> None:
        stage.replace_callers("[callers")

    return damage()


def watched_certificates(stage: Stage) -> tuple[Pair, WatchedFile[Certificates]]:
    pair = Authority(stage.keys.parent).issue("server")
    watched = watch_certificates(make_settings(stage.keys, "", tls_cert=pair.certificate, tls_key=pair.key))
    assert watched is not None
    return pair, watched


async def certificates_reloaded(stage: Stage) -> Awaitable[object]:
    _, watched = watched_certificates(stage)
    return asyncio.to_thread(watched.reload)


async def certificates_not_reloaded(stage: Stage) -> Awaitable[object]:
    pair, watched = watched_certificates(stage)
    pair.key.unlink()
    return asyncio.to_thread(watched.reload)


SCENES: list[Scene] = [
    login,
    login_refused,
    login_throttled,
    password_changed,
    password_reset,
    refresh,
    refresh_refused,
    refresh_replayed_elsewhere,
    refresh_token_reuse,
    session_revoked,
    sessions_revoked,
    user_created,
    user_updated,
    user_deleted,
    caller_refused,
    keys_reloaded,
    keys_not_reloaded,
    callers_reloaded,
    callers_not_reloaded,
    certificates_reloaded,
    certificates_not_reloaded,
]
NAMES = [scene.__name__ for scene in SCENES]
FOLLOWED_BY: dict[Scene, list[str]] = {password_changed: ["login"], refresh_replayed_elsewhere: ["refresh"]}


def test_every_event_has_a_row_in_the_document_and_a_scene_here() -> None:
    assert list(documented()) == NAMES == [event.value for event in Event]


@pytest.mark.parametrize("scene", SCENES, ids=NAMES)
async def test_each_event_is_one_line_with_exactly_its_members(stage: Stage, scene: Scene) -> None:
    """ASVS-16.3.1."""
    act = await scene(stage)
    position = len(WITNESS.lines.getvalue())
    await act
    while not audited(position):  # noqa: ASYNC110 - the service polls its files
        await asyncio.sleep(0.01)
    line, *more = audited(position)
    assert [other["event"] for other in more] == FOLLOWED_BY.get(scene, [])
    outcome, members = documented()[line["event"]]
    is_of_file = "reloaded" in line["event"]
    of_request = set() if is_of_file else {"trace_id", "span_id"}
    of_request |= set() if is_of_file or line["event"] == "caller_refused" else {"caller"}
    assert line["event"] == scene.__name__
    assert line["outcome"] == outcome
    assert line.keys() == OF_EVERY_LINE | of_request | members
    assert line.get("caller", "shop") == "shop"
    if "source" in members:
        assert line["source"] == ("127.0.0.1" if line["event"] == "caller_refused" else SOURCE)


# Reasons


async def test_every_reason_of_a_refused_login_is_in_the_document(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ASVS-16.3.1: a login that fails because of the store or the hash queue is audited too."""
    client, position = stage.client, len(WITNESS.lines.getvalue())

    async def refuse(error: Exception) -> None:
        async def fail(*_args: object, **_options: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(client.service.logins._hasher, "verify", fail)  # noqa: SLF001 - any failure will do
            await failure(client.log_in())

    temporary = await client.create_with_temporary_password("temporary@example.com")
    await failure(client.log_in("nobody@example.com"))
    await failure(client.change_password(NEW_PASSWORD, WRONG))
    await failure(client.log_in("temporary@example.com", temporary.temporary_password))
    await refuse(OverloadedError())
    await refuse(StoreUnavailableError("x"))
    refused = [line for line in audited(position) if line["event"] == "login_refused"]
    assert [(line["reason"], line["user_id"] is None) for line in refused] == [
        ("unknown_email", True),
        ("wrong_password", False),
        ("password_change_required", False),
        ("overloaded", True),
        ("store_unavailable", True),
    ]
    text = DOCUMENT.read_text()
    assert all(f"`{line['reason']}`" in text for line in refused)


@pytest.mark.parametrize(("has_begun", "reason"), [(True, "wrong_password"), (False, "client_gone")])
async def test_a_guess_is_on_record_though_its_client_hung_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, reason: str, *, has_begun: bool
) -> None:
    """Otherwise an attacker could guess unseen by hanging up."""
    entered, left = asyncio.Event(), asyncio.Event()
    logins = stage.client.service.logins
    of_stage: Any = logins._hasher if has_begun else logins._hash_queue  # noqa: SLF001 - as above

    async def stand_still(*_args: object, **_options: object) -> None:
        entered.set()
        await left.wait()

    monkeypatch.setattr(of_stage, "verify" if has_begun else "enter", stand_still)
    position = len(WITNESS.lines.getvalue())
    async with grpc.aio.insecure_channel(stage.client.address) as channel:
        stub: Any = auth_grpc.AuthServiceStub(channel)
        request = auth_pb2.AuthenticateRequest(email=EMAIL, password=WRONG)
        call = stub.Authenticate(request, metadata=(("authorization", f"Bearer {stage.api_key}"),))
        await entered.wait()
        call.cancel()
    if has_begun:
        left.set()
    while not audited(position):  # noqa: ASYNC110 - the cancellation reaches the server later
        await asyncio.sleep(0.01)
    (line,) = audited(position)
    assert (line["event"], line["reason"]) == ("login_refused", reason)


# Injection

FORGED = '{"event": "login", "user_id": "admin"}'
NASTY = [
    f"a\r\n{FORGED}\r\n",
    f"a\u2028{FORGED}\u2029",
    f'a"}}\\n{FORGED}',
    "a\x1b[2J\x1b[1;31m\x9b2J",
    "a\x00\x08\x0b\x0c\x1c\x7f\x85",
    "\u202e\ufeff\ufffe",
]


async def send_everywhere(client: Client, text: str) -> None:
    """Send a text in every field whose value could reach a log line."""
    secret = f"secret {text}"  # unlike the text alone, WITNESS looks for it
    calls = [
        client.log_in(f"{text}@example.com", secret),
        client.log_in(secret, client_label=text),
        client.log_in(client_label=text),
        client.log_in(client_address=text),
        client.change_password(NEW_PASSWORD, secret, f"{text}@example.com"),
        client.refresh(new_refresh_token(text).text),
        client.refresh(secret, text),
        client.revoke(secret),
        client.create_user(f"{text}@example.com", role=text),
        client.create_user("new@example.com", request_id=text),
        client.import_user(secret),
        client.update_user(text, email=f"{text}@example.com", role=text),
        client.delete_user(text),
        client.reset_password(text),
        client.get_user(user_id=text),
        client.revoke_sessions(text, text),
        client.list_sessions(text, page_token=text),
    ]
    for call in calls:
        with suppress(grpc.aio.AioRpcError):
            await call


async def lines_of(client: Client, log_format: str, text: str) -> list[str]:
    """Return the log lines of requests with the text."""
    stream = io.StringIO()
    logs.configure(log_format, "debug", stream=stream)
    await send_everywhere(client, text)
    logs.configure("json", "debug", stream=WITNESS.lines)
    WITNESS.add_log(stream.getvalue())
    return stream.getvalue().removesuffix("\n").split("\n")


@pytest.mark.parametrize("text", NASTY, ids=ascii)
async def test_no_text_of_a_client_breaks_or_forges_a_line(stage: Stage, text: str) -> None:
    """ASVS-16.4.1."""
    as_json = await lines_of(stage.client, "json", text)
    events = [json.loads(line) for line in as_json]
    assert all(line.isprintable() for line in as_json)
    assert "admin" not in {event.get("user_id") for event in events}
    assert next(e["user_id"] for e in events if e["event"] == "refresh_refused") == text
    as_console = await lines_of(stage.client, "console", text)
    assert all(line.isprintable() for line in as_console)
    assert all(re.match(r"\d{4}-\d\d-\d\dT[^ ]+ \[\w+ *\] [\w ]+", line) for line in as_console)
    assert len(as_console) == len(as_json)
