import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.tokens.refresh_tokens import RefreshToken, digest, new_nonce, new_refresh_token, next_token, parse


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_a_refresh_token_has_its_four_parts() -> None:
    token = new_refresh_token("user/ä")
    user_id, session_id, session_part, rotating_part = token.text.removeprefix("rt_").split(".")
    assert token.text.startswith("rt_")
    assert decoded(user_id).decode() == "user/ä"
    assert session_id == token.session_id
    assert decoded(session_part) == token.session_part
    assert decoded(rotating_part) == token.rotating_part


def test_a_refresh_token_is_safe_in_headers_and_urls() -> None:
    text = new_refresh_token("user?/\n\0\U0001f600").text
    assert text.isascii()
    assert text.replace("_", "").replace("-", "").replace(".", "").isalnum()


def test_every_random_part_has_128_bits_at_least() -> None:
    """ASVS-7.2.3."""
    token = new_refresh_token("u")
    assert len(token.session_id) >= 22
    assert len(decoded(token.session_id)) == 16
    assert len(token.session_part) == 16
    assert len(token.rotating_part) == 32


def test_no_part_occurs_twice() -> None:
    """ASVS-7.2.3."""
    tokens = [new_refresh_token("u") for _ in range(100_000)]
    for part in ("session_id", "session_part", "rotating_part"):
        assert len({getattr(token, part) for token in tokens}) == len(tokens)


def test_the_store_holds_sha_256_of_a_part() -> None:
    assert digest(b"part") == hashlib.sha256(b"part").digest()


def test_a_refresh_token_hides_its_secrets_in_reprs() -> None:
    token = RefreshToken("user-1", "session-1", b"constant", b"rotating")
    assert repr(token) == "RefreshToken(user_id='user-1', session_id='session-1')"


def test_a_token_is_read_as_it_was_written() -> None:
    for user_id in ("u", "user/ä", "\0\n", "\U0001f600", "x" * 256):
        token = new_refresh_token(user_id)
        assert parse(token.text) == token


GOOD = RefreshToken("user", "s" * 22, b"c" * 16, b"r" * 32).text
USER, SESSION_ID, SESSION_PART, ROTATING_PART = GOOD.removeprefix("rt_").split(".")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rt_",
        "rt_...",
        GOOD.removeprefix("rt_"),
        GOOD.upper(),
        "RT_" + GOOD.removeprefix("rt_"),
        GOOD[:-1],
        GOOD + "A",
        GOOD + "\n",
        "\n" + GOOD,
        GOOD + ".",
        GOOD.replace(".", "", 1),
        f"rt_.{SESSION_ID}.{SESSION_PART}.{ROTATING_PART}",
        f"rt_{USER}.{SESSION_ID[:-1]}.{SESSION_PART}.{ROTATING_PART}",
        f"rt_{USER}.{SESSION_ID}.{SESSION_PART[:-1]}.{ROTATING_PART}",
        f"rt_{USER}=.{SESSION_ID}.{SESSION_PART}.{ROTATING_PART}",
        f"rt_A.{SESSION_ID}.{SESSION_PART}.{ROTATING_PART}",
        f"rt__w.{SESSION_ID}.{SESSION_PART}.{ROTATING_PART}",
        f"rt_{'A' * 343}.{SESSION_ID}.{SESSION_PART}.{ROTATING_PART}",
        # The last character holds unused bits: a second spelling of the same bytes.
        f"rt_{USER}.{SESSION_ID}.{SESSION_PART[:-1]}{chr(ord(SESSION_PART[-1]) + 1)}.{ROTATING_PART}",
        f"rt_{USER}.{SESSION_ID}.{SESSION_PART}.{ROTATING_PART[:-1]}{chr(ord(ROTATING_PART[-1]) + 1)}",
        f"rt_{USER}.{SESSION_ID}.{SESSION_PART}.{'ä' * 43}",
        f"rt_{USER}.{SESSION_ID}.{SESSION_PART}.{'+' * 43}",
    ],
)
def test_what_is_no_refresh_token_is_none(text: str) -> None:
    assert parse(text) is None


@given(st.text() | st.from_regex(r"rt_[\w-]{1,8}\.[\w-]{22}\.[\w-]{22}\.[\w-]{43}"))
def test_any_text_is_one_spelling_of_a_token_or_none(text: str) -> None:
    token = parse(text)
    assert token is None or token.text == text


def test_whoever_has_a_token_and_the_nonce_has_its_successor() -> None:
    token, nonce = new_refresh_token("u"), new_nonce()
    following = next_token(token, nonce)
    assert following == next_token(token, nonce)
    assert (following.user_id, following.session_id) == (token.user_id, token.session_id)
    assert following.session_part == token.session_part
    # HMAC-SHA-256 (RFC 2104) is documented, so that another program can compute the next token.
    assert following.rotating_part == hmac.new(token.rotating_part, nonce, hashlib.sha256).digest()
    assert next_token(token, new_nonce()) != following
    assert len({new_nonce() for _ in range(1000)}) == 1000
    assert len(nonce) == 16
