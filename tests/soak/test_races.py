"""The races of the suite, twenty times over."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.soak.conftest import SCALE

ROUNDS = max(1, round(20 * SCALE))

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]


RACES = ("tests/stores/contract/test_races.py", "tests/rpc/test_freshness.py", "tests/tokens/test_key_store.py")


def test_many_rounds_of_races(report: Callable[[str], None]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *RACES],
        env={**os.environ, "AUTHSVC_TEST_RACE_ROUNDS": str(ROUNDS)},
        capture_output=True,
        text=True,
        check=False,
    )
    report(f"{ROUNDS} times the rounds of the suite: {done.stdout.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout
