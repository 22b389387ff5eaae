"""The key file: read, write, rotate, remove, and watch for changes. A file is written whole or not at all."""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from authsvc.errors import KeyFileError
from authsvc.models import LEEWAY, Clock
from authsvc.tokens.keys import Key, KeyRing, KeyStatus, new_jwk, parse_keys
from authsvc.watched_file import WatchedFile

RETIRE_MARGIN = timedelta(seconds=60)
PUBLISHED_BEFORE_SIGNING = timedelta(hours=2)
"""How long gateways may cache the public keys."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """The result of a rotation.

    Args:
        retired: The key that signed before; None where no next key was published, so that it still signs.
        signing: The key that signs now.
        following: The next key.
    """

    retired: Key | None
    signing: Key
    following: Key


def read_key_ring(path: Path, now: datetime) -> KeyRing:
    """Read the keys of a file that are not expired.

    Raises:
        KeyFileError: The file cannot be read, or a key in it cannot be used.
    """
    return KeyRing([key for key in read_keys(path) if not key.is_expired(now.timestamp())])


def read_keys(path: Path) -> list[Key]:
    """Read all keys of a file.

    Raises:
        KeyFileError: The file cannot be read, or a key in it cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise KeyFileError(f"{path}: no such file; create it: authsvc keys generate {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise KeyFileError(f"{path}: cannot be read: {reason}") from None
    try:
        return parse_keys(text)
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from None


def watch_key_file(path: Path, clock: Clock) -> WatchedFile[KeyRing]:
    """Return the key ring of a file, reloaded when the file changes.

    Raises:
        KeyFileError: The file cannot be used now.
    """
    return WatchedFile(
        [path], lambda: read_key_ring(path, clock()), "keys", lambda ring: {"signing_key": ring.signing_key.kid}
    )


def generate_key_file(path: Path, alg: str, now: datetime) -> list[Key]:
    """Create a file with a signing key and the next one.

    Raises:
        KeyFileError: The file exists, or cannot be written.
    """
    jwks = [new_jwk(alg, status, now) for status in (KeyStatus.SIGNING, KeyStatus.NEXT)]
    _create_file(path, json.dumps({"keys": jwks}, indent=2))
    return read_keys(path)


def rotate_keys(path: Path, access_token_ttl: timedelta, now: datetime) -> Rotation:
    """Let the next key sign, add a new next one, and retire the old one until its last token has expired.

    Where there is no next key, one is added and nothing else changes: a key must be published before it signs.

    Args:
        path: The key file.
        access_token_ttl: Longest lifetime of the tokens that the old key has signed.
        now: Retired keys that are expired by then are dropped.

    Raises:
        KeyFileError: The file cannot be used or written.
    """
    with _locked(path):
        keys = {key.kid: key for key in read_keys(path)}
        jwks = [jwk for jwk in _read_jwks(path) if not keys[jwk["kid"]].is_expired(now.timestamp())]
        signing = next(jwk for jwk in jwks if jwk["status"] == KeyStatus.SIGNING)
        following = next((jwk for jwk in jwks if jwk["status"] == KeyStatus.NEXT), None)
        if following is not None:
            retire_time = now + access_token_ttl + LEEWAY + RETIRE_MARGIN
            signing.update(status=KeyStatus.RETIRED, retire_time=int(retire_time.timestamp()))
            following.update(status=KeyStatus.SIGNING)
        added = new_jwk(signing["alg"], KeyStatus.NEXT, now)
        written = {key.kid: key for key in _write_jwks(path, [*jwks, added])}
        if following is None:
            return Rotation(None, written[signing["kid"]], written[added["kid"]])
        return Rotation(written[signing["kid"]], written[following["kid"]], written[added["kid"]])


def remove_key(path: Path, kid: str, now: datetime) -> list[Key]:
    """Remove a key and with it its tokens; another key takes over its status.

    Raises:
        KeyFileError: The file cannot be used or written, or has no such key.
    """
    with _locked(path):
        keys = read_keys(path)
        removed = next((key for key in keys if key.kid == kid), None)
        if removed is None:
            raise KeyFileError(f"{path}: has no key {kid}")
        jwks = [jwk for jwk in _read_jwks(path) if jwk["kid"] != kid]
        if removed.status is KeyStatus.SIGNING:
            following = next((jwk for jwk in jwks if jwk["status"] == KeyStatus.NEXT), None)
            if following is None:
                raise KeyFileError(
                    f"{path}: has no next key to sign instead of {kid}; add one: authsvc keys rotate {path}"
                )
            following.update(status=KeyStatus.SIGNING)
        if removed.status is not KeyStatus.RETIRED:
            jwks.append(new_jwk(removed.alg, KeyStatus.NEXT, now))
        return _write_jwks(path, jwks)


def was_just_published(key: Key, now: datetime) -> bool:
    """Tell whether a key is so new that gateways may not know it yet."""
    return now.timestamp() - key.create_time < PUBLISHED_BEFORE_SIGNING.total_seconds()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Serialize commands that change a file. The lock is on its folder, because the file itself is replaced."""
    try:
        folder = os.open(path.resolve().parent, os.O_RDONLY)
    except OSError as error:
        raise KeyFileError(f"{path}: its folder cannot be read: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _read_jwks(path: Path) -> list[dict[str, Any]]:
    jwks: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["keys"]
    return jwks


def _write_jwks(path: Path, jwks: list[dict[str, Any]]) -> list[Key]:
    _replace_file(path, json.dumps({"keys": jwks}, indent=2))
    return read_keys(path)


def _create_file(path: Path, text: str) -> None:
    """Create a file that only its owner may read; os.link refuses to overwrite one."""
    with _temporary_file(path, text) as temporary:
        os.link(temporary, path)


def _replace_file(path: Path, text: str) -> None:
    """Replace a file, keeping its owner."""
    with _temporary_file(path, text) as temporary:
        # Root may rotate the keys of a service that runs as another user.
        owner = path.stat()
        os.chown(temporary, owner.st_uid, owner.st_gid)
        Path(temporary).replace(path.resolve())


@contextmanager
def _temporary_file(path: Path, text: str) -> Iterator[str]:
    """Write a text to a temporary file in the same folder and sync it to disk."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.resolve().parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileExistsError:
        raise KeyFileError(f"{path}: exists; keys are never overwritten") from None
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from None
