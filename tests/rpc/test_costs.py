"""What each RPC costs: store calls, seen by the engine, and hashing work."""

from collections import Counter
from typing import Any
from unicodedata import normalize

import bcrypt
import pytest

from tests.rpc.conftest import Proxied
from tests.rpc.test_foreign_rows import hash_of
from tests.support import PASSWORD, TEST_COST, Client, Failure, FakeClock, failure

SOURCE = "192.0.2.7"
FIND_USER = Counter({"BatchGetItem": 2, "Query": 1})
"""Finds a user by address: claims and rows, and the index."""
RESERVE = Counter({"BatchGetItem": 1, "UpdateItem": 3})
"""Reads an attempt's counters and its known-source mark, and adds it to three counters."""
SESSION = Counter({"PutItem": 1})


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The cost of every hash that is computed."""
    computed: list[int] = []
    hashpw, checkpw = bcrypt.hashpw, bcrypt.checkpw

    def counting_hashpw(password: bytes, salt: bytes) -> bytes:
        computed.append(2 ** int(salt[4:6]))
        return hashpw(password, salt)

    def counting_checkpw(password: bytes, hashed: bytes) -> bool:
        computed.append(2 ** int(hashed[4:6]))
        return checkpw(password, hashed)

    monkeypatch.setattr(bcrypt, "hashpw", counting_hashpw)
    monkeypatch.setattr(bcrypt, "checkpw", counting_checkpw)
    return computed


async def test_a_validation_is_one_strong_read(proxied: Proxied, rounds: list[int]) -> None:
    alice = await proxied.client.create_user()
    token = await proxied.client.access_token()
    proxied.proxy.forget()
    rounds.clear()
    for _ in range(3):
        await proxied.client.validate(token)
    assert proxied.proxy.requests == {"BatchGetItem": 3}
    for attempt in proxied.proxy.attempts:
        (read,) = attempt.payload["RequestItems"].values()
        assert read["Keys"] == [{"user_id": {"S": alice.user_id}}]
        assert read["ConsistentRead"] is True
    assert rounds == []


async def test_a_token_that_is_refused_by_itself_costs_no_read(proxied: Proxied) -> None:
    for token in ("garbage", "rt_x", "a.b.c"):
        await proxied.client.validate(token)
    assert proxied.proxy.requests == {}


async def test_a_first_login_from_a_source(proxied: Proxied, rounds: list[int]) -> None:
    """It is released from two counters, clears the third, and marks the source as known."""
    await proxied.client.create_user()
    proxied.proxy.forget()
    rounds.clear()
    await proxied.client.log_in(client_address=SOURCE)
    settled = Counter({"UpdateItem": 2, "DeleteItem": 1, "PutItem": 1})
    assert proxied.proxy.requests == RESERVE + FIND_USER + SESSION + settled
    assert rounds == [2**TEST_COST]


async def test_a_login_from_a_known_source(proxied: Proxied, rounds: list[int]) -> None:
    """It is not added to the account's counter, and clears it."""
    await proxied.client.create_user()
    await proxied.client.log_in(client_address=SOURCE)
    proxied.proxy.forget()
    rounds.clear()
    await proxied.client.log_in(client_address=SOURCE)
    reserved, settled = Counter({"BatchGetItem": 1, "UpdateItem": 2}), Counter({"UpdateItem": 1, "DeleteItem": 2})
    assert proxied.proxy.requests == reserved + FIND_USER + SESSION + settled
    assert rounds == [2**TEST_COST]


async def test_a_login_without_a_source(proxied: Proxied, rounds: list[int]) -> None:
    await proxied.client.create_user()
    proxied.proxy.forget()
    rounds.clear()
    await proxied.client.log_in()
    assert proxied.proxy.requests == Counter({"BatchGetItem": 1, "UpdateItem": 2}) + FIND_USER + SESSION
    assert rounds == [2**TEST_COST]


