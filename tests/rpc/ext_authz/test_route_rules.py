"""The rules of a route: every key, and no value that could open a route by a typo."""

from datetime import timedelta

import pytest

from authsvc.errors import InvalidFieldError
from authsvc.rpc.ext_authz.route_rules import RouteRules, read_rules


@pytest.mark.parametrize(
    ("context_extensions", "expected"),
    [
        ({}, RouteRules()),
        ({"role": "admin"}, RouteRules(role="admin")),
        ({"max_staleness": "5s"}, RouteRules(max_staleness=timedelta(seconds=5))),
        ({"stale_if_error": "300s"}, RouteRules(stale_if_error=timedelta(seconds=300))),
        ({"stale_if_error": "5m"}, RouteRules(stale_if_error=timedelta(minutes=5))),
        ({"max_staleness": "0s"}, RouteRules()),
        ({"optional": "true"}, RouteRules(optional=True)),
        ({"optional": "false", "role": "admin"}, RouteRules(role="admin")),
        ({"remove_token": "true"}, RouteRules(remove_token=True)),
        ({"remove_token": "false"}, RouteRules()),
        (
            {"role": "a-b_c1", "max_staleness": "1s", "stale_if_error": "1h", "remove_token": "true"},
            RouteRules("a-b_c1", timedelta(seconds=1), timedelta(hours=1), optional=False, remove_token=True),
        ),
    ],
    ids=str,
)
def test_what_a_route_asks(context_extensions: dict[str, str], expected: RouteRules) -> None:
    assert read_rules(context_extensions) == expected
    assert read_rules(dict(reversed(context_extensions.items()))) == expected


@pytest.mark.parametrize("key", ["rol", "Role", "role ", "roles", "", "required_role", "max-staleness", "token"])
def test_an_unknown_key_is_an_error(key: str) -> None:
    with pytest.raises(InvalidFieldError, match=r"context_extensions: must have no keys other than role, "):
        read_rules({"max_staleness": "5s", key: "admin"})


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("role", ["", "Admin", "admin ", " admin", "admin,user", "ädmin", "a" * 64, "*"]),
        (
            "max_staleness",
            ["", "5", "5 s", "-5s", "5.5s", "5ms", "PT5S", "5S", "1s1s", "99999d", "9999999999s"],
        ),
        ("stale_if_error", ["", "300", "5min", "\u0665s"]),
        ("optional", ["", "True", "TRUE", "yes", "1", "on", "true "]),
        ("remove_token", ["", "no", "False", "0", "off"]),
    ],
)
def test_a_value_that_cannot_be_read_is_an_error(key: str, values: list[str]) -> None:
    for value in values:
        with pytest.raises(InvalidFieldError, match=rf"context_extensions\.{key}: must "):
            read_rules({key: value})


def test_a_role_without_a_token_is_an_error() -> None:
    """Otherwise the route of a role would be open to who has no token."""
    with pytest.raises(InvalidFieldError, match="context_extensions: must not have both role and optional"):
        read_rules({"role": "admin", "optional": "true"})
