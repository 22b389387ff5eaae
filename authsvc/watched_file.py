"""A file that is reloaded when it changes: a broken new version leaves the last good content."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from authsvc.errors import OperatorError
from authsvc.telemetry import audit
from authsvc.telemetry.audit import Event

T = TypeVar("T")


class WatchedFile(Generic[T]):
    """A file that may change while the service runs.

    Args:
        path: The file.
        read: Reads the file and returns its content.
        subject: What the file holds: the prefix of its log events.
        describe: Returns the members of the log line of a reload.

    Raises:
        OperatorError: The first read fails. Later failures are logged and leave the last good content.
    """

    def __init__(
        self, path: Path, read: Callable[[], T], subject: str, describe: Callable[[T], Mapping[str, object]]
    ) -> None:
        self._path = path
        self._read = read
        self._subject = subject
        self._describe = describe
        self._loaded_version = self._version()
        self.content = read()

    def reload_if_changed(self) -> T:
        """Read the file if it has changed; return the last good content."""
        version = self._version()
        if version == self._loaded_version:
            return self.content
        self._loaded_version = version  # taken before the read, so that a change during it is read next time
        try:
            self.content = self._read()
        except OperatorError as error:
            audit.record(Event(f"{self._subject}_not_reloaded"), reason=str(error))
        else:
            audit.record(Event(f"{self._subject}_reloaded"), **self._describe(self.content))
        return self.content

    def _version(self) -> tuple[int, ...]:
        """Return numbers of which at least one differs after any change of the file."""
        try:
            stat = self._path.stat()
        except OSError:
            return ()
        # A change of permissions changes st_ctime alone.
        return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
