"""Rows that other programs write with plain boto3, before and while the service runs."""

from typing import Any

import bcrypt
import grpc
import pytest

from authsvc.passwords import hashes
from authsvc.stores.dynamodb.batch_get import USER_STATE_ATTRIBUTES
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.dynamodb import Tables
from tests.rpc.conftest import Shared
from tests.support import PASSWORD, WITNESS, FakeClock, failure

EMAIL = "carol@example.com"
ACTIVE = auth_pb2.TOKEN_STATE_ACTIVE


def hash_of(password: str, prefix: str = "$2b$", cost: int = 4) -> dict[str, str]:
    hashed = prefix + bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()[4:]
    WITNESS.hide(hashed)
    return {"S": hashed}


async def test_a_row_of_three_attributes_is_an_active_user_without_password(shared: Shared) -> None:
    shared.tables.put_user("carol", EMAIL)
    user = await shared.client.get_user(user_id="carol")
    assert (user.user_id, user.email, user.role, user.is_active) == ("carol", EMAIL, "user", True)
    assert not user.HasField("create_time")
    assert await shared.client.get_user(email=EMAIL) == user
    assert (await failure(shared.client.log_in(EMAIL))).reason == "INVALID_CREDENTIALS"


@pytest.mark.parametrize("prefix", ["$2a$", "$2b$", "$2y$"])
async def test_a_row_with_a_bcrypt_hash_can_log_in_at_once(shared: Shared, prefix: str) -> None:
    shared.tables.put_user("carol", EMAIL, password_hash=hash_of(PASSWORD, prefix))
    answer = await shared.client.validate(await shared.client.access_token(EMAIL))
    assert (answer.state, answer.user_id) == (ACTIVE, "carol")


async def test_a_password_set_later_lets_the_user_in(shared: Shared) -> None:
    shared.tables.put_user("carol", EMAIL)
    shared.tables.update_user("carol", "SET password_hash = :h", h=hash_of(PASSWORD))
    assert await shared.client.access_token(EMAIL)


async def test_attributes_of_others_survive_every_write_of_ours(shared: Shared) -> None:
    extra = {"team": {"S": "blue"}, "limits": {"M": {"seats": {"N": "3"}}}}
    shared.tables.put_user("carol", EMAIL, password_hash=hash_of(PASSWORD, "$2a$"), **extra)
    before = shared.tables.get_user("carol")
    await shared.client.access_token(EMAIL)
    assert shared.tables.get_user("carol") == before


async def test_the_first_login_claims_the_address(shared: Shared) -> None:
    shared.tables.put_user("carol", "Carol@Example.com", password_hash=hash_of(PASSWORD))
    # Before the claim, the row is found by its stored spelling alone.
    assert (await failure(shared.client.log_in("carol@example.com"))).reason == "INVALID_CREDENTIALS"
    login = await shared.client.log_in("Carol@Example.com")
    assert login.user.email == "Carol@Example.com"
    assert shared.tables.claim("carol@example.com") == "carol"
    assert (await shared.client.log_in("carol@example.com")).user.user_id == "carol"
    assert (await shared.client.log_in("CAROL@EXAMPLE.COM")).user.user_id == "carol"


async def test_nobody_logs_in_by_an_address_of_two_rows(shared: Shared) -> None:
    for user_id in ("carol-1", "carol-2"):
        shared.tables.put_user(user_id, EMAIL, password_hash=hash_of(PASSWORD))
    position = len(WITNESS.lines.getvalue())
    assert (await failure(shared.client.log_in(EMAIL))).reason == "INVALID_CREDENTIALS"
    assert (await failure(shared.client.get_user(email=EMAIL))).reason == "USER_NOT_FOUND"
    assert "email_ambiguous" in WITNESS.lines.getvalue()[position:]
    assert (await failure(shared.client.create_user(EMAIL))).reason == "EMAIL_ALREADY_EXISTS"
    assert shared.tables.claim(EMAIL) is None


async def test_a_claim_decides_between_two_rows(shared: Shared) -> None:
    alice = await shared.client.create_user()
    shared.tables.put_user("intruder", alice.email, password_hash=hash_of("another password of words"))
    assert (await shared.client.log_in()).user.user_id == alice.user_id
    refused = await failure(shared.client.log_in(password="another password of words"))
    assert refused.reason == "INVALID_CREDENTIALS"


