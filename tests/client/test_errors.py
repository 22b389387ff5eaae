"""Which error is which exception."""

import copy
import inspect
import pickle
import re
from datetime import timedelta

import pytest

import authsvc.client
from authsvc.client import errors
from authsvc.client.access.refusals import MissingRoleError, MissingTokenError
from authsvc.client.errors import (
    ERROR_BY_REASON,
    AuthsvcError,
    Failure,
    InvalidFieldError,
    InvalidTokenError,
    UnavailableError,
)
from authsvc.v1.errors_pb2 import ErrorReason

REASONS = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - an enum


def tree(root: type[Exception]) -> dict[str, str]:
    """The name of each class below a root, with that of its base."""
    pairs = {}
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            pairs[child.__name__] = root.__name__
            pairs |= tree(child)
    return pairs


def drawn_tree() -> dict[str, str]:
    pairs, path = {}, ["AuthsvcError"]
    for line in (inspect.getdoc(errors) or "").splitlines():
        match = re.match(r"([│ ]*)[├└]── (\w+)", line)
        if match:
            depth = len(match[1]) // 4 + 1
            path[depth:] = [match[2]]
            pairs[match[2]] = path[depth - 1]
    return pairs


def test_the_tree_is_the_one_drawn() -> None:
    assert drawn_tree() == tree(AuthsvcError)


def test_every_class_is_exported() -> None:
    assert {"AuthsvcError", *drawn_tree()} <= set(authsvc.client.__all__)
    assert all(hasattr(authsvc.client, name) for name in authsvc.client.__all__)


def test_every_reason_of_the_api_has_its_exception() -> None:
    assert set(ERROR_BY_REASON) == REASONS


def test_every_exception_but_of_one_validation_has_a_reason() -> None:
    leaves = {name for name in drawn_tree() if name not in set(drawn_tree().values()) - {"InvalidFieldError"}}
    assert leaves == {kind.__name__ for kind in ERROR_BY_REASON.values()} | {"InvalidTokenError"}


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_errors_have_their_data_and_survive_copies(reason: str) -> None:
    failure = Failure(
        reason=reason, trace_id="5f" * 16, field="email", problem="is empty", retry_delay=timedelta(seconds=7)
    )
    error = failure.to_error()
    assert type(error) is ERROR_BY_REASON[reason]
    for each in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - its own bytes
        assert each.trace_id == "5f" * 16
        assert str(each) == str(error)
        for name, value in {"field": "email", "problem": "is empty", "retry_delay": timedelta(seconds=7)}.items():
            assert getattr(each, name, value) == value


def test_texts() -> None:
    assert str(InvalidTokenError("EXPIRED")) == "the token is invalid: EXPIRED"
    assert str(UnavailableError()) == "the service cannot answer now; try again in 1 s"
    refused = Failure(reason="CALLER_NOT_PERMITTED").to_error()
    assert str(refused).startswith("the service refuses this backend: CALLER_NOT_PERMITTED;")
    assert str(Failure(reason="INVALID_FIELD").to_error()) == "a field of the request: is invalid"


@pytest.mark.parametrize("kind", [*dict.fromkeys(ERROR_BY_REASON.values()), MissingTokenError, MissingRoleError])
def test_no_error_is_without_a_text(kind: type[AuthsvcError]) -> None:
    arguments = ("email", "is empty") if issubclass(kind, InvalidFieldError) else ()
    assert len(str(kind(*arguments))) > 10


def test_the_text_of_a_failure_leads_to_the_services_logs() -> None:
    error = Failure(reason="INTERNAL", trace_id="5f" * 16).to_error()
    assert str(error) == f"the service failed: its logs have the cause (trace id {'5f' * 16})"
    assert str(Failure(reason="USER_NOT_FOUND").to_error()) == "there is no such user"


def test_a_reason_of_a_newer_service_says_nothing_about_a_token() -> None:
    error = Failure(reason="MOON_IN_THE_WAY").to_error()
    assert type(error) is UnavailableError
    assert str(error) == "the service answered MOON_IN_THE_WAY; try again in 1 s"
