"""The results as tables: in Markdown, which a terminal shows as well."""

from collections.abc import Iterator, Sequence

from bench.results import Results, Spread
from bench.variants import VARIANTS

_BASELINES = {variant.name: variant.baseline_name for variant in VARIANTS}
_HEADER = ("variant", "CPU µs", "× empty RPC", "calls/s", "p50 ms", "p99 ms", "p99.9 ms", "RSS MiB", "errors")


def figures_table(results: Results) -> str:
    """Return every variant with the medians of its figures, and their least and most where they matter."""
    return table(_HEADER, [_row(results, name) for name in results.names()])


def _row(results: Results, name: str) -> Sequence[str]:
    baseline = _BASELINES[name]
    errors = sum(sum(each[name].errors.values()) for each in results.rounds if name in each)
    return (
        name,
        _spread(results.spread(name, "cpu"), "{:.0f}"),
        _spread(results.ratio(name, baseline), "{:.2f}") if baseline else "",
        _spread(results.spread(name, "rate"), "{:,.0f}"),
        *(_spread(results.spread(name, figure), "{:.1f}") for figure in ("p50", "p99", "p999")),
        _median(results.spread(name, "rss"), "{:.0f}"),
        str(errors or ""),
    )


def _spread(spread: Spread | None, form: str) -> str:
    if spread is None:
        return ""
    least, median, most = (form.format(value) for value in (spread.least, spread.median, spread.most))
    return median if least == most else f"{median} ({least}–{most})"


def _median(spread: Spread | None, form: str) -> str:
    return "" if spread is None else form.format(spread.median)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, its columns aligned."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, tuple("-" * width for width in widths), *rows]
    return "\n".join("| " + " | ".join(_cells(line, widths)) + " |" for line in lines)


def _cells(line: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    return (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
