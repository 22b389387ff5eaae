"""ChangePassword, ResetPassword, temporary and imported passwords."""

from collections.abc import Awaitable, Callable
from datetime import UTC, timedelta
from typing import Any

import bcrypt
import pytest

from authsvc import request_context
from authsvc.errors import StoreUnavailableError, UserChangedError
from authsvc.models import User
from authsvc.passwords import hashes, policy
from authsvc.usecases.users import Users
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import user_service_pb2 as user_pb2
from tests.faults import Reset
from tests.rpc.conftest import Proxied, Shared
from tests.rpc.test_foreign_rows import hash_of
from tests.support import PASSWORD, PATIENT_LIMITS, TEST_COST, WITNESS, Client, FakeClock, failure

NEW_PASSWORD = "another password of words"
WRITES = {"TransactWriteItems", "UpdateItem"}
WRONG = "a wrong password of words"


async def reason_of_login(client: Client, password: str = PASSWORD) -> str:
    return (await failure(client.log_in(password=password))).reason


@pytest.mark.parametrize("engine", ["dynoxide"], indirect=True)
async def test_a_wrong_current_password_changes_nothing(shared: Shared) -> None:
    """ASVS-6.2.3."""
    alice = await shared.client.create_user()
    before = shared.tables.get_user(alice.user_id)
    refused = await failure(shared.client.change_password(NEW_PASSWORD, WRONG))
    assert (refused.code.name, refused.reason) == ("UNAUTHENTICATED", "INVALID_CREDENTIALS")
    assert shared.tables.get_user(alice.user_id) == before
    assert await shared.client.log_in()


async def test_a_changed_password_replaces_the_old_one(anywhere: Client) -> None:
    """F8: also where the index is stale."""
    alice = await anywhere.create_user()
    tokens = await anywhere.change_password(
        NEW_PASSWORD, email="ALICE@example.com", client_address="192.0.2.1", client_label="phone"
    )
    assert await reason_of_login(anywhere) == "INVALID_CREDENTIALS"
    assert (await failure(anywhere.change_password(WRONG, PASSWORD))).reason == "INVALID_CREDENTIALS"
    assert (await anywhere.log_in(password=NEW_PASSWORD)).user.user_id == alice.user_id
    session = next(
        s for s in (await anywhere.list_sessions(alice.user_id)).sessions if s.session_id == tokens.session_id
    )
    assert (session.client_label, session.client_address) == ("phone", "192.0.2.1")


@pytest.mark.parametrize(
    ("new_password", "problem"),
    [
        ("fourteen chars", "must have at least 15 characters"),
        ("x" * 257, "must have at most 256 characters"),
        ("passwordpassword", "is a commonly used password"),
        ("alicealice12345", "is made of the email address"),
        (PASSWORD, "is the current password"),
    ],
)
async def test_a_weak_password_is_refused_with_the_reason(client: Client, new_password: str, problem: str) -> None:
    """ASVS-6.2.1, ASVS-6.2.4, NIST-3.1.1.2-d."""
    await client.create_user()
    refused = await failure(client.change_password(new_password))
    assert (refused.code.name, refused.reason) == ("INVALID_ARGUMENT", "PASSWORD_REJECTED")
    assert (refused.field, refused.problem) == ("new_password", problem)
    assert await client.log_in()


async def test_the_current_password_in_another_normal_form_is_the_current_password(client: Client) -> None:
    composed, decomposed = "tr\u00e8s long mot de pass\u00e9", "tre\u0300s long mot de passe\u0301"
    await client.create_user(password=composed)
    refused = await failure(client.change_password(decomposed, composed))
    assert refused.problem == "is the current password"
    await client.change_password(NEW_PASSWORD, decomposed)
    await client.change_password(decomposed, NEW_PASSWORD)
    assert await client.log_in(password=composed)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"email": ""}, "email"),
        ({"email": "x" * 300 + "@example.com"}, "email"),
        ({"current_password": ""}, "current_password"),
        ({"current_password": "x" * 1025}, "current_password"),
        ({"new_password": ""}, "new_password"),
        ({"new_password": "x" * 1025}, "new_password"),
        ({"client_address": "localhost"}, "client_address"),
        ({"client_label": "x" * 129}, "client_label"),
    ],
    ids=str,
)
async def test_a_wrong_field_is_named(client: Client, fields: dict[str, str], field: str) -> None:
    refused = await failure(client.change_password(**{"new_password": NEW_PASSWORD, **fields}))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", field)