async def test_a_user_stays_within_one_read_unit(proxied: Proxied) -> None:
    alice = await proxied.client.create_user("a" * 64 + "@" + "b" * 60 + ".example.com", role="r" * 63)
    answer = proxied.tables.dynamodb.get_item(
        TableName=proxied.tables.users,
        Key={"user_id": {"S": alice.user_id}},
        ConsistentRead=True,
        ReturnConsumedCapacity="TOTAL",
    )
    assert answer["ConsumedCapacity"]["CapacityUnits"] == 1.0


async def test_a_change_of_password_is_a_look_up_two_hashes_and_two_writes(proxied: Proxied, rounds: list[int]) -> None:
    await proxied.client.create_user()
    proxied.proxy.forget()
    rounds.clear()
    await proxied.client.change_password("another password of words")
    counted = Counter({"BatchGetItem": 1, "UpdateItem": 2})
    assert proxied.proxy.requests == counted + FIND_USER + Counter({"TransactWriteItems": 1}) + SESSION
    assert rounds == [2**TEST_COST] * 2


async def prepare(proxied: Proxied, what: str) -> None:
    tables = proxied.tables
    match what:
        case "wrong password":
            await proxied.client.create_user("alice@example.com", "another password of words")
        case "disabled":
            alice = await proxied.client.create_user()
            tables.update_user(alice.user_id, "SET is_active = :v", v={"BOOL": False})
        case "without password":
            tables.put_user("alice", "alice@example.com")
        case "unreadable hash":
            tables.put_user("alice", "alice@example.com", password_hash={"S": "$2b$31$" + "a" * 53})
        case "expired":
            temporary = {"password_change_required": {"BOOL": True}, "temporary_password_expires_at": {"N": "1"}}
            tables.put_user("alice", "alice@example.com", password_hash=hash_of(PASSWORD), **temporary)
        case "right password":
            await proxied.client.create_user()
        case "unreadable row":
            tables.put_user("alice", "alice@example.com", is_active={"S": "yes"})


REFUSED = ["unknown", "wrong password", "disabled", "without password", "unreadable hash", "unreadable row", "expired"]


METHODS = ["Authenticate", "ChangePassword"]


async def refused_login(client: Client, method: str, password: str = PASSWORD) -> Failure:
    if method == "Authenticate":
        return await failure(client.log_in(password=password, client_address=SOURCE))
    return await failure(client.change_password("another password of mine", password, client_address=SOURCE))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", REFUSED)
async def test_every_refused_login_costs_the_same(proxied: Proxied, rounds: list[int], what: str, method: str) -> None:
    """ASVS-6.3.8, B9: the same store calls, counters and hashing, the same bytes."""
    await prepare(proxied, what)
    for password, hashes in ((PASSWORD, 1), (PASSWORD, 1), (f"{PASSWORD}\u0301", 2)):
        proxied.proxy.forget()
        rounds.clear()
        refused = await refused_login(proxied.client, method, password)
        assert proxied.proxy.requests == RESERVE + FIND_USER
        assert sum(rounds) == hashes * 2**TEST_COST
        assert (refused.code.name, refused.reason, refused.text) == (
            "UNAUTHENTICATED",
            "INVALID_CREDENTIALS",
            "the email or the password is wrong",
        )
    assert counters(proxied) == [3, 3, 3]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cost", [TEST_COST, TEST_COST + 2])
@pytest.mark.parametrize("what", ["disabled", "expired"])
async def test_a_right_password_that_is_refused_costs_as_much_as_a_wrong_one(
    client: Client,
    clock: FakeClock,
    rounds: list[int],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    cost: int,
    method: str,
) -> None:
    """Also where its stored hash is of a lower cost than the configured one: it would be refused sooner."""
    if what == "disabled":
        password = f"{PASSWORD}\u015b"
        alice = await client.create_user(password=password)
        await client.update_user(alice.user_id, is_active=False)
    else:
        password = (await client.create_with_temporary_password()).temporary_password
        clock.advance(hours=24)
    monkeypatch.setattr(client.service.logins._hasher, "cost", cost)  # noqa: SLF001 - the settings' minimum is 10
    for typed in (password, normalize("NFD", password), f"{password}c\u0301"):
        rounds.clear()
        assert (await refused_login(client, method, typed)).reason == "INVALID_CREDENTIALS"
        assert sum(rounds) == (1 if typed == normalize("NFC", typed) else 2) * 2**cost


