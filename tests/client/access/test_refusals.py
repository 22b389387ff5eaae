"""What a request that may not pass is answered."""

from datetime import timedelta

import pytest

from authsvc.client import (
    AuthsvcError,
    CallerRefusedError,
    InternalError,
    InvalidFieldError,
    InvalidTokenError,
    OverloadedError,
    UnavailableError,
)
from authsvc.client.access.refusals import MissingRoleError, MissingTokenError, refusal_of
from authsvc.client.errors import ERROR_BY_REASON, Failure


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (MissingTokenError(), 401, [("www-authenticate", "Bearer")]),
        (InvalidTokenError("EXPIRED"), 401, [("www-authenticate", 'Bearer error="invalid_token"')]),
        (MissingRoleError(), 403, [("www-authenticate", 'Bearer error="insufficient_scope"')]),
        (CallerRefusedError("CALLER_NOT_PERMITTED"), 500, []),
        (UnavailableError(timedelta(milliseconds=1200)), 503, [("retry-after", "2")]),
        (UnavailableError(timedelta(0)), 503, [("retry-after", "1")]),
        (OverloadedError(timedelta(seconds=7)), 503, [("retry-after", "7")]),
        (InternalError(), 503, [("retry-after", "1")]),
        (InvalidFieldError("token", "is empty"), 503, [("retry-after", "1")]),
        (AuthsvcError(), 503, [("retry-after", "1")]),
    ],
)
def test_each_error_has_its_answer(error: AuthsvcError, status: int, headers: list[tuple[str, str]]) -> None:
    refusal = refusal_of(error)
    assert refusal.status == status
    assert list(refusal.headers) == headers


@pytest.mark.parametrize("reason", ERROR_BY_REASON)
def test_no_error_of_the_service_says_that_the_token_is_bad(reason: str) -> None:
    assert refusal_of(Failure(reason=reason).to_error()).status in {500, 503}


def test_the_body_says_what_and_not_why() -> None:
    assert refusal_of(InvalidTokenError("USER_DISABLED")).body == b'{"detail": "the token is invalid"}'