async def test_a_temporary_password_is_for_one_change(anywhere: Client, clock: FakeClock) -> None:
    """ASVS-6.4.1, ASVS-6.4.6."""
    created = await anywhere.create_with_temporary_password()
    temporary = created.temporary_password
    assert created.user.password_change_required
    assert created.temporary_password_expire_time.ToDatetime(UTC) == clock.now + timedelta(hours=24)
    clock.advance(hours=23)
    for _ in range(2):  # it is not consumed
        refused = await failure(anywhere.log_in(password=temporary))
        assert (refused.code.name, refused.reason) == ("FAILED_PRECONDITION", "PASSWORD_CHANGE_REQUIRED")
    assert await reason_of_login(anywhere, WRONG) == "INVALID_CREDENTIALS"
    same = await failure(anywhere.change_password(temporary, temporary))
    assert (same.reason, same.problem) == ("PASSWORD_REJECTED", "is the current password")

    tokens = await anywhere.change_password(NEW_PASSWORD, temporary)
    assert (await anywhere.validate(tokens.access_token)).state == auth_pb2.TOKEN_STATE_ACTIVE
    assert await reason_of_login(anywhere, temporary) == "INVALID_CREDENTIALS"
    assert (await failure(anywhere.change_password(WRONG, temporary))).reason == "INVALID_CREDENTIALS"
    clock.advance(hours=2)
    user = (await anywhere.log_in(password=NEW_PASSWORD)).user
    assert not user.password_change_required


async def test_a_temporary_password_dies_after_a_day(client: Client, clock: FakeClock) -> None:
    """ASVS-6.4.1."""
    alice = (await client.create_with_temporary_password()).user
    reset = (await client.reset_password(alice.user_id)).temporary_password
    clock.advance(hours=24, seconds=-1)
    assert await reason_of_login(client, reset) == "PASSWORD_CHANGE_REQUIRED"
    clock.advance(seconds=1)
    assert await reason_of_login(client, reset) == "INVALID_CREDENTIALS"
    assert (await failure(client.change_password(NEW_PASSWORD, reset))).reason == "INVALID_CREDENTIALS"


async def test_a_reset_replaces_any_password_by_a_temporary_one(anywhere: Client, clock: FakeClock) -> None:
    """ASVS-6.4.6."""
    alice = await anywhere.create_user()
    first, second = await anywhere.reset_password(alice.user_id), await anywhere.reset_password(alice.user_id)
    assert first.temporary_password != second.temporary_password
    assert second.temporary_password_expire_time.ToDatetime(UTC) == clock.now + timedelta(hours=24)
    for dead in (PASSWORD, first.temporary_password):
        assert await reason_of_login(anywhere, dead) == "INVALID_CREDENTIALS"
        assert (await failure(anywhere.change_password(NEW_PASSWORD, dead))).reason == "INVALID_CREDENTIALS"
    assert (await anywhere.get_user(user_id=alice.user_id)).password_change_required
    await anywhere.change_password(NEW_PASSWORD, second.temporary_password)
    assert (await failure(anywhere.change_password(WRONG, second.temporary_password))).reason == "INVALID_CREDENTIALS"
    assert await anywhere.log_in(password=NEW_PASSWORD)


async def test_temporary_passwords_are_random_and_within_the_policy(client: Client) -> None:
    """ASVS-6.4.1: at least 80 bits."""
    alice = await client.create_user()
    passwords = {(await client.reset_password(alice.user_id)).temporary_password for _ in range(20)}
    assert len(passwords) == 20
    for text in passwords:
        assert len(text.replace("-", "")) * 5 >= 80
        policy.check_policy(text, alice.email, 15)


def test_nobody_can_choose_another_users_password() -> None:
    """ASVS-6.4.6: only CreateUser takes one, and where there is a user it changes none."""
    service = user_pb2.DESCRIPTOR.services_by_name["UserService"]
    taking = {m.name for m in service.methods for field in m.input_type.fields if "password" in field.name}
    assert taking == {"CreateUser"}
    assert "password" not in {f.name for f in user_pb2.DESCRIPTOR.message_types_by_name["UpdateUserRequest"].fields}


