"""What is measured: each variant is a server and what is sent to it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from bench.load import Load
from bench.servers import AttemptKeys

SECONDS = {"closed": 1.5, "300/s": 4.0, "1000/s": 3.0, "2000/s": 10.0}
LOADS = {
    **{str(calls): Load(in_flight=calls, seconds=SECONDS["closed"]) for calls in (1, 8, 64, 512)},
    **{f"{rate}/s": Load(rate=rate, seconds=SECONDS[f"{rate}/s"]) for rate in (300, 1000, 2000)},
}
"""By name: calls in flight, or calls a second."""
EMPTY = AttemptKeys("empty")
NAIVE = AttemptKeys("naive")
FRESH = AttemptKeys()
MANY_USERS = 1_000_000
HOT_TOKENS = 100
"""For `max_staleness`: few enough that each is asked for again before its answer is too old."""
BATCH_CALLS = 8
ACTIVE_TOKENS = 1000
STEADY_WARM_UP_SECONDS = 15.0
"""Three times the budget: by then the renewals are spread as they stay."""
FLOOD = 40


@dataclass(frozen=True)
class Variant:
    """One thing to measure.

    Args:
        subject: What is measured, and what else is unlike the usual.
        load_name: Under which load, a key of LOADS.
        baseline: Subject of the empty RPC that it is compared with; empty for that itself.
    """

    subject: str
    load_name: str
    target: AttemptKeys
    load: Load
    baseline: str = "empty"

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.subject} {self.load_name}"

    @property
    def baseline_name(self) -> str:
        """The variant that it is compared with."""
        return f"{self.baseline} {self.load_name}" if self.baseline else ""


def select(words: Collection[str], loads: Collection[str]) -> Sequence[Variant]:
    """Return the variants that words name by subject or name, as in a shell; all of them without words.

    What they are compared with is among them.
    """
    chosen = [
        variant
        for variant in VARIANTS
        if (not loads or variant.load_name in loads)
        and (not words or any(fnmatchcase(text, word) for word in words for text in (variant.subject, variant.name)))
    ]
    needed = {variant.baseline_name for variant in chosen}
    return [variant for variant in VARIANTS if variant in chosen or variant.name in needed]


def _variants() -> Iterator[Variant]:
    """Yield all; what is compared stands close together."""
    for name in ("1", "8", "64", "512", "300/s", "1000/s"):
        yield Variant("empty", name, EMPTY, LOADS[name], baseline="")
        if name != "1000/s":  # more than it can do
            yield Variant("naive", name, NAIVE, LOADS[name])
        yield Variant("fresh", name, FRESH, LOADS[name])
        if name == "1":
            yield Variant("getitem", name, AttemptKeys("getitem"), LOADS[name])
        if name in ("64", "300/s"):
            yield Variant("ext-authz", name, FRESH, replace(LOADS[name], gateway=True))
            yield Variant("sqlite", name, AttemptKeys(store="sqlite"), LOADS[name])
            yield Variant("stale", name, FRESH, replace(LOADS[name], max_staleness=5, hot=HOT_TOKENS))
        if name == "64":
            yield from _at_64(LOADS[name])
        if name == "300/s":
            yield Variant("flood", name, FRESH, replace(LOADS[name], flood=FLOOD))
        if name == "512":
            yield from (Variant(f"delay-{ms}", name, AttemptKeys(delay=ms), LOADS[name]) for ms in (0, 20))
        if name == "1000/s":
            yield from (Variant(f"delay-{ms}", name, AttemptKeys(delay=ms), LOADS[name]) for ms in (2, 5, 20))
    yield from _backends()


def _backends() -> Iterator[Variant]:
    """Yield backends that validate; at 2,000/s one in its steady state, whose requests the cache answers."""
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
    yield Variant("workers-2", "64", AttemptKeys(workers=2), replace(load, connections=32))
    for users in (100, MANY_USERS):
        yield Variant(f"users-{users}", "64", AttemptKeys(users=users), load)
    for connections in (1, 500):
        some = replace(load, connections=connections)
        empty = f"empty-connections-{connections}"
        yield Variant(empty, "64", EMPTY, some, baseline="")
        yield Variant(f"connections-{connections}", "64", FRESH, some, baseline=empty)


VARIANTS = tuple(_variants())
