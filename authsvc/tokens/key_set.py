"""A stored set of private keys, and its changes: rotate, remove, merge; without I/O.

Beside the keys a stored set names those that were removed lately (`removed`, by the Unix second). So two sets that came
from commands at the same time can be merged, in any order and any number of times: no key is lost, and none that was
removed comes back. `merged_version` is of stores that cannot refuse a write: see `aws_keys`.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from authsvc.errors import KeyFileError
from authsvc.models import LEEWAY
from authsvc.tokens.keys import Key, KeyStatus, new_jwk, parse_keys

RETIRE_MARGIN = timedelta(seconds=60)
REMOVAL_KEPT = timedelta(days=1)
"""How long a set names a removed key: far longer than two commands run at the same time."""

_PROGRESS = (KeyStatus.NEXT, KeyStatus.SIGNING, KeyStatus.RETIRED)


@dataclass(frozen=True, slots=True)
class KeySet:
    """A set of private keys as it is stored.

    Args:
        keys: Parsed from `jwks`, in the same order.
        jwks: Private JWKs.
        removed: When each key was removed, in Unix seconds, by its id.
        merged_version: The last version of the store whose keys are in this set; None where the store needs none.
    """

    keys: Sequence[Key]
    jwks: Sequence[Mapping[str, Any]] = field(repr=False)
    removed: Mapping[str, int]
    merged_version: int | None = None

    def to_json(self, indent: int | None = None, merged_version: int | None = None) -> str:
        """Return the text that is stored.

        Args:
            indent: Spaces of each level; None: one line without spaces.
            merged_version: Of the set, where the store needs one.
        """
        content: dict[str, Any] = {"keys": self.jwks}
        if self.removed:
            content["removed"] = self.removed
        if merged_version is not None:
            content["merged_version"] = merged_version
        return json.dumps(content, indent=indent, separators=None if indent else (",", ":"))


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """A key set as it was read.

    Args:
        key_set: What is stored.
        version: Differs after each write, whatever its type.
    """

    key_set: KeySet
    version: object


@contextmanager
def located(location: object) -> Iterator[None]:
    """Prefix an error with the place where the keys are stored."""
    try:
        yield
    except KeyFileError as error:
        raise KeyFileError(f"{location}: {error}") from None


def parse_key_set(text: str) -> KeySet:
    """Read a stored set.

    Raises:
        KeyFileError: The text is not a key set, or a key in it cannot be used.
    """
    keys = parse_keys(text)
    content = json.loads(text)
    removed, merged_version = content.get("removed", {}), content.get("merged_version")
    if not isinstance(removed, dict) or not all(type(second) is int for second in removed.values()):
        raise KeyFileError('"removed" must give a Unix second, a whole number, for each removed key')
    if merged_version is not None and type(merged_version) is not int:
        raise KeyFileError('"merged_version" must be a whole number')
    return KeySet(keys, content["keys"], removed, merged_version)


def new_key_set(alg: str, now: datetime) -> KeySet:
    """Return a new set: a signing key and the next one."""
    return _key_set([new_jwk(alg, status, now) for status in (KeyStatus.SIGNING, KeyStatus.NEXT)], {})


def rotate(key_set: KeySet, access_token_ttl: timedelta, now: datetime) -> KeySet:
    """Let the next key sign, and retire the old one until its last token has expired; add a next key if none is left.

    Where there is no next key, one is added and nothing else changes: a key must be published before it signs.

    Args:
        key_set: Before.
        access_token_ttl: Longest lifetime of the tokens that the old key has signed.
        now: Retired keys that are expired by then are dropped.
    """
    expired = {key.kid for key in key_set.keys if key.is_expired(now.timestamp())}
    jwks = [dict(jwk) for jwk in key_set.jwks if jwk["kid"] not in expired]
    (signing,) = _with_status(jwks, KeyStatus.SIGNING)
    following = _with_status(jwks, KeyStatus.NEXT)
    if following:
        retire_time = now + access_token_ttl + LEEWAY + RETIRE_MARGIN
        signing.update(status=KeyStatus.RETIRED, retire_time=int(retire_time.timestamp()))
        following[0].update(status=KeyStatus.SIGNING)
    if len(following) < 2:  # noqa: PLR2004 - the one that signs now, and another
        jwks.append(new_jwk(signing["alg"], KeyStatus.NEXT, now))
    return _key_set(jwks, _recent(key_set.removed, now))


def remove(key_set: KeySet, kid: str, now: datetime, location: str) -> KeySet:
    """Remove a key and with it its tokens; another key takes over its status.

    A next key is added for each removed key that was not retired, even where another one is left: several commands at
    once must not remove all keys together.

    Args:
        key_set: Before.
        kid: Of the key.
        now: The time of the removal.
        location: Where the set is stored, for the remedy in an error.

    Raises:
        KeyFileError: There is no such key, or none that could sign in its place.
    """
    removed = next((key for key in key_set.keys if key.kid == kid), None)
    if removed is None:
        raise KeyFileError(f"has no key {kid}")
    jwks = [dict(jwk) for jwk in key_set.jwks if jwk["kid"] != kid]
    if removed.status is KeyStatus.SIGNING:
        following = _with_status(jwks, KeyStatus.NEXT)
        if not following:
            raise KeyFileError(
                f"has no next key to sign instead of {kid}; add one: authsvc keys rotate {shlex.quote(location)}"
            )
        following[0].update(status=KeyStatus.SIGNING)
    if removed.status is not KeyStatus.RETIRED:
        jwks.append(new_jwk(removed.alg, KeyStatus.NEXT, now))
    return _key_set(jwks, {**_recent(key_set.removed, now), kid: int(now.timestamp())})


def merge(one: KeySet, other: KeySet) -> KeySet:
    """Return the keys of two sets that were changed at the same time.

    A key that one of them has removed is removed. Of a key's two statuses the later one counts: next, signing, retired.
    """
    removed = {**one.removed, **other.removed}
    jwks: dict[str, dict[str, Any]] = {}
    for jwk in map(dict, (*one.jwks, *other.jwks)):
        kid = jwk["kid"]
        if kid not in removed:
            jwks[kid] = max(jwks.get(kid, jwk), jwk, key=_progress)
    _let_one_sign(list(jwks.values()))
    return _key_set(list(jwks.values()), removed)


def _progress(jwk: Mapping[str, Any]) -> tuple[int, int]:
    return _PROGRESS.index(jwk["status"]), jwk.get("retire_time") or 0


def _let_one_sign(jwks: Sequence[dict[str, Any]]) -> None:
    """Let the key sign that was published first, of those that sign already or else of the next ones.

    Of two commands at once, each may have retired or removed the key that signs for the other one.
    """
    candidates = _with_status(jwks, KeyStatus.SIGNING) or _with_status(jwks, KeyStatus.NEXT)
    for jwk in candidates:
        jwk.update(status=KeyStatus.SIGNING if jwk is candidates[0] else KeyStatus.NEXT)


def _with_status(jwks: Sequence[dict[str, Any]], status: KeyStatus) -> list[dict[str, Any]]:
    """Return the keys of a status, the one first that was published first."""
    found = [jwk for jwk in jwks if jwk["status"] == status]
    return sorted(found, key=lambda jwk: (jwk.get("create_time") or 0, jwk["kid"]))


def _recent(removed: Mapping[str, int], now: datetime) -> Mapping[str, int]:
    return {kid: second for kid, second in removed.items() if second > (now - REMOVAL_KEPT).timestamp()}


def _key_set(jwks: Sequence[Mapping[str, Any]], removed: Mapping[str, int]) -> KeySet:
    return KeySet(parse_keys(json.dumps({"keys": jwks})), jwks, removed)
