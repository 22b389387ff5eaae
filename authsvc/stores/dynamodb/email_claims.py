"""Who owns an address: the claims in the unique table, and the rows that an index finds.

An address belongs to whoever holds its claim, which is written in one transaction with the user. The index on email is
eventually consistent and enforces nothing: it only finds user ids, and the rows themselves decide.
"""

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from authsvc import fields
from authsvc.errors import InvalidFieldError
from authsvc.models import Email, User
from authsvc.stores.dynamodb.client import DynamoDBClient
from authsvc.stores.dynamodb.items import Item, claimant_from_item, item_of
from authsvc.stores.dynamodb.tables import EMAIL_INDEX, Tables
from authsvc.stores.interface import ClaimPage

CANDIDATES = 8
"""Rows of one address that are looked at; with two and no claim nobody logs in, so more change nothing."""
_CLAIM_PREFIX = "email#"


@dataclass(frozen=True, slots=True)
class EmailLookup:
    """Who holds an address, as read strongly.

    Args:
        claimant_id: Whom the claim names; None where there is no claim.
        claimant: That user's row; None where it is gone.
        rows: Rows that have the address now, the claimant's included.
    """

    claimant_id: str | None
    claimant: Item | None
    rows: list[Item]

    @property
    def is_claim_live(self) -> bool:
        """Whether the claim's user still has the address."""
        return self.claimant is not None and self.claimant in self.rows

    @property
    def user_ids(self) -> list[str]:
        """Of the rows."""
        return [row["user_id"]["S"] for row in self.rows]


class EmailClaims:
    """Finds who holds an address, and makes the actions by which a transaction claims or gives up one."""

    def __init__(self, calls: DynamoDBClient, tables: Tables) -> None:
        self._calls = calls
        self._tables = tables

    async def holders(self, email: Email) -> EmailLookup:
        """Find who holds an address, by the same number of calls whether or not anybody does."""
        claimant_id, found = await asyncio.gather(
            self.claimant_id(email.normal), asyncio.gather(*map(self._indexed_ids, email.spellings))
        )
        claimed = [] if claimant_id is None else [claimant_id]
        user_ids = dict.fromkeys(itertools.chain(claimed, *found)) or [_claim_key(email.normal)]
        rows = await asyncio.gather(*(self._calls.get(self._tables.users, user_id=user_id) for user_id in user_ids))
        holding = [row for row in rows if row is not None and _address_in(row) == email.normal]
        claimant = next((r for r in rows if r and r["user_id"]["S"] == claimant_id), None)
        return EmailLookup(claimant_id, claimant, holding)

    async def claimant_id(self, email: str) -> str | None:
        """Return whom the claim of an address names.

        Raises:
            CorruptItemError: The claim cannot be read.
        """
        claim = await self._calls.get(self._tables.unique, unique_key=_claim_key(email))
        return None if claim is None else claimant_from_item(claim)

    async def list_claims(self, limit: int, after_key: str | None) -> ClaimPage:
        """Return some claims; what else the table holds is left out."""
        start = {} if after_key is None else {"ExclusiveStartKey": item_of(unique_key=after_key)}
        response = await self._calls("Scan", TableName=self._tables.unique, Limit=limit, **start)
        items = {item["unique_key"]["S"]: item for item in response["Items"]}
        user_ids = {
            key.removeprefix(_CLAIM_PREFIX): str(item.get("user_id", {}).get("S", ""))
            for key, item in items.items()
            if key.startswith(_CLAIM_PREFIX)
        }
        last = response.get("LastEvaluatedKey")
        return ClaimPage(user_ids, last and last["unique_key"]["S"])

    async def _indexed_ids(self, spelling: str) -> list[str]:
        response = await self._calls(
            "Query",
            TableName=self._tables.users,
            IndexName=EMAIL_INDEX,
            KeyConditionExpression="email = :email",
            ExpressionAttributeValues=item_of(**{":email": spelling}),
            ProjectionExpression="user_id",
            Limit=CANDIDATES,
        )
        return [item["user_id"]["S"] for item in response["Items"]]

    def claim_actions(self, user: User, holders: EmailLookup) -> Iterator[Mapping[str, Any]]:
        """Write the claim of a user's address, over a dead one only while that one stays dead."""
        put = {
            "TableName": self._tables.unique,
            "Item": item_of(unique_key=_claim_key(fields.normalize_email(user.email)), user_id=user.user_id),
            "ConditionExpression": "attribute_not_exists(unique_key)",
        }
        if holders.claimant_id is not None:
            put["ConditionExpression"] = "user_id = :dead"
            put["ExpressionAttributeValues"] = item_of(**{":dead": holders.claimant_id})
            address = holders.claimant and holders.claimant.get("email")
            # The transaction itself writes the user's own row, and may not check it as well.
            if holders.claimant_id != user.user_id:
                yield self.check(holders.claimant_id, address)
        yield {"Put": put}

    async def release_actions(self, user: User) -> list[Mapping[str, Any]]:
        """Delete a user's claim; a row of another program that never logged in has none, and must have none yet."""
        address = _address_in(item_of(email=user.email))
        claimant_id = None if address is None else await self.claimant_id(address)
        if address is None or claimant_id not in {None, user.user_id}:
            return []
        key = {"TableName": self._tables.unique, "Key": item_of(unique_key=_claim_key(address))}
        if claimant_id is None:
            return [{"ConditionCheck": {**key, "ConditionExpression": "attribute_not_exists(unique_key)"}}]
        own = {"ConditionExpression": "user_id = :me", "ExpressionAttributeValues": item_of(**{":me": user.user_id})}
        return [{"Delete": {**key, **own}}]

    def is_spelling(self, text: str, email: str) -> bool:
        """Tell whether a text is an address, in any spelling, whose normal form is `email`."""
        return _address_in(item_of(email=text)) == email

    def check(self, user_id: str, address: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Require that a row still has an address; None: that it still has none, or is still gone."""
        check: dict[str, Any] = {
            "TableName": self._tables.users,
            "Key": item_of(user_id=user_id),
            "ConditionExpression": "attribute_not_exists(email)",
        }
        if address is not None:
            check["ConditionExpression"] = "email = :email"
            check["ExpressionAttributeValues"] = {":email": address}
        return {"ConditionCheck": check}


def _claim_key(email: str) -> str:
    return f"{_CLAIM_PREFIX}{email}"


def _address_in(row: Item) -> str | None:
    """Return a row's address in normal form, None where it has none."""
    try:
        return fields.normalize_email(row["email"]["S"])
    except (KeyError, InvalidFieldError):
        return None
