"""Files that are reloaded when they change: a broken new version leaves the last good content."""

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from authsvc.errors import OperatorError
from authsvc.telemetry import audit, metrics
from authsvc.telemetry.audit import Event

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Watched(Protocol[T_co]):
    """Something that may change while the service runs, with its last good content."""

    @property
    def content(self) -> T_co:
        """The last good content."""

    def reload_if_changed(self) -> T_co:
        """Return the last good content, after a look for a change where nothing else looks for it."""

    def reload(self) -> None:
        """Read it, changed or not, and log the outcome."""


class WatchedFile(Generic[T]):
    """A file, or files that are used together, that may change while the service runs.

    Args:
        paths: The files.
        read: Reads the files and returns their content.
        subject: What the files hold: the prefix of its log events.
        describe: Returns the members of the log line of a reload.

    Raises:
        OperatorError: The first read fails. Later failures are logged and leave the last good content.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], T],
        subject: str,
        describe: Callable[[T], Mapping[str, object]],
    ) -> None:
        self._paths = paths
        self._read = read
        self._subject = subject
        self._describe = describe
        self._set_failing = metrics.RELOAD_FAILING.labels(subject).set
        self._failed_version: object = None
        self._reported_version: object = None
        self._loaded_version = self._version()
        self.content = read()
        self._set_failing(0)

    def reload_if_changed(self) -> T:
        """Read the files if one has changed; return the last good content.

        A version that cannot be used is read again each time, and logged once: at the second time, because the first
        may have met the middle of a replacement.
        """
        version = self._version()
        if version == self._loaded_version:
            self._forget_failure()
            return self.content
        error = self._load(version)
        if error is not None:
            if version == self._failed_version != self._reported_version:
                self._report(version, error)
            self._failed_version = version
        return self.content

    def reload(self) -> None:
        """Read the files, changed or not, and log the outcome."""
        version = self._version()
        error = self._load(version)
        if error is not None:
            self._report(version, error)

    def _load(self, version: object) -> OperatorError | None:
        """Read the files; return why they cannot be used.

        Args:
            version: Taken before the read, so that a change during it is read next time.
        """
        try:
            self.content = self._read()
        except OperatorError as error:
            return error
        self._loaded_version = version
        self._forget_failure()
        audit.record(Event(f"{self._subject}_reloaded"), **self._describe(self.content))
        return None

    def _report(self, version: object, error: OperatorError) -> None:
        self._reported_version = version
        self._set_failing(1)
        audit.record(Event(f"{self._subject}_not_reloaded"), reason=str(error))

    def _forget_failure(self) -> None:
        self._failed_version = self._reported_version = None
        self._set_failing(0)

    def _version(self) -> object:
        """Return what differs after any change of a file."""
        return tuple(_version(path) for path in self._paths)


def read_file(path: Path) -> bytes:
    """Read a file that is watched.

    Raises:
        OSError: It cannot be read, or is a pipe or a device: reading one may never end, and neither would the service.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read()


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file without blocking: a pipe would block until a writer opens it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _version(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    # A change of permissions changes st_ctime alone.
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
