"""The variants: each is a target and the load that is sent to it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from bench.load import Load
from bench.servers import Target

SECONDS = {"closed": 1.5, "300/s": 4.0, "1000/s": 3.0, "2000/s": 10.0}
LOADS = {
    **{str(calls): Load(in_flight=calls, seconds=SECONDS["closed"]) for calls in (1, 8, 64, 512)},
    **{f"{rate}/s": Load(rate=rate, seconds=SECONDS[f"{rate}/s"]) for rate in (300, 1000, 2000)},
}
"""By name: calls in flight, or calls per second."""
EMPTY = Target("empty")
NAIVE = Target("naive")
FRESH = Target()
UNPINNED = Target(is_pinned=False)
MANY_USERS = 1_000_000
HOT_TOKENS = 100
"""For `max_staleness`: few enough that each is validated again before its cached read is too old."""
BATCH_CALLS = 8
ACTIVE_TOKENS = 1000
STEADY_WARM_UP_SECONDS = 15.0
"""Three times `max_staleness`: by then the renewals have reached their steady distribution."""
FLOOD = 40


@dataclass(frozen=True)
class Variant:
    """A target under a load.

    Args:
        subject: The name of what is measured.
        load_name: A key of LOADS.
        target: The server that is measured.
        load: The load that is sent.
        baseline: Subject of the empty RPC for comparison; empty for the empty RPC itself.
    """

    subject: str
    load_name: str
    target: Target
    load: Load
    baseline: str = "empty"

    @property
    def name(self) -> str:
        """Subject and load, for instance `fresh 64`."""
        return f"{self.subject} {self.load_name}"

    @property
    def baseline_name(self) -> str:
        """The name of the variant for comparison; empty: none."""
        return f"{self.baseline} {self.load_name}" if self.baseline else ""


def select(words: Collection[str], loads: Collection[str]) -> Sequence[Variant]:
    """Return the variants whose subject or name matches a word, and their baselines; without words, all variants."""
    chosen = [
        variant
        for variant in VARIANTS
        if (not loads or variant.load_name in loads)
        and (not words or any(fnmatchcase(text, word) for word in words for text in (variant.subject, variant.name)))
    ]
    needed = {variant.baseline_name for variant in chosen}
    return [variant for variant in VARIANTS if variant in chosen or variant.name in needed]


def _variants() -> Iterator[Variant]:
    """Yield all variants; those that are compared run close together."""
    for name in ("1", "8", "64", "512", "300/s", "1000/s"):
        yield Variant("empty", name, EMPTY, LOADS[name], baseline="")
        if name != "1000/s":  # more than it can serve
            yield Variant("naive", name, NAIVE, LOADS[name])
        yield Variant("fresh", name, FRESH, LOADS[name])
        if name == "1":
            yield Variant("getitem", name, Target("getitem"), LOADS[name])
        if name in ("64", "300/s"):
            yield Variant("ext-authz", name, FRESH, replace(LOADS[name], gateway=True))
            yield Variant("sqlite", name, Target(store="sqlite"), LOADS[name])
            yield Variant("stale", name, FRESH, replace(LOADS[name], max_staleness=5, hot=HOT_TOKENS))
        if name == "64":
            yield from _at_64(LOADS[name])
        if name == "300/s":
            yield Variant("flood", name, FRESH, replace(LOADS[name], flood=FLOOD))
            yield Variant("unpinned", name, UNPINNED, LOADS[name])
            yield Variant("unpinned-flood", name, UNPINNED, replace(LOADS[name], flood=FLOOD))
        if name == "512":
            yield from (Variant(f"delay-{ms}", name, Target(delay=ms), LOADS[name]) for ms in (0, 20))
        if name == "1000/s":
            yield from (Variant(f"delay-{ms}", name, Target(delay=ms), LOADS[name]) for ms in (2, 5, 20))
    yield from _backends()


def _backends() -> Iterator[Variant]:
    """Yield backends that validate; the one at 2,000/s is in its steady state and served by the client's cache."""
    for name in ("1", "64"):
        yield Variant("plain", name, FRESH, replace(LOADS[name], library="plain"))
        yield Variant("client", name, FRESH, replace(LOADS[name], library="client"))
    yield Variant("loop", "1", FRESH, replace(LOADS["1"], library="loop"))
    yield Variant("hit", "1", FRESH, replace(LOADS["1"], library="client", max_staleness=3600, hot=1))
    load = LOADS["2000/s"]
    yield Variant("empty", "2000/s", EMPTY, load, baseline="")
    yield Variant("loop", "2000/s", FRESH, replace(load, library="loop"))
    steady = replace(load, library="client", max_staleness=5, hot=ACTIVE_TOKENS, warm_up=STEADY_WARM_UP_SECONDS)
    yield Variant("client", "2000/s", FRESH, steady)


def _at_64(load: Load) -> Iterator[Variant]:
    for tokens in (1, 16, 64, 100):
        yield Variant(f"batch-{tokens}", "64", FRESH, replace(load, batch=tokens, in_flight=BATCH_CALLS))
    yield Variant("workers-2", "64", Target(workers=2), replace(load, connections=32))
    for users in (100, MANY_USERS):
        yield Variant(f"users-{users}", "64", Target(users=users), load)
    for connections in (1, 500):
        some = replace(load, connections=connections)
        empty = f"empty-connections-{connections}"
        yield Variant(empty, "64", EMPTY, some, baseline="")
        yield Variant(f"connections-{connections}", "64", FRESH, some, baseline=empty)


VARIANTS = tuple(_variants())
