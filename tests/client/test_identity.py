"""Identity, as a framework sees it."""

from datetime import UTC, datetime

from authsvc.client import Identity, current_identity

TIME = datetime(2030, 1, 1, tzinfo=UTC)
ALICE = Identity(
    user_id="u1",
    email="alice@example.com",
    role="admin",
    session_id="s1",
    token_id="t1",
    issue_time=TIME,
    expire_time=TIME,
    checked_time=TIME,
)


def test_what_starlette_expects_of_a_user() -> None:
    assert ALICE.is_authenticated is True
    assert ALICE.identity == "u1"
    assert ALICE.display_name == "alice@example.com"
    assert not ALICE.degraded


def test_the_repr_has_no_address() -> None:
    assert "alice" not in repr(ALICE)
    assert "user_id='u1'" in repr(ALICE)


def test_nobody_is_the_default() -> None:
    assert current_identity.get() is None
