"""Claims of email addresses: who owns an address, and the transaction actions that claim and release it.

An address belongs to the user whom its claim names; claim and user are written in one transaction. The index on email
is eventually consistent and enforces nothing: it only finds user ids, and the rows themselves decide.
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
from authsvc.stores.dynamodb.items import Item, item_of, last_key, owner_id_from_item, page_start
from authsvc.stores.dynamodb.tables import EMAIL_INDEX, Tables
from authsvc.stores.interface import ClaimPage

CANDIDATES = 8
"""Rows of one address that are read. With two and no claim the address is ambiguous, so more change nothing."""
_CLAIM_PREFIX = "email#"


@dataclass(frozen=True, slots=True)
class EmailLookup:
    """What strongly consistent reads say of an address.

    Args:
        owner_id: The user id that the claim names; None where there is no claim.
        owner: The row of that user; None where it is gone.
        rows: The rows that have the address, the owner's included.
    """

    owner_id: str | None
    owner: Item | None
    rows: list[Item]

    @property
    def is_claim_live(self) -> bool:
        """Whether the user whom the claim names still has the address."""
        return self.owner is not None and self.owner in self.rows

    @property
    def user_ids(self) -> list[str]:
        """The user ids of the rows."""
        return [row["user_id"]["S"] for row in self.rows]


class EmailClaims:
    """Looks addresses up, and makes the transaction actions that claim and release them."""

    def __init__(self, client: DynamoDBClient, tables: Tables) -> None:
        self._client = client
        self._tables = tables

    async def look_up(self, email: Email) -> EmailLookup:
        """Look an address up, with the same calls whether or not a user has it."""
        owner_id, found = await asyncio.gather(
            self.owner_id(email.normal), asyncio.gather(*map(self._indexed_ids, email.spellings))
        )
        claimed = [] if owner_id is None else [owner_id]
        user_ids = dict.fromkeys(itertools.chain(claimed, *found)) or [_claim_key(email.normal)]
        rows = await asyncio.gather(*(self._client.get(self._tables.users, user_id=user_id) for user_id in user_ids))
        having = [row for row in rows if row is not None and _address_in(row) == email.normal]
        owner = next((r for r in rows if r and r["user_id"]["S"] == owner_id), None)
        return EmailLookup(owner_id, owner, having)

    async def owner_id(self, email: str) -> str | None:
        """Return whom the claim of an address names.

        Raises:
            CorruptItemError: The claim cannot be read.
        """
        claim = await self._client.get(self._tables.unique, unique_key=_claim_key(email))
        return None if claim is None else owner_id_from_item(claim)

    async def list_claims(self, limit: int, after_key: str | None) -> ClaimPage:
        """Return some claims, without the request ids that the table also holds."""
        start = page_start(unique_key=after_key)
        response = await self._client.call(self._client.api.scan, TableName=self._tables.unique, Limit=limit, **start)
        items = {item["unique_key"]["S"]: item for item in response["Items"]}
        user_ids = {
            key.removeprefix(_CLAIM_PREFIX): str(item.get("user_id", {}).get("S", ""))
            for key, item in items.items()
            if key.startswith(_CLAIM_PREFIX)
        }
        return ClaimPage(user_ids, last_key(response, "unique_key"))

    async def _indexed_ids(self, spelling: str) -> list[str]:
        response = await self._client.call(
            self._client.api.query,
            TableName=self._tables.users,
            IndexName=EMAIL_INDEX,
            KeyConditionExpression="email = :email",
            ExpressionAttributeValues=item_of(**{":email": spelling}),
            ProjectionExpression="user_id",
            Limit=CANDIDATES,
        )
        return [item["user_id"]["S"] for item in response["Items"]]

    def claim_actions(self, user: User, lookup: EmailLookup) -> Iterator[Mapping[str, Any]]:
        """Claim a user's address; a stale claim is overwritten only while it stays stale."""
        put = {
            "TableName": self._tables.unique,
            "Item": item_of(unique_key=_claim_key(fields.normalize_email(user.email)), user_id=user.user_id),
            "ConditionExpression": "attribute_not_exists(unique_key)",
        }
        if lookup.owner_id is not None:
            put["ConditionExpression"] = "user_id = :stale_owner"
            put["ExpressionAttributeValues"] = item_of(**{":stale_owner": lookup.owner_id})
            address = lookup.owner and lookup.owner.get("email")
            # A transaction may not check a row that it writes.
            if lookup.owner_id != user.user_id:
                yield self.check(lookup.owner_id, address)
        yield {"Put": put}

    async def release_actions(self, user: User) -> list[Mapping[str, Any]]:
        """Release a user's address; where it is not claimed, check that it still is not."""
        address = _address_in(item_of(email=user.email))
        owner_id = None if address is None else await self.owner_id(address)
        if address is None or owner_id not in {None, user.user_id}:
            return []
        key = {"TableName": self._tables.unique, "Key": item_of(unique_key=_claim_key(address))}
        if owner_id is None:
            return [{"ConditionCheck": {**key, "ConditionExpression": "attribute_not_exists(unique_key)"}}]
        own = {
            "ConditionExpression": "user_id = :owner",
            "ExpressionAttributeValues": item_of(**{":owner": user.user_id}),
        }
        return [{"Delete": {**key, **own}}]

    def is_spelling(self, text: str, email: str) -> bool:
        """Tell whether the normal form of an address is `email`."""
        return _address_in(item_of(email=text)) == email

    def check(self, user_id: str, address: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Require that a row still has an address; None: that it still has none, or is still missing."""
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
    """Return a row's address in normal form; None where it has no valid one."""
    try:
        return fields.normalize_email(row["email"]["S"])
    except (KeyError, InvalidFieldError):
        return None
