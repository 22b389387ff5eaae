"""A file that is followed while the service runs: its last good content, and how its changes are seen."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from authsvc.errors import OperatorError
from authsvc.telemetry import audit
from authsvc.telemetry.audit import Event

T = TypeVar("T")


class WatchedFile(Generic[T]):
    """A file that may change: what its last good reading gave.

    Args:
        path: The file.
        read: Reads it.
        what: What it holds, in the names of its log events.
        describe: Says for the log what a good reading gave.

    Raises:
        OperatorError: On the first reading. Later a broken or missing file leaves the last good content, and is logged.
    """

    def __init__(
        self, path: Path, read: Callable[[], T], what: str, describe: Callable[[T], Mapping[str, object]]
    ) -> None:
        self._path = path
        self._read = read
        self._what = what
        self._describe = describe
        self._seen = self._version()
        self.content = read()

    def refresh(self) -> T:
        """Read the file again if it has changed; return the last good content."""
        version = self._version()
        if version == self._seen:
            return self.content
        self._seen = version  # as it was before it is read: what changes meanwhile is read again
        try:
            self.content = self._read()
        except OperatorError as error:
            audit.record(Event(f"{self._what}_not_reloaded"), reason=str(error))
        else:
            audit.record(Event(f"{self._what}_reloaded"), **self._describe(self.content))
        return self.content

    def _version(self) -> tuple[int, ...]:
        """Return what differs after every change of the file, however it was made."""
        try:
            stat = self._path.stat()
        except OSError:
            return ()
        # A change of rights changes st_ctime alone.
        return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
