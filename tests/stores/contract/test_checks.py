"""Checks of all stored rows: users and the claims of their addresses, on each store."""

from authsvc.models import Finding
from authsvc.stores.dynamodb.store import DynamoDBStore
from authsvc.stores.interface import Store
from authsvc.usecases.data_checks import AddressCheck, check_addresses, check_hashes
from tests.dynamodb import Tables
from tests.stores.contract.test_store import DIGEST, NOW, new_user

EMAIL = "alice@example.com"
GOOD = AddressCheck([], stale_claims=0, unclaimed=0)


def problems(check: AddressCheck) -> list[str]:
    return sorted(f"{finding.subject}: {finding.problem}" for finding in check.findings)


async def test_users_of_our_own_and_their_claims_agree(store: Store) -> None:
    users = [
        await store.create_user(new_user(f"user{n}@example.com"), NOW, DIGEST if n == 0 else None) for n in range(5)
    ]
    await store.delete_user(users[0])
    moved = new_user("moved@example.com", user_id=users[1].user_id)
    await store.update_user(users[1], moved)
    check = await check_addresses(store, page_size=2)
    assert check == GOOD
    assert check.lines() == [Finding("addresses")]


async def test_claims_are_listed_page_by_page(store: Store) -> None:
    made = {}
    for n in range(5):
        user = await store.create_user(new_user(f"user{n}@example.com"), NOW, bytes([n]) * 32)
        made[user.email] = user.user_id
    listed: dict[str, str] = {}
    last_key = None
    while True:
        page = await store.list_claims(2, last_key)
        assert len(page.user_ids) <= 2
        listed.update(page.user_ids)
        if page.last_key is None:
            break
        last_key = page.last_key
    assert listed == made


async def test_a_dead_claim_is_no_problem(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    for n, email in enumerate(("gone@example.com", "moved@example.com", "taken@example.com", "kept@example.com")):
        await dynamodb_store.create_user(new_user(email, user_id=f"u-{n}"), NOW)
    tables.delete_user("u-0")
    tables.update_user("u-1", "SET email = :e", e={"S": "elsewhere@example.com"})
    tables.delete_user("u-2")
    tables.put_user("other", "taken@example.com")
    check = await check_addresses(dynamodb_store)
    assert check == AddressCheck([], stale_claims=3, unclaimed=2)
    assert check.lines() == [Finding("addresses (3 stale claims, 2 users without a claim: harmless)")]


async def test_two_rows_of_one_address_are_a_problem(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    await dynamodb_store.create_user(new_user(EMAIL, user_id="u-1"), NOW)
    tables.put_user("u-2", "ALICE@example.com")
    for user_id in ("u-3", "u-4"):
        tables.put_user(user_id, "bob@example.com")
    check = await check_addresses(dynamodb_store)
    assert problems(check) == [
        "user u-2: email: is not in normal form (NFC, lower case, domain in Unicode)",
        "users u-1, u-2: have the same address: u-1 owns it by claim",
        "users u-3, u-4: have the same address: none owns it by claim, so none can log in",
    ]
    assert (check.stale_claims, check.unclaimed) == (0, 0)
    assert check.lines() == check.findings


async def test_claims_and_rows_of_an_earlier_version_are_problems(
    dynamodb_store: DynamoDBStore, tables: Tables
) -> None:
    for user_id, email in (("u-1", "a@xn--exmple-cua.de"), ("u-2", "a@exämple.de"), ("u-3", "b@\uff45xample.com")):
        tables.put_user(user_id, email)
        tables.put_claim(email, user_id)
    tables.put_user("u-4", "c@example.com")
    tables.put_claim("c@\uff45xample.com", "u-4")
    tables.put_user("u-5", "c@example.com")
    tables.put_claim("d@\uff45xample.com", "gone")
    check = await check_addresses(dynamodb_store)
    spelled, not_every = "is not in normal form (NFC, lower case, domain in Unicode)", "not every spelling finds user"
    older = f"is in the normal form of an earlier version: {not_every}"
    assert problems(check) == [
        f"claim of a@xn--exmple-cua.de: {older} u-1",
        f"claim of b@\uff45xample.com: {older} u-3",
        f"claim of c@\uff45xample.com: {older} u-4",
        f"user u-1: email: {spelled}",
        f"user u-3: email: {spelled}",
        "users u-1, u-2: have the same address: u-2 owns it by claim",
        "users u-4, u-5: have the same address: u-4 owns it by claim",
    ]
    assert "UpdateUser of u-3 with the email b@example.com" in {finding.remedy for finding in check.findings}
    assert (check.stale_claims, check.unclaimed) == (1, 0)


async def test_unreadable_rows_are_problems(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    await dynamodb_store.create_user(new_user(EMAIL, user_id="u-1"), NOW)
    tables.set_attribute("u-1", "is_active", {"S": "yes"})
    tables.put_user("u-2")
    tables.put_user("u-3", "no-address")
    tables.dynamodb.put_item(TableName=tables.unique, Item={"unique_key": {"S": "email#bob@example.com"}})
    check = await check_addresses(dynamodb_store)
    assert problems(check) == [
        "claim of bob@example.com: is unreadable: no user can log in by that address",
        "user u-1: attribute is_active is missing or unreadable: the user cannot log in",
        "user u-2: attribute email is missing or unreadable: the user cannot log in",
        "user u-3: email: must have exactly one @, with text on both sides",
    ]
    assert (check.stale_claims, check.unclaimed) == (0, 0)


async def test_hashes_above_the_configured_cost_are_a_problem(store: Store) -> None:
    hashes = {"low": "$2b$04$", "same": "$2b$10$", "high": "$2b$12$", "higher": "$2a$16$"}
    for name, prefix in hashes.items():
        user = new_user(f"{name}@example.com", user_id=name, password_hash=prefix + "." * 53)
        await store.create_user(user, NOW)
    await store.create_user(new_user("none@example.com", password_hash=None), NOW)
    await store.create_user(new_user("unreadable@example.com", password_hash="$2b$31$" + "." * 53), NOW)
    found = await check_hashes(store, 10, seconds_per_hash=0.05)
    assert found.problem == "2 cost more than AUTHSVC_BCRYPT_COST=10, for instance that of user high"
    assert found.remedy == "set AUTHSVC_BCRYPT_COST=16"
    assert await check_hashes(store, 16, seconds_per_hash=3.2) == Finding("password hashes")
