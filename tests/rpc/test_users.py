"""CreateUser and GetUser: what is refused and why, and who wins a race."""

import asyncio
from typing import Any

import grpc
import pytest

from authsvc.passwords import hashes
from authsvc.v1 import user_service_pb2 as user_pb2
from tests.faults import Delay
from tests.rpc.conftest import Proxied, Shared
from tests.support import ADMIN_EMAIL, PASSWORD, Client, failure, failure_of

SPELLINGS = ["alice@example.com", "Alice@example.com", "ALICE@EXAMPLE.COM", "alicE@Example.com", "aLiCe@eXaMpLe.CoM"]


async def test_of_fifty_concurrent_creates_in_different_spellings_one_wins(concurrently: Client) -> None:
    """ASVS-15.4.2."""
    calls = (concurrently.create_user(SPELLINGS[n % len(SPELLINGS)]) for n in range(50))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert [refusal.code() for refusal in refused] == [grpc.StatusCode.ALREADY_EXISTS] * 49


async def test_the_losers_of_that_race_hash_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the cost of production fifty hashes would take a quarter of a minute."""
    hashed: list[str] = []
    hash_password = hashes.hash_password

    def counting(password: str, cost: int) -> str:
        hashed.append(password)
        return hash_password(password, cost)

    monkeypatch.setattr(hashes, "hash_password", counting)
    await asyncio.gather(*(client.create_user() for _ in range(50)), return_exceptions=True)
    assert len(hashed) == 1


@pytest.mark.parametrize("request_id", ["", "3f1c"])
async def test_of_fifty_creates_through_a_slow_store_one_wins(proxied: Proxied, request_id: str) -> None:
    """None waits for the one before until the store seems to be away; a retry with its id may get the user."""
    with proxied.proxy.fault(Delay(0.12)):
        calls = (proxied.client.create_user(request_id=request_id) for _ in range(50))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    created = {outcome.user_id for outcome in outcomes if not isinstance(outcome, BaseException)}
    assert len(created) == 1
    refused = {failure_of(outcome).reason for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)}
    assert refused <= {"EMAIL_ALREADY_EXISTS", "OVERLOADED"}


async def test_an_address_of_a_broken_row_is_taken(shared: Shared) -> None:
    shared.tables.put_user("broken", "alice@example.com", is_active={"S": "yes"})
    assert (await failure(shared.client.create_user())).reason == "EMAIL_ALREADY_EXISTS"


async def test_a_retry_with_its_request_id_gives_the_same_user(anywhere: Client) -> None:
    first = await anywhere.create_user(request_id="3f1c")
    assert await anywhere.create_user("ALICE@example.com", request_id="3f1c") == first
    other = await failure(anywhere.create_user("bob@example.com", request_id="3f1c"))
    assert (other.reason, other.field) == ("INVALID_FIELD", "request_id")
    assert (await failure(anywhere.create_user(request_id="another"))).reason == "EMAIL_ALREADY_EXISTS"


async def test_one_mailbox_in_two_spellings_of_its_domain_is_one_user(anywhere: Client) -> None:
    josef = await anywhere.create_user("josef@xn--exmple-cua.de")
    assert josef.email == "josef@exämple.de"
    bob = await anywhere.create_user("bob@example.com")
    for spelling in ("josef@exämple.de", "JOSEF@XN--EXMPLE-CUA.DE", "josef@\uff45xämple\u3002de"):
        assert (await anywhere.log_in(spelling)).user == josef
        assert await anywhere.get_user(email=spelling) == josef
        for taken in (anywhere.create_user(spelling), anywhere.update_user(bob.user_id, email=spelling)):
            assert (await failure(taken)).reason == "EMAIL_ALREADY_EXISTS"
    for spelling in ("josef@example.de", "josef@straße.de", "josef@strasse.de"):
        assert (await anywhere.create_user(spelling)).email == spelling


@pytest.mark.parametrize("email", ["ops@corp.local", "ci@build.test", "root@db.localhost", "nas@home.arpa"])
async def test_a_user_may_have_an_address_of_an_internal_domain(client: Client, email: str) -> None:
    await client.create_user(email)
    assert (await client.log_in(email)).user.email == email


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"email": ""}, "email"),
        ({"email": "no-at"}, "email"),
        ({"email": "a@b@c.com"}, "email"),
        ({"email": " alice@example.com"}, "email"),
        ({"email": "alice@example.com\n"}, "email"),
        ({"email": "alice@exa mple.com"}, "email"),
        ({"email": "alice@-example.com"}, "email"),
        ({"email": "a" * 250 + "@example.com"}, "email"),
        ({"role": "Admin"}, "role"),
        ({"role": "a" * 64}, "role"),
        ({"role": "a b"}, "role"),
        ({"password": ""}, "password"),
        ({"password": "x" * 1025}, "password"),
        ({"request_id": "é"}, "request_id"),
        ({"request_id": "x" * 65}, "request_id"),
    ],
    ids=str,
)
async def test_a_wrong_field_is_named(client: Client, request_fields: dict[str, Any], field: str) -> None:
    refused = await failure(client.create_user(**request_fields))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert (refused.field, refused.text) == (field, "a field of the request is invalid")
    assert refused.problem.startswith("must")


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        ("fourteen chars", "must have at least 15 characters"),
        ("x" * 257, "must have at most 256 characters"),
        ("passwordpassword", "is a commonly used password"),
        ("alicealice12345", "is made of the email address"),
    ],
)
async def test_a_weak_password_is_refused_with_the_reason(client: Client, password: str, problem: str) -> None:
    """ASVS-6.2.1, ASVS-6.2.4, NIST-3.1.1.2-a, NIST-3.1.1.2-d."""
    refused = await failure(client.create_user(password=password))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PASSWORD_REJECTED")
    assert (refused.field, refused.problem) == ("password", problem)


@pytest.mark.parametrize("stored", ["", "garbage", "$2b$31$" + "a" * 53, "$2b$03$" + "a" * 53, "$1$x$y"])
async def test_a_hash_that_cannot_be_verified_is_refused(client: Client, stored: str) -> None:
    request = user_pb2.CreateUserRequest(email="alice@example.com", password_hash=stored)
    refused = await failure(client.users.CreateUser(request, metadata=client.admin))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "password_hash")


@pytest.mark.parametrize(
    ("key", "field"),
    [({}, "key"), ({"user_id": ""}, "user_id"), ({"user_id": "x" * 257}, "user_id"), ({"email": "x"}, "email")],
)
async def test_a_wrong_key_is_named(client: Client, key: dict[str, str], field: str) -> None:
    assert (await failure(client.get_user(**key))).field == field


async def test_an_unknown_user_is_not_found(client: Client) -> None:
    for key in ({"user_id": "nobody"}, {"email": "nobody@example.com"}):
        refused = await failure(client.get_user(**key))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "USER_NOT_FOUND")


async def test_fields_that_the_api_does_not_have_change_nothing(client: Client) -> None:
    """ASVS-15.3.3: unknown fields of the request are no way to set an id, a hash or an admin."""
    request = user_pb2.CreateUserRequest(email="alice@example.com", password=PASSWORD)
    request.MergeFromString(b"".join(bytes([(n << 3) | 2, 5]) + b"admin" for n in (6, 7, 8, 9, 10, 11, 12)))
    user = (await client.users.CreateUser(request, metadata=client.admin)).user
    assert user.role == "user"
    assert "admin" not in user.user_id


async def test_an_address_has_one_owner_in_every_normal_form(client: Client) -> None:
    composed, decomposed = "jos\u00e9@example.com", "jose\u0301@example.com"
    created = await client.create_user(decomposed)
    assert created.email == composed
    assert (await failure(client.create_user(composed))).reason == "EMAIL_ALREADY_EXISTS"
    assert (await client.log_in(decomposed)).user == (await client.log_in(composed)).user


async def bearer(client: Client, email: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {await client.access_token(email)}"),)


async def call(client: Client, metadata: Any) -> Any:
    return await client.users.GetUser(user_pb2.GetUserRequest(email=ADMIN_EMAIL), metadata=metadata)


async def test_only_an_admin_may_call_user_service(client: Client) -> None:
    """ASVS-8.2.1."""
    await client.create_user()
    assert (await failure(call(client, ()))).reason == "CALLER_UNAUTHENTICATED"
    refused = await failure(call(client, await bearer(client, "alice@example.com")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_PERMITTED")
    assert (await call(client, client.admin)).user.email == ADMIN_EMAIL


async def test_every_method_of_user_service_is_for_admins_alone(client: Client) -> None:
    """ASVS-8.2.1, ASVS-8.2.2: whoever is none learns nothing, not even whether a request is well-formed."""
    await client.create_user()
    callers = {
        "CALLER_UNAUTHENTICATED": (),
        "CALLER_NOT_PERMITTED": await bearer(client, "alice@example.com"),
        "": client.admin,
    }
    for method in user_pb2.DESCRIPTOR.services_by_name["UserService"].methods:
        for refusal, metadata in callers.items():
            send: Any = client.channel.unary_unary(f"/authsvc.v1.UserService/{method.name}")
            if method.name == "ListUsers" and not refusal:
                assert await send(b"", metadata=metadata)
                continue
            refused = await failure(send(b"", metadata=metadata))
            assert refused.reason == (refusal or "INVALID_FIELD")


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Bearer x", "Basic {}", "{}", "Bearer {}x", "Bearer {},x"])
async def test_credentials_of_another_form_are_none(client: Client, value: str) -> None:
    token = await client.access_token(ADMIN_EMAIL)
    refused = await failure(call(client, (("authorization", value.format(token)),)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED")


async def test_two_authorizations_are_one_too_many(client: Client) -> None:
    """B6: a proxy may read the first and the service the second."""
    refused = await failure(call(client, (*client.admin, ("authorization", "Bearer x"))))
    assert refused.reason == "CALLER_UNAUTHENTICATED"
    refused = await failure(call(client, (*client.admin, *client.admin)))
    assert refused.reason == "CALLER_UNAUTHENTICATED"


async def test_a_refresh_token_is_no_credential(client: Client) -> None:
    """ASVS-9.2.2."""
    tokens = (await client.log_in(ADMIN_EMAIL)).tokens
    refused = await failure(call(client, (("authorization", f"Bearer {tokens.refresh_token}"),)))
    assert refused.reason == "CALLER_UNAUTHENTICATED"


async def test_an_admins_token_expires_for_user_service_too(client: Client, clock: Any) -> None:
    clock.advance(hours=1)
    assert (await failure(call(client, client.admin))).reason == "CALLER_UNAUTHENTICATED"