async def test_an_address_that_the_index_knows_is_taken(shared: Shared) -> None:
    shared.tables.put_user("carol", EMAIL)
    taken = await failure(shared.client.create_user("Carol@example.com"))
    assert (taken.code, taken.reason) == (grpc.StatusCode.ALREADY_EXISTS, "EMAIL_ALREADY_EXISTS")
    assert shared.tables.claim(EMAIL) is None


async def test_an_address_that_the_index_knows_as_it_is_typed_is_taken(shared: Shared) -> None:
    """Its user continues to log in by that spelling."""
    shared.tables.put_user("carol", "Carol@Example.com", password_hash=hash_of(PASSWORD))
    bob = await shared.client.create_user("bob@example.com")
    calls = (
        shared.client.create_user("Carol@Example.com"),
        shared.client.create_user("Carol@Example.com", request_id="once"),
        shared.client.update_user(bob.user_id, email="Carol@Example.com"),
    )
    for call in calls:
        assert (await failure(call)).reason == "EMAIL_ALREADY_EXISTS"
    assert (await shared.client.log_in("Carol@Example.com")).user.user_id == "carol"


@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        ("josef@xn--exmple-cua.de", ["josef@exämple.de", "Josef@EXÄMPLE.de", "josef@xn--exmple-cua.de"]),
        ("josef@exämple.de", ["josef@exämple.de", "josef@xn--exmple-cua.de", "josef@\uff45xämple\u3002de"]),
        ("Josef@Exämple.de", ["Josef@Exämple.de"]),
    ],
)
async def test_a_row_is_found_by_either_spelling_of_its_domain(shared: Shared, stored: str, typed: list[str]) -> None:
    shared.tables.put_user("josef", stored, password_hash=hash_of(PASSWORD))
    bob = await shared.client.create_user("bob@example.com")
    for spelling in typed:
        assert (await shared.client.get_user(email=spelling)).user_id == "josef"
        for taken in (shared.client.create_user(spelling), shared.client.update_user(bob.user_id, email=spelling)):
            assert (await failure(taken)).reason == "EMAIL_ALREADY_EXISTS"
    assert (await shared.client.log_in(typed[0])).user.email == stored
    assert shared.tables.claim("josef@exämple.de") == "josef"
    for spelling in ("josef@exämple.de", "JOSEF@XN--EXMPLE-CUA.DE", "josef@\uff45xämple\u3002de"):
        assert (await shared.client.log_in(spelling)).user.user_id == "josef"


async def test_the_claim_of_a_deleted_row_is_taken_over(shared: Shared) -> None:
    first = await shared.client.create_user()
    shared.tables.delete_user(first.user_id)
    assert (await failure(shared.client.log_in())).reason == "INVALID_CREDENTIALS"
    second = await shared.client.create_user()
    assert second.user_id != first.user_id
    assert (await shared.client.log_in()).user.user_id == second.user_id


async def test_the_claim_of_a_row_that_moved_is_taken_over(shared: Shared) -> None:
    alice = await shared.client.create_user()
    shared.tables.update_user(alice.user_id, "SET email = :e", e={"S": "moved@example.com"})
    assert (await failure(shared.client.log_in())).reason == "INVALID_CREDENTIALS"
    assert (await shared.client.log_in("moved@example.com")).user.user_id == alice.user_id
    assert (await shared.client.create_user()).user_id != alice.user_id


async def test_a_row_takes_over_a_dead_claim_at_its_first_login(shared: Shared) -> None:
    alice = await shared.client.create_user()
    shared.tables.delete_user(alice.user_id)
    shared.tables.put_user("heir", alice.email, password_hash=hash_of(PASSWORD))
    assert (await shared.client.log_in()).user.user_id == "heir"
    assert shared.tables.claim(alice.email) == "heir"


CORRUPT: list[tuple[str, Any]] = [
    ("role", {"N": "5"}),
    ("role", {"S": ""}),
    ("is_active", {"S": "true"}),
    ("is_active", {"NULL": True}),
    ("token_generation", {"S": "0"}),
    ("token_generation", {"N": "1.5"}),
    ("password_hash", {"N": "1"}),
    ("password_hash", {"NULL": True}),
    ("revoked_sessions", {"S": "x"}),
    ("revoked_sessions", {"L": []}),
    ("password_change_required", {"S": "no"}),
    ("temporary_password_expires_at", {"S": "soon"}),
    ("temporary_password_expires_at", {"N": "1795383174123"}),  # milliseconds: a password that would never expire
]


