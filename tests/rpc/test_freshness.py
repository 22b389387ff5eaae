"""A validation sees every write that was acknowledged before it began, alone and in batches, under concurrency.

AUTHSVC_TEST_RACE_ROUNDS multiplies the rounds, for a longer search.
"""

import asyncio
import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

import pytest

from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.rpc.conftest import Pair
from tests.rpc.test_batches import batch
from tests.rpc.test_staleness import outcome
from tests.support import Client

READERS = 64
ROUNDS = 2 * int(os.environ.get("AUTHSVC_TEST_RACE_ROUNDS", "1"))
pytestmark = pytest.mark.timeout(0 if "AUTHSVC_TEST_RACE_ROUNDS" in os.environ else 120)


@dataclass
class Life:
    """The successive outcomes of a token's validation.

    Args:
        history: In order; the last ones may not be written yet.
        acknowledged: Index in the history of the last acknowledged write.
    """

    token: str
    history: list[str]
    acknowledged: int = 0


@dataclass
class Stage:
    """A user whom a writer changes while readers validate a token of the user."""

    writer: Client
    user_id: str
    life: Life
    roles: "count[int]" = field(default_factory=lambda: count(1))
    seen: Counter[str] = field(default_factory=Counter)
    is_done: bool = False

    async def begin_life(self) -> None:
        user = await self.writer.get_user(user_id=self.user_id)
        self.life = Life(await self.writer.access_token(), [user.role])

    async def disable(self) -> None:
        self.life.history.append("USER_DISABLED")
        await self.writer.update_user(self.user_id, is_active=False)
        self.life.acknowledged += 1

    async def enable(self) -> None:
        self.life.history.append("SESSION_REVOKED")
        await self.writer.update_user(self.user_id, is_active=True)
        self.life.acknowledged += 1

    async def change_role(self) -> None:
        role = f"role-{next(self.roles)}"
        self.life.history.append(role)
        await self.writer.update_user(self.user_id, role=role)
        self.life.acknowledged += 1

    async def revoke(self) -> None:
        self.life.history.append("SESSION_REVOKED")
        await self.writer.revoke(self.life.token)
        self.life.acknowledged += 1

    async def revoke_all(self) -> None:
        self.life.history.append("SESSION_REVOKED")
        await self.writer.revoke_sessions(self.user_id)
        self.life.acknowledged += 1

    async def write(self) -> None:
        for _ in range(ROUNDS):
            for last in (self.revoke, self.disable, self.revoke_all):
                await self.change_role()
                await self.change_role()
                await last()
                if last == self.disable:
                    await self.enable()
                await self.begin_life()
        self.is_done = True

    async def read(self, client: Client, others: list[str]) -> None:
        while not self.is_done:
            life, known = self.life, self.life.acknowledged
            if others:
                results = await batch(client, *others, life.token)
                answer: auth_pb2.ValidateTokenResponse = results[-1].response
            else:
                answer = await client.validate(life.token)
            seen = outcome(answer)
            assert seen in life.history[known:], f"{seen} is stale: {life.history}, {known}"
            self.seen[seen] += 1


@pytest.mark.long_on_dynoxide
@pytest.mark.parametrize("pair", ["sqlite", "dynoxide"], indirect=True)
async def test_no_validation_sees_what_was_over_when_it_began(pair: Pair) -> None:
    """Two services on one store; the writer uses the first, readers use both."""
    alice = await pair.first.create_user()
    await pair.first.create_user("bob@example.com")
    bob = await pair.first.access_token("bob@example.com")
    stage = Stage(pair.first, alice.user_id, Life("", []))
    await stage.begin_life()
    clients = [pair.first, pair.second]
    readers = [stage.read(clients[number % 2], [bob] * (number % 4 // 2)) for number in range(READERS)]
    await asyncio.gather(stage.write(), *readers)
    assert stage.seen.keys() >= {"SESSION_REVOKED", "USER_DISABLED"}
    assert stage.seen.total() > READERS
