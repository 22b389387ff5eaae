"""Claims of addresses that only the index knows, and the losers of their races."""

from dataclasses import replace
from typing import Any

import pytest

from authsvc import fields
from authsvc.errors import CorruptItemError, EmailAlreadyExistsError, UserNotFoundError
from authsvc.models import Email
from authsvc.stores.dynamodb.store import DynamoDBStore
from tests.dynamodb import Tables
from tests.stores.contract.test_store import DIGEST, NOW, new_user
from tests.support import WITNESS

EMAIL = "carol@example.com"


async def test_one_of_two_rows_claims_nothing(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    tables.put_user("carol", EMAIL)
    carol = await dynamodb_store.get_user("carol")
    tables.put_user("other", EMAIL)
    assert not await dynamodb_store.claim_email(carol)
    assert tables.claim(EMAIL) is None


async def test_a_row_that_moved_meanwhile_claims_nothing(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    tables.put_user("carol", EMAIL)
    carol = await dynamodb_store.get_user("carol")
    tables.update_user("carol", "SET email = :e", e={"S": "moved@example.com"})
    assert not await dynamodb_store.claim_email(carol)
    tables.delete_user("carol")
    assert not await dynamodb_store.claim_email(carol)
    assert tables.claim(EMAIL) is None


async def test_a_claim_that_came_first_stays(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    tables.put_user("carol", EMAIL)
    carol = await dynamodb_store.get_user("carol")
    assert await dynamodb_store.claim_email(carol)
    tables.put_user("late", EMAIL)
    late = await dynamodb_store.get_user("late")
    assert not await dynamodb_store.claim_email(late)
    assert tables.claim(EMAIL) == "carol"


async def test_a_claim_whose_user_lost_its_address_is_taken_over(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    carol = await dynamodb_store.create_user(new_user(EMAIL), NOW)
    tables.update_user(carol.user_id, "SET note = :n REMOVE email", n={"S": "gone"})
    dave = await dynamodb_store.create_user(new_user(EMAIL), NOW)
    assert tables.claim(EMAIL) == dave.user_id


async def test_a_claimed_address_may_be_spelled_anew(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    tables.put_user("carol", "Carol@Example.com")
    carol = await dynamodb_store.get_user("carol")
    assert await dynamodb_store.claim_email(carol)
    await dynamodb_store.update_user(carol, replace(carol, email=EMAIL))
    assert (await dynamodb_store.get_user_by_email(Email(EMAIL))).user.user_id == "carol"
    assert tables.claim(EMAIL) == "carol"


UNICODE, A_LABEL, FULL_WIDTH = "josef@exämple.de", "josef@xn--exmple-cua.de", "josef@\uff45xämple.de"


def put_earlier_user(tables: Tables, user_id: str, email: str) -> None:
    """Write a user and a claim as a version did that knew only NFC and lower case."""
    tables.put_user(user_id, email)
    tables.put_claim(email, user_id)


async def found(store: DynamoDBStore, typed: str) -> str | None:
    """Return the id of the user who is found by an address, and check that nobody else can get it."""
    email = fields.parse_email(typed)
    try:
        owner = await store.get_user_by_email(email)
    except UserNotFoundError:
        return None
    with pytest.raises(EmailAlreadyExistsError):
        await store.create_user(new_user(email.normal), NOW, email=email)
    return owner.user.user_id


async def test_a_claim_of_an_earlier_version_counts_and_is_replaced(
    dynamodb_store: DynamoDBStore, tables: Tables
) -> None:
    put_earlier_user(tables, "josef", A_LABEL)
    for typed in (UNICODE, A_LABEL, FULL_WIDTH, "Josef@XN--EXMPLE-CUA.de"):
        assert await found(dynamodb_store, typed) == "josef"
    assert not (await dynamodb_store.get_user_by_email(fields.parse_email(UNICODE))).is_claimed
    assert await dynamodb_store.claim_email(await dynamodb_store.get_user("josef"))
    assert tables.claims() == {UNICODE: "josef"}
    assert (await dynamodb_store.get_user_by_email(fields.parse_email(UNICODE))).is_claimed
    assert await dynamodb_store.claim_email(await dynamodb_store.get_user("josef"))


async def test_an_address_that_an_earlier_version_claimed_is_taken(
    dynamodb_store: DynamoDBStore, tables: Tables
) -> None:
    put_earlier_user(tables, "josef", FULL_WIDTH)
    bob = await dynamodb_store.create_user(new_user("bob@example.com"), NOW)
    email = fields.parse_email(FULL_WIDTH)
    with pytest.raises(EmailAlreadyExistsError):
        await dynamodb_store.update_user(bob, replace(bob, email=email.normal), email)
    assert tables.claims() == {FULL_WIDTH: "josef", "bob@example.com": bob.user_id}


@pytest.mark.parametrize("stale", ["deleted", "moved"])
async def test_a_stale_claim_of_an_earlier_version_is_released(
    dynamodb_store: DynamoDBStore, tables: Tables, stale: str
) -> None:
    put_earlier_user(tables, "josef", A_LABEL)
    tables.put_claim(UNICODE, "josef")
    if stale == "deleted":
        tables.delete_user("josef")
    else:
        tables.update_user("josef", "SET email = :e", e={"S": "moved@example.com"})
    heir = await dynamodb_store.create_user(new_user(UNICODE), NOW, email=fields.parse_email(UNICODE))
    assert tables.claims() == {UNICODE: heir.user_id}
    assert await found(dynamodb_store, A_LABEL) == heir.user_id


async def test_a_claim_that_is_stale_no_longer_is_not_released(
    dynamodb_store: DynamoDBStore, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_earlier_user(tables, "josef", A_LABEL)
    tables.delete_user("josef")
    transact = dynamodb_store._client.transact  # noqa: SLF001 - the moment between look-up and transaction

    async def overtaken(*actions: Any) -> None:
        tables.put_user("josef", A_LABEL)
        await transact(*actions)

    monkeypatch.setattr(dynamodb_store._client, "transact", overtaken)  # noqa: SLF001
    with pytest.raises(EmailAlreadyExistsError):
        await dynamodb_store.create_user(new_user(UNICODE), NOW)
    assert tables.claims() == {A_LABEL: "josef"}


@pytest.mark.parametrize("to", [UNICODE, "josef@example.com"])
async def test_a_user_of_an_earlier_version_moves_with_its_claims(
    dynamodb_store: DynamoDBStore, tables: Tables, to: str
) -> None:
    put_earlier_user(tables, "josef", FULL_WIDTH)
    tables.put_claim(A_LABEL, "josef")
    josef = await dynamodb_store.get_user("josef")
    await dynamodb_store.update_user(josef, replace(josef, email=to), fields.parse_email(to))
    assert tables.claims() == {to: "josef"}
    assert await found(dynamodb_store, to) == "josef"


async def test_a_user_of_an_earlier_version_is_deleted_with_its_claims(
    dynamodb_store: DynamoDBStore, tables: Tables
) -> None:
    put_earlier_user(tables, "josef", FULL_WIDTH)
    tables.put_claim(A_LABEL, "somebody-else")
    await dynamodb_store.delete_user(await dynamodb_store.get_user("josef"))
    assert tables.claims() == {A_LABEL: "somebody-else"}


async def test_a_user_without_a_valid_address_is_deleted(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    tables.put_user("josef", "nobody")
    await dynamodb_store.delete_user(await dynamodb_store.get_user("josef"))
    assert tables.get_user("josef") == {}


async def test_of_two_users_of_an_earlier_version_the_normal_form_decides(
    dynamodb_store: DynamoDBStore, tables: Tables
) -> None:
    put_earlier_user(tables, "josef", UNICODE)
    put_earlier_user(tables, "other", A_LABEL)
    for typed in (UNICODE, A_LABEL):
        assert await found(dynamodb_store, typed) == "josef"
    assert not await dynamodb_store.claim_email(await dynamodb_store.get_user("other"))
    await dynamodb_store.delete_user(await dynamodb_store.get_user("josef"))
    assert tables.claims() == {A_LABEL: "other"}
    assert await found(dynamodb_store, UNICODE) == "other"


async def test_a_claim_of_another_live_user_is_not_released(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    put_earlier_user(tables, "josef", FULL_WIDTH)
    tables.put_claim(UNICODE, "josef")
    put_earlier_user(tables, "other", A_LABEL)
    assert await dynamodb_store.claim_email(await dynamodb_store.get_user("josef"))
    assert tables.claims() == {UNICODE: "josef", A_LABEL: "other"}
    assert (await dynamodb_store.get_user_by_email(fields.parse_email(FULL_WIDTH))).is_claimed


async def test_of_two_users_of_an_earlier_version_without_the_normal_form_none_is_found(
    dynamodb_store: DynamoDBStore, tables: Tables
) -> None:
    put_earlier_user(tables, "josef", FULL_WIDTH)
    put_earlier_user(tables, "other", A_LABEL)
    assert await found(dynamodb_store, FULL_WIDTH) is None
    with pytest.raises(EmailAlreadyExistsError):
        await dynamodb_store.create_user(new_user(UNICODE), NOW, email=fields.parse_email(FULL_WIDTH))
    assert not await dynamodb_store.claim_email(await dynamodb_store.get_user("josef"))


async def test_a_claim_of_another_domain_that_looks_alike_in_lower_case_stays(
    dynamodb_store: DynamoDBStore, tables: Tables
) -> None:
    """The lower-case form of a capital sigma depends on its place; the domain's does not."""
    final, capital = "josef@\u03c3\u03b1\u03c2-1.gr", "josef@\u03a3\u0391\u03a3-1.gr"
    put_earlier_user(tables, "josef", final)
    assert await found(dynamodb_store, capital) is None
    other = await dynamodb_store.create_user(
        new_user(fields.normalize_email(capital)), NOW, email=fields.parse_email(capital)
    )
    assert await found(dynamodb_store, final) == "josef"
    assert await found(dynamodb_store, capital) == other.user_id


async def test_a_request_of_an_earlier_version_is_recognized(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    first = await dynamodb_store.create_user(new_user(UNICODE), NOW, DIGEST)
    tables.dynamodb.update_item(
        TableName=tables.unique,
        Key={"unique_key": {"S": f"request#{DIGEST.hex()}"}},
        UpdateExpression="SET email = :e",
        ExpressionAttributeValues={":e": {"S": A_LABEL}},
    )
    assert await dynamodb_store.create_user(new_user(UNICODE), NOW, DIGEST) == first


async def test_a_broken_session_row_is_logged(dynamodb_store: DynamoDBStore, tables: Tables) -> None:
    key = {"user_id": {"S": "carol"}, "session_id": {"S": "corrupt"}}
    tables.dynamodb.put_item(TableName=tables.sessions, Item=key)
    position = len(WITNESS.lines.getvalue())
    with pytest.raises(CorruptItemError, match="token_generation"):
        await dynamodb_store.get_session("carol", "corrupt")
    assert '"table": "sessions"' in WITNESS.lines.getvalue()[position:]


@pytest.mark.parametrize("corrupt", [{}, {"user_id": {"N": "1"}}, {"user_id": {"S": ""}}], ids=str)
async def test_an_unreadable_claim_is_logged_without_its_address(
    dynamodb_store: DynamoDBStore, tables: Tables, corrupt: dict[str, Any]
) -> None:
    """No user can log in by that address; other users can log in."""
    await dynamodb_store.create_user(new_user("bob@example.com"), NOW)
    tables.dynamodb.put_item(TableName=tables.unique, Item={"unique_key": {"S": f"email#{EMAIL}"}, **corrupt})
    position = len(WITNESS.lines.getvalue())
    for call in (dynamodb_store.get_user_by_email(Email(EMAIL)), dynamodb_store.create_user(new_user(EMAIL), NOW)):
        with pytest.raises(CorruptItemError):
            await call
    lines = WITNESS.lines.getvalue()[position:].splitlines()
    assert len([line for line in lines if '"event": "row_broken"' in line and '"table": "unique"' in line]) == 2
    assert not any(EMAIL in line for line in lines)
    assert (await dynamodb_store.get_user_by_email(Email("bob@example.com"))).is_claimed