@pytest.mark.parametrize("typed", ["josef@exämple.de", "josef@xn--exmple-cua.de", "Josef@\uff45xämple.de"])
async def test_a_look_up_makes_the_calls_that_the_typed_address_implies(proxied: Proxied, typed: str) -> None:
    """Whoever has it, under whatever spelling and claim; otherwise the calls would reveal it."""
    rows = [
        ("", ""),
        ("josef@exämple.de", "josef@exämple.de"),
        ("josef@xn--exmple-cua.de", ""),
        ("josef@xn--exmple-cua.de", "josef@xn--exmple-cua.de"),
        ("josef@\uff45xämple.de", "josef@\uff45xämple.de"),
        ("moved@example.com", "josef@xn--exmple-cua.de"),
    ]
    made = []
    for stored, claimed in rows:
        if stored:
            proxied.tables.put_user("josef", stored)
        if claimed:
            proxied.tables.put_claim(claimed, "josef")
        proxied.proxy.forget()
        refused = await failure(proxied.client.log_in(typed, client_address=SOURCE))
        assert refused.reason == "INVALID_CREDENTIALS"
        made.append(proxied.proxy.requests)
        for claim in proxied.tables.claims().keys() & {claimed}:
            proxied.tables.dynamodb.delete_item(
                TableName=proxied.tables.unique, Key={"unique_key": {"S": f"email#{claim}"}}
            )
    queries = {"Query": 4 if typed.startswith("J") else 2}
    assert made == [Counter({"BatchGetItem": 3, "UpdateItem": 3, **queries})] * len(rows)


def counters(proxied: Proxied) -> list[int]:
    """Return how many attempts each counter holds."""
    return [len(row["attempts"]["SS"]) for row in proxied.tables.rows(proxied.tables.login_attempts) if len(row) == 3]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", [*REFUSED, "right password"])
async def test_every_throttled_login_costs_the_same(
    proxied: Proxied, rounds: list[int], what: str, method: str
) -> None:
    """ASVS-6.3.8: no hashing, no write; the same bytes, with the right password too."""
    await prepare(proxied, what)
    for _ in range(10):
        await failure(proxied.client.log_in(password="a wrong password of words", client_address=SOURCE))
    for reads in (1, 0, 0):  # the first refusal is cached
        proxied.proxy.forget()
        rounds.clear()
        refused = await refused_login(proxied.client, method)
        assert proxied.proxy.requests == ({"BatchGetItem": reads} if reads else {})
        assert rounds == []
        assert (refused.code.name, refused.reason, refused.text, refused.retry_seconds) == (
            "RESOURCE_EXHAUSTED",
            "TOO_MANY_ATTEMPTS",
            "there were too many failed attempts",
            900.0,
        )


async def test_a_hash_of_lower_cost_is_upgraded_at_the_next_login(
    proxied: Proxied, rounds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ASVS-11.4.2."""
    hasher: Any = proxied.client.service.logins._hasher  # noqa: SLF001 - the settings' minimum cost is 10
    monkeypatch.setattr(hasher, "cost", TEST_COST + 2)
    proxied.tables.put_user("carol", "carol@example.com", password_hash=hash_of(PASSWORD, cost=TEST_COST))
    rounds.clear()
    refused = await failure(proxied.client.log_in("carol@example.com", "another password of words"))
    assert refused.reason == "INVALID_CREDENTIALS"
    assert sum(rounds) == 2 ** (TEST_COST + 2)

    await proxied.client.log_in("carol@example.com")
    stored = proxied.tables.get_user("carol")["password_hash"]["S"]
    assert stored.startswith(f"$2b$0{TEST_COST + 2}$")
    proxied.proxy.forget()
    await proxied.client.log_in("carol@example.com")
    assert "TransactWriteItems" not in proxied.proxy.requests
