"""The callers file: the backends that may call, with their credentials and permissions.

The file is TOML and has one table for each caller:

    [callers.checkout]
    api_key_sha256 = ["64 hexadecimal digits"]  # printed by authsvc callers new-key; list two while you rotate a key
    tls_identities = ["spiffe://example.com/checkout", "checkout.example.com"]
    permissions = ["validate", "login"]
"""

import hashlib
import re
import secrets
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from authsvc.errors import CallersFileError
from authsvc.watched_file import WatchedFile, read_file

API_KEY_PREFIX = "ask_"
API_KEY_BYTES = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# DNS names in certificates are case-insensitive, so the file has them in lower case. A wildcard would admit many hosts.
_TLS_IDENTITY = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]+|[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Permission(StrEnum):
    """What a caller may do; authorization.PERMISSIONS maps RPCs to permissions."""

    VALIDATE = "validate"
    LOGIN = "login"
    SESSIONS = "sessions"
    USERS = "users"


@dataclass(frozen=True, slots=True)
class Caller:
    """A backend that may call.

    Args:
        name: Name of its table in the callers file; the claim `client_id` of tokens and `caller` in the log.
        permissions: What it may do.
        api_key_sha256: SHA-256 of each of its API keys, 64 lower-case hexadecimal digits each.
        tls_identities: URIs and DNS names in its client certificates.
    """

    name: str
    permissions: frozenset[Permission]
    api_key_sha256: frozenset[str] = frozenset()
    tls_identities: frozenset[str] = frozenset()


class Callers:
    """The callers of one version of the callers file; immutable.

    Args:
        callers: Callers that share no API key and no TLS identity.
    """

    def __init__(self, callers: Sequence[Caller] = ()) -> None:
        self.names = [caller.name for caller in callers]
        self._by_digest = {digest: caller for caller in callers for digest in caller.api_key_sha256}
        self._by_identity = {identity: caller for caller in callers for identity in caller.tls_identities}

    @property
    def has_tls_identities(self) -> bool:
        """Whether any caller authenticates by a client certificate."""
        return bool(self._by_identity)

    def find_by_api_key(self, api_key: str) -> Caller | None:
        """Return the caller with an API key; None where no caller has it.

        The look-up by digest need not take constant time: an attacker cannot choose a key by its digest.
        """
        return self._by_digest.get(api_key_digest(api_key))

    def find_by_tls_identities(self, identities: Iterable[str]) -> Caller | None:
        """Return the caller that a certificate identifies; None where no caller or more than one matches.

        Args:
            identities: URIs and DNS names of the certificate.
        """
        found = {self._by_identity[identity] for identity in identities if identity in self._by_identity}
        return found.pop() if len(found) == 1 else None


def new_api_key() -> str:
    """Return a new API key of 256 random bits."""
    return API_KEY_PREFIX + secrets.token_urlsafe(API_KEY_BYTES)


def api_key_digest(api_key: str) -> str:
    """Return the SHA-256 of an API key in hexadecimal digits, as the callers file has it.

    A slow hash is not needed: an API key has 256 random bits.
    """
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).hexdigest()


def watch_callers_file(path: Path) -> WatchedFile[Callers]:
    """Read a callers file and return it with its later changes.

    Raises:
        CallersFileError: The file cannot be read, or is invalid.
    """
    return WatchedFile([path], lambda: read_callers(path), "callers", lambda callers: {"callers": callers.names})


def read_callers(path: Path) -> Callers:
    """Read a callers file.

    Raises:
        CallersFileError: The file cannot be read, or is invalid; the error lists every problem.
    """
    try:
        document = tomllib.loads(read_file(path).decode("utf-8-sig"))
    except OSError as error:
        raise CallersFileError(path, [f"cannot be read: {error.strerror}"]) from None
    except (ValueError, RecursionError) as error:
        # The error names the position alone: the text may hold an API key by mistake.
        position = re.search(r"\(at [^()]*\)", str(error))
        raise CallersFileError(path, [f"is not valid TOML{' ' + position[0] if position else ''}"]) from None
    problems = list(_find_problems(document))
    if problems:
        raise CallersFileError(path, problems)
    return Callers([_parse_caller(name, table) for name, table in document["callers"].items()])


def _parse_caller(name: str, table: Mapping[str, Any]) -> Caller:
    return Caller(
        name=name,
        permissions=frozenset(map(Permission, table["permissions"])),
        api_key_sha256=frozenset(table.get("api_key_sha256", ())),
        tls_identities=frozenset(table.get("tls_identities", ())),
    )


def _find_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield every problem, with the caller's name and without text that could be an API key."""
    callers = document.get("callers")
    if document.keys() - {"callers"}:
        yield "has entries outside [callers.NAME]; remove them"
    if not isinstance(callers, dict) or not callers:
        yield "has no caller; add a table [callers.NAME]"
        return
    owners: dict[str, str] = {}  # caller's name by credential
    for name, table in callers.items():
        for problem in _find_caller_problems(name, table, owners):
            yield f"caller {name!r}: {problem}"


def _find_caller_problems(name: str, table: object, owners: dict[str, str]) -> Iterator[str]:
    if not _NAME.fullmatch(name):
        yield f"the name must match {_NAME.pattern}"
    if not isinstance(table, dict):
        yield "must be a table [callers.NAME]"
        return
    if table.keys() - _FIELDS.keys():
        yield f"has fields other than {', '.join(_FIELDS)}; remove them"
    for field in _FIELDS:
        values = table.get(field, [])
        yield from _find_value_problems(field, values) if isinstance(values, list) else [f"{field} must be a list"]
    yield from _find_shared_credentials(name, table, owners)
    if not table.get("api_key_sha256") and not table.get("tls_identities"):
        yield "has no credential; set api_key_sha256 or tls_identities"
    if not table.get("permissions"):
        yield f"has no permission; set permissions to a list of {', '.join(Permission)}"


def _find_value_problems(field: str, values: Iterable[object]) -> Iterator[str]:
    is_valid, form = _FIELDS[field]
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str) or not is_valid(value):
            yield f"{field}, entry {number}: must be {form}"


def _find_shared_credentials(name: str, table: Mapping[str, Any], owners: dict[str, str]) -> Iterator[str]:
    """Yield a problem for each credential of another caller; record the other credentials as this caller's."""
    for field in ("api_key_sha256", "tls_identities"):
        values = table.get(field)
        for number, value in enumerate(values if isinstance(values, list) else (), start=1):
            owner = owners.setdefault(str(value), name)
            if owner != name:
                yield f"{field}, entry {number}: caller {owner!r} has it too; remove it from one of them"


_FIELDS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "api_key_sha256": (_SHA256.fullmatch, "64 lower-case hexadecimal digits, as authsvc callers new-key prints them"),
    "tls_identities": (_TLS_IDENTITY.fullmatch, "a URI, or a lower-case DNS name without wildcards"),
    "permissions": (frozenset(Permission).__contains__, f"one of {', '.join(Permission)}"),
}
"""Fields of a caller: the test that an entry must pass, and what the error says that it must be."""
