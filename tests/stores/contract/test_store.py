"""The contract of every store, on each engine."""

import asyncio
import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from authsvc.errors import EmailAlreadyExistsError, InvalidFieldError, UserChangedError, UserNotFoundError
from authsvc.models import Email, Session, User, revocation_entry
from authsvc.stores.interface import MAX_REVOKED_SESSIONS, REQUEST_ID_TTL, EmailOwner, Store

NOW = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
SECOND = NOW.replace(microsecond=0)
DIGEST = b"d" * 32
_numbers = itertools.count()


def new_user(email: str = "alice@example.com", **changes: object) -> User:
    user = User(
        user_id=f"user-{next(_numbers)}",
        email=email,
        role="user",
        password_hash="$2b$04$" + "u" * 53,
        create_time=NOW,
        update_time=NOW,
    )
    return replace(user, **changes)  # type: ignore[arg-type]


def new_session(user: User, session_id: str = "session") -> Session:
    return Session(
        user_id=user.user_id,
        session_id=session_id,
        token_generation=user.token_generation,
        session_part_sha256=b"s" * 32,
        rotating_part_sha256=b"r" * 32,
        create_time=NOW,
        expire_time=SECOND + timedelta(days=7),
        max_expire_time=SECOND + timedelta(days=30),
        last_token_expire_time=SECOND + timedelta(minutes=15),
    )


async def test_a_created_user_is_found_by_id_and_by_address(store: Store) -> None:
    user = new_user()
    assert await store.create_user(user, NOW) == user
    assert await store.get_user(user.user_id) == user
    assert await store.get_user_by_email(Email(user.email)) == EmailOwner(user, is_claimed=True)


async def test_every_attribute_of_a_user_is_kept(store: Store) -> None:
    user = new_user(
        is_active=False,
        token_generation=7,
        revoked_sessions=frozenset({"a:1", "b:2"}),
        password_change_required=True,
        temporary_password_expire_time=NOW.replace(microsecond=0),
        role="ops_2-x",
        password_hash=None,
    )
    await store.create_user(user, NOW)
    assert await store.get_user(user.user_id) == user


async def test_an_unknown_user_is_not_found(store: Store) -> None:
    with pytest.raises(UserNotFoundError):
        await store.get_user("missing")
    with pytest.raises(UserNotFoundError):
        await store.get_user_by_email(Email("missing@example.com", "Missing@example.com"))


async def test_an_address_is_given_once(store: Store) -> None:
    first = await store.create_user(new_user(), NOW)
    with pytest.raises(EmailAlreadyExistsError):
        await store.create_user(new_user(), NOW)
    assert (await store.get_user_by_email(Email(first.email))).user == first


async def test_of_fifty_concurrent_creates_of_one_address_one_wins(concurrent_store: Store) -> None:
    """ASVS-15.4.2."""
    users = [new_user() for _ in range(50)]
    outcomes = await asyncio.gather(
        *(concurrent_store.create_user(user, NOW) for user in users), return_exceptions=True
    )
    winners = [outcome for outcome in outcomes if isinstance(outcome, User)]
    losers = [outcome for outcome in outcomes if isinstance(outcome, EmailAlreadyExistsError)]
    assert (len(winners), len(losers)) == (1, 49)
    page = await concurrent_store.list_users(100, None)
    assert list(page.users) == winners


async def test_the_same_request_again_gives_the_same_user(store: Store) -> None:
    first = await store.create_user(new_user(), NOW, DIGEST)
    again = await store.create_user(new_user(), NOW + timedelta(hours=23), DIGEST)
    assert again == first


async def test_a_request_id_is_good_for_one_address(store: Store) -> None:
    await store.create_user(new_user(), NOW, DIGEST)
    with pytest.raises(InvalidFieldError) as caught:
        await store.create_user(new_user("bob@example.com"), NOW, DIGEST)
    assert caught.value.field == "request_id"
    with pytest.raises(UserNotFoundError):
        await store.get_user_by_email(Email("bob@example.com"))


async def test_a_request_id_is_forgotten_after_a_day(store: Store) -> None:
    """F9: regardless of whether the engine has deleted the item by then."""
    await store.create_user(new_user(), NOW, DIGEST)
    later = NOW + REQUEST_ID_TTL + timedelta(seconds=1)
    bob = await store.create_user(new_user("bob@example.com"), later, DIGEST)
    assert await store.create_user(new_user("bob@example.com"), later, DIGEST) == bob


async def test_concurrent_calls_of_one_request_make_one_user(concurrent_store: Store) -> None:
    outcomes = await asyncio.gather(*(concurrent_store.create_user(new_user(), NOW, DIGEST) for _ in range(20)))
    assert len({user.user_id for user in outcomes}) == 1


