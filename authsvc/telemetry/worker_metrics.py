"""The metrics of several worker processes: their folder, and the sums over those that run and those that have ended."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, multiprocess
from prometheus_client.registry import Collector

from authsvc.errors import OperatorError
from authsvc.telemetry import metrics

_PREFIX = "authsvc-metrics-"
_LOCK = "lock"


class WorkerMetrics(Collector):
    """Adds up what the workers count in their files, and what this process, their parent, counts itself.

    Counts of workers that have ended are kept here, not in files: nobody reads them once the parent has ended.

    Args:
        folder: Of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended: list[Metric] = []
        # A scrape in another thread must see the counts of a process either in its files or in _ended.
        self._lock = threading.Lock()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        with self._lock:
            running = _read(self._folder.glob("*.db"))
            own = (*metrics.LOG_LINES_DROPPED.collect(), *metrics.WORKER_ENDS.collect())
            return _add_up([*running, *self._ended, *own])

    def end_process(self, pid: int) -> None:
        """Take over the counts of a process that has ended, and remove its files; its gauges are forgotten."""
        files = list(self._folder.glob(f"*_{pid}.db"))
        with self._lock:
            self._ended = _add_up([*self._ended, *_read(file for file in files if not file.name.startswith("gauge_"))])
            for file in files:
                file.unlink()


def _read(files: Iterable[Path]) -> Iterable[Metric]:
    # A file is empty where its process was killed, or is, between its first two system calls.
    complete = [str(file) for file in files if file.stat().st_size]
    merged: Iterable[Metric] = multiprocess.MultiProcessCollector.merge(complete)  # type: ignore[no-untyped-call]
    return merged


def _add_up(families: Iterable[Metric]) -> list[Metric]:
    """Add up samples of the same name and labels. Buckets are cumulative, so their sums are cumulative as well."""
    sums: dict[str, Metric] = {}
    values: defaultdict[str, defaultdict[tuple[str, tuple[tuple[str, str], ...]], float]]
    values = defaultdict(lambda: defaultdict(float))
    for family in families:
        sums.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        for sample in family.samples:
            values[family.name][sample.name, tuple(sorted(sample.labels.items()))] += sample.value
    for name, total in sums.items():
        for (sample_name, labels), value in values[name].items():
            total.add_sample(sample_name, dict(labels), value)
    return list(sums.values())


@contextmanager
def metrics_folder() -> Iterator[Path]:
    """Create the folder of the workers' files, and remove it after the body; remove those of killed parents as well.

    Raises:
        OperatorError: The folder cannot be created.
    """
    _remove_abandoned_folders()
    try:
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
    except OSError as error:
        raise OperatorError(
            f"cannot create a folder for metrics: {error.strerror}; set TMPDIR to a writable one"
        ) from None
    with folder as path, _locked(Path(path)):
        yield Path(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with this process, however it ends."""
    with contextlib.ExitStack() as stack:
        # Without a lock the folder is left where it is, once the process is killed.
        with contextlib.suppress(OSError):
            lock = stack.enter_context((folder / "new-lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            Path(lock.name).rename(folder / _LOCK)
        yield


def _remove_abandoned_folders() -> None:
    """Remove the folders whose parents have ended: nobody holds their lock. A folder without a lock may be in use."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.geteuid():
                with (folder / _LOCK).open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
