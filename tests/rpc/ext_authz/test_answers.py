"""Values of headers, and a time to wait in whole seconds."""

from datetime import timedelta
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.rpc.ext_authz import answers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mAg-dOm6O7HFATwy0U5SLw", "mAg-dOm6O7HFATwy0U5SLw"),
        ("o'hara+tag!#$&*/=?^_`{|}~@example.com", "o'hara+tag!#$&*/=?^_`{|}~@example.com"),
        ("käthe@exämple.de", "k%C3%A4the@ex%C3%A4mple.de"),
        ("a\r\nx-auth-role: admin", "a%0D%0Ax-auth-role:%20admin"),
        ("a\0\x1b\x7fb", "a%00%1B%7Fb"),
        ("a%20b", "a%2520b"),
        (" a ", "%20a%20"),
        ("😀", "%F0%9F%98%80"),
    ],
)
def test_a_value_is_percent_encoded_where_it_must_be(text: str, value: str) -> None:
    assert answers.encode_value(text) == value


@given(st.text())
def test_any_text_comes_back_from_one_line_of_visible_ascii(text: str) -> None:
    value = answers.encode_value(text)
    assert unquote(value) == text
    assert all("!" <= character <= "~" for character in value)


@pytest.mark.parametrize(("milliseconds", "seconds"), [(0, "1"), (400, "1"), (1000, "1"), (1001, "2"), (90_000, "90")])
def test_retry_after_is_a_whole_second_or_more(milliseconds: int, seconds: str) -> None:
    headers = answers.unavailable(timedelta(milliseconds=milliseconds)).denied_response.headers
    assert {option.header.key: option.header.value for option in headers}["retry-after"] == seconds


def test_a_value_that_is_empty_is_no_header() -> None:
    """Where a gateway drops headers without a value, the client's own would stay."""
    identity = dict.fromkeys(answers.IDENTITY_HEADERS, "x") | {answers.EMAIL: ""}
    changes = answers.allow(identity, remove_token=True).ok_response
    assert [option.header.key for option in changes.headers] == [answers.USER_ID, answers.ROLE, answers.SESSION_ID]
    assert list(changes.headers_to_remove) == [answers.EMAIL, "authorization"]