async def test_a_retry_returns_no_second_password(anywhere: Client) -> None:
    first = await anywhere.create_with_temporary_password(request_id="once")
    retried = await anywhere.create_with_temporary_password(request_id="once")
    assert first.temporary_password
    assert retried.user == first.user
    assert (retried.temporary_password, retried.HasField("temporary_password_expire_time")) == ("", False)
    assert await reason_of_login(anywhere, first.temporary_password) == "PASSWORD_CHANGE_REQUIRED"
    taken = await failure(anywhere.create_with_temporary_password(request_id="twice"))
    assert taken.reason == "EMAIL_ALREADY_EXISTS"


async def test_a_temporary_password_survives_a_lost_response(proxied: Proxied) -> None:
    with proxied.proxy.fault(Reset(applied=True), operations=WRITES, times=1):
        created = await proxied.client.create_with_temporary_password()
    assert await reason_of_login(proxied.client, created.temporary_password) == "PASSWORD_CHANGE_REQUIRED"
    with proxied.proxy.fault(Reset(applied=True), operations=WRITES, times=1) as hit:
        reset = (await proxied.client.reset_password(created.user.user_id)).temporary_password
    with proxied.proxy.fault(Reset(applied=True), operations=WRITES, times=1) as other_hit:
        await proxied.client.change_password(NEW_PASSWORD, reset)
    assert hit.hits == other_hit.hits == 1
    assert await proxied.client.log_in(password=NEW_PASSWORD)


@pytest.mark.parametrize("engine", ["dynoxide"], indirect=True)
async def test_a_disabled_user_changes_no_password(shared: Shared) -> None:
    """The response is that of an unknown user."""
    alice = await shared.client.create_user()
    await shared.client.update_user(alice.user_id, is_active=False)
    refused = await failure(shared.client.change_password(NEW_PASSWORD))
    unknown = await failure(shared.client.change_password(NEW_PASSWORD, email="nobody@example.com"))
    assert (refused.code, refused.reason, refused.text) == (unknown.code, unknown.reason, unknown.text)
    await shared.client.update_user(alice.user_id, is_active=True)
    assert await shared.client.log_in()


Overtaking = Callable[[Users, str], Awaitable[object]]


def overtake_the_next_change(client: Client, monkeypatch: pytest.MonkeyPatch, overtaking: Overtaking) -> None:
    """Let another call change the user between two store calls of the next change."""
    store = client.service.logins._store  # noqa: SLF001 - the moment between two of its calls
    update_user = store.update_user

    async def overtaken(expected: User, new: User) -> None:
        monkeypatch.setattr(store, "update_user", update_user)
        await overtaking(client.service.users, expected.user_id)
        await update_user(expected, new)

    monkeypatch.setattr(store, "update_user", overtaken)


@pytest.mark.parametrize(
    "overtaking",
    [
        lambda users, user_id: users.reset_password(user_id),
        lambda users, user_id: users.update_user(user_id, is_active=False),
        lambda users, user_id: users.update_user(user_id, email="moved@example.com"),
        lambda users, user_id: users.delete_user(user_id),
    ],
    ids=["reset", "disabled", "moved", "deleted"],
)
async def test_a_change_whose_proof_was_overtaken_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch, overtaking: Overtaking
) -> None:
    """The verified password is no longer the stored one."""
    await client.create_user()
    overtake_the_next_change(client, monkeypatch, overtaking)
    assert (await failure(client.change_password(NEW_PASSWORD))).reason == "INVALID_CREDENTIALS"
    assert await reason_of_login(client, NEW_PASSWORD) == "INVALID_CREDENTIALS"


@pytest.mark.parametrize(
    "overtaking",
    [
        lambda users, user_id: users.update_user(user_id, role="editor"),
        lambda users, user_id: users.end_all_sessions(user_id),
    ],
    ids=["role", "sessions"],
)
async def test_a_change_goes_on_where_its_proof_still_holds(
    client: Client, monkeypatch: pytest.MonkeyPatch, overtaking: Overtaking
) -> None:
    alice = await client.create_user()
    old = await client.access_token()
    overtake_the_next_change(client, monkeypatch, overtaking)
    tokens = await client.change_password(NEW_PASSWORD)
    assert (await client.validate(tokens.access_token)).state == auth_pb2.TOKEN_STATE_ACTIVE
    assert (await client.validate(old)).state == auth_pb2.TOKEN_STATE_INACTIVE
    assert await reason_of_login(client, PASSWORD) == "INVALID_CREDENTIALS"
    after = await client.get_user(user_id=alice.user_id)
    assert after == (await client.log_in(password=NEW_PASSWORD)).user


