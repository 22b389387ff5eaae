"""Random sequences of use cases beside a model of what they mean; both agree after every step on every token."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from authsvc.errors import (
    AuthsvcError,
    EmailAlreadyExistsError,
    InvalidCredentialsError,
    InvalidRefreshTokenError,
    PasswordChangeRequiredError,
    PasswordRejectedError,
    UserNotFoundError,
)
from authsvc.models import LEEWAY, Email
from authsvc.passwords.hash_queue import HashQueue
from authsvc.stores.dynamodb.store import open_dynamodb_store
from authsvc.stores.interface import Store
from authsvc.stores.sqlite import open_sqlite_store
from authsvc.usecases.sessions import Tokens
from authsvc.usecases.users import iterate_users
from authsvc.usecases.validation import ActiveToken, Check
from tests.faults import WRITES, Conflict, FaultyProxy, Reset
from tests.stores.contract.use_cases import ACCESS_TTL, IDLE_TTL, MAX_TTL, REFRESH_GRACE, UseCases, key_ring
from tests.support import PASSWORD, PATIENT_LIMITS, TEST_COST, WITNESS, FakeClock, use_engine

PASSWORDS = (PASSWORD, "another password of words", "a third password of words")
SPANS = tuple(
    timedelta(**span)
    for span in ({"seconds": 4}, {"seconds": 61}, {"minutes": 14}, {"minutes": 16}, {"days": 6}, {"days": 25})
)
T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


@dataclass
class Person:
    """A user, as the model knows it."""

    user_id: str
    email: str
    password: str = PASSWORD
    role: str = "user"
    is_active: bool = True
    exists: bool = True
    temporary_until: datetime | None = None

    def refusal(self, password: str, now: datetime) -> type[AuthsvcError] | None:
        """What a login of this user gives other than tokens."""
        is_expired = self.temporary_until is not None and now >= self.temporary_until
        if password != self.password or not self.is_active or is_expired:
            return InvalidCredentialsError
        return None if self.temporary_until is None else PasswordChangeRequiredError


@dataclass
class Login:
    """A session, as the model knows it."""

    person: Person
    session_id: str
    max_expire_time: datetime
    has_ended_session: bool = False
    expire_time: datetime = field(init=False)
    rotate_time: datetime = field(init=False)
    issued: list[Tokens] = field(default_factory=list)
    chain: list[str] = field(default_factory=list)

    def lives(self) -> bool:
        return self.person.exists and self.person.is_active and not self.has_ended_session


class Model(RuleBasedStateMachine):
    """Users of three addresses, their passwords, sessions and tokens."""

    numbers = iter(range(1_000_000))

    def __init__(self, use_cases: UseCases, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        super().__init__()
        self.use_cases = use_cases
        self.run = run
        number = next(self.numbers)
        self.emails = [f"user{n}-{number}@example.com" for n in range(3)]
        self.people: list[Person] = []
        self.logins: list[Login] = []

    @property
    def now(self) -> datetime:
        return self.use_cases.clock()

    def owner(self, email: str) -> Person | None:
        """Return the one user of an address."""
        owners = [person for person in self.people if person.exists and person.email == email]
        assert len(owners) <= 1
        return owners[0] if owners else None

    def do(self, call: Coroutine[Any, Any, Any], refusal: type[AuthsvcError] | None = None) -> Any:
        """Make a call, which is refused exactly where the model says so."""
        if refusal is None:
            return self.run(call)
        with pytest.raises(refusal):
            self.run(call)
        return None

    def end_all(self, person: Person) -> None:
        for login in self.logins:
            login.has_ended_session |= login.person is person

    def has_begun(self, person: Person, tokens: Tokens) -> None:
        login = Login(person, tokens.refresh_token.session_id, self.now + MAX_TTL)
        login.rotate_time = self.now - timedelta(days=1)
        self.logins.append(login)
        self.has_issued(login, tokens)

    def has_issued(self, login: Login, tokens: Tokens) -> None:
        WITNESS.hide(tokens.access_token.text, tokens.refresh_token.text)
        assert tokens.access_token.expire_time <= min(self.now + ACCESS_TTL, login.max_expire_time)
        login.issued.append(tokens)
        login.chain.append(tokens.refresh_token.text)
        login.expire_time = min(self.now + IDLE_TTL, login.max_expire_time)

    @initialize()
    def begin_with_a_login(self) -> None:
        self.create(0)
        self.log_in(0, None)

    @rule(at=st.integers(0, 2))
    def create(self, at: int) -> None:
        email = self.emails[at]
        user = self.do(self.use_cases.create(email), EmailAlreadyExistsError if self.owner(email) else None)
        if user is not None:
            self.people.append(Person(user.user_id, email))

    @rule(at=st.integers(0, 2))
    def create_with_temporary_password(self, at: int) -> None:
        email = self.emails[at]
        call = self.use_cases.users.create_user_with_temporary_password(email=email, role="")
        created = self.do(call, EmailAlreadyExistsError if self.owner(email) else None)
        if created is not None:
            user, temporary = created
            WITNESS.hide(temporary.text)
            self.people.append(Person(user.user_id, email, temporary.text, temporary_until=temporary.expire_time))

    @rule(at=st.integers(0, 2), wrong=st.sampled_from((None, None, *PASSWORDS)))
    def log_in(self, at: int, wrong: str | None) -> None:
        person = self.owner(self.emails[at])
        password = wrong or (person.password if person else PASSWORD)
        refusal = InvalidCredentialsError if person is None else person.refusal(password, self.now)
        tokens = self.do(self.use_cases.log_in(self.emails[at], password), refusal)
        if person is not None and tokens is not None:
            self.has_begun(person, tokens)

    @rule(at=st.integers(0, 2), wrong=st.sampled_from((None, None, *PASSWORDS)), new=st.sampled_from(PASSWORDS))
    def change_password(self, at: int, wrong: str | None, new: str) -> None:
        person = self.owner(self.emails[at])
        password = wrong or (person.password if person else PASSWORD)
        refusal = InvalidCredentialsError if person is None else person.refusal(password, self.now)
        if refusal is PasswordChangeRequiredError:
            refusal = None
        if new == password:
            refusal = PasswordRejectedError
        tokens = self.do(self.use_cases.change_password(password, new, self.emails[at]), refusal)
        if person is not None and tokens is not None:
            self.end_all(person)
            person.password, person.temporary_until = new, None
            self.has_begun(person, tokens)

    @rule(at=st.integers(0, 99), age=st.sampled_from((0, 0, 0, 1, 1, 2)))
    def refresh(self, at: int, age: int) -> None:
        login = self.logins[at % len(self.logins)]
        age = min(age, len(login.chain) - 1)
        call = self.use_cases.sessions.refresh(login.chain[-1 - age], "")
        is_good = login.lives() and self.now < login.expire_time
        is_reuse = age > 1 or (age == 1 and self.now - login.rotate_time > REFRESH_GRACE)
        tokens = self.do(call, InvalidRefreshTokenError if is_reuse or not is_good else None)
        if tokens is None:
            login.has_ended_session |= is_good  # and then the token was a stolen one
        elif age == 0:
            login.rotate_time = self.now
            self.has_issued(login, tokens)
        else:
            assert tokens.refresh_token.text == login.chain[-1]
            login.issued.append(tokens)

    @rule(at=st.integers(0, 99), age=st.integers(0, 3), by=st.sampled_from(("access token", "refresh token", "id")))
    def revoke_one(self, at: int, age: int, by: str) -> None:
        login = self.logins[at % len(self.logins)]
        refusal = None
        if by == "access token":
            call = self.use_cases.sessions.revoke(login.issued[-1 - age % len(login.issued)].access_token.text)
        elif by == "refresh token":
            call = self.use_cases.sessions.revoke(login.chain[-1 - age % len(login.chain)])
        else:
            call = self.use_cases.sessions.revoke_sessions(login.person.user_id, [login.session_id])
            refusal = None if login.person.exists else UserNotFoundError
        self.do(call, refusal)
        login.has_ended_session = True

    def change(
        self, at: int, call: Callable[[str], Coroutine[Any, Any, Any]], refusal: type[AuthsvcError] | None = None
    ) -> tuple[Person, Any]:
        """Change some user; one who is gone cannot be changed."""
        person = self.people[at % len(self.people)]
        return person, self.do(call(person.user_id), refusal if person.exists else UserNotFoundError)

    @rule(at=st.integers(0, 99))
    def revoke_all(self, at: int) -> None:
        person, _ = self.change(at, self.use_cases.users.end_all_sessions)
        self.end_all(person)

    @rule(at=st.integers(0, 99), is_active=st.booleans())
    def set_active(self, at: int, is_active: bool) -> None:  # noqa: FBT001 - Hypothesis passes it by name
        person, _ = self.change(at, lambda user_id: self.use_cases.users.update_user(user_id, is_active=is_active))
        person.is_active = is_active
        if not is_active:
            self.end_all(person)

    @rule(at=st.integers(0, 99), role=st.sampled_from(("user", "editor")))
    def set_role(self, at: int, role: str) -> None:
        person, _ = self.change(at, lambda user_id: self.use_cases.users.update_user(user_id, role=role))
        person.role = role

    @rule(at=st.integers(0, 99), to=st.integers(0, 2))
    def move(self, at: int, to: int) -> None:
        email = self.emails[to]
        owner = self.owner(email)
        is_taken = owner is not None and owner is not self.people[at % len(self.people)]
        person, user = self.change(
            at,
            lambda user_id: self.use_cases.users.update_user(user_id, email=email),
            EmailAlreadyExistsError if is_taken else None,
        )
        if user is not None:
            person.email = email

    @rule(at=st.integers(0, 99))
    def reset_password(self, at: int) -> None:
        person, temporary = self.change(at, self.use_cases.users.reset_password)
        if temporary is not None:
            WITNESS.hide(temporary.text)
            self.end_all(person)
            person.password, person.temporary_until = temporary.text, temporary.expire_time

    @rule(at=st.integers(0, 99))
    def delete(self, at: int) -> None:
        person, _ = self.change(at, self.use_cases.users.delete_user)
        person.exists = False

    @rule(span=st.sampled_from(SPANS))
    def advance(self, span: timedelta) -> None:
        self.use_cases.clock.now += span

    @invariant()
    def agree(self) -> None:
        self.run(self.compare())

    async def compare(self) -> None:
        checks = [self.compare_token(login, tokens) for login in self.logins for tokens in login.issued]
        addresses = map(self.compare_address, self.emails)
        await asyncio.gather(*checks, *addresses, *map(self.compare_person, self.people))

    async def compare_token(self, login: Login, tokens: Tokens) -> None:
        validation = await self.use_cases.validations.validate(Check(tokens.access_token.text))
        is_active = login.lives() and self.now < tokens.access_token.expire_time + LEEWAY
        assert isinstance(validation.outcome, ActiveToken) is is_active, (validation.outcome, login)

    async def compare_address(self, email: str) -> None:
        owner = self.owner(email)
        if owner is None:
            with pytest.raises(UserNotFoundError):
                await self.use_cases.users.get_user_by_email(email)
            return
        assert (await self.use_cases.users.get_user_by_email(email)).user_id == owner.user_id

    async def compare_person(self, person: Person) -> None:
        if not person.exists:
            with pytest.raises(UserNotFoundError):
                await self.use_cases.users.get_user(person.user_id)
            return
        user = await self.use_cases.users.get_user(person.user_id)
        assert (user.email, user.role, user.is_active) == (person.email, person.role, person.is_active)
        sessions, _ = await self.use_cases.sessions.list_sessions(person.user_id, 0, "")
        living = [login for login in self.logins if login.person is person and not login.has_ended_session]
        expected = {login.session_id for login in living if self.now < login.expire_time}
        assert {session.session_id for session in sessions} == expected

    async def compare_list(self) -> None:
        listed = [user.user_id async for user in iterate_users(self.use_cases.store)]
        assert len(listed) == len(set(listed))
        here = {person.user_id for person in self.people if person.exists}
        gone = {person.user_id for person in self.people} - here
        assert here <= set(listed)
        assert not gone & set(listed)

    def teardown(self) -> None:
        self.run(self.compare_list())
        for email in self.emails:
            if (person := self.owner(email)) is not None:
                owner = self.run(self.use_cases.store.get_user_by_email(Email(email)))
                assert (owner.user.user_id, owner.is_claimed) == (person.user_id, True)


async def opened(name: str, stack: AsyncExitStack, request: pytest.FixtureRequest, folder: Path, prefix: str) -> Store:
    store: Store
    if name == "sqlite":
        store = await stack.enter_async_context(open_sqlite_store(folder / "authsvc.db"))
    else:
        engine = request.getfixturevalue("dynoxide")
        proxy = await stack.enter_async_context(FaultyProxy(engine.endpoint_url))
        use_engine(engine, request.getfixturevalue("monkeypatch"), proxy.endpoint_url)
        store = await stack.enter_async_context(open_dynamodb_store(prefix, timeouts=PATIENT_LIMITS.dynamodb))
        await store.create_tables()
        stack.enter_context(proxy.fault(Reset(applied=True), operations=WRITES, probability=0.05))
        stack.enter_context(proxy.fault(Conflict(), operations={"TransactWriteItems"}, probability=0.05))
    await store.create_tables()
    return store


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("name", "examples"), [("sqlite", 25), pytest.param("dynoxide", 12, marks=pytest.mark.engines)]
)
def test_the_service_agrees_with_the_model(
    name: str, examples: int, request: pytest.FixtureRequest, tmp_path: Path, table_prefix: str, signing_keys: Path
) -> None:
    """On DynamoDB with responses that get lost and transactions that conflict."""
    clock = FakeClock()
    with asyncio.Runner() as runner, closing(HashQueue(TEST_COST)) as hashing:
        stack = AsyncExitStack()
        try:
            store = runner.run(opened(name, stack, request, tmp_path, table_prefix))
            use_cases = UseCases(store, key_ring(signing_keys, clock), clock, hashing, None)
            machine: Any = lambda: Model(use_cases, runner.run)  # noqa: E731 - any factory will do
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=25,
                    derandomize=True,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(stack.aclose())
