"""The results as Markdown tables, for the page and the terminal."""

from collections.abc import Iterable, Iterator, Sequence

from bench import costs
from bench.bars import BARS, Bar
from bench.results import Results, Spread
from bench.variants import VARIANTS

_BASELINES = {variant.name: variant.baseline_name for variant in VARIANTS}
_PRICES = (
    f"Prices of DynamoDB in {costs.PRICES}: ${costs.DOLLARS_PER_MILLION_READS} for a million read units, "
    f"${costs.DOLLARS_PER_MILLION_WRITES} for a million write units, "
    f"${costs.DOLLARS_PER_GB_MONTH:.2f} for a GB and month with point-in-time recovery."
)
END = "<!-- end -->\n"
_HEADER = (
    "variant",
    "CPU µs",
    "× empty RPC",
    "client CPU µs",
    "calls/s",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "RSS MiB",
    "errors",
)


def figures_table(results: Results) -> str:
    """Return the table of all variants: medians, with minimum and maximum where they differ."""
    return table(_HEADER, [_row(results, name) for name in results.names()])


def bars_table(results: Results) -> str:
    """Return the table of the bars, each with its figure and verdict."""
    return table(("bar", "must be", "beyond", "is", "verdict"), [_bar_row(results, bar) for bar in BARS])


def _bar_row(results: Results, bar: Bar) -> Sequence[str]:
    sign = "≥ " if bar.is_floor else "≤ "
    return (
        bar.text,
        sign + bar.form.format(bar.limit),
        "" if bar.beyond is None else sign + bar.form.format(bar.beyond),
        _spread(bar.figure(results), bar.form),
        bar.verdict(results),
    )


def spans_table(results: Results) -> str:
    """Return the table of what spans add to a call."""
    return table(("call", "CPU µs"), [(k, _spread(Spread.of(v), "{:.2f}")) for k, v in results.spans.items()])


def units_table(results: Results) -> str:
    """Return the table of a fresh validation's read units."""
    return table(("fresh validations", "read units each"), [(k, f"{v:.2f}") for k, v in results.units.items()])


def costs_table(results: Results) -> str:
    """Return the table of each RPC's units, and how often the model calls it."""
    header = ("RPC", "read units", "write units", "calls a user and month")
    return table(
        header,
        [
            (name, f"{reads:g}", f"{writes:g}", f"{costs.CALLS_A_MONTH.get(name, 0):,g}")
            for name, (reads, writes) in results.costs.items()
        ],
    )


def dollars_table(results: Results) -> str:
    """Return the table of what a month costs."""
    rows = []
    for users in costs.POPULATIONS:
        parts = costs.dollars_a_month(results.costs, results.item_bytes, users)
        rows.append((f"{users:,}", *(f"{part:,.2f}" for part in (*parts, sum(parts)))))
    return table(("users", "reads $", "writes $", "storage $", "together $"), rows)


def whole(results: Results) -> str:
    """Return all results in sections, for the terminal."""
    sections = [("The bars", bars_table(results)), *_tables(results)]
    if results.costs:
        sections.append(("Dollars a month", _dollars(results)))
    return f"{_measured(results)}\n\n{_titled(sections)}"


def update_page(page: str, results: Results) -> str:
    """Return the page with its blocks replaced; a block that the page lacks is appended.

    Args:
        page: Markdown, each block between `<!-- NAME, written by python -m bench -->` and END.
        results: The results to show.
    """
    blocks = {
        "bars": f"{_measured(results)}\n\n{bars_table(results)}",
        "dollars": _dollars(results) if results.costs else "Not measured.",
        "tables": _titled(_tables(results)),
    }
    for name, text in blocks.items():
        begin = f"<!-- {name}, written by python -m bench -->\n"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(END)
        page = f"{before}{begin}\n{text}\n\n{END}{after}"
    return page


def _measured(results: Results) -> str:
    rounds = f"{len(results.rounds)} round" + "s" * (len(results.rounds) != 1)
    return f"Measured on {results.date} in {rounds}. {results.machine}."


def _dollars(results: Results) -> str:
    return f"{_PRICES}\n\n{dollars_table(results)}"


def _titled(sections: Iterable[tuple[str, str]]) -> str:
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in sections)


def _tables(results: Results) -> Iterator[tuple[str, str]]:
    left_out = "".join(f"\n\nLeft out: {name}: {reason}." for name, reason in results.left_out.items())
    yield "Every variant", figures_table(results) + left_out
    if results.spans:
        yield "What spans and their identifiers add to a call", spans_table(results)
    if results.units:
        yield "Read units of a fresh validation", units_table(results)
    if results.costs:
        yield "Units of each RPC", costs_table(results)


def _row(results: Results, name: str) -> Sequence[str]:
    baseline = _BASELINES[name]
    errors = sum(sum(each[name].errors.values()) for each in results.rounds if name in each)
    return (
        name,
        _spread(results.spread(name, "cpu"), "{:.0f}"),
        _spread(results.ratio(name, baseline), "{:.2f}") if baseline else "",
        _spread(results.spread(name, "client_cpu"), "{:.0f}"),
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
