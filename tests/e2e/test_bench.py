"""`python -m bench` as its users start it, for one short round."""

import subprocess
import sys

import pytest

from tests.engines import Engine


@pytest.mark.engines
def test_measures_a_validation_beside_the_empty_rpc(dynoxide: Engine) -> None:
    command = [sys.executable, "-m", "bench", "fresh", "batch-64", "--rounds", "1", "--load", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    figures = {row[0]: row for row in rows if row and row[0].endswith(" 64")}
    assert list(figures) == ["empty 64", "fresh 64", "batch-64 64"]
    for name, row in figures.items():
        assert float(row[1]) > 0, name
        assert row[-1] == "", f"{name} had errors"
