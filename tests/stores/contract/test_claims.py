"""Claims of addresses that only the index knows, and the losers of their races."""

from dataclasses import replace
from typing import Any

import pytest

from authsvc.errors import CorruptItemError
from authsvc.models import Email
from authsvc.stores.dynamodb.store import DynamoDBStore
from tests.dynamodb import Tables
from tests.stores.contract.test_store import NOW, new_user
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
