"""UpdateUser: what the mask names and nothing else, and who gets an address."""

import asyncio
from datetime import UTC
from typing import Any

import grpc
import pytest
from google.protobuf import field_mask_pb2

from authsvc.errors import UserChangedError
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import resources_pb2
from authsvc.v1 import user_service_pb2 as user_pb2
from tests.faults import Reset
from tests.rpc.conftest import Proxied, Shared
from tests.rpc.test_foreign_rows import hash_of
from tests.support import ADMIN_EMAIL, PASSWORD, WITNESS, Client, FakeClock, failure

WRITES = {"TransactWriteItems", "UpdateItem"}


async def test_what_the_mask_names_is_changed_and_nothing_else(anywhere: Client, clock: FakeClock) -> None:
    alice = after = await anywhere.create_user(role="editor")
    values: dict[str, Any] = {"email": "moved@example.com", "role": "viewer", "is_active": False}
    for path, value in values.items():
        before = await anywhere.get_user(user_id=alice.user_id)
        clock.advance(seconds=1)
        after = await anywhere.update_user(alice.user_id, path, **values)
        assert after.update_time.ToDatetime(UTC) == clock.now
        before.update_time.CopyFrom(after.update_time)
        setattr(before, path, value)
        assert after == before
        assert await anywhere.get_user(user_id=alice.user_id) == after
    assert after.create_time == alice.create_time


async def test_a_change_to_what_there_is_changes_nothing(anywhere: Client, clock: FakeClock) -> None:
    """Also twice in one instant, and by every path at once."""
    alice = await anywhere.create_user(role="editor")
    token = await anywhere.access_token()
    clock.advance(seconds=1)
    for _ in range(2):
        same = await anywhere.update_user(alice.user_id, email="ALICE@example.com", role="editor", is_active=True)
        assert same == alice
    assert (await anywhere.validate(token)).state == auth_pb2.TOKEN_STATE_ACTIVE
    disabled = [await anywhere.update_user(alice.user_id, is_active=False) for _ in range(2)]
    assert disabled[0] == disabled[1]


@pytest.mark.parametrize(
    "paths",
    [
        [],
        ["*"],
        [""],
        ["user_id"],
        ["password_hash"],
        ["create_time"],
        ["password_change_required"],
        ["role", "nothing"],
        ["Role"],
        ["user.role"],
        ["role,email"],
        [" role"],
    ],
    ids=str,
)
async def test_a_mask_of_anything_else_is_refused(client: Client, paths: list[str]) -> None:
    """ASVS-15.3.3."""
    alice = await client.create_user()
    request = user_pb2.UpdateUserRequest(
        user_id=alice.user_id,
        user=resources_pb2.User(user_id="other", role="admin", email="x@example.com"),
        update_mask=field_mask_pb2.FieldMask(paths=paths),
    )
    refused = await failure(client.users.UpdateUser(request, metadata=client.admin))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "update_mask")
    assert await client.get_user(user_id=alice.user_id) == alice
    no_mask = user_pb2.UpdateUserRequest(user_id=alice.user_id, user=request.user)
    assert (await failure(client.users.UpdateUser(no_mask, metadata=client.admin))).field == "update_mask"


async def test_a_path_named_twice_is_named(client: Client) -> None:
    alice = await client.create_user()
    changed = await client.update_user(alice.user_id, "role", "role", role="editor")
    assert (changed.user_id, changed.role) == (alice.user_id, "editor")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"email": ""}, "email"),
        ({"email": "no-at"}, "email"),
        ({"email": "alice@-example.com"}, "email"),
        ({"email": "a" * 250 + "@example.com"}, "email"),
        ({"role": ""}, "role"),
        ({"role": "Admin"}, "role"),
        ({"role": "a" * 64}, "role"),
    ],
    ids=str,
)
async def test_a_wrong_field_is_named(client: Client, values: dict[str, Any], field: str) -> None:
    alice = await client.create_user()
    refused = await failure(client.update_user(alice.user_id, **values))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", field)
    assert await client.get_user(user_id=alice.user_id) == alice


async def test_a_wrong_id_is_named_everywhere(client: Client) -> None:
    for user_id in ("", "x" * 257):
        calls = (client.update_user(user_id, role="user"), client.delete_user(user_id), client.reset_password(user_id))
        for call in calls:
            refused = await failure(call)
            assert (refused.reason, refused.field) == ("INVALID_FIELD", "user_id")


async def test_of_fifty_concurrent_moves_to_one_address_one_wins(concurrently: Client) -> None:
    """ASVS-15.4.2."""
    users = [await concurrently.create_user(f"user{n}@example.com") for n in range(50)]
    calls = (concurrently.update_user(user.user_id, email="Wanted@example.com") for user in users)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, resources_pb2.User)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert {r.code() for r in refused} <= {grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.UNAVAILABLE}
    assert grpc.StatusCode.ALREADY_EXISTS in {r.code() for r in refused}
    assert (await concurrently.log_in("wanted@example.com")).user == winner
    for number, user in enumerate(users):
        if user.user_id != winner.user_id:
            assert (await concurrently.get_user(email=f"user{number}@example.com")).user_id == user.user_id


