"""The results of a run, round by round, and their comparison."""

import json
import platform
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from bench import cores
from bench.measure import Figures

Round = Mapping[str, Figures]
"""Figures by name of the variant."""


@dataclass(frozen=True)
class Spread:
    """One figure over the rounds."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """Return the spread of some values; None if there are none."""
        ordered = sorted(values)
        return cls(ordered[0], statistics.median(ordered), ordered[-1]) if ordered else None


@dataclass
class Results:
    """All results of one run.

    Args:
        rounds: Figures of each round, in order.
        units: Read units of a fresh validation, by concurrency.
        memory: Pairs of validations so far and the worker's resident MiB.
        costs: Read and write units of each RPC.
        item_bytes: Stored bytes of a user.
        middleware: CPU microseconds that the client's ASGI middleware adds to a request, by round.
        spans: CPU microseconds that spans add to a call, by kind of call and round.
        left_out: Reason by variant that was not measured.
    """

    rounds: list[dict[str, Figures]] = field(default_factory=list)
    units: dict[str, float] = field(default_factory=dict)
    memory: list[tuple[int, float]] = field(default_factory=list)
    costs: dict[str, tuple[float, float]] = field(default_factory=dict)
    item_bytes: int = 0
    middleware: list[float] = field(default_factory=list)
    spans: dict[str, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    machine: str = field(default_factory=lambda: f"{cores.describe()}; Python {platform.python_version()}")

    def write(self, path: Path) -> None:
        """Write the results as JSON."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the results of a file."""
        values = json.loads(path.read_text())
        rounds = [{name: Figures(**figures) for name, figures in each.items()} for each in values.pop("rounds")]
        return cls(rounds=rounds, **values)

    def names(self) -> Sequence[str]:
        """Return the names of the measured variants, in order."""
        return list(dict.fromkeys(name for each in self.rounds for name in each))

    def spread(self, name: str, figure: str) -> Spread | None:
        """Return one figure of a variant; None if it was not measured."""
        return Spread.of(getattr(each[name], figure) for each in self.rounds_with(name))

    def ratio(self, name: str, other: str, figure: str = "cpu") -> Spread | None:
        """Return the ratio of a variant's figure to another's, within each round."""
        return Spread.of(
            getattr(each[name], figure) / getattr(each[other], figure) for each in self.rounds_with(name, other)
        )

    def rounds_with(self, *names: str) -> Iterator[Round]:
        """Yield the rounds in which all of some variants were measured."""
        return (each for each in self.rounds if each.keys() >= set(names))
