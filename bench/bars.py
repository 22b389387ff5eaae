"""The bars: what each figure must not exceed, or must reach."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.measure import MEMORY_VALIDATIONS
from bench.results import Results, Spread
from bench.spans import NOT_SAMPLED
from bench.variants import MANY_USERS


@dataclass(frozen=True)
class Bar:
    """One bar.

    Args:
        text: The figures that are compared.
        limit: The bar is met if the median does not exceed it.
        beyond: The stricter limit; None: there is none.
        figure: Returns the figure of some results; None if it was not measured.
        form: The format of a figure.
        is_floor: The limits are minima: the median must reach them.
    """

    text: str
    limit: float
    beyond: float | None
    figure: Callable[[Results], Spread | None]
    form: str = "{:.2f}"
    is_floor: bool = False

    def verdict(self, results: Results) -> str:
        """Return whether the median meets the bar."""
        figure = self.figure(results)
        if figure is None:
            return "not measured"
        if self.beyond is not None and self._holds(figure.median, self.beyond):
            return "beyond"
        return "met" if self._holds(figure.median, self.limit) else "missed"

    def _holds(self, value: float, bar: float) -> bool:
        return value >= bar if self.is_floor else value <= bar


def _ratio(name: str, other: str, figure: str = "cpu") -> Callable[[Results], Spread | None]:
    return lambda results: results.ratio(name, other, figure)


def _added_latency(results: Results) -> Spread | None:
    """Return the latency of a fresh validation above that of a bare read plus an empty RPC, as a share of it."""
    rounds = results.rounds_with("fresh 1", "getitem 1", "empty 1")
    return Spread.of(each["fresh 1"].p50 / (each["getitem 1"].p50 + each["empty 1"].p50) - 1 for each in rounds)


def _above_two_reads(milliseconds: int) -> Callable[[Results], Spread | None]:
    name = f"delay-{milliseconds} 1000/s"
    return lambda results: Spread.of(each[name].p99 - 2 * milliseconds for each in results.rounds_with(name))


def _both_ends(name: str, other: str) -> Callable[[Results], Spread | None]:
    """Return the CPU of client and server together, as a share of another variant's."""
    return lambda results: Spread.of(
        (each[name].cpu + each[name].client_cpu) / (each[other].cpu + each[other].client_cpu)
        for each in results.rounds_with(name, other)
    )


def _client_cpu_above(name: str, other: str) -> Callable[[Results], Spread | None]:
    return lambda results: Spread.of(
        each[name].client_cpu - each[other].client_cpu for each in results.rounds_with(name, other)
    )


def _units(name: str) -> Callable[[Results], Spread | None]:
    return lambda results: Spread.of([results.units[name]] if name in results.units else [])


def _memory(results: Results) -> Spread | None:
    return Spread.of([results.memory[-1][1]] if _has_memory(results) else [])


def _growth(results: Results) -> Spread | None:
    """Return the growth of memory in the second half, as a share."""
    if not _has_memory(results):
        return None
    return Spread.of([results.memory[-1][1] / results.memory[len(results.memory) // 2][1] - 1])


def _middleware(results: Results) -> Spread | None:
    return Spread.of(results.middleware)


def _spans(results: Results) -> Spread | None:
    return Spread.of(results.spans.get(NOT_SAMPLED, ()))


def _has_memory(results: Results) -> bool:
    return bool(results.memory) and results.memory[-1][0] >= MEMORY_VALIDATIONS


def _bars() -> Iterator[Bar]:
    yield Bar("fresh, 64 in flight: CPU / empty RPC", 1.4, 1.25, _ratio("fresh 64", "empty 64"))
    yield Bar("fresh, 64 in flight: CPU / naive", 0.25, 0.22, _ratio("fresh 64", "naive 64"))
    yield Bar("`max_staleness` 5 s, 64 in flight: CPU / empty RPC", 1.25, 1.1, _ratio("stale 64", "empty 64"))
    yield Bar("fresh, batches of 64: CPU of a token / empty RPC", 0.14, 0.08, _ratio("batch-64 64", "empty 64"))
    yield Bar("fresh, steady 300/s: CPU / empty RPC", 2.5, 2, _ratio("fresh 300/s", "empty 300/s"))
    yield Bar("fresh, one at a time: latency above GetItem + empty RPC", 0, None, _added_latency, "{:+.0%}")
    yield Bar("p99 at 300/s, login flood / without", 2, 1.3, _ratio("flood 300/s", "fresh 300/s", "p99"))
    unpinned = _ratio("unpinned-flood 300/s", "unpinned 300/s", "p99")
    yield Bar("the same, the server on all cores", 2, 1.3, unpinned)
    yield Bar("ext_authz, 64 in flight: CPU / ValidateToken", 1.2, None, _ratio("ext-authz 64", "fresh 64"))
    many, few = f"users-{MANY_USERS} 64", "users-100 64"
    yield Bar("CPU, 1,000,000 users / 100 users", 1.1, 1, _ratio(many, few))
    yield Bar("CPU, 500 connections / 1", 1.1, 1, _ratio("connections-500 64", "connections-1 64"))
    yield Bar("read units, one at a time", 1, None, _units("one at a time"))
    yield Bar("read units, 64 at once for one user", 0.99, None, _units("64 at once, one user"))
    for ms in (2, 5, 20):
        yield Bar(f"steady 1,000/s, engine at {ms} ms: p99 above two reads, ms", 10, 3, _above_two_reads(ms), "{:.1f}")
    behind = _ratio("delay-20 512", "delay-0 512", "rate")
    yield Bar("512 in flight: throughput, engine at 20 ms / at once", 0.9, 1, behind, is_floor=True)
    yield Bar(
        "client library, fresh, 64 in flight: CPU of both ends / plain stubs",
        0.15,
        0.08,
        _both_ends("client 64", "plain 64"),
    )
    yield Bar(
        "client library, fresh, one at a time: latency / plain stub", 1.05, 1, _ratio("client 1", "plain 1", "p50")
    )
    above, steady = "client library, steady 2,000/s", _ratio("client 2000/s", "empty 2000/s")
    yield Bar(f"{above}: CPU of the client, µs", 15, 5, _client_cpu_above("client 2000/s", "loop 2000/s"), "{:.1f}")
    yield Bar(f"{above}: CPU of the server / empty RPC", 0.10, 0.04, steady)
    yield Bar("client library, a cache hit: µs", 5, 2, _client_cpu_above("hit 1", "loop 1"), "{:.1f}")
    yield Bar("client library, ASGI middleware on a hit: CPU above the bare app, µs", 25, 12, _middleware, "{:.1f}")
    yield Bar("spans are exported, not this call's: CPU above a service without them, µs", 2, None, _spans, "{:.1f}")
    yield Bar("memory after 1,000,000 validations of 100,000 users, MiB", 150, None, _memory, "{:.0f}")
    yield Bar("its growth in the second half", 0.02, None, _growth, "{:+.1%}")


BARS = tuple(_bars())
