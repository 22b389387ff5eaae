"""Importing users from JSON lines."""

import json
from pathlib import Path

import pytest

from authsvc.errors import OperatorError, StoreUnavailableError
from authsvc.models import User, utc_now
from authsvc.passwords.hash_queue import HashQueue
from authsvc.stores.interface import Store
from authsvc.usecases.user_import import import_users
from authsvc.usecases.users import Users, iterate_users
from tests.support import TEST_COST

HASH = "$2y$10$" + "." * 53
FORMAT = "must be bcrypt or bcrypt-sha256 of cost 4 to 16"


@pytest.fixture
def accounts(store: Store) -> Users:
    return Users(store, HashQueue(TEST_COST), utc_now, 15)


@pytest.fixture
def reported() -> list[str]:
    """What the import says on its way."""
    return []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users.jsonl"


def line(email: str = "alice@example.com", **members: object) -> str:
    return json.dumps({"email": email, "password_hash": HASH, **members})


def write(file: Path, *lines: str | bytes) -> None:
    file.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))


async def test_each_line_makes_a_user(accounts: Users, store: Store, file: Path, reported: list[str]) -> None:
    lines = [line("Alice@Example.com"), "", line("bob@example.com", role="admin"), "  "]
    write(file, b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    result = await import_users(accounts, file, reported.append)
    assert str(result) == "2 created, 0 already there, 0 wrong"
    users = sorted([user async for user in iterate_users(store)], key=lambda user: user.email)
    assert [(u.email, u.role, u.password_hash) for u in users] == [
        ("alice@example.com", "user", HASH),
        ("bob@example.com", "admin", HASH),
    ]
    assert reported == []


async def test_a_wrong_line_is_reported_and_the_others_are_imported(
    accounts: Users, file: Path, reported: list[str]
) -> None:
    no_object = "is not a JSON object in UTF-8"
    wrong = [
        (b"{", no_object),
        (b"[]", no_object),
        (b"null", no_object),
        (b'"\xff"', no_object),
        (b"[" * 100_000, no_object),
        (line(name="Alice").encode(), "'name' is not one of email, role, password_hash"),
        (b'{"role": "user", "role": "admin"}', "'role' is there twice"),
        (b"{}", "email: must be a string"),
        (line(email=1).encode(), "email: must be a string"),  # type: ignore[arg-type]
        (line(role=None).encode(), "role: must be a string"),
        (b'{"email": "a@example.com"}', "password_hash: must be a string"),
        (line(password_hash=None).encode(), "password_hash: must be a string"),
        (line(password_hash="secret").encode(), f"password_hash: is in no known format: {FORMAT}"),
        (line("c@example.com", password_hash="").encode(), f"password_hash: is empty: {FORMAT}"),
        (line("d@example.com", password_hash="$argon2id$v=19$m=1$a$b").encode(), f"password_hash: is argon2: {FORMAT}"),
        (line("nobody").encode(), "email: must have exactly one @, with text on both sides"),
        (
            line("a@localhost").encode(),
            "email: must have a domain name with a period after the @, not a host name alone",
        ),
        (line("\ud800@example.com").encode(), "email: must have no white space or control characters"),
        (line("b@example.com", role="Ädmin").encode(), "role: must match [a-z][a-z0-9_-]{0,62}"),
    ]
    write(file, *(text for text, _ in wrong), line("good@example.com"))
    result = await import_users(accounts, file, reported.append)
    assert str(result) == f"1 created, 0 already there, {len(wrong)} wrong"
    assert sorted(reported) == sorted(f"line {n}: {problem}" for n, (_, problem) in enumerate(wrong, start=1))


async def test_the_first_line_of_an_address_wins(
    accounts: Users, store: Store, file: Path, reported: list[str]
) -> None:
    write(file, line(role="first"), line("ALICE@example.com", role="second"))
    result = await import_users(accounts, file, reported.append)
    assert (result.created, result.wrong) == (1, 1)
    assert reported == ["line 2: email: is the same as on line 1"]
    assert [user.role async for user in iterate_users(store)] == ["first"]


async def test_one_mailbox_in_two_spellings_is_one_user(
    accounts: Users, store: Store, file: Path, reported: list[str]
) -> None:
    write(file, line("josef@exämple.de"), line("josef@xn--exmple-cua.de"), line("JOSEF@exämple。de"))
    result = await import_users(accounts, file, reported.append)
    assert (result.created, result.wrong) == (1, 2)
    assert reported == [f"line {number}: email: is the same as on line 1" for number in (2, 3)]
    write(file, line("josef@xn--exmple-cua.de"))
    assert (await import_users(accounts, file, reported.append)).already_there == 1
    assert [user.email async for user in iterate_users(store)] == ["josef@exämple.de"]


@pytest.mark.parametrize(
    "text", [f"{HASH}    ", "{bcrypt}" + HASH, HASH[:-1] + "/"], ids=["blanks", "prefix", "padding"]
)
async def test_a_hash_is_stored_in_its_canonical_form(
    accounts: Users, store: Store, file: Path, reported: list[str], text: str
) -> None:
    write(file, line(password_hash=text))
    await import_users(accounts, file, reported.append)
    assert [user.password_hash async for user in iterate_users(store)] == [HASH]


async def test_again_does_no_harm(accounts: Users, store: Store, file: Path, reported: list[str]) -> None:
    write(file, *(line(f"user{n}@example.com") for n in range(100)))
    await import_users(accounts, file, reported.append)
    before = [user async for user in iterate_users(store)]
    result = await import_users(accounts, file, reported.append)
    assert str(result) == "0 created, 100 already there, 0 wrong"
    assert [user async for user in iterate_users(store)] == before


async def test_progress_is_reported(accounts: Users, file: Path, reported: list[str]) -> None:
    write(file, *(line(f"user{n}@example.com") for n in range(5)))
    await import_users(accounts, file, reported.append, concurrency=1, progress_lines=2)
    assert reported == [
        "2 lines: 2 created, 0 already there, 0 wrong",
        "4 lines: 4 created, 0 already there, 0 wrong",
    ]


async def test_an_outage_stops_it_and_it_can_be_taken_up_again(
    accounts: Users, store: Store, file: Path, reported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file, *(line(f"user{n}@example.com") for n in range(50)))
    create, made = store.create_user, 0

    async def fail_after_ten(user: User, *args: object) -> User:
        nonlocal made
        made += 1
        if made > 10:
            raise StoreUnavailableError("played")
        return await create(user, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(store, "create_user", fail_after_ten)
        with pytest.raises(StoreUnavailableError, match="played"):
            await import_users(accounts, file, reported.append)
    assert len(reported) == 1
    assert reported[0].startswith("stopped: ")
    assert reported[0].endswith(" wrong; the file may be imported again")
    result = await import_users(accounts, file, reported.append)
    assert result.created >= 40
    assert (result.lines, result.wrong) == (50, 0)
    assert len([user async for user in iterate_users(store)]) == 50


async def test_a_file_that_cannot_be_read_is_reported(accounts: Users, file: Path, reported: list[str]) -> None:
    with pytest.raises(OperatorError, match=r"users\.jsonl: cannot be read: No such file or directory$"):
        await import_users(accounts, file, reported.append)
