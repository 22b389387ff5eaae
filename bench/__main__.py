"""The command: `python -m bench [VARIANT …]`."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from bench import costs, middleware, report, spans
from bench.measure import MEMORY_VALIDATIONS, Bench, Figures
from bench.results import Results
from bench.servers import USERS, Servers
from bench.variants import Variant, select

EXISTING = click.Path(path_type=Path, exists=True)
MIDDLEWARE = "middleware"
"""Selected like a variant, but measured without a load."""
SPANS = "spans"
"""Likewise."""
FOLDER = Path(__file__).parent / "results"


def say(line: str) -> None:
    """Print a line and flush it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@click.command()
@click.argument("variants", nargs=-1)
@click.option("--rounds", default=4, show_default=True, help="How often each variant is run.")
@click.option("--load", "loads", multiple=True, help="Only these loads: calls in flight (64) or per second (300/s).")
@click.option("--again", type=EXISTING, help="Show the results of this file instead of measuring.")
@click.option("--docs", type=EXISTING, help="Folder of performance.md: write tables and plots into it.")
def main(variants: Sequence[str], rounds: int, loads: Sequence[str], again: Path | None, docs: Path | None) -> None:
    """Measure VARIANTS in rounds, each as a ratio to the empty RPC of its round.

    A variant is named by its subject, or by subject and load; wildcards work: fresh, 'batch-*', 'fresh 64'. Without
    any, all are measured, and also the client's middleware, spans, memory and the units that each RPC consumes.
    """
    results = Results.read(again) if again else _results(variants, loads, rounds)
    say(report.whole(results))
    if docs is not None:
        _publish(results, docs)


def _results(words: Sequence[str], loads: Sequence[str], rounds: int) -> Results:
    results = Results()
    say(results.machine)
    variants = select(words, loads)
    with Servers({USERS, *(variant.target.users for variant in variants)}) as servers:
        bench = Bench(servers)
        _measure(bench, variants, rounds, results)
        if MIDDLEWARE in words or not (words or loads):
            say(MIDDLEWARE)
            results.middleware = middleware.added_microseconds(servers)
        if SPANS in words or not (words or loads):
            say(SPANS)
            results.spans = spans.added_microseconds()
        if not words and not loads:
            _measure_the_rest(bench, servers, results)
    path = FOLDER / f"{datetime.now(UTC):%Y-%m-%dT%H%M}.json"
    results.write(path)
    say(f"written to {path}\n")
    return results


def _measure(bench: Bench, variants: Sequence[Variant], rounds: int, results: Results) -> None:
    """Run all variants one after another, once a round, so that a disturbance of the machine affects all of them."""
    results.left_out = {each.name: each.target.missing for each in variants if each.target.missing}
    measured = [each for each in variants if each.name not in results.left_out]
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}")
        figures: dict[str, Figures] = {}
        results.rounds.append(figures)
        for variant in measured:
            found = figures[variant.name] = bench.measure(variant)
            say(f"  {variant.name}: {found.cpu:.0f} µs")


def _measure_the_rest(bench: Bench, servers: Servers, results: Results) -> None:
    say("memory")
    results.memory = bench.memory()
    validations = results.memory[-1][0]
    if validations < MEMORY_VALIDATIONS:
        results.left_out["memory"] = f"only {validations:,} validations in its time"
    say("units")
    results.units = costs.units_of_validations(servers, bench.loader)
    results.costs = costs.units_of_rpcs(servers)
    results.item_bytes = costs.bytes_per_user(servers)


def _publish(results: Results, docs: Path) -> None:
    """Draw the plots, and write the tables into the page."""
    from bench import plots  # noqa: PLC0415 - matplotlib is installed by `make bench` alone

    plots.draw(results, docs)
    page = docs / "performance.md"
    page.write_text(report.update_page(page.read_text(), results))


main()
