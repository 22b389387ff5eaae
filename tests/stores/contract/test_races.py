"""Repeated races, with the store's contract checked after each round; also while DynamoDB fails.

AUTHSVC_TEST_RACE_ROUNDS multiplies the rounds, for a longer search.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import pytest

from authsvc.errors import (
    AuthsvcError,
    EmailAlreadyExistsError,
    InvalidCredentialsError,
    InvalidRefreshTokenError,
    PasswordChangeRequiredError,
    UserNotFoundError,
)
from authsvc.models import Email, User
from authsvc.passwords.hash_queue import HashQueue
from authsvc.usecases.sessions import Tokens
from authsvc.usecases.users import TemporaryPassword
from tests.engines import CONCURRENT_ENGINES
from tests.stores.contract.conftest import FAILING
from tests.stores.contract.use_cases import EMAIL, NEW_PASSWORD, UseCases
from tests.support import PASSWORD, TEST_COST

ROUNDS = {"sqlite": 20, "dynoxide": 10, FAILING: 5, "ministack": 3}
STAGGER_SECONDS = 0.01
OTHER_EMAIL = "bob@example.com"
pytestmark = [
    pytest.mark.timeout(0 if "AUTHSVC_TEST_RACE_ROUNDS" in os.environ else 60),
    pytest.mark.parametrize("concurrent_store", ["sqlite", *CONCURRENT_ENGINES, FAILING], indirect=True),
]
T = TypeVar("T")
_stagger = random.Random(20300101)  # noqa: S311 - repeatable, not secret


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Iterator[int]:
    factor = int(os.environ.get("AUTHSVC_TEST_RACE_ROUNDS", "1"))
    return iter(range(factor * ROUNDS.get(request.node.callspec.params["concurrent_store"], 4)))


async def race(*calls: Coroutine[Any, Any, T]) -> list[T | AuthsvcError]:
    """Make calls that overlap differently in each round; return the result or error of each."""

    async def begin(call: Awaitable[T]) -> T | AuthsvcError:
        # The delay is not a wait: it varies which steps of the calls interleave.
        await asyncio.sleep(_stagger.uniform(0, STAGGER_SECONDS))
        try:
            return await call
        except AuthsvcError as error:
            return error

    return await asyncio.gather(*map(begin, calls))


def tokens_in(outcomes: Sequence[object], *refusals: type[AuthsvcError]) -> list[Tokens]:
    """Return the tokens; every other outcome must be one of the refusals."""
    tokens = [outcome for outcome in outcomes if isinstance(outcome, Tokens)]
    assert all(isinstance(outcome, (Tokens, *refusals)) for outcome in outcomes), outcomes
    return tokens


async def assert_ended(use_cases: UseCases, *tokens: Tokens) -> None:
    assert not any([await use_cases.is_alive(each) for each in tokens])


async def test_revoke_all_and_login(use_cases: UseCases, rounds: Iterator[int]) -> None:
    alice = await use_cases.create()
    for _ in rounds:
        before = await use_cases.log_in()
        ended, *logins = await race(
            use_cases.users.end_all_sessions(alice.user_id), use_cases.log_in(), use_cases.log_in()
        )
        assert ended is None
        await assert_ended(use_cases, before)
        for login in tokens_in(logins):  # before or after the end of all sessions
            await use_cases.is_alive(login)
        assert await use_cases.is_alive(await use_cases.log_in())
    await use_cases.check_rows()


async def test_revoke_all_and_refresh(use_cases: UseCases, rounds: Iterator[int]) -> None:
    alice = await use_cases.create()
    for _ in rounds:
        before = await use_cases.log_in()
        ended, *refreshed = await race(
            use_cases.users.end_all_sessions(alice.user_id), use_cases.refresh(before), use_cases.refresh(before)
        )
        assert ended is None
        await assert_ended(use_cases, before, *tokens_in(refreshed, InvalidRefreshTokenError))
    await use_cases.check_rows()


async def test_revoke_one_and_refresh(use_cases: UseCases, rounds: Iterator[int]) -> None:
    alice = await use_cases.create()
    bystander = await use_cases.log_in()
    for number in rounds:
        before = await use_cases.log_in()
        if number % 50 == 49:  # well before MAX_REVOKED_SESSIONS entries are in force
            use_cases.clock.advance(hours=1)
        session_id = before.refresh_token.session_id
        revoke = (
            partial(use_cases.sessions.revoke, before.access_token.text),
            partial(use_cases.sessions.revoke, before.refresh_token.text),
            partial(use_cases.sessions.revoke_sessions, alice.user_id, [session_id]),
        )[number % 3]
        ended, *refreshed = await race(revoke(), use_cases.refresh(before), use_cases.refresh(before))
        assert ended is None
        await assert_ended(use_cases, before, *tokens_in(refreshed, InvalidRefreshTokenError))
        bystander = await use_cases.refresh(bystander)
    assert await use_cases.is_alive(bystander)
    await use_cases.check_rows()


async def test_disable_and_login_then_enable(use_cases: UseCases, rounds: Iterator[int]) -> None:
    alice = await use_cases.create()
    for _ in rounds:
        before = await use_cases.log_in()
        disabled, *logins = await race(
            use_cases.users.update_user(alice.user_id, is_active=False), use_cases.log_in(), use_cases.log_in()
        )
        assert isinstance(disabled, User)
        begun = tokens_in(logins, InvalidCredentialsError)
        await assert_ended(use_cases, before, *begun)
        await use_cases.users.update_user(alice.user_id, is_active=True)
        await assert_ended(use_cases, before, *begun)
        assert await use_cases.is_alive(await use_cases.log_in())
    await use_cases.check_rows()


@pytest.fixture
def stronger(use_cases: UseCases) -> Iterator[UseCases]:
    """The use cases at a higher bcrypt cost, so that each first login rehashes."""
    hash_queue = HashQueue(TEST_COST + 1)
    yield use_cases.with_hash_queue(hash_queue)
    hash_queue.close()


async def test_change_password_and_login_with_rehash(
    use_cases: UseCases, stronger: UseCases, rounds: Iterator[int]
) -> None:
    for _ in rounds:
        alice = await use_cases.create()
        before = await use_cases.log_in()
        changed, *logins = await race(
            stronger.change_password(PASSWORD, NEW_PASSWORD), stronger.log_in(), stronger.log_in()
        )
        begun = tokens_in(logins, InvalidCredentialsError)
        if isinstance(changed, Tokens):
            await assert_ended(use_cases, before, *begun)
            assert await use_cases.is_alive(changed)
        else:  # the rehash of a login came first
            assert isinstance(changed, InvalidCredentialsError)
            assert all([await use_cases.is_alive(each) for each in (before, *begun)])
        assert await use_cases.can_log_in(NEW_PASSWORD) is isinstance(changed, Tokens)
        assert await use_cases.can_log_in(PASSWORD) is not isinstance(changed, Tokens)
        await use_cases.users.delete_user(alice.user_id)
    await use_cases.check_rows()


async def test_reset_password_and_login_with_rehash(
    use_cases: UseCases, stronger: UseCases, rounds: Iterator[int]
) -> None:
    for _ in rounds:
        alice = await use_cases.create()
        before = await use_cases.log_in()
        reset, *logins = await race(stronger.users.reset_password(alice.user_id), stronger.log_in(), stronger.log_in())
        assert isinstance(reset, TemporaryPassword)
        await assert_ended(use_cases, before, *tokens_in(logins, InvalidCredentialsError))
        assert not await use_cases.can_log_in(PASSWORD)
        with pytest.raises(PasswordChangeRequiredError):
            await use_cases.log_in(password=reset.text)
        await use_cases.users.delete_user(alice.user_id)
    await use_cases.check_rows()


async def test_two_changes_of_a_password(use_cases: UseCases, rounds: Iterator[int]) -> None:
    await use_cases.create()
    passwords = [f"a password of many words {number}" for number in range(3)]
    current = PASSWORD
    for _ in rounds:
        rivals = [password for password in passwords if password != current]
        outcomes = await race(*(use_cases.change_password(current, rival) for rival in rivals))
        (won,) = tokens_in(outcomes, InvalidCredentialsError)
        assert await use_cases.is_alive(won)
        assert not await use_cases.can_log_in(current)
        current = rivals[outcomes.index(won)]
        assert [await use_cases.can_log_in(rival) for rival in rivals] == [rival == current for rival in rivals]


async def test_delete_and_login_refresh_rehash(use_cases: UseCases, stronger: UseCases, rounds: Iterator[int]) -> None:
    for _ in rounds:
        alice = await use_cases.create()
        before = await use_cases.log_in()
        deleted, *others = await race(
            use_cases.users.delete_user(alice.user_id),
            use_cases.log_in(),
            stronger.log_in(),
            use_cases.refresh(before),
        )
        assert deleted is None
        begun = tokens_in(others, InvalidCredentialsError, InvalidRefreshTokenError)
        await assert_ended(use_cases, before, *begun)
        with pytest.raises(UserNotFoundError):
            await use_cases.users.get_user(alice.user_id)
        await use_cases.check_rows()


async def test_delete_and_every_change(use_cases: UseCases, rounds: Iterator[int]) -> None:
    for _ in rounds:
        alice = await use_cases.create()
        before = await use_cases.log_in()
        users = use_cases.users
        deleted, *others = await race(
            users.delete_user(alice.user_id),
            users.update_user(alice.user_id, role="editor"),
            users.update_user(alice.user_id, email=OTHER_EMAIL),
            users.end_all_sessions(alice.user_id),
            use_cases.sessions.revoke(before.access_token.text),
            use_cases.change_password(PASSWORD, NEW_PASSWORD),
        )
        assert deleted is None
        refusals = (UserNotFoundError, InvalidCredentialsError)
        assert all(isinstance(o, (User, Tokens, type(None), *refusals)) for o in others), others
        with pytest.raises(UserNotFoundError):
            await users.get_user(alice.user_id)
        await use_cases.check_rows()


async def test_creates_of_one_address(use_cases: UseCases, rounds: Iterator[int]) -> None:
    for number in rounds:
        request_id = f"request-{number}"
        outcomes = await race(
            *(use_cases.create() for _ in range(2)), *(use_cases.create(request_id=request_id) for _ in range(3))
        )
        created = {outcome.user_id for outcome in outcomes if isinstance(outcome, User)}
        assert len(created) == 1
        assert all(isinstance(outcome, (User, EmailAlreadyExistsError)) for outcome in outcomes)
        await use_cases.check_rows()
        await use_cases.users.delete_user(*created)


async def test_calls_of_one_request(use_cases: UseCases, rounds: Iterator[int]) -> None:
    for number in rounds:
        outcomes = await race(*(use_cases.create(request_id=f"request-{number}") for _ in range(4)))
        (user_id,) = {outcome.user_id if isinstance(outcome, User) else repr(outcome) for outcome in outcomes}
        await use_cases.check_rows()
        await use_cases.users.delete_user(user_id)


async def test_create_and_move_to_one_address(use_cases: UseCases, rounds: Iterator[int]) -> None:
    for _ in rounds:
        bob = await use_cases.create(OTHER_EMAIL)
        outcomes = await race(use_cases.create(), use_cases.users.update_user(bob.user_id, email=EMAIL))
        (won,) = [outcome for outcome in outcomes if isinstance(outcome, User)]
        assert sum(isinstance(outcome, EmailAlreadyExistsError) for outcome in outcomes) == 1
        owner = await use_cases.store.get_user_by_email(Email(EMAIL))
        assert (owner.user.user_id, owner.is_claimed) == (won.user_id, True)
        await use_cases.check_rows()
        for user_id in {won.user_id, bob.user_id}:
            await use_cases.users.delete_user(user_id)


async def test_two_moves_of_one_user(use_cases: UseCases, rounds: Iterator[int]) -> None:
    alice = await use_cases.create()
    for number in rounds:
        targets = [f"a{number}@example.com", f"b{number}@example.com"]
        outcomes = await race(*(use_cases.users.update_user(alice.user_id, email=target) for target in targets))
        assert all(isinstance(outcome, User) for outcome in outcomes), outcomes
        assert (await use_cases.users.get_user(alice.user_id)).email in targets
        await use_cases.check_rows()


async def test_two_users_swap_addresses(use_cases: UseCases, rounds: Iterator[int]) -> None:
    users = [await use_cases.create(), await use_cases.create(OTHER_EMAIL)]
    for _ in rounds:
        outcomes = await race(
            *(
                use_cases.users.update_user(user.user_id, email=email)
                for user in users
                for email in (EMAIL, OTHER_EMAIL, "third@example.com")
            )
        )
        assert all(isinstance(outcome, (User, EmailAlreadyExistsError)) for outcome in outcomes), outcomes
        await use_cases.check_rows()


@pytest.mark.long_on_dynoxide
async def test_refreshes_of_one_token(use_cases: UseCases, rounds: Iterator[int]) -> None:
    await use_cases.create()
    tokens = await use_cases.log_in()
    for _ in rounds:
        outcomes = tokens_in(await race(*(use_cases.refresh(tokens) for _ in range(20))))
        assert len({outcome.refresh_token.text for outcome in outcomes}) == 1
        assert all([await use_cases.is_active(outcome) for outcome in outcomes[:3]])
        tokens = outcomes[0]
        use_cases.clock.advance(seconds=1)
    assert await use_cases.is_alive(tokens)


async def test_replays_of_an_old_token_and_a_refresh(use_cases: UseCases, rounds: Iterator[int]) -> None:
    await use_cases.create()
    for _ in rounds:
        stolen = await use_cases.log_in()
        current = await use_cases.refresh(await use_cases.refresh(stolen))
        outcomes = await race(use_cases.refresh(stolen), use_cases.refresh(current), use_cases.refresh(stolen))
        assert all(isinstance(outcomes[at], InvalidRefreshTokenError) for at in (0, 2))
        await assert_ended(use_cases, stolen, current, *tokens_in(outcomes, InvalidRefreshTokenError))
        use_cases.clock.advance(minutes=1)
