"""Damaged and senseless requests of every RPC, for ten minutes (B4)."""

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import REQUESTS, STATUSES, fuzzed, outcome
from tests.soak.conftest import SCALE
from tests.support import FakeClock, make_settings, served

SECONDS = 600 * SCALE
BODIES = 100
"""Of each RPC, between two looks at the time."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]


async def test_ten_minutes_of_requests_without_sense(
    tmp_path: Path, signing_keys: Path, report: Callable[[str], None]
) -> None:
    clock, seed = FakeClock(), random.SystemRandom().getrandbits(64)
    source = random.Random(seed)  # noqa: S311 - repeatable by the seed in the report
    seen: Counter[str] = Counter()
    end = time.monotonic() + SECONDS
    async with served(make_settings(signing_keys, f"sqlite:{tmp_path / 'db'}"), clock) as client:
        await client.create_user()
        while time.monotonic() < end:
            clock.advance(days=2)  # whatever was counted is over, and so is the admin's token
            admin = await client.as_admin()
            for method in REQUESTS:
                seen.update([await outcome(admin, method, fuzzed(method, source)) for _ in range(BODIES)])
        assert await outcome(client, "/authsvc.v1.AuthService/GetJwks", b"") == "OK"
    report(f"{seen.total()} bodies, seed {seed}: {dict(seen.most_common())}")
    assert seen.keys() <= STATUSES
