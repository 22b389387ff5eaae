"""The rules of Prometheus and the dashboard name what exists."""

import json
import re

from prometheus_client import REGISTRY

import authsvc.telemetry.metrics  # noqa: F401 - it registers the metrics
from bench.costs import DOLLARS_PER_MILLION_READS, DOLLARS_PER_MILLION_WRITES
from tests.deploy.prometheus import DASHBOARD, FOLDER
from tests.tools import ROOT

ALERTS = (FOLDER / "alerts.yaml").read_text()
RECORDING = (FOLDER / "recording_rules.yaml").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
WATCHED = {"alerts": ALERTS, "recording rules": RECORDING, "dashboard": DASHBOARD.read_text()}


def exposed_names() -> set[str]:
    """Return the names of samples that /metrics has, those without a value so far included."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return {f"{f.name}{s}" for f in REGISTRY.collect() for s in suffixes.get(f.type, [""])}


def test_each_metric_that_is_watched_is_exposed() -> None:
    for where, text in WATCHED.items():
        named = set(re.findall(r"(?<![\w:])authsvc_\w+(?!\w*:)", text))
        assert named, where
        assert named - exposed_names() == set(), where


def test_each_recorded_series_that_is_used_is_recorded() -> None:
    recorded = set(re.findall(r"record: (\S+)", RECORDING))
    used = set(re.findall(r"\b\w+:authsvc_\w+:\w+", ALERTS + WATCHED["dashboard"]))
    assert used == recorded


def test_each_alert_has_severity_texts_and_a_row_in_its_runbook() -> None:
    alerts = re.split(r"^ +- alert: ", ALERTS, flags=re.MULTILINE)[1:]
    assert len(alerts) == ALERTS.count("alert:")
    for alert in alerts:
        assert re.search(r"severity: (critical|warning)\n", alert)
        assert re.search(r'summary: ".+"\n', alert)
        assert re.search(r'description: ".+"\n', alert)
        assert "runbook: docs/operations.md#alerts\n" in alert
    _, _, section = OPERATIONS.partition("\n### Alerts\n")
    rows = re.findall(r"^\| `(Authsvc\w+)` \|", section, re.MULTILINE)
    assert rows == list(dict.fromkeys(alert.split()[0] for alert in alerts))


def test_dollars_are_at_the_prices_of_the_cost_model() -> None:
    for price in (DOLLARS_PER_MILLION_READS, DOLLARS_PER_MILLION_WRITES):
        assert f"{price}e-6 * " in RECORDING
        assert f"${price}" in WATCHED["dashboard"]


def test_the_dashboard_fits_on_one_screen() -> None:
    panels = json.loads(WATCHED["dashboard"])["panels"]
    places = [panel["gridPos"] for panel in panels]
    assert max(place["y"] + place["h"] for place in places) <= 25
    assert len({(place["x"], place["y"]) for place in places}) == len(panels)
