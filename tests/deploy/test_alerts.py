"""A real Prometheus watches real services: each alert fires when its fault is there, and none on a quiet service."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from google.protobuf import duration_pb2

from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests import tools
from tests.deploy.prometheus import (
    FOLDER,
    RULES,
    Prometheus,
    dashboard_expressions,
    pause_between_scrapes,
    prometheus,
)
from tests.dynamodb import Tables, tables_of
from tests.e2e.certificates import Authority
from tests.e2e.process import AUTHSVC, GIVE_UP_SECONDS, Process, environment, poll, started
from tests.e2e.test_serve import EMAIL, create_store, on_engine, with_tls
from tests.e2e.test_workers import events, pid_of
from tests.engines import Engine
from tests.engines.process import free_port
from tests.faults import TRUNCATED, Delay, FaultyProxy, Throttle, proxy_in_thread
from tests.rpc.test_foreign_rows import hash_of
from tests.support import PASSWORD, WITNESS

# The first run builds Prometheus.
pytestmark = [pytest.mark.engines, pytest.mark.timeout(240, func_only=True)]

WATCH_SECONDS = 60.0
CALL_SECONDS = 0.03
STOPPED_SECONDS = 0.9
BROKEN = "carol"
BROKEN_EMAIL = "carol@example.com"
REFRESH = auth_pb2.RefreshTokensRequest(refresh_token="x")

# Prometheus's own check of the rules


def test_promtool_finds_nothing_wrong() -> None:
    promtool = tools.required_or_skip(tools.prometheus) / "promtool"
    for arguments in (
        ["check", "config", "--lint=all", "--lint-fatal", "prometheus.yaml"],
        ["check", "rules", "--lint=all", "--lint-fatal", *RULES],
        ["test", "rules", "rules_test.yaml"],
    ):
        done = subprocess.run([promtool, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# Services


@dataclass
class Instance:
    """A service, or what is left of it, and the alerts that its fault is expected to fire.

    Args:
        settings: All of them, its two ports included.
        expected: Alerts with their severity.
        possible: Alerts that a slow machine may add.
        token: A valid access token.
    """

    settings: dict[str, str]
    expected: set[tuple[str, str]]
    possible: set[tuple[str, str]] = field(default_factory=set)
    token: str = ""

    @property
    def side_port(self) -> str:
        return self.settings["AUTHSVC_HTTP_LISTEN"]

    @property
    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.settings["AUTHSVC_LISTEN"])

    def answers(self, path: str) -> bool:
        try:
            urllib.request.urlopen(f"http://{self.side_port}{path}", timeout=GIVE_UP_SECONDS).close()
        except OSError:
            return False
        return True


def critical(*names: str) -> set[tuple[str, str]]:
    return {(f"Authsvc{name}", "critical") for name in names}


def warning(*names: str) -> set[tuple[str, str]]:
    return {(f"Authsvc{name}", "warning") for name in names}


def with_ports(settings: dict[str, str]) -> dict[str, str]:
    grpc_port, side_port = free_port(), free_port()
    return {
        **settings,
        "AUTHSVC_LISTEN": f"127.0.0.1:{grpc_port}",
        "AUTHSVC_HTTP_LISTEN": f"127.0.0.1:{side_port}",
    }


@pytest.fixture
def sqlite(tmp_path: Path, signing_keys: Path) -> dict[str, str]:
    settings = {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
    }
    create_store(settings)
    return settings


@pytest.fixture
def tables(sqlite: dict[str, str], dynoxide: Engine, table_prefix: str) -> Tables:
    create_store(on_engine({**sqlite, "AUTHSVC_TABLE_PREFIX": table_prefix}, dynoxide))
    return tables_of(dynoxide, table_prefix)


@pytest.fixture
def instances(
    tmp_path: Path, sqlite: dict[str, str], dynoxide: Engine, tables: Tables, proxies: dict[str, FaultyProxy]
) -> dict[str, Instance]:
    def on_proxy(name: str) -> dict[str, str]:
        prefix = {"AUTHSVC_TABLE_PREFIX": tables.prefix}
        return with_ports(on_engine({**sqlite, **prefix}, dynoxide, proxies[name].endpoint_url))

    own_keys = Path(shutil.copy(sqlite["AUTHSVC_SIGNING_KEYS"], tmp_path / "own-keys.json"))
    files = {**sqlite, "AUTHSVC_SIGNING_KEYS": str(own_keys)}
    expiring = with_tls(files, Authority(tmp_path).issue("server", days=1))
    spans = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5"}
    return {
        "quiet": Instance(on_proxy("quiet"), set()),
        "stopped": Instance(
            on_proxy("stopped"), critical("StoreStopped", "ErrorRatioHigh") | warning("ValidationsSlow")
        ),
        # Nobody takes its spans either.
        "rows": Instance(
            {**on_proxy("rows"), **spans, "OTEL_BSP_SCHEDULE_DELAY": "200"},
            critical("UnreadableResponses") | warning("BrokenRows", "InternalErrors", "SpansDropped"),
        ),
        "slow": Instance(on_proxy("slow"), warning("ValidationsSlow", "StoreThrottled")),
        "hashing": Instance(with_ports(sqlite), warning("HashingFull") | critical("ErrorRatioHigh")),
        "stalled": Instance(
            with_ports(sqlite), warning("LogLinesDropped", "EventLoopBlocked"), possible=critical("Down")
        ),
        "files": Instance(
            with_ports(expiring), critical("CertificateExpiring") | warning("CertificateExpiring", "ReloadFailing")
        ),
        "workers": Instance({**with_ports(sqlite), "AUTHSVC_WORKERS": "2"}, critical("WorkersDying")),
        "crashing": Instance(with_ports(sqlite), critical("Restarting"), possible=critical("Down", "NotServing")),
        # It asks the store again and again.
        "no tables": Instance(
            with_ports({**sqlite, "AUTHSVC_STORE": f"sqlite:{tmp_path / 'empty.db'}"}),
            critical("NotServing", "StoreStopped"),
        ),
        "down": Instance(with_ports(sqlite), critical("Down")),
    }


@pytest.fixture
def proxies(dynoxide: Engine) -> Iterator[dict[str, FaultyProxy]]:
    with ExitStack() as stack:
        names = ("quiet", "stopped", "rows", "slow")
        yield {name: stack.enter_context(proxy_in_thread(dynoxide.endpoint_url)) for name in names}


@contextmanager
def started_without_log(settings: dict[str, str]) -> "Iterator[subprocess.Popen[bytes]]":
    """Run the service with its stderr on a full disk."""
    with (
        Path("/dev/full").open("wb") as full,
        subprocess.Popen([AUTHSVC, "serve"], env=environment(**settings), stderr=full) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


# Load and faults


class Load:
    """Calls of backends: until `over`, each instance's on a thread of its own."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def run(self, act: Callable[[auth_grpc.AuthServiceStub], object], instance: Instance) -> None:
        """Call and pause, again and again; what fails is what Prometheus shall see."""
        with instance.channel as channel:
            stub = auth_grpc.AuthServiceStub(channel)
            while not self.over.wait(CALL_SECONDS):
                with suppress(grpc.RpcError):
                    act(stub)


