"""The token of a request, and nothing that only looks like one."""

import pytest

from authsvc.client import InvalidTokenError
from authsvc.client.access.bearer import read_token
from authsvc.client.access.refusals import MissingTokenError


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("BEARER abc", "abc"),
        ("Bearer   abc ", "abc"),
        ("Bearer aA0-._~+/==", "aA0-._~+/=="),
    ],
)
def test_one_header_has_the_token(header: str, token: str) -> None:
    assert read_token([header]) == token


@pytest.mark.parametrize("headers", [[], ["Basic YTpi"], ["Bearer"], ["Bearer "], [""], ["abc"], ["Bearerabc x"]])
def test_without_a_token_it_is_missing(headers: list[str]) -> None:
    with pytest.raises(MissingTokenError):
        read_token(headers)


@pytest.mark.parametrize(
    "headers",
    [
        ["Bearer abc", "Bearer abc"],
        ["Bearer abc", "Basic YTpi"],
        ["", "Bearer abc"],
        ["Bearer abc, Bearer def"],
        ["Bearer abc,Basic YTpi"],
        ["Bearer abc def"],
        ["Bearer abc\t"],
        ["Bearer abc\x00"],
        ["Bearer abc\n"],
        ["Bearer =abc"],
        ["Bearer äbc"],
        ['Bearer "abc"'],
    ],
)
def test_what_cannot_be_one_token_is_refused(headers: list[str]) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        read_token(headers)
    assert "abc" not in str(caught.value)
