from datetime import UTC, datetime, timedelta

from authsvc.models import ACCESS_TOKEN_MAX_LIFETIME, Finding, Session, User, utc_now

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def make_user(*revoked: str) -> User:
    return User(
        user_id="user-1",
        email="alice@example.com",
        role="user",
        password_hash="$2b$04$hash",
        revoked_sessions=frozenset(revoked),
    )


def test_a_revoked_session_is_known_by_its_whole_id() -> None:
    user = make_user("abc:1900000000", "other:1900000000")
    assert user.has_revoked("abc")
    assert not user.has_revoked("ab")
    assert not user.has_revoked("abcd")
    assert not user.has_revoked("abc:1900000000")
    assert not make_user().has_revoked("abc")


def test_an_entry_is_needed_until_its_second() -> None:
    """Also where another program wrote it, whatever follows the colon: it must not keep a session from being ended."""
    second = int(NOW.timestamp())
    past = {f"a:{second - 1}", "b:0", "c:٣"}
    needed = {f"d:{second}", "e:" + "9" * 5000, "f:", "g:-1", "h:x", "i", ":", ""}
    assert make_user(*past, *needed).expired_revocations(NOW) == past


def test_a_user_hides_the_hash_in_reprs() -> None:
    assert "$2b$" not in repr(make_user())


def test_a_session_hides_what_its_refresh_tokens_are_compared_with() -> None:
    session = Session(
        user_id="user-1",
        session_id="session-1",
        token_generation=0,
        session_part_sha256=b"constant",
        rotating_part_sha256=b"rotating",
        previous_part_sha256=b"previous",
        rotation_nonce=b"nonce",
        create_time=NOW,
        expire_time=NOW,
        max_expire_time=NOW,
        last_token_expire_time=NOW,
    )
    for secret in ("constant", "rotating", "previous", "nonce"):
        assert f"b'{secret}'" not in repr(session)


def test_the_production_clock_is_in_utc() -> None:
    assert utc_now().tzinfo is UTC


def test_an_access_token_lives_a_day_at_most() -> None:
    assert timedelta(days=1) == ACCESS_TOKEN_MAX_LIFETIME


def test_a_finding_is_a_line() -> None:
    assert str(Finding("table auth-users")) == "ok    table auth-users"
    assert str(Finding("clock", "is slow", "set it")) == "WRONG clock: is slow. Remedy: set it"
