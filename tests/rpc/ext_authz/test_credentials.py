"""The token of a request: from one header, of one scheme, in either form in which gateways send headers."""

import pytest

from authsvc.rpc.ext_authz.credentials import NoToken, authorization_values, read_token
from authsvc.rpc.ext_authz_pb2 import AttributeContext, HeaderMap, HeaderValue


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["Bearer a.b.c"], "a.b.c"),
        (["bearer a.b.c"], "a.b.c"),
        (["BEARER   a.b.c  "], "a.b.c"),
        (["Bearer a b"], "a b"),  # no token has a blank: the validation says so
        ([], NoToken.ABSENT),
        ([""], NoToken.ABSENT),
        (["", ""], NoToken.ABSENT),
        (["Bearer"], NoToken.OTHER_SCHEME),
        (["Bearer "], NoToken.OTHER_SCHEME),
        (["Basic YTpi"], NoToken.OTHER_SCHEME),
        (["a.b.c"], NoToken.OTHER_SCHEME),
        (["Bearer\ta.b.c"], NoToken.OTHER_SCHEME),
        ([" Bearer a.b.c"], NoToken.OTHER_SCHEME),
        (["BearerX a.b.c"], NoToken.OTHER_SCHEME),
        (["Bearer a.b.c,Bearer d.e.f"], NoToken.AMBIGUOUS),
        (["Bearer a.b.c,"], NoToken.AMBIGUOUS),
        ([",Bearer a.b.c"], NoToken.AMBIGUOUS),
        (["Basic YTpi, Bearer a.b.c"], NoToken.AMBIGUOUS),
        (["Bearer a.b.c", "Bearer a.b.c"], NoToken.AMBIGUOUS),
        (["Bearer a.b.c", ""], NoToken.AMBIGUOUS),
        (["", "Bearer a.b.c"], NoToken.AMBIGUOUS),
    ],
    ids=str,
)
def test_which_token_a_request_has(values: list[str], expected: str | NoToken) -> None:
    assert read_token(values) == expected


def values_of(*listed: HeaderValue, **joined: str) -> list[str]:
    header_map = HeaderMap(headers=listed) if listed else None
    http = AttributeContext.HttpRequest(headers=joined, header_map=header_map)
    return list(authorization_values(AttributeContext.Request(http=http)))


def test_headers_that_are_joined() -> None:
    assert values_of(cookie="a=b") == []
    assert values_of(authorization="") == [""]
    assert values_of(authorization="Bearer a,Bearer b", cookie="a=b") == ["Bearer a,Bearer b"]


def test_headers_that_are_listed() -> None:
    first = HeaderValue(key="authorization", raw_value=b"Bearer a")
    second = HeaderValue(key="Authorization", value="Bearer b")
    assert values_of(HeaderValue(key="cookie", raw_value=b"\xff")) == []
    assert values_of(first, HeaderValue(key="authorizations", raw_value=b"x")) == ["Bearer a"]
    assert values_of(first, second) == ["Bearer a", "Bearer b"]
    assert values_of(HeaderValue(key="authorization")) == [""]
    assert values_of(HeaderValue(key="authorization", raw_value=b"Bearer \xff\xe9")) == ["Bearer \xff\xe9"]


def test_headers_in_both_forms_count_together() -> None:
    listed = HeaderValue(key="authorization", raw_value=b"Bearer a")
    assert values_of(listed, authorization="Bearer b") == ["Bearer b", "Bearer a"]


def test_without_http_there_are_no_headers() -> None:
    assert list(authorization_values(AttributeContext.Request())) == []
