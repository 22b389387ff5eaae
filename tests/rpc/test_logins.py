"""Authenticate: who can log in, with which password, and which session results."""

from datetime import UTC, datetime

import pytest

from authsvc.config import ServeSettings
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.rpc.conftest import Shared
from tests.rpc.test_foreign_rows import hash_of
from tests.support import PASSWORD, WITNESS, Client, FakeClock, failure


async def test_two_logins_are_two_sessions(client: Client) -> None:
    """ASVS-7.2.4."""
    await client.create_user()
    first, second = (await client.log_in()).tokens, (await client.log_in()).tokens
    assert first.session_id != second.session_id
    assert first.refresh_token != second.refresh_token
    answers = [await client.validate(tokens.access_token) for tokens in (first, second)]
    assert answers[0].token_id != answers[1].token_id


async def test_tokens_say_when_they_expire(client: Client, clock: FakeClock, settings: ServeSettings) -> None:
    await client.create_user()
    clock.advance(seconds=0.75)
    tokens = (await client.log_in()).tokens
    begin = clock.now.replace(microsecond=0)
    assert tokens.access_token_expire_time.ToDatetime(UTC) == begin + settings.access_token_ttl
    assert tokens.refresh_token_expire_time.ToDatetime(UTC) == begin + settings.session_idle_ttl


async def test_a_session_is_stored_in_its_final_form_without_its_secrets(shared: Shared) -> None:
    await shared.client.create_user()
    login = await shared.client.log_in(client_address="2001:DB8::7", client_label="laptop")
    rows = shared.tables.rows(shared.tables.sessions)
    (row,) = [row for row in rows if row["session_id"]["S"] == login.tokens.session_id]
    assert {name: next(iter(value)) for name, value in row.items()} == {
        "user_id": "S",
        "session_id": "S",
        "token_generation": "N",
        "session_part_sha256": "B",
        "rotating_part_sha256": "B",
        "created_at": "S",
        "max_expires_at": "N",
        "last_token_expires_at": "N",
        "client_label": "S",
        "client_address": "S",
        "expires_at": "N",
    }
    assert row["client_address"]["S"] == "2001:db8::7"
    expire_time = login.tokens.refresh_token_expire_time.ToDatetime(UTC)
    assert datetime.fromtimestamp(int(row["expires_at"]["N"]), UTC) == expire_time
    prefix, session_id, *parts = login.tokens.refresh_token.split(".")
    assert prefix.startswith("rt_")
    assert session_id == login.tokens.session_id
    assert [len(part) for part in parts] == [22, 43]
    assert not any(part in str(row) for part in parts)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"email": ""}, "email"),
        ({"email": "@example.com"}, "email"),
        ({"email": "x" * 300 + "@example.com"}, "email"),
        ({"password": ""}, "password"),
        ({"password": "x" * 1025}, "password"),
        ({"client_address": "localhost"}, "client_address"),
        ({"client_address": "192.0.2.256"}, "client_address"),
        ({"client_address": "192.0.2.1:80"}, "client_address"),
        ({"client_label": "x" * 129}, "client_label"),
    ],
    ids=str,
)
async def test_a_wrong_field_is_named(client: Client, fields: dict[str, str], field: str) -> None:
    refused = await failure(client.log_in(**fields))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", field)


async def test_a_password_that_differs_in_its_last_byte_does_not_log_in(client: Client) -> None:
    """ASVS-6.2.8: 200 bytes, of which plain bcrypt sees 72."""
    long = "correct horse " * 14 + "abcd"
    await client.create_user(password=long)
    assert await client.log_in(password=long)
    for wrong in (long[:-1] + "e", long[:72], long[:-1], long + "e", long + " "):
        assert (await failure(client.log_in(password=wrong))).reason == "INVALID_CREDENTIALS"


async def test_nfc_and_nfd_spellings_of_a_password_log_in_alike(client: Client) -> None:
    """NIST-3.1.1.2-c."""
    composed, decomposed = "tr\u00e8s long mot de pass\u00e9", "tre\u0300s long mot de passe\u0301"
    await client.create_user(password=decomposed)
    assert await client.log_in(password=composed)
    assert await client.log_in(password=decomposed)


async def test_case_and_white_space_of_a_password_matter(client: Client) -> None:
    await client.create_user()
    for wrong in (PASSWORD.upper(), PASSWORD + " ", " " + PASSWORD, PASSWORD + "\0", PASSWORD.title()):
        assert (await failure(client.log_in(password=wrong))).reason == "INVALID_CREDENTIALS"


async def test_sixty_four_emoji_are_a_password(client: Client) -> None:
    """ASVS-6.2.5, ASVS-6.2.9."""
    password = "\U0001f511" * 63 + "\U0001f512"
    await client.create_user(password=password)
    assert await client.log_in(password=password)
    assert (await failure(client.log_in(password="\U0001f511" * 64))).reason == "INVALID_CREDENTIALS"


async def test_an_old_password_is_good(client: Client, clock: FakeClock) -> None:
    """ASVS-6.2.10."""
    await client.create_user()
    clock.advance(days=400)
    assert await client.log_in()


async def test_a_temporary_password_must_be_changed_and_dies(shared: Shared, clock: FakeClock) -> None:
    """ASVS-6.4.1."""
    alice = await shared.client.create_user()
    expires = str(int(clock.now.timestamp()) + 60)
    shared.tables.set_attribute(alice.user_id, "password_change_required", {"BOOL": True})
    shared.tables.set_attribute(alice.user_id, "temporary_password_expires_at", {"N": expires})
    refused = await failure(shared.client.log_in())
    assert (refused.code.name, refused.reason) == ("FAILED_PRECONDITION", "PASSWORD_CHANGE_REQUIRED")
    assert (await failure(shared.client.log_in(password=PASSWORD + "x"))).reason == "INVALID_CREDENTIALS"
    clock.advance(seconds=60)
    assert (await failure(shared.client.log_in())).reason == "INVALID_CREDENTIALS"


async def test_each_login_leaves_one_line_with_its_outcome(client: Client) -> None:
    """ASVS-16.3.1, ASVS-16.4.1."""
    await client.create_user()
    position = len(WITNESS.lines.getvalue())
    login = await client.log_in()
    refused = await failure(client.log_in("nobody@example.com"))
    lines = WITNESS.lines.getvalue()[position:].splitlines()
    (success,) = [line for line in lines if '"event": "login"' in line]
    (failed,) = [line for line in lines if '"event": "login_refused"' in line]
    assert login.tokens.session_id in success
    assert refused.trace_id in failed
    assert '"reason": "unknown_email"' in failed
    assert "nobody@example.com" not in "".join(lines)


async def test_the_role_of_a_token_is_the_stored_one(client: Client) -> None:
    user = await client.create_user(role="editor")
    answer = await client.validate(await client.access_token())
    assert (answer.state, answer.role) == (auth_pb2.TOKEN_STATE_ACTIVE, user.role)


async def test_a_row_whose_address_another_claims_first_does_not_log_in(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.tables.put_user("carol", "carol@example.com", password_hash=hash_of(PASSWORD))

    async def lose(_user: object) -> bool:
        return False

    store = shared.client.service.logins._store  # noqa: SLF001 - the moment between two of its calls
    monkeypatch.setattr(store, "claim_email", lose)
    assert (await failure(shared.client.log_in("carol@example.com"))).reason == "INVALID_CREDENTIALS"
