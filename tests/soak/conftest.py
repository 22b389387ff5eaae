"""How long the long tests take, and their report: shown at the end, and kept in .cache/soak.txt."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

SCALE = float(os.environ.get("AUTHSVC_TEST_SOAK", "1"))
"""Of every duration and number: 1 is the real thing, 0.02 takes a few minutes and shows that it works."""
REPORT = Path(__file__).parents[2] / ".cache" / "soak.txt"

_lines: list[str] = []


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Add a line to the report."""
    _lines.append(f"{request.node.name} (scale {SCALE:g})")
    return lambda line: _lines.append(f"  {line}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and _lines:
        _lines.append(f"  {report.outcome} after {report.duration:.0f} s")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _lines:
        terminalreporter.section("soak report")
        terminalreporter.write_line("\n".join(_lines))
        REPORT.write_text("\n".join(_lines) + "\n")
