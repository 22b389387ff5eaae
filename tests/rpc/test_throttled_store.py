"""A store that throttles validations (F4): retries succeed where they can, and never become a storm."""

import asyncio
from collections import Counter
from datetime import timedelta

import grpc
import pytest

from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.faults import Exchange, Reply, Throttle, Unprocessed
from tests.rpc.conftest import Proxied
from tests.support import WITNESS, FakeClock, failure_of

USERS = 100
CALLS_OF_EACH = 4


@pytest.fixture
def tokens(proxied: Proxied, clock: FakeClock) -> list[str]:
    """Access tokens of many users, issued without logins."""
    issued = []
    for number in range(USERS):
        proxied.tables.put_user(f"user-{number}", f"user{number}@example.com")
        token = proxied.client.service.validations.tokens.issue(
            user_id=f"user-{number}",
            session_id=f"session-{number}",
            token_generation=0,
            client_id="authsvc",
            now=clock.now,
            not_after=clock.now + timedelta(days=1),
        )
        issued.append(token.text)
    WITNESS.hide(*issued)
    return issued


async def validate_all(proxied: Proxied, tokens: list[str]) -> tuple[list[auth_pb2.ValidateTokenResponse], list[str]]:
    """Validate each token CALLS_OF_EACH times, all concurrently; return the answers, and the reasons of the errors."""
    calls = [proxied.client.validate(token) for token in tokens * CALLS_OF_EACH]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    answers = [each for each in outcomes if isinstance(each, auth_pb2.ValidateTokenResponse)]
    refused = [failure_of(each).reason for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert len(answers) + len(refused) == len(calls)
    assert {answer.state for answer in answers} <= {auth_pb2.TOKEN_STATE_ACTIVE}
    return answers, refused


def keys_of(attempt_payload: dict[str, dict[str, dict[str, list[dict[str, dict[str, str]]]]]]) -> list[str]:
    """Return the user ids that a BatchGetItem reads."""
    return [key["user_id"]["S"] for read in attempt_payload["RequestItems"].values() for key in read["Keys"]]


class Sparing:
    """Throttles one in three reads, but not the last attempt for any user."""

    def __init__(self) -> None:
        self.throttled: Counter[str] = Counter()

    async def answer(self, exchange: Exchange, /) -> Reply:
        keys = keys_of(exchange.attempt.payload)
        if exchange.random.random() > 1 / 3 or any(
            self.throttled[key] == DynamoDBTimeouts().max_attempts - 1 for key in keys
        ):
            return await exchange.forward()
        self.throttled.update(keys)
        return await Throttle().answer(exchange)


@pytest.mark.engines
async def test_a_third_of_throttled_calls_is_made_up_for(proxied: Proxied, tokens: list[str]) -> None:
    sparing = Sparing()
    with proxied.proxy.fault(sparing):
        for _ in range(5):
            answers, refused = await validate_all(proxied, tokens)
            assert len(answers) == USERS * CALLS_OF_EACH
            assert refused == []
    assert sparing.throttled


async def test_three_of_ten_keys_left_out_are_made_up_for(proxied: Proxied, tokens: list[str]) -> None:
    """All six attempts leave out a given key once in 1,400 times: among a hundred keys, six such keys never occur."""
    with proxied.proxy.fault(Unprocessed(0.3)):
        _, refused = await validate_all(proxied, tokens)
    assert len(refused) <= 5 * CALLS_OF_EACH
    reads_of = Counter(key for attempt in proxied.proxy.attempts for key in keys_of(attempt.payload))
    assert max(reads_of.values()) > 1


@pytest.mark.engines
async def test_a_store_that_throttles_everything_is_not_stormed(proxied: Proxied, tokens: list[str]) -> None:
    with proxied.proxy.fault(Unprocessed(1.0)):
        answers, refused = await validate_all(proxied, tokens)
    assert answers == []
    assert refused == ["STORE_UNAVAILABLE"] * USERS * CALLS_OF_EACH
    # Without coalescing there would be 2,400 reads; the calls for one user share at most six, unless others join.
    assert len(proxied.proxy.attempts) <= USERS
    reads_of = Counter(key for attempt in proxied.proxy.attempts for key in keys_of(attempt.payload))
    assert max(reads_of.values()) <= DynamoDBTimeouts().max_attempts * CALLS_OF_EACH
