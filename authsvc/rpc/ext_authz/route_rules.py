"""What a route of a gateway asks of its requests: the `context_extensions` of its configuration."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from authsvc import fields
from authsvc.config import parse_duration
from authsvc.errors import InvalidFieldError

FIELD = "context_extensions"
CACHED_ROUTES = 1024


@dataclass(frozen=True, slots=True)
class RouteRules:
    """The rules of a route. Each is a key of `context_extensions` by the same name.

    Args:
        role: Role that a user must have; empty for any.
        max_staleness: As in ValidateToken.
        stale_if_error: As in ValidateToken.
        optional: Whether a request without credentials passes, without an identity.
        remove_token: Whether the backend does not get the token.
    """

    role: str = ""
    max_staleness: timedelta = timedelta()
    stale_if_error: timedelta = timedelta()
    optional: bool = False
    remove_token: bool = False


def read_rules(context_extensions: Mapping[str, str]) -> RouteRules:
    """Return the rules of a route.

    Raises:
        InvalidFieldError: A key is unknown, a value cannot be read, or two rules contradict each other. A typo must not
            open a route.
    """
    return _parse(frozenset(context_extensions.items())) if context_extensions else _NO_RULES


@functools.lru_cache(CACHED_ROUTES)
def _parse(context_extensions: frozenset[tuple[str, str]]) -> RouteRules:
    rules = RouteRules(**{key: _parse_value(key, text) for key, text in sorted(context_extensions)})
    if rules.role and rules.optional:
        raise InvalidFieldError(FIELD, "must not have both role and optional: no role is checked without a token")
    return rules


def _parse_value(key: str, text: str) -> Any:  # noqa: ANN401 - of each rule its own
    parse = _PARSERS.get(key)
    if parse is None:
        raise InvalidFieldError(FIELD, f"must have no keys other than {', '.join(_PARSERS)}")
    try:
        return parse(text)
    except InvalidFieldError as error:
        problem = error.problem
    except ValueError as error:
        problem = str(error)
    raise InvalidFieldError(f"{FIELD}.{key}", problem)


def _role(text: str) -> str:
    if not text:  # would be the default role
        raise ValueError("must not be empty")
    return fields.role(text)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "role": _role,
    "max_staleness": parse_duration,
    "stale_if_error": parse_duration,
    "optional": _flag,
    "remove_token": _flag,
}
_NO_RULES = RouteRules()