async def test_a_taken_address_is_refused(anywhere: Client) -> None:
    alice = await anywhere.create_user()
    await anywhere.create_user("bob@example.com")
    for email in ("bob@example.com", "BOB@Example.com", ADMIN_EMAIL):
        refused = await failure(anywhere.update_user(alice.user_id, email=email, role="editor"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "EMAIL_ALREADY_EXISTS")
    assert await anywhere.get_user(email="alice@example.com") == alice


async def test_a_move_there_and_back_frees_each_address(anywhere: Client) -> None:
    alice = await anywhere.create_user()
    for email, other in (("there@example.com", "alice@example.com"), ("alice@example.com", "there@example.com")):
        assert (await anywhere.update_user(alice.user_id, email=email)).email == email
        assert (await anywhere.log_in(email)).user.user_id == alice.user_id
        assert (await failure(anywhere.log_in(other))).reason == "INVALID_CREDENTIALS"
        assert (await failure(anywhere.get_user(email=other))).reason == "USER_NOT_FOUND"
        heir = await anywhere.create_user(other)
        assert heir.user_id != alice.user_id
        await anywhere.delete_user(heir.user_id)


@pytest.mark.parametrize("engine", ["dynoxide", "ministack"], indirect=True)
async def test_rows_of_others_are_moved_and_deleted_in_any_spelling(shared: Shared) -> None:
    shared.tables.put_user("carol", "Carol@Example.com", password_hash=hash_of(PASSWORD), team={"S": "blue"})
    moved = await shared.client.update_user("carol", email="carol@example.com")
    assert moved.email == "carol@example.com"
    assert shared.tables.claim("carol@example.com") == "carol"
    assert shared.tables.get_user("carol")["team"] == {"S": "blue"}
    assert (await shared.client.log_in("CAROL@example.com")).user.user_id == "carol"
    await shared.client.update_user("carol", email="other@example.com")
    assert shared.tables.claim("carol@example.com") is None

    shared.tables.put_user("dave", "Dave@Example.com", password_hash=hash_of(PASSWORD))
    assert (await shared.client.update_user("dave", role="editor")).email == "Dave@Example.com"
    assert (await shared.client.log_in("Dave@Example.com")).user.role == "editor"
    await shared.client.delete_user("dave")
    assert shared.tables.claim("dave@example.com") is None
    assert (await shared.client.update_user("carol", email="dave@example.com")).user_id == "carol"


@pytest.mark.parametrize("engine", ["dynoxide"], indirect=True)
async def test_deleting_leaves_no_row_behind(shared: Shared) -> None:
    alice = await shared.client.create_user()
    await shared.client.log_in()
    await shared.client.delete_user(alice.user_id)
    assert shared.tables.get_user(alice.user_id) == {}
    assert shared.tables.claim("alice@example.com") is None
    owners = {row["user_id"]["S"] for row in shared.tables.rows(shared.tables.sessions)}
    assert alice.user_id not in owners


async def test_every_change_survives_a_lost_response(proxied: Proxied, subtests: pytest.Subtests) -> None:
    """F5."""
    client = proxied.client
    alice = await client.create_user()
    changes = {
        "role": client.update_user(alice.user_id, role="editor"),
        "email": client.update_user(alice.user_id, email="moved@example.com"),
        "disabled": client.update_user(alice.user_id, is_active=False),
        "enabled": client.update_user(alice.user_id, is_active=True),
        "all sessions": client.revoke_sessions(alice.user_id),
        "deleted": client.delete_user(alice.user_id),
    }
    generations = []
    for name, change in changes.items():
        with subtests.test(change=name), proxied.proxy.fault(Reset(applied=True), operations=WRITES, times=1) as hit:
            await change
            assert hit.hits == 1
        generations.append(proxied.tables.get_user(alice.user_id).get("token_generation", {}).get("N"))
    assert generations == ["0", "0", "1", "1", "2", None]  # each once


@pytest.mark.parametrize("method", ["update_user", "delete_user"])
async def test_a_user_who_never_stops_changing_is_an_outage(
    client: Client, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    alice = await client.create_user()
    tries = []

    async def lose(*users: object) -> None:
        tries.append(users)
        raise UserChangedError

    monkeypatch.setattr(client.service.users._store, method, lose)  # noqa: SLF001 - every race is lost
    call = client.delete_user(alice.user_id) if method == "delete_user" else client.update_user(alice.user_id, role="x")
    assert (await failure(call)).reason == "STORE_UNAVAILABLE"
    assert len(tries) > 1


async def test_concurrent_changes_of_one_user_are_all_made(concurrently: Client) -> None:
    alice = await concurrently.create_user()
    await asyncio.gather(
        concurrently.update_user(alice.user_id, role="editor"),
        concurrently.update_user(alice.user_id, email="moved@example.com"),
        concurrently.update_user(alice.user_id, is_active=False),
        concurrently.reset_password(alice.user_id),
    )
    user = await concurrently.get_user(user_id=alice.user_id)
    assert (user.role, user.email, user.is_active) == ("editor", "moved@example.com", False)
    assert user.password_change_required


async def test_each_change_leaves_a_line(client: Client) -> None:
    """ASVS-16.3.1: who it was, never the address."""
    alice = await client.create_user()
    position = len(WITNESS.lines.getvalue())
    await client.update_user(alice.user_id, role="editor", email="moved@example.com")
    await client.delete_user(alice.user_id)
    lines = WITNESS.lines.getvalue()[position:].splitlines()
    for event in ("user_updated", "user_deleted"):
        (line,) = [line for line in lines if f'"event": "{event}"' in line]
        assert alice.user_id in line
    assert not any("@example.com" in line for line in lines)