def log_in(stub: auth_grpc.AuthServiceStub, email: str = EMAIL) -> str:
    request = auth_pb2.AuthenticateRequest(email=email, password=PASSWORD)
    response = stub.Authenticate(request, timeout=GIVE_UP_SECONDS, wait_for_ready=True)
    WITNESS.hide_fields(response)
    return response.tokens.access_token


def validation(token: str, max_staleness_seconds: int = 0) -> auth_pb2.ValidateTokenRequest:
    return auth_pb2.ValidateTokenRequest(
        token=token, max_staleness=duration_pb2.Duration(seconds=max_staleness_seconds)
    )


def validate(instance: Instance) -> Callable[[auth_grpc.AuthServiceStub], object]:
    return lambda stub: stub.ValidateToken(validation(instance.token), timeout=GIVE_UP_SECONDS)


def live(instance: Instance) -> Callable[[auth_grpc.AuthServiceStub], object]:
    """Return one of each call that the dashboard shows; a login now and then."""
    turns = iter(range(sys.maxsize))

    def act(stub: auth_grpc.AuthServiceStub) -> None:
        validate(instance)(stub)
        requests = [validation(instance.token, 60), validation("x")]
        stub.BatchValidateTokens(auth_pb2.BatchValidateTokensRequest(requests=requests))
        if not next(turns) % 20:
            log_in(stub)
            stub.RefreshTokens(REFRESH)

    return act


def meet_garbage(instance: Instance, proxy: FaultyProxy, tables: Tables) -> None:
    """One response that cannot be read, and one row, of a user with a token."""
    with instance.channel as channel:
        stub = auth_grpc.AuthServiceStub(channel)
        tables.put_user(BROKEN, BROKEN_EMAIL, password_hash=hash_of(PASSWORD))
        token = log_in(stub, BROKEN_EMAIL)
        with proxy.fault(TRUNCATED, operations={"BatchGetItem"}, times=1) as fault:
            poll(lambda: fault.hits, "met it")
        tables.set_attribute(BROKEN, "is_active", {"S": "yes"})
        with pytest.raises(grpc.RpcError):
            stub.ValidateToken(validation(token), timeout=GIVE_UP_SECONDS)


def flood_with_logins(instance: Instance, load: Load) -> None:
    """Bursts that are larger than the queue, of addresses that nobody has."""
    numbers = iter(range(200))
    with instance.channel as channel, ThreadPoolExecutor(20) as pool:
        stub = auth_grpc.AuthServiceStub(channel)

        def attempt(number: int) -> None:
            with suppress(grpc.RpcError):
                log_in(stub, f"nobody{number}@example.com")

        while not load.over.wait(1.0):
            burst = [number for number, _ in zip(numbers, range(20), strict=False)]
            list(pool.map(attempt, burst))


