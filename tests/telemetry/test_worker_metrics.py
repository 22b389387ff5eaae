"""The sums over workers: none is lost or counted twice when one ends; and the folders of killed parents."""

import fcntl
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import Metric, generate_latest

from authsvc.telemetry import metrics
from authsvc.telemetry.log_queue import COUNT_DROPPED, Kind
from authsvc.telemetry.worker_metrics import WorkerMetrics, metrics_folder
from tests.e2e.process import environment, run

COUNTS = """
import os, signal
from authsvc.telemetry import metrics
metrics.STARTS.inc()
metrics.RPCS.labels("Method", "OK", "").inc(3)
for seconds in (0.0002, 0.3, 40.0):
    metrics.RPC_DURATION.labels("Method").observe(seconds)
metrics.SERVING.set(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
CALLS = "authsvc_rpc_total", {"method": "Method", "code": "OK", "reason": ""}
WORKERS = 10


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a killed worker leaves behind, by the names of its files without its id."""
    folder = tmp_path_factory.mktemp("counts")
    run(sys.executable, "-c", COUNTS, environ=environment(PROMETHEUS_MULTIPROC_DIR=str(folder)))
    found = {file.stem.rpartition("_")[0]: file.read_bytes() for file in folder.iterdir()}
    assert found.keys() == {"counter", "histogram", "gauge_livesum"}
    return found


@pytest.fixture
def workers(tmp_path: Path, files: dict[str, bytes]) -> WorkerMetrics:
    """So many processes with the same counts, their ids from 1."""
    for pid in range(1, WORKERS + 1):
        leave(files, tmp_path, pid)
    return WorkerMetrics(tmp_path)


def leave(files: dict[str, bytes], folder: Path, pid: int) -> None:
    for name, content in files.items():
        (folder / f"{name}_{pid}.db").write_bytes(content)


def exposed(workers: WorkerMetrics) -> set[str]:
    """Return what Prometheus reads of counters and histograms."""
    text = generate_latest(workers.registry).decode()
    return {line for line in text.splitlines() if "_serving" not in line and "_hashes_pending" not in line}


def test_counts_stay_and_files_go_when_processes_end(workers: WorkerMetrics, tmp_path: Path) -> None:
    before = exposed(workers)
    assert workers.registry.get_sample_value(*CALLS) == 3 * WORKERS
    assert workers.registry.get_sample_value("authsvc_serving") == WORKERS
    for pid in range(1, WORKERS):
        workers.end_process(pid)
    assert exposed(workers) == before
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{name}_{WORKERS}.db" for name in ("counter", "histogram", "gauge_livesum")
    }
    assert workers.registry.get_sample_value("authsvc_serving") == 1
    workers.end_process(WORKERS)
    assert exposed(workers) == before
    assert list(tmp_path.iterdir()) == []
    assert not workers.registry.get_sample_value("authsvc_serving")


def test_500_killed_processes_leave_nothing_but_their_counts(tmp_path: Path, files: dict[str, bytes]) -> None:
    workers = WorkerMetrics(tmp_path)
    for pid in range(500):
        leave(files, tmp_path, pid)
        workers.end_process(pid)
    assert list(tmp_path.iterdir()) == []
    assert workers.registry.get_sample_value(*CALLS) == 3 * 500


def test_histograms_are_those_of_one_process_with_all_observations(workers: WorkerMetrics) -> None:
    for pid in range(1, WORKERS, 2):
        workers.end_process(pid)
    (durations,) = (family for family in workers.collect() if family.name == "authsvc_rpc_duration_seconds")
    buckets = {s.labels["le"]: s.value for s in durations.samples if s.name.endswith("_bucket")}
    assert (buckets["0.0005"], buckets["0.25"], buckets["0.5"], buckets["+Inf"]) == (
        WORKERS,
        WORKERS,
        2 * WORKERS,
        3 * WORKERS,
    )
    labels = {"method": "Method"}
    assert workers.registry.get_sample_value("authsvc_rpc_duration_seconds_count", labels) == 3 * WORKERS
    assert workers.registry.get_sample_value("authsvc_rpc_duration_seconds_sum", labels) == pytest.approx(
        40.3002 * WORKERS
    )


