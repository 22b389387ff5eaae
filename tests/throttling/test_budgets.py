from datetime import UTC, datetime, timedelta

import pytest

from authsvc.models import AttemptCount, Budget, CounterUpdate
from authsvc.throttling import budgets
from authsvc.throttling.budgets import KNOWN_SOURCE_LIFE, AttemptKeys, Budgets

NOW = datetime(2030, 1, 1, 12, 0, 0, 500_000, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
BUDGETS = Budgets(Budget(10, 15 * MINUTE), Budget(100, 24 * HOUR), Budget(300, 30 * MINUTE))
KEYS = AttemptKeys.of("alice@example.com", "192.0.2.7")
KEYS_WITHOUT_SOURCE = AttemptKeys.of("alice@example.com", "")
KNOWN = {KEYS.known_key: AttemptCount(0, NOW + HOUR)}


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("", ""),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
    ],
)
def test_a_source_is_an_ipv4_address_or_an_ipv6_network(address: str, source: str) -> None:
    assert budgets.source_of(address) == source


def test_no_key_holds_an_email_in_clear() -> None:
    assert not any("alice" in key or "example" in key for key in KEYS.all)
    assert KEYS.account_key == "account#ff8d9819fc0e12bf0d24892e45987e249a28dce836a85cad60e28eaaa8c6d976"


def test_a_target_rests_on_four_keys_and_without_a_source_on_one() -> None:
    assert len(set(KEYS.all)) == 4
    assert KEYS_WITHOUT_SOURCE.all == [KEYS.account_key] == [KEYS_WITHOUT_SOURCE.pair_key]


def test_an_unknown_source_counts_in_three_counters_narrowest_first() -> None:
    counters = budgets.counters_for(KEYS, {}, BUDGETS, NOW)
    assert [(c.name, c.key, c.limit) for c in counters] == [
        ("pair", KEYS.pair_key, 10),
        ("account", KEYS.account_key, 100),
        ("source", KEYS.source_key, 300),
    ]
    # Whole seconds, never short of the window.
    windows = [counter.expire_time - NOW.replace(microsecond=0) for counter in counters]
    second = timedelta(seconds=1)
    assert windows == [15 * MINUTE + second, 24 * HOUR + second, 30 * MINUTE + second]


def test_a_known_source_does_not_count_against_the_account() -> None:
    assert [c.name for c in budgets.counters_for(KEYS, KNOWN, BUDGETS, NOW)] == ["pair", "source"]


def test_without_a_source_only_the_account_counts() -> None:
    assert [c.name for c in budgets.counters_for(KEYS_WITHOUT_SOURCE, {}, BUDGETS, NOW)] == ["account"]


def test_a_counter_is_full_at_its_limit_and_the_one_that_refuses_longest_is_returned() -> None:
    counters = budgets.counters_for(KEYS, {}, BUDGETS, NOW)
    below = {KEYS.pair_key: AttemptCount(9, NOW + MINUTE), KEYS.account_key: AttemptCount(99, NOW + MINUTE)}
    assert budgets.find_full_counter(counters, {}) is None
    assert budgets.find_full_counter(counters, below) is None
    above = {KEYS.pair_key: AttemptCount(11, NOW + MINUTE), KEYS.source_key: AttemptCount(300, NOW + HOUR)}
    full = budgets.find_full_counter(counters, {**below, **above})
    assert full is not None
    assert (full.name, full.expire_time) == ("source", NOW + HOUR)


def update_after_login(keys: AttemptKeys, stored: dict[str, AttemptCount]) -> CounterUpdate:
    counters = budgets.counters_for(keys, stored, BUDGETS, NOW)
    return budgets.update_after_login(keys, counters, stored, NOW)


def test_a_login_from_an_unknown_source_clears_the_pair_and_makes_the_source_known() -> None:
    known = (KEYS.known_key, NOW.replace(microsecond=0) + KNOWN_SOURCE_LIFE)
    assert update_after_login(KEYS, {}) == CounterUpdate((KEYS.account_key, KEYS.source_key), (KEYS.pair_key,), known)


def test_a_login_from_a_known_source_clears_the_account_as_well() -> None:
    update = update_after_login(KEYS, KNOWN)
    assert update.cleared == (KEYS.pair_key, KEYS.account_key)
    assert update.released == (KEYS.source_key,)


@pytest.mark.parametrize(("age", "is_renewed"), [(timedelta(hours=23), False), (timedelta(hours=25), True)])
def test_a_known_source_is_renewed_once_a_day(age: timedelta, is_renewed: bool) -> None:  # noqa: FBT001 - a parameter
    stored = {KEYS.known_key: AttemptCount(0, NOW - age + KNOWN_SOURCE_LIFE)}
    assert (update_after_login(KEYS, stored).known is not None) == is_renewed


def test_a_login_from_nowhere_gives_its_try_back_and_nothing_more() -> None:
    assert update_after_login(KEYS_WITHOUT_SOURCE, {}) == CounterUpdate(released=(KEYS_WITHOUT_SOURCE.account_key,))
