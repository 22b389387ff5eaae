"""Login throttling: it stops guessing, and cannot be used to lock users out.

Each documented budget is used up here once (ASVS-6.1.1).
"""

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import bcrypt
import grpc
import pytest

from authsvc.config import Address, ServeSettings
from authsvc.models import Budget
from authsvc.passwords.hash_queue import UNKNOWN_SOURCE_CAPACITY
from authsvc.server.app import PRODUCTION_LIMITS
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.throttling.budgets import AttemptKeys
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.faults import Garbage, Reply, ServerError, Unprocessed
from tests.rpc.conftest import Pair, Proxied
from tests.support import PASSWORD, WITNESS, Client, Failure, FakeClock, connected, failure, failure_of, served, until

EMAIL = "alice@example.com"
NOBODY = "nobody@example.com"
NEW_PASSWORD = "another password of words"
WRONG = "a wrong password of words"
HOME, ELSEWHERE = "192.0.2.7", "198.51.100.7"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every password that reaches bcrypt."""
    passwords: list[bytes] = []
    hashpw, checkpw = bcrypt.hashpw, bcrypt.checkpw

    def counting_hashpw(password: bytes, salt: bytes) -> bytes:
        passwords.append(password)
        return hashpw(password, salt)

    def counting_checkpw(password: bytes, stored: bytes) -> bool:
        passwords.append(password)
        return checkpw(password, stored)

    monkeypatch.setattr(bcrypt, "hashpw", counting_hashpw)
    monkeypatch.setattr(bcrypt, "checkpw", counting_checkpw)
    return passwords


def source(number: int) -> str:
    return f"10.0.{number // 250}.{number % 250}"


async def reason_of(call: Awaitable[object]) -> str:
    """Return the error reason of a call, or OK."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return failure_of(error).reason
    return "OK"


async def guess(client: Client, email: str = EMAIL, address: str = ELSEWHERE) -> str:
    return await reason_of(client.log_in(email, WRONG, client_address=address))


async def log_in(client: Client, address: str = ELSEWHERE, email: str = EMAIL) -> str:
    return await reason_of(client.log_in(email, client_address=address))


async def fill_pair(client: Client, address: str = ELSEWHERE, email: str = EMAIL) -> None:
    for _ in range(10):
        assert await guess(client, email, address) == "INVALID_CREDENTIALS"


async def fill_account(client: Client) -> int:
    """Guess, each time from another source, until a guess is refused; return how many were evaluated."""
    number = 0
    while await guess(client, address=source(number)) == "INVALID_CREDENTIALS":
        number += 1
    return number