async def test_a_broken_row_is_logged_and_never_active(shared: Shared) -> None:
    alice = await shared.client.create_user()
    token = await shared.client.access_token()
    sound = shared.tables.get_user(alice.user_id)
    for attribute, value in CORRUPT:
        shared.tables.dynamodb.put_item(TableName=shared.tables.users, Item={**sound, attribute: value})
        position = len(WITNESS.lines.getvalue())

        read = await failure(shared.client.get_user(user_id=alice.user_id))
        login = await failure(shared.client.log_in())

        assert (read.code, read.reason, read.text) == (grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")
        assert login.reason == "INVALID_CREDENTIALS"
        if attribute in USER_STATE_ATTRIBUTES:
            assert (await failure(shared.client.validate(token))).reason == "INTERNAL"
        else:  # a validation does not read it
            assert (await shared.client.validate(token)).state == ACTIVE
        logged = WITNESS.lines.getvalue()[position:]
        assert '"event": "row_broken"' in logged
        assert f'"attribute": "{attribute}"' in logged
        assert alice.user_id in logged
    shared.tables.dynamodb.put_item(TableName=shared.tables.users, Item=sound)
    assert (await shared.client.validate(token)).state == ACTIVE


async def test_a_time_that_decides_nothing_and_cannot_be_read_shuts_nobody_out(shared: Shared) -> None:
    unreadable: list[Any] = [{"S": "Sun Nov 22 2026 21:32:54 GMT+0000"}, {"N": "0"}, {"BOOL": True}, {"NULL": True}]
    for number, value in enumerate(unreadable):
        email = f"carol{number}@example.com"
        times = {"created_at": value, "updated_at": value}
        shared.tables.put_user(f"carol{number}", email, password_hash=hash_of(PASSWORD), **times)
        position = len(WITNESS.lines.getvalue())
        user = (await shared.client.log_in(email)).user
        assert not user.HasField("create_time")
        assert not user.HasField("update_time")
        logged = WITNESS.lines.getvalue()[position:]
        assert '"event": "attribute_ignored"' in logged
        assert '"attribute": "created_at"' in logged
        assert '"row_broken"' not in logged
        await shared.client.update_user(f"carol{number}", role="editor")
        row = shared.tables.get_user(f"carol{number}")
        assert (row["role"], row["created_at"]) == ({"S": "editor"}, value)
        assert (await shared.client.get_user(user_id=f"carol{number}")).HasField("update_time")


async def test_a_temporary_password_expires_at_a_fraction_of_a_second(shared: Shared, clock: FakeClock) -> None:
    end = clock().timestamp() + 60
    temporary = {
        "password_change_required": {"BOOL": True},
        "temporary_password_expires_at": {"N": f"{end + 0.123:.3f}"},
    }
    shared.tables.put_user("carol", EMAIL, password_hash=hash_of(PASSWORD), **temporary)
    assert (await failure(shared.client.log_in(EMAIL))).reason == "PASSWORD_CHANGE_REQUIRED"
    clock.advance(seconds=60)
    assert (await failure(shared.client.log_in(EMAIL))).reason == "INVALID_CREDENTIALS"


async def test_a_row_without_address_or_role_is_broken(shared: Shared) -> None:
    shared.tables.put_user("no-email")
    assert (await failure(shared.client.get_user(user_id="no-email"))).reason == "INTERNAL"
    shared.tables.put_user("no-role", EMAIL)
    shared.tables.dynamodb.update_item(
        TableName=shared.tables.users,
        Key={"user_id": {"S": "no-role"}},
        UpdateExpression="REMOVE #r",
        ExpressionAttributeNames={"#r": "role"},
    )
    assert (await failure(shared.client.get_user(user_id="no-role"))).reason == "INTERNAL"


async def test_an_unreadable_hash_lets_nobody_in_and_breaks_nothing_else(shared: Shared) -> None:
    alice = await shared.client.create_user()
    token = await shared.client.access_token()
    costs = (f"$2b${cost}$" + "a" * 53 for cost in ("31", "17", "03", "99"))
    for stored in ("", "garbage", *costs, "$2x$05$" + "." * 53, "$argon2id$v=19$m=1$a$b"):
        shared.tables.set_attribute(alice.user_id, "password_hash", {"S": stored})
        position = len(WITNESS.lines.getvalue())
        assert (await failure(shared.client.log_in())).reason == "INVALID_CREDENTIALS"
        assert f'"problem": "{hashes.hash_problem(stored)}"' in WITNESS.lines.getvalue()[position:]
        assert (await shared.client.validate(token)).state == ACTIVE


@pytest.mark.parametrize("form", ["{}    ", "{{bcrypt}}{}", "padding"])
async def test_a_hash_that_another_program_spelled_otherwise_logs_in(shared: Shared, form: str) -> None:
    stored = hash_of(PASSWORD)["S"]
    padded = stored[:-1] + {".": "/", "e": "f", "O": "P", "u": "v"}.get(stored[-1], chr(ord(stored[-1]) + 1))
    shared.tables.put_user("carol", EMAIL, password_hash={"S": padded if form == "padding" else form.format(stored)})
    assert (await shared.client.log_in(EMAIL)).user.user_id == "carol"


async def test_a_broken_row_breaks_nobody_else(shared: Shared) -> None:
    shared.tables.put_user("corrupt", EMAIL, is_active={"S": "yes"})
    await shared.client.create_user()
    assert await shared.client.access_token()


def change(tables: Tables, user_id: str, action: str) -> None:
    match action:
        case "disable":
            tables.update_user(user_id, "SET is_active = :v", v={"BOOL": False})
        case "delete":
            tables.delete_user(user_id)
        case "bump":
            tables.update_user(user_id, "ADD token_generation :v", v={"N": "1"})
        case "wipe":
            tables.put_user(user_id, "alice@example.com", token_generation={"N": "9"})


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("disable", "USER_DISABLED"),
        ("delete", "USER_NOT_FOUND"),
        ("bump", "SESSION_REVOKED"),
        ("wipe", "SESSION_REVOKED"),
    ],
)
async def test_what_others_end_is_ended_at_the_very_next_call(shared: Shared, action: str, reason: str) -> None:
    """ASVS-7.4.2."""
    alice = await shared.client.create_user()
    token = await shared.client.access_token()
    assert (await shared.client.validate(token)).state == ACTIVE
    change(shared.tables, alice.user_id, action)
    answer = await shared.client.validate(token)
    assert answer.reason == auth_pb2.InactiveReason.Value(f"INACTIVE_REASON_{reason}")


