"""How long refused logins take, class by class, measured: what nobody can tell apart at a distance (ASVS-6.3.8, B9).

The suite proves that all classes do equal work (tests/rpc/test_costs.py); this shows that equal work takes equal time.
On a busy machine it takes longer and finds less.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from authsvc import passwords
from tests.soak.conftest import SCALE
from tests.support import PASSWORD, Client, FakeClock, failure, make_settings, served

ATTEMPTS = max(30, round(1000 * SCALE))
"""Of each class."""
COST = 10
"""The lowest that settings allow, where a difference is the largest share."""
RESAMPLES = 2000
CONFIDENCE = 0.99
TOLERATED = 0.01
"""Of a refused login, which is a hash and little else."""
WRONG = "a wrong password of words"

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]
Statistic = Callable[[Sequence[float]], float]
_random = random.Random(20300101)  # noqa: S311 - repeatable, not secret


async def users_of_every_class(client: Client) -> dict[str, str]:
    """Return an address of each class of refused logins."""
    await client.create_user("wrong@example.com")
    disabled = await client.create_user("disabled@example.com")
    await client.update_user(disabled.user_id, is_active=False)
    await client.import_user(passwords.hash_password(PASSWORD, 4), "cheap@example.com")
    await client.create_with_temporary_password("temporary@example.com")
    classes = ("unknown", "wrong", "disabled", "cheap", "temporary")
    return {name: f"{name}@example.com" for name in classes}


async def measure(client: Client, emails: dict[str, str], clock: FakeClock) -> dict[str, list[float]]:
    """Return the seconds of each attempt; in every round each class has one, in another order each time."""
    seconds: dict[str, list[float]] = {name: [] for name in emails}
    for _ in range(ATTEMPTS):
        clock.advance(days=2)  # whatever was counted is over
        for name in _random.sample(sorted(emails), len(emails)):
            begin = time.perf_counter()
            refused = await failure(client.log_in(emails[name], WRONG, client_address="192.0.2.7"))
            seconds[name].append(time.perf_counter() - begin)
            assert refused.reason == "INVALID_CREDENTIALS"
    return seconds


def first_decile(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=10)[0]


def interval(
    one: Sequence[float], other: Sequence[float], of: Callable[[Sequence[float]], float]
) -> tuple[float, float]:
    """Return between which values the difference of a statistic lies, by bootstrap."""
    differences = sorted(
        of(_random.choices(one, k=len(one))) - of(_random.choices(other, k=len(other))) for _ in range(RESAMPLES)
    )
    cut = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return differences[cut], differences[-cut - 1]


async def test_no_class_of_refused_logins_is_told_by_its_time(
    tmp_path: Path, signing_keys: Path, report: Callable[[str], None]
) -> None:
    clock = FakeClock()
    settings = make_settings(signing_keys, f"sqlite:{tmp_path / 'db'}", bcrypt_cost=COST)
    async with served(settings, clock) as client:
        seconds = await measure(client, await users_of_every_class(client), clock)
    reference = seconds.pop("wrong")
    told = []
    for name, of in ((name, of) for name in seconds for of in (statistics.median, first_decile)):
        low, high = interval(seconds[name], reference, of)
        difference = (of(seconds[name]) - of(reference)) / statistics.median(reference)
        line = f"{name}: {of.__name__} {difference:+.2%} of a login ({low:+.6f} to {high:+.6f} s)"
        report(line)
        if not low <= 0 <= high and abs(difference) > TOLERATED:
            told.append(line)
    assert not told
