"""The key file: read, write, rotate, remove, and watch for changes. A file is written whole or not at all."""

import contextlib
import fcntl
import json
import os
import shlex
import stat
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
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise KeyFileError(f"{path}: no such file; create it: authsvc keys generate {shlex.quote(str(path))}") from None
    except PermissionError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}; run this as the file's owner") from None
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
                remedy = f"authsvc keys rotate {shlex.quote(str(path))}"
                raise KeyFileError(f"{path}: has no next key to sign instead of {kid}; add one: {remedy}")
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
        with contextlib.nullcontext() if _is_locked(folder) else _lock_file(path):
            yield
    finally:
        os.close(folder)


def _is_locked(folder: int) -> bool:
    """Wait for the lock of a folder; return whether it is locked: NFS and some SMB shares lock no folder."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


@contextmanager
def _lock_file(path: Path) -> Iterator[None]:
    """Lock a file by another one beside it, which only one command can create."""
    lock = path.resolve().with_name(f".{path.name}.lock")
    try:
        os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise KeyFileError(f"{path}: another command changes it; if none is running, remove {lock}") from None
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be locked: {error.strerror}") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _read_jwks(path: Path) -> list[dict[str, Any]]:
    jwks: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8-sig"))["keys"]
    return jwks


def _write_jwks(path: Path, jwks: list[dict[str, Any]]) -> list[Key]:
    _replace_file(path, json.dumps({"keys": jwks}, indent=2))
    return read_keys(path)


def _create_file(path: Path, text: str) -> None:
    """Create a file that only its owner may read, and overwrite none.

    An empty file reserves the name first: not every file system has hard links, which would do both in one step.
    """
    with _temporary_file(path, text) as temporary:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            os.replace(temporary, path)  # noqa: PTH105 - a test lets it fail
        except OSError:
            path.unlink()
            raise


def _replace_file(path: Path, text: str) -> None:
    """Replace a file for the same readers."""
    with _temporary_file(path, text) as temporary:
        _copy_readers(path, temporary)
        os.replace(temporary, path.resolve())  # noqa: PTH105 - as above


def _copy_readers(path: Path, temporary: str) -> None:
    """Give a new file the owner of the old one, and its group where that may read it.

    Root may rotate the keys of a service that runs as another user, and that must be able to read them.

    Raises:
        KeyFileError: This user must not give files away, so the service could not read the new file.
    """
    old = path.stat()
    is_for_group = stat.S_IMODE(old.st_mode) & 0o047 == stat.S_IRGRP  # a file for everyone becomes its owner's alone
    try:
        os.chown(temporary, old.st_uid, old.st_gid)
    except OSError:
        new = Path(temporary).stat()
        # A file system without owners refuses the change to what is already so.
        if new.st_uid != old.st_uid or (is_for_group and new.st_gid != old.st_gid):
            reason = f"belongs to user {old.st_uid}, group {old.st_gid}, who could not read the new file"
            raise KeyFileError(f"{path}: {reason}; run this command as that user or as root") from None
    if is_for_group and not Path(temporary).stat().st_mode & stat.S_IRGRP:
        os.chmod(temporary, 0o640)  # noqa: PTH101 - as above


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