async def test_a_session_revoked_in_the_row_is_ended_and_others_live(shared: Shared) -> None:
    alice = await shared.client.create_user()
    first, second = (await shared.client.log_in()).tokens, (await shared.client.log_in()).tokens
    entry = {"SS": [f"{first.session_id}:1999999999"]}
    shared.tables.update_user(alice.user_id, "ADD revoked_sessions :s", s=entry)
    revoked = await shared.client.validate(first.access_token)
    assert revoked.reason == auth_pb2.INACTIVE_REASON_SESSION_REVOKED
    assert (await shared.client.validate(second.access_token)).state == ACTIVE


async def test_a_new_role_and_address_are_seen_at_the_next_call(shared: Shared) -> None:
    """ASVS-8.3.2."""
    alice = await shared.client.create_user()
    token = await shared.client.access_token()
    shared.tables.set_attribute(alice.user_id, "role", {"S": "editor"})
    shared.tables.set_attribute(alice.user_id, "email", {"S": "new@example.com"})
    answer = await shared.client.validate(token)
    assert (answer.state, answer.role, answer.email) == (ACTIVE, "editor", "new@example.com")


async def test_an_admin_who_was_demoted_or_disabled_may_call_nothing_more(shared: Shared) -> None:
    (admin,) = shared.tables.rows(shared.tables.users)
    user_id = admin["user_id"]["S"]
    change(shared.tables, user_id, "disable")
    assert (await failure(shared.client.get_user(user_id=user_id))).reason == "CALLER_UNAUTHENTICATED"
    change(shared.tables, user_id, "delete")
    assert (await failure(shared.client.get_user(user_id=user_id))).reason == "CALLER_UNAUTHENTICATED"


async def test_the_old_password_is_refused_once_another_program_changed_it(shared: Shared) -> None:
    alice = await shared.client.create_user()
    shared.tables.update_user(alice.user_id, "SET password_hash = :h", h=hash_of("quite another password"))
    assert (await failure(shared.client.log_in())).reason == "INVALID_CREDENTIALS"
    assert (await shared.client.log_in(password="quite another password")).user.user_id == alice.user_id
