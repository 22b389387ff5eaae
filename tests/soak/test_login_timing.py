"""How long refused logins take, class by class, measured: no client can distinguish them (ASVS-6.3.8, B9).

The suite proves that all classes do equal work (tests/rpc/test_costs.py); this shows that equal work takes equal time.
On a busy machine it takes longer and finds less.
"""

import random
import sqlite3
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from authsvc.passwords import hashes
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
SOURCE = "192.0.2.7"
FAILURES_PER_PAIR = 10

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]
Seconds = dict[str, list[float]]
_random = random.Random(20300101)  # noqa: S311 - repeatable, not secret


@pytest.fixture
async def client(tmp_path: Path, signing_keys: Path, clock: FakeClock) -> AsyncIterator[Client]:
    settings = make_settings(signing_keys, f"sqlite:{tmp_path / 'db'}", bcrypt_cost=COST)
    async with served(settings, clock) as client:
        yield client


@pytest.fixture
async def emails(client: Client, tmp_path: Path) -> Mapping[str, str]:
    """An address of each class of refused logins."""
    classes = ("unknown", "wrong", "disabled", "passwordless", "cheap", "temporary")
    emails = {name: f"{name}@example.com" for name in classes}
    await client.create_user(emails["wrong"])
    disabled = await client.create_user(emails["disabled"])
    await client.update_user(disabled.user_id, is_active=False)
    passwordless = await client.create_user(emails["passwordless"])
    with closing(sqlite3.connect(tmp_path / "db")) as database, database:
        database.execute("UPDATE users SET password_hash = NULL WHERE user_id = ?", [passwordless.user_id])
    await client.import_user(hashes.hash_password(PASSWORD, 4), emails["cheap"])
    await client.create_with_temporary_password(emails["temporary"])
    return emails


async def seconds_of(client: Client, email: str, reason: str) -> float:
    """Guess at an address, for that reason in vain; return how long it takes."""
    begin = time.perf_counter()
    refused = await failure(client.log_in(email, WRONG, client_address=SOURCE))
    seconds = time.perf_counter() - begin
    assert refused.reason == reason
    return seconds


async def measure(client: Client, emails: Mapping[str, str], reason: str, between: Callable[[], None]) -> Seconds:
    """Return the seconds of each attempt; in every round each class has one, in another order each time."""
    seconds: Seconds = {name: [] for name in emails}
    for _ in range(ATTEMPTS):
        between()
        for name in _random.sample(sorted(emails), len(emails)):
            seconds[name].append(await seconds_of(client, emails[name], reason))
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


def distinguishable(seconds: Seconds, login_seconds: float, report: Callable[[str], None]) -> list[str]:
    """Report how each class differs from wrong passwords; return the differences that a client could measure."""
    reference = seconds["wrong"]
    seen = []
    for name, of in ((name, of) for name in seconds if name != "wrong" for of in (statistics.median, first_decile)):
        low, high = interval(seconds[name], reference, of)
        difference = (of(seconds[name]) - of(reference)) / login_seconds
        line = f"{name}: {of.__name__} {difference:+.2%} of a login ({low:+.6f} to {high:+.6f} s)"
        report(line)
        if not low <= 0 <= high and abs(difference) > TOLERATED:
            seen.append(line)
    return seen


async def test_no_class_of_refused_logins_is_recognised_by_its_time(
    client: Client, emails: Mapping[str, str], clock: FakeClock, report: Callable[[str], None]
) -> None:
    def forget() -> None:
        clock.advance(days=2)  # whatever was counted is over

    seconds = await measure(client, emails, "INVALID_CREDENTIALS", forget)
    assert not distinguishable(seconds, statistics.median(seconds["wrong"]), report)


async def test_no_class_of_throttled_logins_is_recognised_by_its_time(
    client: Client, emails: Mapping[str, str], report: Callable[[str], None]
) -> None:
    logins = [email for email in emails.values() for _ in range(FAILURES_PER_PAIR)]
    login_seconds = [await seconds_of(client, email, "INVALID_CREDENTIALS") for email in logins]
    seconds = await measure(client, emails, "TOO_MANY_ATTEMPTS", lambda: None)
    assert not distinguishable(seconds, statistics.median(login_seconds), report)
