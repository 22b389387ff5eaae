import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc import fields
from authsvc.errors import InvalidFieldError

WELL_FORMED = base64.urlsafe_b64encode(b"1:user1").decode()


@pytest.mark.parametrize(("number", "size"), [(0, 50), (1, 1), (50, 50), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_the_size_of_a_page(number: int, size: int) -> None:
    assert fields.page_size(number) == size


@pytest.mark.parametrize("number", [-1, -(2**31)])
def test_a_page_of_negative_size_is_refused(number: int) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        fields.page_size(number)
    assert caught.value.field == "page_size"


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=256))
def test_a_token_says_where_its_page_goes_on(key: str) -> None:
    token = fields.encode_page_token(key)
    assert token.isascii()
    assert fields.decode_page_token(token) == key


def test_no_key_is_the_first_page_or_the_last() -> None:
    assert fields.encode_page_token(None) == ""
    assert fields.decode_page_token("") is None


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "garbage",
        "\0",
        "ä",
        " " + WELL_FORMED,
        WELL_FORMED + "\n",
        WELL_FORMED.rstrip("="),
        WELL_FORMED[:-1] + "x",
        encoded(b"user"),
        encoded(b"1:"),
        encoded(b"2:user"),
        encoded(b"1:\xff"),
        encoded(b"1:\xed\xa0\x80"),
        encoded(b"1:" + b"x" * 2049),
        encoded(b"1:\xfb\xff").replace("-", "+").replace("_", "/"),
        base64.b64encode("1:ûÿ~~~???".encode()).decode(),
    ],
)
def test_a_token_of_another_make_is_refused(token: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        fields.decode_page_token(token)
    assert caught.value.field == "page_token"


@given(st.text())
def test_any_text_is_a_token_or_refused(text: str) -> None:
    try:
        key = fields.decode_page_token(text)
    except InvalidFieldError:
        return
    assert fields.encode_page_token(key) == text
