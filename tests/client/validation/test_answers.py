"""Messages of the API to answers: what a newer or another service may send."""

import pytest

from authsvc.client import CallerRefusedError, InternalError, InvalidTokenError, UnavailableError
from authsvc.client.validation.answers import to_answer, to_answers, to_request
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1.errors_pb2 import (
    ERROR_REASON_CALLER_NOT_PERMITTED,
    ERROR_REASON_INTERNAL,
    ERROR_REASON_STORE_UNAVAILABLE,
)
from tests.client.doubles import question

Result = auth_pb2.BatchValidateTokensResponse.Result


def test_a_request_is_always_fresh() -> None:
    plain, stale = to_request(question("a")), to_request(question("a", 1.5))
    assert plain == auth_pb2.ValidateTokenRequest(token="a")
    assert stale.stale_if_error.ToNanoseconds() == 1_500_000_000
    assert not stale.HasField("max_staleness")


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (ERROR_REASON_STORE_UNAVAILABLE, UnavailableError),
        (ERROR_REASON_INTERNAL, InternalError),
        (ERROR_REASON_CALLER_NOT_PERMITTED, CallerRefusedError),
        (0, UnavailableError),
        (999, UnavailableError),
    ],
)
def test_errors_of_items(reason: int, error: type[Exception]) -> None:
    result = Result(error=auth_pb2.ValidationError(code=14, reason=reason))  # type: ignore[arg-type]
    (answer,) = to_answers(auth_pb2.BatchValidateTokensResponse(results=[result]), 1)
    assert type(answer) is error


def test_a_refusal_of_a_newer_service_is_a_refusal() -> None:
    response = auth_pb2.ValidateTokenResponse(state=auth_pb2.TOKEN_STATE_INACTIVE, reason=99, degraded=True)  # type: ignore[arg-type]
    answer = to_answer(response)
    assert isinstance(answer, InvalidTokenError)
    assert answer.reason == "99"
    assert answer.degraded


@pytest.mark.parametrize("results", [[], [Result()], [Result(), Result()]])
def test_results_that_are_missing(results: list[Result]) -> None:
    answers = to_answers(auth_pb2.BatchValidateTokensResponse(results=results), 1)
    assert [type(answer) for answer in answers] == [UnavailableError]
    assert [type(answer) for answer in to_answers(None, 2)] == [UnavailableError] * 2
