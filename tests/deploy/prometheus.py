"""A real Prometheus that watches services with the rules of deploy/prometheus, in fast motion."""

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import tools
from tests.e2e.process import GIVE_UP_SECONDS, poll
from tests.engines.process import free_port

FOLDER = tools.ROOT / "deploy" / "prometheus"
RULES = ("alerts.yaml", "recording_rules.yaml")
DASHBOARD = tools.ROOT / "deploy" / "grafana" / "dashboard.json"
SPEED = 30
"""How many times faster the rules run: their windows and `for` are divided by it, and the scrape interval."""
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}
_DURATION = r"(\d+)([smh])\b"


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._address = f"127.0.0.1:{port}"

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and the value of each series that an expression has now."""
        form = urllib.parse.urlencode({"query": expression}).encode()
        try:
            with urllib.request.urlopen(
                f"http://{self._address}/api/v1/query", form, timeout=GIVE_UP_SECONDS
            ) as answer:
                data: dict[str, Any] = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        assert data["resultType"] == "vector", expression
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def is_ready(self) -> bool:
        try:
            urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=GIVE_UP_SECONDS).close()
        except OSError:
            return False
        return True


@contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Run Prometheus with the configuration and rules of deploy/prometheus, SPEED times faster.

    Args:
        folder: An empty one, for its data.
        targets: Addresses of side ports.
    """
    program = tools.required_or_skip(tools.prometheus) / "prometheus"
    configuration = (FOLDER / "prometheus.yaml").read_text().replace('["127.0.0.1:8080"]', json.dumps(targets))
    (folder / "prometheus.yaml").write_text(re.sub(rf"interval: {_DURATION}", _faster, configuration))
    for name in RULES:
        rules = (FOLDER / name).read_text()
        (folder / name).write_text(re.sub(rf"(?:\[|for: ){_DURATION}", _faster, rules))
    port = free_port()
    arguments = [
        "--config.file=prometheus.yaml",
        "--storage.tsdb.path=data",  # Debian's default is one folder for all
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([program, *arguments], cwd=folder, env={}, stdout=log, stderr=log) as process,
    ):
        try:
            running = Prometheus(port)
            poll(lambda: running.is_ready() or process.poll() is not None, "was ready")
            assert process.poll() is None, (folder / "log").read_text()
            yield running
        finally:
            process.kill()


def _faster(duration: "re.Match[str]") -> str:
    amount, unit = duration.groups()
    milliseconds = int(amount) * _UNIT_SECONDS[unit] * 1000 // SPEED
    return duration[0].replace(amount + unit, f"{milliseconds}ms")


def dashboard_expressions() -> dict[str, str]:
    """Return each expression of the dashboard by its panel and letter, for all jobs and instances."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    variables = {"$job": ".*", "$instance": ".*", "$__rate_interval": "5m"}

    def filled_in(expression: str) -> str:
        for variable, value in variables.items():
            expression = expression.replace(variable, value)
        return re.sub(rf"(?<=\[){_DURATION}", _faster, expression)

    return {
        f"{panel['title']} {target['refId']}": filled_in(target["expr"])
        for panel in panels
        for target in panel["targets"]
    }


def pause_between_scrapes() -> None:
    """Let Prometheus scrape at least once more: what happens between two scrapes is not seen."""
    time.sleep(2 * 15 / SPEED)
