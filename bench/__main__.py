"""The command: `python -m bench [VARIANT …]`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bench import report
from bench.measure import Bench
from bench.results import Results
from bench.servers import Servers
from bench.variants import Variant, select

FOLDER = Path(__file__).parent / "results"


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@click.command()
@click.argument("variants", nargs=-1)
@click.option("--rounds", default=5, show_default=True, help="how often each variant is run")
@click.option("--load", "loads", multiple=True, help="only these loads: calls in flight as 64, or a second as 300/s")
def main(variants: Sequence[str], rounds: int, loads: Sequence[str]) -> None:
    """Measure VARIANTS, all of them by default, in rounds; each as a ratio to the empty RPC of its round.

    A variant is named by its subject or by subject and load, as in a shell: fresh, 'batch-*', 'fresh 64'.
    """
    results = Results()
    say(results.machine)
    with Servers(say) as servers:
        _measure(Bench(servers), select(variants, loads), rounds, results)
    results.write(FOLDER / "latest.json")
    say(report.figures_table(results))


def _measure(bench: Bench, variants: Sequence[Variant], rounds: int, results: Results) -> None:
    """Run the variants one after another, and all of them again: what disturbs the machine disturbs all."""
    results.left_out = {each.name: each.target.missing for each in variants if each.target.missing}
    for name, reason in results.left_out.items():
        say(f"left out: {name}: {reason}")
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}")
        figures = {}
        results.rounds.append(figures)
        for variant in variants:
            if variant.name not in results.left_out:
                figures[variant.name] = bench.measure(variant)


main()
