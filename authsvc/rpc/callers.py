"""The callers file: which backends may call, by which API keys and TLS identities, with which permissions.

The file is TOML, a table for each caller:

    [callers.checkout]
    api_key_sha256 = ["64 hexadecimal digits"]        # from authsvc callers new-key; two while a key is rotated
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
from authsvc.watched_file import WatchedFile

API_KEY_PREFIX = "ask_"
API_KEY_BYTES = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# In a certificate a URI has a scheme, and DNS names are case-insensitive. No wildcards: they name many hosts.
_TLS_IDENTITY = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]+|[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Permission(StrEnum):
    """What a caller may do; authorization.PERMISSIONS says which RPCs that opens."""

    VALIDATE = "validate"
    LOGIN = "login"
    SESSIONS = "sessions"
    USERS = "users"


@dataclass(frozen=True, slots=True)
class Caller:
    """A backend that may call.

    Args:
        api_key_sha256: SHA-256 of each of its API keys, in hexadecimal digits.
        tls_identities: URIs and DNS names of its client certificates.
    """

    name: str
    permissions: frozenset[Permission]
    api_key_sha256: frozenset[str] = frozenset()
    tls_identities: frozenset[str] = frozenset()


class Callers:
    """The callers of one callers file, immutable.

    Args:
        callers: No two of them share a key or an identity.
    """

    def __init__(self, callers: Sequence[Caller] = ()) -> None:
        self.names = [caller.name for caller in callers]
        self._by_digest = {digest: caller for caller in callers for digest in caller.api_key_sha256}
        self._by_identity = {identity: caller for caller in callers for identity in caller.tls_identities}

    @property
    def has_tls_identities(self) -> bool:
        """Whether any caller is identified by a client certificate."""
        return bool(self._by_identity)

    def find_by_api_key(self, api_key: str) -> Caller | None:
        """Return the caller with an API key.

        The look-up by digest need not take constant time: an attacker cannot choose a key by its digest.
        """
        return self._by_digest.get(api_key_digest(api_key))

    def find_by_tls_identities(self, identities: Iterable[str]) -> Caller | None:
        """Return the caller whom a certificate's URIs and DNS names identify; None where they name several."""
        found = {self._by_identity[identity] for identity in identities if identity in self._by_identity}
        return found.pop() if len(found) == 1 else None


def new_api_key() -> str:
    """Return a new API key of 256 random bits."""
    return API_KEY_PREFIX + secrets.token_urlsafe(API_KEY_BYTES)


def api_key_digest(api_key: str) -> str:
    """Return the SHA-256 that the callers file holds of a key; 256 random bits need no slow hash."""
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).hexdigest()


def watch_callers_file(path: Path) -> WatchedFile[Callers]:
    """Return a watched callers file.

    Raises:
        CallersFileError: The file cannot be used now.
    """
    return WatchedFile(path, lambda: read_callers(path), "callers", lambda callers: {"callers": callers.names})


def read_callers(path: Path) -> Callers:
    """Read a callers file.

    Raises:
        CallersFileError: The file cannot be read; or it lists every problem in it.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CallersFileError(path, [f"cannot be read: {error.strerror}"]) from None
    except (ValueError, RecursionError) as error:
        # Only the position is shown: the text may hold a key by mistake.
        place = re.search(r"\(at [^()]*\)", str(error))
        raise CallersFileError(path, [f"is not TOML{' ' + place[0] if place else ''}"]) from None
    problems = list(_problems(document))
    if problems:
        raise CallersFileError(path, problems)
    return Callers([_caller(name, table) for name, table in document["callers"].items()])


def _caller(name: str, table: Mapping[str, Any]) -> Caller:
    return Caller(
        name=name,
        permissions=frozenset(map(Permission, table["permissions"])),
        api_key_sha256=frozenset(table.get("api_key_sha256", ())),
        tls_identities=frozenset(table.get("tls_identities", ())),
    )


def _problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield every problem, with the caller's name and never with text that could be a key."""
    callers = document.get("callers")
    if document.keys() - {"callers"}:
        yield "must hold only tables [callers.NAME]"
    if not isinstance(callers, dict) or not callers:
        yield "names no caller: [callers.NAME]"
        return
    owners: dict[str, str] = {}  # of each credential
    for name, table in callers.items():
        for problem in _problems_of_caller(name, table, owners):
            yield f"caller {name!r}: {problem}"


def _problems_of_caller(name: str, table: object, owners: dict[str, str]) -> Iterator[str]:
    if not _NAME.fullmatch(name):
        yield "the name must be 1 to 64 letters, digits, and . _ - that begin with a letter or digit"
    if not isinstance(table, dict):
        yield "must be a table"
        return
    if table.keys() - _MEMBERS.keys():
        yield f"has members other than {', '.join(_MEMBERS)}"
    for member in _MEMBERS:
        values = table.get(member, [])
        yield from _problems_of_values(member, values) if isinstance(values, list) else [f"{member} must be a list"]
    yield from _shared_credentials(name, table, owners)
    if not table.get("api_key_sha256") and not table.get("tls_identities"):
        yield "has neither api_key_sha256 nor tls_identities"
    if not table.get("permissions"):
        yield "has no permissions"


def _problems_of_values(member: str, values: Iterable[object]) -> Iterator[str]:
    is_good, form = _MEMBERS[member]
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str) or not is_good(value):
            yield f"{member}, entry {number}: must be {form}"


def _shared_credentials(name: str, table: Mapping[str, Any], owners: dict[str, str]) -> Iterator[str]:
    """Yield the credentials that another caller has; record the others as this caller's."""
    for member in ("api_key_sha256", "tls_identities"):
        values = table.get(member)
        for number, value in enumerate(values if isinstance(values, list) else (), start=1):
            owner = owners.setdefault(str(value), name)
            if owner != name:
                yield f"{member}, entry {number}: also belongs to caller {owner!r}"


_MEMBERS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "api_key_sha256": (_SHA256.fullmatch, "64 hexadecimal digits in lower case, as authsvc callers new-key prints"),
    "tls_identities": (_TLS_IDENTITY.fullmatch, "a URI, or a DNS name in lower case and without wildcards"),
    "permissions": (frozenset(Permission).__contains__, f"one of {', '.join(Permission)}"),
}
