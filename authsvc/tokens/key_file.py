"""The key file: read, write, and watch for changes. A file is written whole or not at all."""

import contextlib
import fcntl
import os
import shlex
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from authsvc.errors import KeyFileError
from authsvc.models import Clock
from authsvc.tokens.key_set import KeySet, StoredKeys, located, new_key_set, parse_key_set
from authsvc.tokens.keys import Key, KeyRing, parse_keys
from authsvc.watched_file import WatchedFile, read_file


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
    text = _read_text(path)
    with located(path):
        return parse_keys(text)


def watch_key_file(path: Path, clock: Clock) -> WatchedFile[KeyRing]:
    """Return the key ring of a file, reloaded when the file changes.

    Raises:
        KeyFileError: The file cannot be used now.
    """
    return WatchedFile(
        [path], lambda: read_key_ring(path, clock()), "keys", lambda ring: {"signing_key": ring.signing_key.kid}
    )


def generate_key_file(path: Path, alg: str, now: datetime) -> Sequence[Key]:
    """Create a file with a signing key and the next one.

    Raises:
        KeyFileError: The file exists, or cannot be written.
    """
    key_set = new_key_set(alg, now)
    _create_file(path, key_set.to_json(indent=2))
    return key_set.keys


class KeyFile:
    """A key file, as a store of keys.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        """Return the path."""
        return str(self._path)

    async def read(self) -> StoredKeys:
        """See KeyStore; the version is the text."""
        text = _read_text(self._path)
        with located(self._path):
            return StoredKeys(parse_key_set(text), text)

    async def create(self, key_set: KeySet) -> None:
        """See KeyStore."""
        _create_file(self._path, key_set.to_json(indent=2))

    async def write(self, key_set: KeySet, version: object) -> bool:
        """See KeyStore."""
        with _locked(self._path):
            is_unchanged = _read_text(self._path) == version
            if is_unchanged:
                _replace_file(self._path, key_set.to_json(indent=2))
            return is_unchanged


def _read_text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise KeyFileError(f"{path}: no such file; create it: authsvc keys generate {shlex.quote(str(path))}") from None
    except PermissionError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}; run this as the file's owner") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise KeyFileError(f"{path}: cannot be read: {reason}") from None


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
        # Unlike Path.resolve, realpath does not fail at a loop of symbolic links.
        handle, temporary = tempfile.mkstemp(dir=Path(os.path.realpath(path)).parent, prefix=f".{path.name}.")
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
