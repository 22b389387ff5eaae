"""Claims of email addresses: who owns an address, and the transaction actions that claim and release it.

An address belongs to the user whom its claim names; claim and user are written in one transaction. The index on email
is eventually consistent and enforces nothing: it only finds user ids, and the rows themselves decide.
"""

import asyncio
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from authsvc import fields
from authsvc.coalescer import Coalescer
from authsvc.errors import InvalidFieldError
from authsvc.models import Email, User
from authsvc.stores.dynamodb.batch_get import BatchGet, read_rows
from authsvc.stores.dynamodb.client import DynamoDBClient
from authsvc.stores.dynamodb.items import Item, item_of, last_key, owner_id_from_item, page_start
from authsvc.stores.dynamodb.tables import EMAIL_INDEX, Tables
from authsvc.stores.interface import ClaimPage

CANDIDATES = 8
"""Rows of one spelling that are read. With two and no claim the address is ambiguous, so more change nothing."""
_CLAIM_PREFIX = "email#"


@dataclass(frozen=True, slots=True)
class EmailLookup:
    """What strongly consistent reads say of an address.

    Args:
        email: The address.
        owner_ids: The user ids that the claims name, by claimed spelling; the normal form first.
        found: The rows of these users and of those that the index knows, by user id; None where a row is gone.
    """

    email: Email
    owner_ids: Mapping[str, str]
    found: Mapping[str, Item | None]

    @property
    def user_ids(self) -> list[str]:
        """The users whose rows have the address."""
        return [user_id for user_id, row in self.found.items() if _address_in(row) == self.email.normal]

    @property
    def owner_id(self) -> str | None:
        """The user who has a live claim: of the normal form, else the only one of the other spellings."""
        live = [user_id for user_id in self.owner_ids.values() if user_id in self.user_ids]
        has_normal = self.owner_ids.get(self.email.normal) in live
        return live[0] if has_normal or len(set(live)) == 1 else None

    @property
    def is_claimed(self) -> bool:
        """Whether the owner has the claim of the normal form, and no other one is left to release."""
        owner_id = self.owner_id
        return owner_id is not None and self.releasable(owner_id) == {self.email.normal: owner_id}

    def releasable(self, user_id: str) -> dict[str, str]:
        """Return the claims, by spelling, that are a user's own or stale."""
        others = set(self.user_ids) - {user_id}
        return {spelling: owner_id for spelling, owner_id in self.owner_ids.items() if owner_id not in others}


class EmailClaims:
    """Looks addresses up, and makes the transaction actions that claim and release them."""

    def __init__(self, client: DynamoDBClient, tables: Tables) -> None:
        self._client = client
        self._tables = tables
        self._claim_reads = Coalescer(BatchGet(client.direct, client.timeouts, tables.unique, "unique_key"))
        self._user_reads = Coalescer(BatchGet(client.direct, client.timeouts, tables.users, "user_id"))

    async def look_up(self, email: Email) -> EmailLookup:
        """Look an address up. Which calls that takes depends on how it is typed, not on who has it."""
        owner_ids, found = await asyncio.gather(
            self.owner_ids(email), asyncio.gather(*map(self._indexed_ids, email.spellings))
        )
        user_ids = dict.fromkeys(itertools.chain(owner_ids.values(), *found)) or [_claim_key(email.normal)]
        return EmailLookup(email, owner_ids, await read_rows(self._user_reads, user_ids))

    async def owner_ids(self, email: Email) -> dict[str, str]:
        """Return whom the claims of an address name, by claimed spelling; the normal form first.

        Raises:
            CorruptItemError: A claim cannot be read.
        """
        keys = {_claim_key(spelling): spelling for spelling in email.claimed_spellings}
        claims = await read_rows(self._claim_reads, keys)
        return {keys[key]: owner_id_from_item(claim) for key, claim in claims.items() if claim is not None}

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
            self._client.direct.query,
            TableName=self._tables.users,
            IndexName=EMAIL_INDEX,
            KeyConditionExpression="email = :email",
            ExpressionAttributeValues=item_of(**{":email": spelling}),
            ProjectionExpression="user_id",
            Limit=CANDIDATES,
        )
        return [item["user_id"]["S"] for item in response["Items"]]

    def claim_actions(self, user: User, lookup: EmailLookup) -> Iterator[Mapping[str, Any]]:
        """Claim a user's address, and release the claims of its other spellings that are the user's own or stale.

        A stale claim is replaced or released only while it stays stale.
        """
        normal = lookup.email.normal
        releasable = lookup.releasable(user.user_id)
        # A transaction may not check a row that it writes.
        for owner_id in dict.fromkeys(releasable.values()):
            if owner_id != user.user_id:
                row = lookup.found.get(owner_id)
                yield self.check(owner_id, row and row.get("email"))
        put = {
            "TableName": self._tables.unique,
            "Item": item_of(unique_key=_claim_key(normal), user_id=user.user_id),
            "ConditionExpression": "attribute_not_exists(unique_key)",
        }
        if normal in releasable:
            put["ConditionExpression"] = "user_id = :stale_owner"
            put["ExpressionAttributeValues"] = item_of(**{":stale_owner": releasable.pop(normal)})
        yield {"Put": put}
        for spelling, owner_id in releasable.items():
            yield self._delete(spelling, owner_id)

    async def release_actions(self, user: User, but: Collection[str] = ()) -> list[Mapping[str, Any]]:
        """Release a user's address in all spellings but some; where it is not claimed, check that it still is not."""
        email = _email_in(item_of(email=user.email))
        if email is None:
            return []
        owner_ids = await self.owner_ids(email)
        own = [spelling for spelling, owner_id in owner_ids.items() if owner_id == user.user_id]
        actions = [self._delete(spelling, user.user_id) for spelling in own if spelling not in but]
        if email.normal not in {*owner_ids, *but}:
            key = self._claim(email.normal)
            actions.append({"ConditionCheck": {**key, "ConditionExpression": "attribute_not_exists(unique_key)"}})
        return actions

    def _delete(self, spelling: str, owner_id: str) -> Mapping[str, Any]:
        own = {
            "ConditionExpression": "user_id = :owner",
            "ExpressionAttributeValues": item_of(**{":owner": owner_id}),
        }
        return {"Delete": {**self._claim(spelling), **own}}

    def _claim(self, spelling: str) -> dict[str, Any]:
        return {"TableName": self._tables.unique, "Key": item_of(unique_key=_claim_key(spelling))}

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


def _claim_key(spelling: str) -> str:
    return f"{_CLAIM_PREFIX}{spelling}"


def _address_in(row: Item | None) -> str | None:
    """Return a row's address in normal form; None where it has no valid one."""
    email = _email_in(row)
    return None if email is None else email.normal


def _email_in(row: Item | None) -> Email | None:
    try:
        return None if row is None else fields.parse_email(row["email"]["S"])
    except (KeyError, InvalidFieldError):
        return None