async def test_a_user_changes_only_as_expected(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    changes = {"role": "editor", "is_active": False, "password_hash": "new", "token_generation": 1}
    for name, value in changes.items():
        stale = replace(user, **{name: value})  # type: ignore[arg-type]
        with pytest.raises(UserChangedError):
            await store.update_user(stale, replace(stale, role="other"))
    assert await store.get_user(user.user_id) == user

    new = replace(user, **changes, update_time=NOW + timedelta(seconds=1))  # type: ignore[arg-type]
    await store.update_user(user, new)
    assert await store.get_user(user.user_id) == new


async def test_what_is_none_is_taken_away(store: Store) -> None:
    user = await store.create_user(new_user(temporary_password_expire_time=NOW.replace(microsecond=0)), NOW)
    new = replace(user, password_hash=None, temporary_password_expire_time=None)
    await store.update_user(user, new)
    assert await store.get_user(user.user_id) == new


async def test_a_change_of_nobody_makes_no_ghost(store: Store) -> None:
    missing = new_user()
    with pytest.raises(UserChangedError):
        await store.update_user(missing, replace(missing, role="editor"))
    with pytest.raises(UserNotFoundError):
        await store.get_user(missing.user_id)


async def test_of_concurrent_changes_one_wins(concurrent_store: Store) -> None:
    user = await concurrent_store.create_user(new_user(), NOW)
    rivals = [replace(user, password_hash=f"new-{n}") for n in range(20)]
    outcomes = await asyncio.gather(
        *(concurrent_store.update_user(user, rival) for rival in rivals), return_exceptions=True
    )
    (winner,) = [rival for rival, outcome in zip(rivals, outcomes, strict=True) if outcome is None]
    assert all(isinstance(outcome, UserChangedError) for outcome in outcomes if outcome is not None)
    assert await concurrent_store.get_user(user.user_id) == winner


async def test_an_address_moves_with_its_claim(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    moved = replace(user, email="moved@example.com")
    await store.update_user(user, moved)
    assert await store.get_user_by_email(Email(moved.email)) == EmailOwner(moved, is_claimed=True)
    with pytest.raises(UserNotFoundError):
        await store.get_user_by_email(Email(user.email))
    await store.create_user(new_user(), NOW)


async def test_an_address_does_not_move_onto_another_users(store: Store) -> None:
    alice, bob = (
        await store.create_user(new_user(), NOW),
        await store.create_user(new_user("bob@example.com"), NOW),
    )
    with pytest.raises(EmailAlreadyExistsError):
        await store.update_user(bob, replace(bob, email=alice.email))
    assert await store.get_user(bob.user_id) == bob
    assert (await store.get_user_by_email(Email(bob.email))).user == bob


async def test_a_deleted_user_is_gone_with_address_and_sessions(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    await store.create_session(new_session(user))
    with pytest.raises(UserChangedError):
        await store.delete_user(replace(user, email="other@example.com"))
    await store.delete_user(user)
    await store.delete_user(user)
    with pytest.raises(UserNotFoundError):
        await store.get_user(user.user_id)
    assert await store.get_session(user.user_id, "session") is None
    again = await store.create_user(new_user(), NOW)
    assert (await store.get_user_by_email(Email(user.email))).user == again


def rotated(session: Session, number: int) -> Session:
    return replace(
        session,
        rotating_part_sha256=bytes([number]) * 32,
        previous_part_sha256=session.rotating_part_sha256,
        rotation_nonce=bytes([number]) * 16,
        last_refresh_time=NOW + timedelta(seconds=number),
    )


async def test_a_session_is_kept_as_it_is(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    session = replace(new_session(user), client_label="laptop", client_address="192.0.2.7")
    await store.create_session(session)
    assert await store.get_session(user.user_id, session.session_id) == session
    assert await store.get_session(user.user_id, "other") is None
    assert await store.rotate_refresh_token(session, rotated(session, 1))
    assert await store.get_session(user.user_id, session.session_id) == rotated(session, 1)


async def test_a_stale_rotation_changes_nothing(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    session = new_session(user)
    await store.create_session(session)
    assert await store.rotate_refresh_token(session, rotated(session, 1))
    assert not await store.rotate_refresh_token(session, rotated(session, 2))
    assert await store.get_session(user.user_id, session.session_id) == rotated(session, 1)
    assert not await store.rotate_refresh_token(new_session(user, "other"), rotated(session, 3))


async def test_of_concurrent_rotations_one_wins(concurrent_store: Store) -> None:
    user = await concurrent_store.create_user(new_user(), NOW)
    session = new_session(user)
    await concurrent_store.create_session(session)
    outcomes = await asyncio.gather(
        *(concurrent_store.rotate_refresh_token(session, rotated(session, n)) for n in range(20))
    )
    assert outcomes.count(True) == 1
    kept = await concurrent_store.get_session(user.user_id, session.session_id)
    assert kept == rotated(session, outcomes.index(True))


async def test_an_ended_session_stays_ended(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    first, second = new_session(user, "first"), new_session(user, "second")
    for session in (first, second):
        await store.create_session(session)
    assert await store.end_session(user.user_id, "first", NOW, None)
    assert not await store.end_session(user.user_id, "first", NOW, None)
    assert not await store.end_session(user.user_id, "unknown", NOW, None)
    after = await store.get_user(user.user_id)
    assert after.revoked_sessions == {revocation_entry("first", first.last_token_expire_time)}
    assert after.has_revoked("first")
    assert not after.has_revoked("second")
    ended = await store.get_session(user.user_id, "first")
    assert ended == replace(first, end_time=NOW)
    assert not await store.rotate_refresh_token(ended, rotated(ended, 1))
    assert await store.rotate_refresh_token(second, rotated(second, 1))


async def test_a_session_without_a_row_is_revoked_until_its_known_end(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    for _ in range(2):
        await store.end_session(user.user_id, "gone", NOW, NOW + timedelta(hours=1))
    assert (await store.get_user(user.user_id)).revoked_sessions == {revocation_entry("gone", NOW + timedelta(hours=1))}
    assert not await store.end_session("missing", "gone", NOW, NOW + timedelta(hours=1))


async def test_over_revocations_are_tidied_up(store: Store) -> None:
    expired, odd = revocation_entry("expired", NOW - timedelta(hours=1)), "odd"
    user = await store.create_user(new_user(revoked_sessions=frozenset({expired, odd})), NOW)
    session = new_session(user)
    await store.create_session(session)
    await store.end_session(user.user_id, "session", NOW, None)
    kept = {odd, revocation_entry("session", session.last_token_expire_time)}
    assert (await store.get_user(user.user_id)).revoked_sessions == kept


async def test_the_hundredth_revocation_ends_every_session(store: Store) -> None:
    entries = frozenset(revocation_entry(f"s{n}", NOW + timedelta(hours=1)) for n in range(MAX_REVOKED_SESSIONS))
    user = await store.create_user(new_user(revoked_sessions=entries), NOW)
    session = new_session(user)
    await store.create_session(session)
    await store.end_session(user.user_id, "session", NOW, None)
    after = await store.get_user(user.user_id)
    assert (after.token_generation, after.revoked_sessions) == (user.token_generation + 1, frozenset())
    assert after.has_ended_session("session", session)


async def test_concurrent_endings_are_all_kept(concurrent_store: Store) -> None:
    user = await concurrent_store.create_user(new_user(), NOW)
    for number in range(20):
        await concurrent_store.create_session(new_session(user, f"s{number}"))
    await asyncio.gather(*(concurrent_store.end_session(user.user_id, f"s{n}", NOW, None) for n in range(20)))
    after = await concurrent_store.get_user(user.user_id)
    assert all(after.has_revoked(f"s{number}") for number in range(20))


async def test_sessions_are_listed_page_by_page(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    made = {f"s{number}" for number in range(7)}
    for session_id in made:
        await store.create_session(new_session(user, session_id))
    listed: list[str] = []
    last_session_id = None
    while True:
        page = await store.list_sessions(user.user_id, 3, last_session_id)
        listed += [session.session_id for session in page.sessions]
        last_session_id = page.last_session_id
        if last_session_id is None:
            break
    assert sorted(listed) == sorted(made)


async def test_sessions_are_kept_side_by_side(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    for session_id in ("first", "second"):
        await store.create_session(new_session(user, session_id))


async def test_a_claimed_address_stays_with_its_user(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    assert await store.claim_email(user)
    assert not await store.claim_email(new_user())


async def test_every_user_is_listed_once_page_by_page(store: Store) -> None:
    made = {(await store.create_user(new_user(f"user{n}@example.com"), NOW)).user_id for n in range(25)}
    listed: list[str] = []
    last_user_id = None
    while True:
        page = await store.list_users(10, last_user_id)
        assert len(page.users) <= 10
        listed += [user.user_id for user in page.users]
        if page.last_user_id is None:
            break
        last_user_id = page.last_user_id
    assert sorted(listed) == sorted(made)


async def test_making_the_tables_again_changes_nothing(store: Store) -> None:
    user = await store.create_user(new_user(), NOW)
    assert await store.create_tables() == []
    assert await store.get_user(user.user_id) == user


async def test_fresh_tables_are_found_right(store: Store) -> None:
    assert [str(finding) for finding in await store.check_tables() if finding.problem] == []


async def test_a_store_answers_a_ping(store: Store) -> None:
    store_time = await store.ping()
    assert store_time is None or abs(store_time - datetime.now(UTC)) < timedelta(minutes=1)
