"""What the service logs of itself at its start."""

import json
from pathlib import Path

import pytest

from authsvc.passwords import hasher
from authsvc.server import app
from tests.support import WITNESS, make_settings


@pytest.mark.parametrize(("seconds", "warned"), [(4.9, []), (5.06, [5.1])])
async def test_a_cost_with_which_logins_fail_is_a_warning_that_names_the_setting(
    tmp_path: Path, signing_keys: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, warned: list[float]
) -> None:
    monkeypatch.setattr(hasher, "estimate_seconds", lambda _: seconds)
    position = len(WITNESS.lines.getvalue())
    async with app.run_app(make_settings(signing_keys, f"sqlite:{tmp_path / 'authsvc.db'}")):
        pass
    lines = [json.loads(line) for line in WITNESS.lines.getvalue()[position:].splitlines()]
    warnings = [line for line in lines if line["event"] == "slow_hashes"]
    assert [line["seconds"] for line in warnings] == warned
    assert all(line["setting"] == "AUTHSVC_BCRYPT_COST" and line["level"] == "warning" for line in warnings)
