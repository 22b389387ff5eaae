"""The benchmark's arithmetic: what is compared with what, and what is said of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import costs, report, spans
from bench.bars import BARS, Bar
from bench.measure import Figures
from bench.results import Results, Spread
from bench.variants import VARIANTS, select

FIGURES = Figures(cpu=100.0, rate=1000.0, p50=1.0, p99=50.0, p999=60.0, rss=80.0, calls=1000, errors={})


@pytest.fixture
def results() -> Results:
    """Two rounds of all variants, the second at twice the cost but for the empty RPC."""
    first = {variant.name: FIGURES for variant in VARIANTS}
    second = {name: replace(FIGURES, cpu=100.0 if name.startswith("empty") else 200.0) for name in first}
    units = {"one at a time": 1.0, "64 at once, one user": 0.1}
    memory = [(0, 90.0), (500_000, 100.0), (1_000_000, 101.0)]
    rpcs = dict.fromkeys(costs.CALLS_A_MONTH, (1.0, 2.0))
    return Results(
        rounds=[first, second],
        units=units,
        memory=memory,
        costs=rpcs,
        item_bytes=1000,
        middleware=[9.0],
        spans={spans.NOT_SAMPLED: [1.0, 1.5]},
    )


def test_each_variant_is_chosen_with_what_it_is_compared_with() -> None:
    assert [variant.name for variant in select(["fresh"], ["64", "300/s"])] == [
        "empty 64",
        "fresh 64",
        "empty 300/s",
        "fresh 300/s",
    ]
    assert [variant.name for variant in select(["connections-5*"], [])] == [
        "empty-connections-500 64",
        "connections-500 64",
    ]
    assert select([], []) == list(VARIANTS)


def test_a_ratio_is_taken_within_each_round(results: Results) -> None:
    assert results.ratio("fresh 64", "empty 64") == Spread(1.0, 1.5, 2.0)
    assert results.ratio("fresh 64", "naive 64") == Spread(1.0, 1.0, 1.0)
    del results.rounds[1]["empty 64"]
    assert results.ratio("fresh 64", "empty 64") == Spread(1.0, 1.0, 1.0)


def test_every_bar_has_its_figure(results: Results) -> None:
    assert [bar.text for bar in BARS if bar.verdict(results) == "not measured"] == []
    assert {bar.verdict(Results()) for bar in BARS} == {"not measured"}


@pytest.mark.parametrize(("value", "verdict"), [(1.0, "beyond"), (1.1, "met"), (1.6, "missed")])
def test_the_median_decides_whether_a_bar_is_met(value: float, verdict: str) -> None:
    bar = Bar("a bar", 1.5, 1.0, lambda _: Spread(0.0, value, 9.0))
    assert bar.verdict(Results()) == verdict
    floor = replace(bar, limit=-1.5, beyond=-1.0, figure=lambda _: Spread(-9.0, -value, 0.0), is_floor=True)
    assert floor.verdict(Results()) == verdict


def test_results_survive_their_file(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results" / "results.json"
    results.write(path)
    read = Results.read(path)
    assert report.whole(read) == report.whole(results)
    assert "| fresh 64 " in report.whole(read)


def test_the_page_shows_the_newest_results_in_their_places(results: Results) -> None:
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    old = report.update_page(page, Results(date="2001-01-01"))
    new = report.update_page(old, results)
    assert "2001-01-01" in old
    assert "2001-01-01" not in new
    assert new == report.update_page(page, results)
    bars, dollars, variants = (new.index(text) for text in ("| bar ", "| users ", "| variant "))
    assert bars < dollars < variants


def test_a_month_costs_what_the_model_multiplies_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "CALLS_A_MONTH", {"ValidateToken": 2_000.0, "Authenticate": 4.0})
    units = {"ValidateToken": (1.0, 0.0), "Authenticate": (2.5, 1.0)}
    reads, writes, storage = costs.dollars_a_month(units, item_bytes=2_000, users=1_000_000)
    assert reads == pytest.approx(2_010 * 0.125)
    assert writes == pytest.approx(4 * 0.625)
    assert storage == pytest.approx(2 * 0.45)
