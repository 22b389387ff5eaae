import inspect
import re
from datetime import timedelta

import pytest

from authsvc import errors
from authsvc.errors import (
    AuthsvcError,
    ConfigError,
    CorruptItemError,
    InvalidFieldError,
    OperatorError,
    OverloadedError,
    PasswordRejectedError,
    RetryLaterError,
    StoreUnavailableError,
)


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


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert drawn_tree() == tree(AuthsvcError)


def test_every_exception_of_the_module_is_in_the_tree() -> None:
    defined = {
        name
        for name, member in vars(errors).items()
        if inspect.isclass(member) and member.__module__ == errors.__name__
    }
    assert defined == {"AuthsvcError", *tree(AuthsvcError)}


@pytest.mark.parametrize("error_class", [InvalidFieldError, PasswordRejectedError])
def test_a_field_error_has_field_and_problem(error_class: type[InvalidFieldError]) -> None:
    error = error_class("email", "must not be empty")
    assert (error.field, error.problem, str(error)) == ("email", "must not be empty", "email: must not be empty")


def test_a_corrupt_item_error_has_key_and_attribute() -> None:
    error = CorruptItemError("user\n1", "role")
    assert (error.key, error.attribute) == ("user\n1", "role")
    assert str(error) == "row 'user\\n1': attribute role is missing or unreadable"


def test_a_retryable_error_has_its_delay() -> None:
    assert RetryLaterError().retry_delay == timedelta(seconds=1)
    assert OverloadedError(timedelta(seconds=2.5)).retry_delay == timedelta(seconds=2.5)
    assert str(OverloadedError(timedelta(seconds=2.5))) == "try again in 2.5 s"


def test_an_outage_has_its_cause_for_operators() -> None:
    error = StoreUnavailableError("timed out")
    assert (error.cause, error.retry_delay) == ("timed out", timedelta(seconds=1))
    assert str(error) == "the store cannot answer: timed out"


def test_a_config_error_has_a_line_for_each_problem() -> None:
    error = ConfigError(["a: is wrong", "b: is missing"])
    assert isinstance(error, OperatorError)
    assert error.problems == ["a: is wrong", "b: is missing"]
    assert str(error) == "a: is wrong\nb: is missing"
