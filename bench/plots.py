"""Draws the plots of the results."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.results import Results, Spread

mpl.use("svg")
# The same ids at every run, so that only the figures change.
mpl.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9})
mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

COST = {
    "empty RPC": "empty 64",
    "max_staleness 5 s": "stale 64",
    "fresh": "fresh 64",
    "fresh, SQLite": "sqlite 64",
    "fresh, batches of 16": "batch-16 64",
    "fresh, batches of 64": "batch-64 64",
    "fresh, batches of 100": "batch-100 64",
    "naive": "naive 64",
}
SUBJECTS = {"empty": "gray", "fresh": "tab:blue", "naive": "tab:red"}
IN_FLIGHT = (1, 8, 64, 512)


def draw(results: Results, folder: Path) -> None:
    """Write the plots into a folder, as SVG."""
    for name, plot in {"cost": _cost, "latency": _latency, "memory": _memory}.items():
        figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
        plot(results, axes)
        figure.savefig(folder / f"bench-{name}.svg", metadata={"Date": None})
        plt.close(figure)


def _cost(results: Results, axes: Axes) -> None:
    spreads = {label: results.spread(name, "cpu") for label, name in COST.items()}
    measured = {label: spread for label, spread in spreads.items() if spread is not None}
    medians = [spread.median for spread in measured.values()]
    bars = axes.barh(list(measured), medians, xerr=_errors(list(measured.values())), color="tab:blue", ecolor="gray")
    axes.bar_label(bars, fmt="{:.0f}", padding=8)
    axes.invert_yaxis()
    axes.set_xlabel("server CPU of one validation, µs: median, least and most of the rounds")


def _latency(results: Results, axes: Axes) -> None:
    for subject, color in SUBJECTS.items():
        for figure, style in {"p50": "-o", "p99": "--o"}.items():
            spreads = [results.spread(f"{subject} {calls}", figure) for calls in IN_FLIGHT]
            points = [(calls, each.median) for calls, each in zip(IN_FLIGHT, spreads, strict=True) if each is not None]
            if points:
                axes.loglog(*zip(*points, strict=True), style, color=color, label=f"{subject} {figure}")
    axes.set_xlabel("calls in flight, closed loop")
    axes.set_ylabel("latency, ms")
    axes.set_xticks(IN_FLIGHT, [str(calls) for calls in IN_FLIGHT])
    axes.legend(fontsize="small")


def _memory(results: Results, axes: Axes) -> None:
    axes.plot(
        [validations for validations, _ in results.memory], [mib for _, mib in results.memory], "-o", markersize=3
    )
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(style="plain")
    axes.set_xlabel("validations of 100,000 users in turn")
    axes.set_ylabel("memory of one worker, MiB")


def _errors(spreads: Sequence[Spread]) -> list[list[float]]:
    return [[each.median - each.least for each in spreads], [each.most - each.median for each in spreads]]
