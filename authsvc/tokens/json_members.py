"""The members of JSON objects, each of them once: JSON does not say which of two with one name applies."""

from typing import Any


class DuplicateMemberError(ValueError):
    """An object has a member twice; the text says which."""


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of an object, as `object_pairs_hook` of json.loads.

    Raises:
        DuplicateMemberError: A name is there twice.
    """
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise DuplicateMemberError(f"{name!r} is there twice")
        members[name] = value
    return members
