"""Measures one variant: sends its load, and reads the CPU time that its server has used meanwhile."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from bench import cores
from bench.load import MARKS, Load, Sample
from bench.servers import TOKENS, USERS, Server, Servers, Target, table_prefix
from bench.variants import BATCH_CALLS, MANY_USERS, Variant

WARM_UP_SECONDS = 5.0
WARM_UP_BATCH = 100
MEMORY_USERS = 100_000
MEMORY_VALIDATIONS = 1_000_000
MEMORY_STEP = 50_000
MEMORY_SECONDS = 180.0
"""The longest time for the measurement of memory."""


@dataclass(frozen=True)
class Figures:
    """The figures of one run of a variant; for batches, all but the latencies are per token.

    Args:
        cpu: User and system time of the server, in microseconds a call.
        rate: Calls a second.
        p50: Latency in milliseconds; p99 and p999 likewise.
        rss: Resident memory of the server's largest worker, in MiB.
        calls: Number of measured calls.
        errors: Number of failed calls by error.
        refused_p50: Median latency of a flood's guesses; 0: there was no flood.
        client_cpu: User and system time of the load generator, in microseconds a call.
    """

    cpu: float
    rate: float
    p50: float
    p99: float
    p999: float
    rss: float
    calls: int
    errors: dict[str, int]
    refused_p50: float = 0.0
    client_cpu: float = 0.0


class Loader:
    """The load generator's process."""

    def __init__(self, servers: Servers, on: Sequence[int]) -> None:
        environ = servers.engine.environ()
        self._process = servers.spawn(sys.executable, "-m", "bench.load", environ=environ, on=on)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def run(self, load: Load, pid: int) -> tuple[Sample, float, float]:
        """Send a load; return its sample, and the CPU seconds of a process and of the generator meanwhile."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(load)) + "\n")
        self._process.stdin.flush()
        used, own = [], []
        for _ in MARKS:
            self._read_line()
            used.append(cores.cpu_seconds(pid))
            own.append(cores.cpu_seconds(self.pid))
        return Sample(**json.loads(self._read_line())), used[1] - used[0], own[1] - own[0]

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator has exited: see its stderr above")
        return line


class Bench:
    """Measures variants on running servers."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._warm: set[Server] = set()
        self.loader = Loader(servers, cores.REST)

    @cached_property
    def _reader(self) -> Loader:
        """A load generator on the server's core, to measure a bare read there."""
        return Loader(self._servers, cores.SERVER)

    def measure(self, variant: Variant) -> Figures:
        """Run a variant once."""
        if variant.target.what == "getitem":
            return self._measure_get_item(variant)
        server = self._servers.server(variant.target)
        tokens = self._servers.tokens(variant.target.users)
        load = replace(variant.load, address=server.address, tokens=str(tokens))
        if variant.target.what == "service" and server not in self._warm:
            self._warm.add(server)
            self._warm_up(server, load)
        return _figures(*self.loader.run(load, server.pid), server.pid, load)

    def memory(self) -> list[tuple[int, float]]:
        """Validate all tokens again and again; return pairs of validations so far and resident MiB."""
        target = Target(users=MANY_USERS)
        server = self._servers.server(target)
        tokens = str(self._servers.tokens(MANY_USERS, MEMORY_USERS))
        load = Load(address=server.address, tokens=tokens, batch=WARM_UP_BATCH, in_flight=BATCH_CALLS)
        step = replace(load, warm_up=0.0, seconds=MEMORY_SECONDS, calls=MEMORY_STEP // WARM_UP_BATCH)
        give_up = time.monotonic() + MEMORY_SECONDS
        seen = [(0, cores.rss_mib(server.pid))]
        while seen[-1][0] < MEMORY_VALIDATIONS and time.monotonic() < give_up:
            sample, *_ = self.loader.run(step, server.pid)
            seen.append((seen[-1][0] + sample.calls * WARM_UP_BATCH, cores.rss_mib(server.pid)))
        return seen

    def _measure_get_item(self, variant: Variant) -> Figures:
        table = table_prefix(USERS) + "users"
        load = replace(
            variant.load, address=self._servers.engine.endpoint_url, tokens=str(self._servers.user_ids), table=table
        )
        return _figures(*self._reader.run(load, self._reader.pid), self._reader.pid, load)

    def _warm_up(self, server: Server, load: Load) -> None:
        """Validate each token once, so that the service has it in its caches."""
        once = replace(
            load,
            max_staleness=0,
            hot=0,
            batch=WARM_UP_BATCH,
            gateway=False,
            in_flight=2,
            rate=0.0,
            flood=0,
            calls=TOKENS // WARM_UP_BATCH,
            warm_up=0.0,
            seconds=WARM_UP_SECONDS,
            library="",
        )
        self.loader.run(once, server.pid)


def _figures(sample: Sample, cpu_seconds: float, client_seconds: float, pid: int, load: Load) -> Figures:
    calls = sample.calls * max(1, load.batch)
    return Figures(
        cpu=cpu_seconds / max(1, calls) * 1e6,
        rate=calls / sample.seconds,
        p50=sample.p50,
        p99=sample.p99,
        p999=sample.p999,
        rss=cores.rss_mib(pid),
        calls=calls,
        errors=sample.errors,
        refused_p50=sample.refused_p50,
        client_cpu=client_seconds / max(1, calls) * 1e6,
    )