def stall(process: "subprocess.Popen[bytes]") -> None:
    for _ in range(4):
        process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        process.send_signal(signal.SIGCONT)
        pause_between_scrapes()


def damage_keys(instance: Instance) -> None:
    Path(instance.settings["AUTHSVC_SIGNING_KEYS"]).write_text("{")


def kill_workers(serve: Process) -> None:
    for times in range(4):
        poll(lambda: len(events(serve, "worker_started")) == 2 + times, "was started")  # noqa: B023 - called at once
        os.kill(pid_of(serve, 1), signal.SIGKILL)


def crash(instance: Instance, folder: Path, load: Load) -> None:
    for times in range(4):
        with started("serve", cwd=folder, environ=environment(**instance.settings)) as serve:
            poll(lambda: instance.answers("/metrics"), "answered")
            if times == 3:
                load.over.wait()
                return
            # Long enough that the next process has counted less when it is scraped.
            time.sleep(1.5)
            serve.end(signal.SIGKILL)


@contextmanager
def all_running(
    instances: dict[str, Instance], folder: Path
) -> "Iterator[tuple[dict[str, Process], subprocess.Popen[bytes]]]":
    """Run the services, all but those that are down at the beginning, and wait until they answer."""
    own = {"stalled", "crashing", "down"}
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(started("serve", cwd=folder, environ=environment(**instance.settings)))
            for name, instance in instances.items()
            if name not in own
        }
        stalled = stack.enter_context(started_without_log(instances["stalled"].settings))
        for name, instance in instances.items():
            if name not in own - {"stalled"}:
                path = "/metrics" if name == "no tables" else "/healthz"
                poll(lambda: instance.answers(path), f"answered: {name}")  # noqa: B023 - called at once
        yield running, stalled


def fired(watch: Prometheus, names: dict[str, str]) -> dict[str, set[tuple[str, str]]]:
    """Return the alerts that have fired so far by the names of the instances."""
    by_instance: dict[str, set[tuple[str, str]]] = {name: set() for name in names.values()}
    # Without an instance it is Prometheus that has just started: it has scraped nothing yet.
    for labels, _ in watch.query('count_over_time(ALERTS{alertstate="firing", instance!=""}[10m])'):
        by_instance[names[labels["instance"]]].add((labels["alertname"], labels["severity"]))
    return by_instance


def without_data(watch: Prometheus) -> list[str]:
    """Return the names of the dashboard's expressions that no series or no number comes from."""
    found = {name: watch.query(expression) for name, expression in dashboard_expressions().items()}
    return [name for name, series in found.items() if all(value != value for _, value in series)]  # noqa: PLR0124 - NaN


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/full")
def test_each_alert_fires_for_its_fault_and_the_dashboard_shows_data(
    tmp_path: Path, instances: dict[str, Instance], proxies: dict[str, FaultyProxy], tables: Tables
) -> None:
    names = {instance.side_port: name for name, instance in instances.items()}
    load = Load()
    data = tmp_path / "prometheus"
    data.mkdir()
    with ExitStack() as stack:
        running, stalled = stack.enter_context(all_running(instances, tmp_path))
        for name in ("quiet", "stopped", "rows", "slow"):
            with instances[name].channel as channel:
                instances[name].token = log_in(auth_grpc.AuthServiceStub(channel))
        watch = stack.enter_context(prometheus(data, list(names)))
        stack.enter_context(proxies["slow"].fault(Delay(0.4), operations={"BatchGetItem"}, probability=0.2))
        stack.enter_context(proxies["slow"].fault(Throttle(), operations={"BatchGetItem"}, probability=0.1))
        stack.enter_context(proxies["stopped"].down())
        pool = stack.enter_context(ThreadPoolExecutor(16))
        stack.callback(load.over.set)
        work = [
            pool.submit(load.run, live(instances["quiet"]), instances["quiet"]),
            *(
                pool.submit(load.run, validate(instances[name]), instances[name])
                for name in ("stopped", "rows", "slow")
            ),
            pool.submit(load.run, lambda stub: stub.RefreshTokens(REFRESH), instances["stalled"]),
        ]
        poll(lambda: len(watch.query("up == 1")) == len(instances) - 2, "were scraped")
        pause_between_scrapes()
        work += [
            pool.submit(meet_garbage, instances["rows"], proxies["rows"], tables),
            pool.submit(flood_with_logins, instances["hashing"], load),
            pool.submit(stall, stalled),
            pool.submit(damage_keys, instances["files"]),
            pool.submit(kill_workers, running["workers"]),
            pool.submit(crash, instances["crashing"], tmp_path, load),
        ]
        give_up = time.monotonic() + WATCH_SECONDS
        while any(instances[name].expected - alerts for name, alerts in fired(watch, names).items()):
            if time.monotonic() > give_up:
                break
            pause_between_scrapes()
        empty = without_data(watch)
        load.over.set()
        for each in work:
            each.result(GIVE_UP_SECONDS)
        seen = fired(watch, names)
    assert {name: seen[name] - instance.possible for name, instance in instances.items()} == {
        name: instance.expected for name, instance in instances.items()
    }
    assert empty == []