async def test_a_password_of_a_user_who_never_stops_changing_is_an_outage(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.create_user()

    async def lose(*_users: User) -> None:
        raise UserChangedError

    monkeypatch.setattr(client.service.logins._store, "update_user", lose)  # noqa: SLF001 - every race is lost
    assert (await failure(client.change_password(NEW_PASSWORD))).reason == "STORE_UNAVAILABLE"


def imported(prefix: str, cost: int = 4) -> str:
    """A hash as other programs make it."""
    if prefix == "$bcrypt-sha256$":
        made = hashes.hash_password(PASSWORD + "x" * 100, cost)
        WITNESS.hide(made)
        return made
    return hash_of(PASSWORD, prefix, cost)["S"]


@pytest.mark.parametrize("engine", ["dynoxide"], indirect=True)
@pytest.mark.parametrize("prefix", ["$2a$", "$2b$", "$2y$", "$bcrypt-sha256$"])
async def test_an_imported_hash_logs_in_and_is_upgraded(
    shared: Shared, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """ASVS-11.4.2."""
    hasher: Any = shared.client.service.logins._hasher  # noqa: SLF001 - the settings' minimum cost is 10
    monkeypatch.setattr(hasher, "cost", TEST_COST + 1)
    password = PASSWORD + "x" * 100 if prefix == "$bcrypt-sha256$" else PASSWORD
    stored = imported(prefix)
    assert stored.startswith(prefix)
    alice = await shared.client.import_user(stored)
    assert not alice.password_change_required
    assert shared.tables.get_user(alice.user_id)["password_hash"]["S"] == stored
    assert await reason_of_login(shared.client, password + "y") == "INVALID_CREDENTIALS"
    assert shared.tables.get_user(alice.user_id)["password_hash"]["S"] == stored
    token = (await shared.client.log_in(password=password)).tokens.access_token
    upgraded = shared.tables.get_user(alice.user_id)["password_hash"]["S"]
    rehashed = hashes.parse_stored_hash(upgraded)
    assert rehashed is not None
    assert rehashed.cost == TEST_COST + 1
    assert (await shared.client.validate(token)).state == auth_pb2.TOKEN_STATE_ACTIVE
    assert await shared.client.log_in(password=password)
    assert shared.tables.get_user(alice.user_id)["password_hash"]["S"] == upgraded


NFC = "m\u1eadt kh\u1ea9u c\u1ee7a Tr\u1ea7n"
AS_TYPED = [
    "ma\u0323\u0302t kha\u0302\u0309u cu\u0309a Tra\u0302\u0300n",
    "m\u00e2\u0323t kh\u00e2\u0309u c\u1ee7a Tr\u00e2\u0300n",
]
"""Decomposed, and as Vietnamese keyboards make it."""


@pytest.mark.parametrize("engine", ["dynoxide"], indirect=True)
@pytest.mark.parametrize("typed", AS_TYPED, ids=["NFD", "keyboard"])
@pytest.mark.parametrize("is_imported", [True, False], ids=["imported", "row"])
async def test_a_hash_of_the_bytes_as_typed_logs_in_and_is_replaced_by_one_of_nfc(
    shared: Shared,
    typed: str,
    is_imported: bool,  # noqa: FBT001
) -> None:
    stored = hash_of(typed)
    if is_imported:
        user_id = (await shared.client.import_user(stored["S"])).user_id
    else:
        user_id = "alice"
        shared.tables.put_user(user_id, "alice@example.com", password_hash=stored)
    for wrong in (NFC, f"{typed}a\u0301", typed.upper()):
        assert await reason_of_login(shared.client, wrong) == "INVALID_CREDENTIALS"
    assert shared.tables.get_user(user_id)["password_hash"] == stored
    assert (await shared.client.log_in(password=typed)).user.user_id == user_id
    replaced = shared.tables.get_user(user_id)["password_hash"]["S"]
    assert bcrypt.checkpw(NFC.encode(), replaced.encode())
    for spelling in (NFC, *AS_TYPED):
        assert (await shared.client.log_in(password=spelling)).user.user_id == user_id
    assert shared.tables.get_user(user_id)["password_hash"]["S"] == replaced


@pytest.mark.parametrize(("password", "is_admitted"), [(NFC, True), (AS_TYPED[0], False)], ids=["NFC", "NFD"])
async def test_a_password_of_two_spellings_has_double_weight_in_the_queue(
    client: Client,
    password: str,
    is_admitted: bool,  # noqa: FBT001
) -> None:
    """Each RPC has time for the hashes of an NFC password and half a one."""
    hasher = client.service.logins._hasher  # noqa: SLF001 - a host on which a hash takes long
    reason = "INVALID_CREDENTIALS" if is_admitted else "OVERLOADED"
    calls = (client.log_in(password=password), client.change_password(NEW_PASSWORD, password))
    for hashes_of_nfc, call in enumerate(calls, start=1):
        hasher.seconds_per_hash = (PATIENT_LIMITS.hashing_seconds - 1) / (hashes_of_nfc + 0.5)
        assert (await failure(call)).reason == reason


async def test_a_password_is_changed_where_the_hash_is_of_the_bytes_as_typed(client: Client) -> None:
    await client.import_user(hash_of(AS_TYPED[0])["S"])
    assert (await failure(client.change_password(NFC, AS_TYPED[0]))).problem == "is the current password"
    assert await client.change_password(NEW_PASSWORD, AS_TYPED[0])
    assert await client.log_in(password=NEW_PASSWORD)
    assert await reason_of_login(client, AS_TYPED[0]) == "INVALID_CREDENTIALS"


@pytest.mark.parametrize("cost", [3, 17, 31])
async def test_a_hash_of_another_cost_is_not_imported(client: Client, cost: int) -> None:
    """Cost 31 would run for days."""
    made = f"$2b${cost:02}$" + bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode()[7:]
    refused = await failure(client.import_user(made))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "password_hash")


@pytest.mark.parametrize("engine", ["dynoxide"], indirect=True)
async def test_a_rehash_that_loses_a_race_is_dropped(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would restore the old password."""
    client = shared.client
    hasher: Any = client.service.logins._hasher  # noqa: SLF001 - the settings' minimum cost is 10
    monkeypatch.setattr(hasher, "cost", TEST_COST + 1)
    alice = await client.import_user(imported("$2b$"))
    set_by_other = hash_of(NEW_PASSWORD, cost=TEST_COST + 1)
    store = client.service.logins._store  # noqa: SLF001 - the moment between two of its calls
    update_user = store.update_user

    async def overtaken(expected: Any, new: Any) -> None:
        shared.tables.update_user(alice.user_id, "SET password_hash = :h", h=set_by_other)
        await update_user(expected, new)

    monkeypatch.setattr(store, "update_user", overtaken)
    assert (await client.log_in()).user.user_id == alice.user_id
    assert shared.tables.get_user(alice.user_id)["password_hash"] == set_by_other
    assert await reason_of_login(client) == "INVALID_CREDENTIALS"


@pytest.mark.parametrize("error", [UserChangedError(), TimeoutError()], ids=lambda e: type(e).__name__)
async def test_a_login_does_not_fail_for_a_rehash(
    client: Client, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    await client.create_user()
    hasher: Any = client.service.logins._hasher  # noqa: SLF001 - any failure will do

    async def fail(_password: str) -> str:
        raise error

    monkeypatch.setattr(hasher, "cost", TEST_COST + 1)
    monkeypatch.setattr(hasher, "hash", fail)
    assert await client.log_in()


async def test_a_login_does_not_fail_for_a_rehash_that_the_store_does_not_take(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rehash has half of the remaining time: the session needs the store, too."""
    await client.create_user()
    logins = client.service.logins
    seconds: list[float] = []

    async def away(*_: object) -> None:
        seconds.append(request_context.remaining_seconds())
        raise StoreUnavailableError("the store is away")

    monkeypatch.setattr(logins._hasher, "cost", TEST_COST + 1)  # noqa: SLF001 - the settings' minimum is 10
    monkeypatch.setattr(logins._store, "update_user", away)  # noqa: SLF001 - one of its calls
    assert await client.log_in()
    assert len(seconds) == 1
    assert seconds[0] < PATIENT_LIMITS.hashing_seconds / 2


async def test_changes_of_passwords_leave_a_line(client: Client) -> None:
    """ASVS-16.3.1."""
    alice = await client.create_user()
    position = len(WITNESS.lines.getvalue())
    await client.change_password(NEW_PASSWORD)
    await client.reset_password(alice.user_id)
    lines = WITNESS.lines.getvalue()[position:].splitlines()
    for event in ("password_changed", "password_reset"):
        (line,) = [line for line in lines if f'"event": "{event}"' in line]
        assert alice.user_id in line