def test_a_scrape_meanwhile_sees_every_count_once(workers: WorkerMetrics) -> None:
    seen: set[float | None] = set()
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.is_set():
            seen.add(workers.registry.get_sample_value(*CALLS))

    thread = threading.Thread(target=scrape)
    thread.start()
    for pid in range(1, WORKERS + 1):
        workers.end_process(pid)
    is_over.set()
    thread.join()
    assert seen == {3 * WORKERS}


def test_a_process_with_the_id_of_an_earlier_one_is_counted_too(
    workers: WorkerMetrics, files: dict[str, bytes], tmp_path: Path
) -> None:
    workers.end_process(1)
    leave(files, tmp_path, 1)
    assert workers.registry.get_sample_value(*CALLS) == 3 * (WORKERS + 1)
    workers.end_process(1)
    workers.end_process(1)
    assert workers.registry.get_sample_value(*CALLS) == 3 * (WORKERS + 1)


def test_a_process_killed_while_it_makes_a_file_breaks_no_scrape(tmp_path: Path) -> None:
    workers = WorkerMetrics(tmp_path)
    (tmp_path / "counter_1.db").touch()
    assert workers.registry.get_sample_value(*CALLS) is None
    workers.end_process(1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sample", "labels", "count"),
    [
        ("authsvc_log_lines_dropped_total", {"kind": "event"}, COUNT_DROPPED[Kind.EVENT]),
        ("authsvc_worker_ends_total", {}, metrics.WORKER_ENDS.inc),
    ],
    ids=["lost lines", "ended workers"],
)
def test_what_the_parent_counts_is_in_the_sum(
    tmp_path: Path, sample: str, labels: dict[str, str], count: Callable[[], None]
) -> None:
    workers = WorkerMetrics(tmp_path)
    before = workers.registry.get_sample_value(sample, labels)
    assert before is not None
    count()
    assert workers.registry.get_sample_value(sample, labels) == before + 1


def test_its_families_are_those_of_one_process(workers: WorkerMetrics) -> None:
    """Name, type and description."""

    def described(families: list[Metric]) -> set[tuple[str, str, str]]:
        return {(family.name, family.type, family.documentation) for family in families}

    own = [family for metric in (metrics.RPCS, metrics.RPC_DURATION, metrics.STARTS) for family in metric.collect()]
    for pid in range(1, 3):
        workers.end_process(pid)
    assert described(own) <= described(list(workers.collect()))


# Folders


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def abandoned(temporary: Path, name: str) -> Path:
    """Make the folder of a parent that was killed."""
    folder = temporary / f"authsvc-metrics-{name}"
    with metrics_folder() as living:
        shutil.copytree(living, folder)
        (folder / "counter_1.db").touch()
    return folder


def test_a_start_removes_the_folders_of_killed_parents_alone(temporary: Path) -> None:
    left = abandoned(temporary, "left")
    linked, in_use, without_lock = (
        Path(shutil.copytree(left, temporary / name))
        for name in ("elsewhere", "authsvc-metrics-used", "authsvc-metrics-old")
    )
    (temporary / "authsvc-metrics-link").symlink_to(linked)
    (without_lock / "lock").unlink()
    with (in_use / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with metrics_folder() as first, metrics_folder() as second:
            assert first.exists()
            assert second.exists()
            assert not left.exists()
            assert in_use.exists()
            assert without_lock.exists()
            assert (linked / "lock").exists()
    assert not first.exists()
    with metrics_folder():
        assert not in_use.exists()


def test_folders_of_other_users_stay(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = abandoned(temporary, "left")
    monkeypatch.setattr("os.geteuid", lambda: left.stat().st_uid + 1)
    with metrics_folder():
        assert left.exists()


def test_a_file_system_without_locks_will_do(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a killed parent stays then, for nothing shows that it is not in use."""

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with metrics_folder() as folder, metrics_folder():
        assert folder.exists()
        assert not (folder / "lock").exists()
    assert not folder.exists()