async def test_an_account_and_a_source_have_ten_failures_in_fifteen_minutes(anywhere: Client, clock: FakeClock) -> None:
    """ASVS-6.3.1: after them even the right password is not evaluated; other accounts and sources are admitted."""
    await anywhere.create_user()
    await fill_pair(anywhere)
    clock.advance(minutes=14)
    refused = await failure(anywhere.log_in(client_address=ELSEWHERE))
    assert (refused.code.name, refused.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_ATTEMPTS")
    assert refused.retry_seconds == 60
    assert await log_in(anywhere, HOME) == "OK"
    assert await guess(anywhere, "bob@example.com") == "INVALID_CREDENTIALS"
    clock.advance(minutes=1)
    assert await log_in(anywhere) == "OK"


async def test_the_spellings_of_an_address_share_its_counters(client: Client) -> None:
    await client.create_user("josef@exämple.de")
    for number in range(10):
        typed = ("josef@exämple.de", "Josef@XN--EXMPLE-CUA.de")[number % 2]
        assert await guess(client, typed) == "INVALID_CREDENTIALS"
    for typed in ("josef@exämple.de", "josef@xn--exmple-cua.de", "josef@\uff45xämple.de"):
        assert await guess(client, typed) == "TOO_MANY_ATTEMPTS"


@pytest.mark.long_on_dynoxide
async def test_an_account_has_a_hundred_failures_a_day_from_unknown_sources(anywhere: Client, clock: FakeClock) -> None:
    """NIST-3.2.2: the 101st consecutive attempt is refused, with the right password too, until a day has passed."""
    await anywhere.create_user()
    assert await fill_account(anywhere) == 100
    refused = await failure(anywhere.log_in(client_address=ELSEWHERE))
    assert (refused.reason, refused.retry_seconds) == ("TOO_MANY_ATTEMPTS", 24 * 3600)
    assert await reason_of(anywhere.log_in()) == "TOO_MANY_ATTEMPTS"  # without a source, too
    clock.advance(hours=24)
    assert await log_in(anywhere) == "OK"


@pytest.mark.engines
async def test_a_source_has_three_hundred_failures_in_fifteen_minutes(client: Client, clock: FakeClock) -> None:
    """One source that attempts a thousand accounts is stopped; others log in meanwhile."""
    await client.create_user()
    spraying = [guess(client, f"user{number}@example.com") for number in range(1000)]
    reasons = [await each for each in spraying]
    assert reasons == ["INVALID_CREDENTIALS"] * 300 + ["TOO_MANY_ATTEMPTS"] * 700
    assert await log_in(client) == "TOO_MANY_ATTEMPTS"
    assert await log_in(client, HOME) == "OK"
    clock.advance(minutes=15)
    assert await log_in(client) == "OK"


@pytest.mark.long_on_dynoxide
async def test_the_owner_is_never_locked_out_where_they_were_before(anywhere: Client, clock: FakeClock) -> None:
    """OWASP-ACS."""
    await anywhere.create_user()
    assert await log_in(anywhere, HOME) == "OK"
    before = (await anywhere.log_in(client_address=HOME)).tokens
    await fill_account(anywhere)
    assert await guess(anywhere) == "TOO_MANY_ATTEMPTS"
    assert (await anywhere.validate(before.access_token)).state == auth_pb2.TOKEN_STATE_ACTIVE
    assert await log_in(anywhere, HOME) == "OK"
    # That clears the account: other sources are admitted once their cached refusals expire.
    clock.advance(seconds=10)
    assert await log_in(anywhere) == "OK"


async def test_a_source_is_known_for_thirty_days(client: Client, clock: FakeClock) -> None:
    await client.create_user()
    await log_in(client, HOME)
    for days, outcome in ((29, "OK"), (29, "OK"), (31, "TOO_MANY_ATTEMPTS")):
        clock.advance(days=days)
        assert await fill_account(client) == 100
        assert await log_in(client, HOME) == outcome


async def test_an_ipv6_source_is_a_network_and_a_mapped_address_an_ipv4_one(client: Client) -> None:
    await client.create_user()
    await fill_pair(client, "2001:db8::1")
    assert await guess(client, address="2001:db8::ffff:1") == "TOO_MANY_ATTEMPTS"
    assert await guess(client, address="2001:db8:0:1::1") == "INVALID_CREDENTIALS"
    await fill_pair(client, "::ffff:192.0.2.99")
    assert await guess(client, address="192.0.2.99") == "TOO_MANY_ATTEMPTS"


async def test_a_success_clears_the_failures_before_it(anywhere: Client) -> None:
    await anywhere.create_user()
    for _ in range(3):
        for _ in range(9):
            assert await guess(anywhere) == "INVALID_CREDENTIALS"
        assert await log_in(anywhere) == "OK"


async def test_both_rpcs_share_the_counters(client: Client) -> None:
    await client.create_user()

    async def change(current: str) -> str:
        return await reason_of(client.change_password(NEW_PASSWORD, current, client_address=ELSEWHERE))

    for _ in range(5):
        assert await guess(client) == "INVALID_CREDENTIALS"
        assert await change(WRONG) == "INVALID_CREDENTIALS"
    assert await change(PASSWORD) == "TOO_MANY_ATTEMPTS"
    assert await log_in(client) == "TOO_MANY_ATTEMPTS"


async def test_a_change_of_password_is_a_success(client: Client, clock: FakeClock) -> None:
    await client.create_user()
    for _ in range(9):
        await guess(client, address=HOME)
    await client.change_password(NEW_PASSWORD, client_address=HOME)
    assert await guess(client, address=HOME) == "INVALID_CREDENTIALS"
    await fill_account(client)
    assert await reason_of(client.log_in(password=NEW_PASSWORD, client_address=HOME)) == "OK"


async def test_a_password_that_must_be_changed_is_neither_a_failure_nor_a_success(client: Client) -> None:
    temporary = (await client.create_with_temporary_password()).temporary_password

    async def log_in_with_it(address: str) -> str:
        return await reason_of(client.log_in(password=temporary, client_address=address))

    for _ in range(11):
        assert await log_in_with_it(HOME) == "PASSWORD_CHANGE_REQUIRED"
    for _ in range(9):
        assert await guess(client, address=HOME) == "INVALID_CREDENTIALS"
    assert await log_in_with_it(HOME) == "PASSWORD_CHANGE_REQUIRED"
    assert await guess(client, address=HOME) == "INVALID_CREDENTIALS"
    assert await guess(client, address=HOME) == "TOO_MANY_ATTEMPTS"
    await fill_account(client)
    assert await log_in_with_it("192.0.2.8") == "TOO_MANY_ATTEMPTS"


@pytest.mark.long_on_dynoxide
async def test_a_thousand_guesses_at_once_from_one_source(concurrently: Client, hashed: list[bytes]) -> None:
    await concurrently.create_user()
    assert await log_in(concurrently, HOME) == "OK"
    hashed.clear()
    answers = asyncio.gather(*(guess(concurrently) for _ in range(1000)))
    assert [await log_in(concurrently, HOME) for _ in range(3)] == ["OK"] * 3
    reasons = Counter(await answers)
    assert reasons["INVALID_CREDENTIALS"] <= hashed.count(WRONG.encode()) <= 10
    assert reasons.keys() <= {"INVALID_CREDENTIALS", "TOO_MANY_ATTEMPTS", "OVERLOADED"}
    assert await log_in(concurrently, HOME) == "OK"


@pytest.mark.long_on_dynoxide
async def test_a_thousand_guesses_at_once_from_a_thousand_sources(concurrently: Client, hashed: list[bytes]) -> None:
    await concurrently.create_user()
    assert await log_in(concurrently, HOME) == "OK"
    hashed.clear()
    answers = asyncio.gather(*(guess(concurrently, address=source(number)) for number in range(1000)))
    assert [await log_in(concurrently, HOME) for _ in range(3)] == ["OK"] * 3
    reasons = Counter(await answers)
    # Each login of the owner clears the account; a guess whose answer came too late was evaluated, too.
    assert reasons["INVALID_CREDENTIALS"] <= hashed.count(WRONG.encode()) <= 4 * 100
    assert reasons.keys() <= {"INVALID_CREDENTIALS", "TOO_MANY_ATTEMPTS", "OVERLOADED"}


async def test_an_address_without_an_account_gets_the_same_answers_in_the_same_order(client: Client) -> None:
    """ASVS-6.3.8."""
    await client.create_user()

    async def answers(email: str) -> list[Failure]:
        sources = [ELSEWHERE] * 11 + [f"10.{number}.0.{len(email)}" for number in range(92)] + ["", ELSEWHERE]
        calls = (failure(client.log_in(email, WRONG, client_address=address)) for address in sources)
        return [replace(await call, trace_id="") for call in calls]

    of_alice, of_nobody = await answers(EMAIL), await answers(NOBODY)
    assert of_alice == of_nobody
    assert Counter(answer.reason for answer in of_alice) == {"INVALID_CREDENTIALS": 100, "TOO_MANY_ATTEMPTS": 5}


async def test_services_share_the_counters(pair: Pair) -> None:
    await pair.first.create_user()
    for _ in range(5):
        assert await guess(pair.first) == "INVALID_CREDENTIALS"
        assert await guess(pair.second) == "INVALID_CREDENTIALS"
    assert await guess(pair.first) == "TOO_MANY_ATTEMPTS"
    assert await log_in(pair.second) == "TOO_MANY_ATTEMPTS"


async def test_budgets_are_settings(settings: ServeSettings, clock: FakeClock) -> None:
    settings = replace(
        settings,
        failures_per_pair=Budget(2, timedelta(minutes=1)),
        failures_per_account=Budget(3, timedelta(minutes=2)),
        failures_per_source=Budget(4, timedelta(minutes=3)),
    )
    async with served(settings, clock) as client:
        assert [await guess(client) for _ in range(3)] == ["INVALID_CREDENTIALS"] * 2 + ["TOO_MANY_ATTEMPTS"]
        assert await guess(client, address=HOME) == "INVALID_CREDENTIALS"
        refused = await failure(client.log_in(client_address="192.0.2.8"))
        assert (refused.reason, refused.retry_seconds) == ("TOO_MANY_ATTEMPTS", 120)
        await guess(client, NOBODY)
        await guess(client, "bob@example.com")
        refused = await failure(client.log_in("carol@example.com", client_address=ELSEWHERE))
        assert (refused.reason, refused.retry_seconds) == ("TOO_MANY_ATTEMPTS", 180)


async def test_a_refusal_is_logged_with_its_reason_and_no_address(client: Client) -> None:
    await fill_pair(client)
    position = len(WITNESS.lines.getvalue())
    refused = await failure(client.log_in(client_address=ELSEWHERE))
    lines = WITNESS.lines.getvalue()[position:].splitlines()
    (line,) = [line for line in lines if '"event": "login_throttled"' in line]
    assert '"reason": "pair"' in line
    assert refused.trace_id in line
    assert EMAIL not in line


@asynccontextmanager
async def reached_from_elsewhere(client: Client) -> AsyncIterator[Client]:
    """The same service at an address of this machine other than loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address other than loopback")
        host: str = probe.getsockname()[0]
    port = client.address.rpartition(":")[2]
    service = replace(client.service, address=f"{host}:{port}")
    async with connected(service) as elsewhere:
        yield replace(elsewhere, admin=client.admin)


async def test_an_untrusted_client_address_is_ignored(settings: ServeSettings, clock: FakeClock) -> None:
    """Otherwise any client could claim a known source, and fill the counters of any account."""
    open_to_all = replace(settings, listen=Address("0.0.0.0", 0), allow_open=True, allow_plaintext=True)  # noqa: S104
    async with served(open_to_all, clock) as client, reached_from_elsewhere(client) as untrusted:
        alice = await client.create_user()
        await log_in(client, HOME)
        assert [await guess(untrusted, address=source(number)) for number in range(100)] == [
            "INVALID_CREDENTIALS"
        ] * 100
        assert await log_in(untrusted, HOME) == "TOO_MANY_ATTEMPTS"
        assert await log_in(client, HOME) == "OK"
        clock.advance(seconds=10)
        assert await log_in(untrusted, HOME) == "OK"  # the owner has cleared the account
        sessions = (await client.list_sessions(alice.user_id)).sessions
        assert sorted(session.client_address for session in sessions) == ["", HOME, HOME]


class Gate:
    """Blocks bcrypt until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    checkpw = bcrypt.checkpw

    def waiting_checkpw(password: bytes, stored: bytes) -> bool:
        gate.entered.set()
        gate.opened.wait()
        return checkpw(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", waiting_checkpw)
    gate.opened.set()
    yield gate
    gate.opened.set()


def shut(gate: Gate) -> None:
    gate.entered.clear()
    gate.opened.clear()


async def until_pending(client: Client, number: int) -> None:
    """Wait until that many slots are in use."""
    hash_queue: Any = client.service.logins._hash_queue  # noqa: SLF001 - nothing else shows its length
    await until(lambda: len(hash_queue) == number)


@asynccontextmanager
async def disconnecting_guess(client: Client, address: str) -> AsyncIterator[None]:
    """Run a guess whose client disconnects at the end of the body."""
    request = auth_pb2.AuthenticateRequest(email=EMAIL, password=WRONG, client_address=address)
    async with grpc.aio.insecure_channel(client.address) as channel:
        stub: Any = auth_grpc.AuthServiceStub(channel)
        call = stub.Authenticate(request)
        yield
        call.cancel()


async def test_guesses_delay_no_login_from_a_known_source(client: Client, gate: Gate) -> None:
    """Queue and account budget are under attack; guesses from unknown sources wait behind the owner."""
    await client.create_user()
    await log_in(client, HOME)
    shut(gate)
    guesses = [asyncio.create_task(guess(client, address=source(number))) for number in range(60)]
    await until_pending(client, UNKNOWN_SOURCE_CAPACITY)
    owner = [asyncio.create_task(log_in(client, HOME)) for _ in range(3)]
    await until_pending(client, UNKNOWN_SOURCE_CAPACITY + 3)
    gate.opened.set()
    assert await asyncio.gather(*owner) == ["OK"] * 3
    reasons = Counter(await asyncio.gather(*guesses))
    assert reasons == {"INVALID_CREDENTIALS": UNKNOWN_SOURCE_CAPACITY, "OVERLOADED": 60 - UNKNOWN_SOURCE_CAPACITY}


async def test_an_attempt_that_was_not_evaluated_is_refunded(client: Client, gate: Gate) -> None:
    """OVERLOADED, and a client that disconnected while it waited."""
    await client.create_user()
    shut(gate)
    others = [
        asyncio.create_task(guess(client, address=source(number))) for number in range(UNKNOWN_SOURCE_CAPACITY - 1)
    ]
    await until_pending(client, UNKNOWN_SOURCE_CAPACITY - 1)
    for _ in range(11):
        async with disconnecting_guess(client, HOME):
            await until_pending(client, UNKNOWN_SOURCE_CAPACITY)
            assert await guess(client) == "OVERLOADED"
        await until_pending(client, UNKNOWN_SOURCE_CAPACITY - 1)
    gate.opened.set()
    await asyncio.gather(*others)
    for address in (ELSEWHERE, HOME):
        assert [await guess(client, address=address) for _ in range(10)] == ["INVALID_CREDENTIALS"] * 10


async def test_counters_that_the_store_did_not_come_to_are_asked_for_again(proxied: Proxied) -> None:
    """Otherwise a full counter that was left out would admit a guess."""
    await fill_pair(proxied.client)
    for _ in range(3):
        proxied.client.service.logins._throttle._refusal_cache.clear()  # noqa: SLF001 - they save the read
        proxied.proxy.forget()
        with proxied.proxy.fault(Unprocessed(0.5)):
            assert await log_in(proxied.client) == "TOO_MANY_ATTEMPTS"
        assert proxied.proxy.requests.keys() == {"BatchGetItem"}


def _without_counters(reply: Reply) -> Reply:
    answer = json.loads(reply.body)
    unprocessed = {table: {"Keys": [{"attempt_key": {"S": "left out"}}]} for table in answer["Responses"]}
    return reply.with_body(json.dumps({**answer, "UnprocessedKeys": unprocessed}).encode())


NO_COUNTERS = [
    Garbage("never come to", _without_counters),
    Garbage("no responses", lambda reply: reply.with_body(b"{}")),
]


@pytest.mark.limits(PRODUCTION_LIMITS)
@pytest.mark.parametrize("fault", NO_COUNTERS, ids=lambda fault: fault.name)
async def test_without_all_counters_nobody_gets_in(proxied: Proxied, fault: Garbage) -> None:
    await proxied.client.create_user()
    with proxied.proxy.fault(fault, operations={"BatchGetItem"}):
        assert await log_in(proxied.client) == "STORE_UNAVAILABLE"
    assert proxied.proxy.requests["UpdateItem"] == 0


def counted(proxied: Proxied) -> list[list[str]]:
    """Return the attempts of each counter that has any."""
    rows = proxied.tables.rows(proxied.tables.login_attempts)
    return [row["attempts"]["SS"] for row in rows if "attempts" in row]


@pytest.mark.limits(PRODUCTION_LIMITS)
async def test_an_attempt_that_the_store_prevented_is_refunded(proxied: Proxied) -> None:
    await proxied.client.create_user()
    for _ in range(11):
        with proxied.proxy.fault(ServerError(), operations={"Query"}):
            assert await guess(proxied.client) == "STORE_UNAVAILABLE"
    assert await guess(proxied.client) == "INVALID_CREDENTIALS"
    await until(lambda: [len(attempts) for attempts in counted(proxied)] == [1, 1, 1])


@pytest.mark.limits(PRODUCTION_LIMITS)
async def test_a_reservation_that_fails_half_way_is_refunded(proxied: Proxied) -> None:
    await proxied.client.create_user()
    with proxied.proxy.fault(ServerError(), operations={"UpdateItem"}, skip=1, times=DynamoDBTimeouts().max_attempts):
        assert await guess(proxied.client) == "STORE_UNAVAILABLE"
    await until(lambda: not counted(proxied))


async def test_a_counter_that_cannot_be_read_lets_nobody_in(proxied: Proxied) -> None:
    """With or without an account: no user is read."""
    await proxied.client.create_user()
    keys = [AttemptKeys.of(email, ELSEWHERE).account_key for email in (EMAIL, NOBODY)]
    for key in keys:
        item = {"attempt_key": {"S": key}, "expires_at": {"S": "never"}}
        proxied.tables.dynamodb.put_item(TableName=proxied.tables.login_attempts, Item=item)
    assert await log_in(proxied.client) == await guess(proxied.client, NOBODY) == "INTERNAL"
    assert '"table": "login_attempts", "attribute": "expires_at"' in WITNESS.lines.getvalue()


@pytest.mark.limits(PRODUCTION_LIMITS)
async def test_a_login_that_cannot_be_settled_is_a_login(proxied: Proxied) -> None:
    """Its attempt stays counted until the counters expire."""
    await proxied.client.create_user()
    with proxied.proxy.fault(ServerError(), operations={"DeleteItem"}):
        assert await log_in(proxied.client) == "OK"
    assert '"event": "attempt_not_settled"' in WITNESS.lines.getvalue()
