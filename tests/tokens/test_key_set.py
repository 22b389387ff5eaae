"""Merging key sets: of commands at the same time none takes back what another one did."""

import json
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authsvc.errors import KeyFileError
from authsvc.tokens.key_set import REMOVAL_KEPT, KeySet, merge, new_key_set, parse_key_set, remove, rotate
from authsvc.tokens.keys import KeyStatus
from tests.support import FakeClock

TTL = timedelta(minutes=15)
NOW = FakeClock().now


def kids(key_set: KeySet, *statuses: KeyStatus) -> list[str]:
    return [key.kid for key in key_set.keys if key.status in (statuses or tuple(KeyStatus))]


def signing(key_set: KeySet) -> str:
    (kid,) = kids(key_set, KeyStatus.SIGNING)
    return kid


def content(key_set: KeySet) -> Any:
    return sorted((dict(jwk) for jwk in key_set.jwks), key=lambda jwk: jwk["kid"]), dict(key_set.removed)


@pytest.fixture
def base() -> KeySet:
    return new_key_set("ES256", NOW - timedelta(days=1))


def test_two_rotations_count_as_one_and_both_new_keys_are_published(base: KeySet) -> None:
    one, other = rotate(base, TTL, NOW), rotate(base, TTL, NOW)
    merged = merge(one, other)
    old, following = kids(base)
    assert signing(merged) == following
    assert kids(merged, KeyStatus.RETIRED) == [old]
    assert set(kids(merged, KeyStatus.NEXT)) == {kids(one)[-1], kids(other)[-1]}


def test_of_two_next_keys_the_older_one_signs_first_and_none_is_added_while_one_is_left(base: KeySet) -> None:
    later = rotate(base, TTL, NOW + timedelta(hours=1))
    merged = merge(later, rotate(base, TTL, NOW))
    older, newer = (kid for kid in reversed(kids(merged, KeyStatus.NEXT)))
    rotated = rotate(merged, TTL, NOW + timedelta(hours=3))
    assert (signing(rotated), kids(rotated, KeyStatus.NEXT)) == (older, [newer])


def test_a_removed_key_stays_removed(base: KeySet) -> None:
    leaked = signing(base)
    for merged in (
        merge(rotate(base, TTL, NOW), remove(base, leaked, NOW, "keys")),
        merge(remove(base, leaked, NOW, "keys"), rotate(base, TTL, NOW)),
    ):
        assert leaked not in kids(merged)
        assert signing(merged) == kids(base)[1]


def test_a_removal_is_forgotten_after_a_day(base: KeySet) -> None:
    """Until then every command of its time has ended."""
    leaked = signing(base)
    removed = remove(base, leaked, NOW, "keys")
    assert dict(removed.removed) == {leaked: int(NOW.timestamp())}
    assert parse_key_set(removed.to_json()).removed == removed.removed
    assert rotate(removed, TTL, NOW + REMOVAL_KEPT - timedelta(seconds=1)).removed == removed.removed
    assert rotate(removed, TTL, NOW + REMOVAL_KEPT).removed == {}


def test_both_keys_removed_at_once_leave_new_ones(base: KeySet) -> None:
    merged = merge(*(remove(base, kid, NOW, "keys") for kid in kids(base)))
    assert not set(kids(merged)) & set(kids(base))
    assert signing(merged)
    assert kids(merged, KeyStatus.NEXT)


def test_of_two_keys_that_sign_the_older_one_goes_on(base: KeySet) -> None:
    """Somebody has edited one of the sets by hand."""
    other = json.loads(base.to_json())
    other["keys"].reverse()
    for jwk, status in zip(other["keys"], ("signing", "next"), strict=True):
        jwk |= {"status": status, "create_time": 5 if status == "signing" else 9}
    merged = merge(parse_key_set(json.dumps(other)), base)
    assert signing(merged) == kids(base)[1]
    assert kids(merged, KeyStatus.NEXT) == [kids(base)[0]]


def history(key_set: KeySet, choices: random.Random, steps: int) -> KeySet:
    for _ in range(steps):
        if choices.random() < 0.5:
            key_set = rotate(key_set, TTL, NOW)
        else:
            key_set = remove(key_set, choices.choice(kids(key_set)), NOW, "keys")
    return key_set


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), steps=st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_sets_merge_in_any_order_and_any_number_of_times(seed: int, steps: list[int]) -> None:
    choices = random.Random(seed)  # noqa: S311 - repeatable
    base = history(new_key_set("ES256", NOW), choices, 1)
    one, two, three = (history(base, choices, count) for count in steps)
    merged = merge(merge(one, two), three)
    assert len(kids(merged, KeyStatus.SIGNING)) == 1
    assert set(kids(merged)) == (set(kids(one)) | set(kids(two)) | set(kids(three))) - set(merged.removed)
    assert content(merged) == content(merge(three, merge(two, one)))
    assert content(merged) == content(merge(merged, two))


@pytest.mark.parametrize(
    ("member", "reported"),
    [
        ({"removed": []}, '"removed" must give'),
        ({"removed": {"k": True}}, '"removed" must give'),
        ({"removed": {"k": "1"}}, '"removed" must give'),
        ({"merged_version": "3"}, '"merged_version" must be'),
        ({"merged_version": 3.0}, '"merged_version" must be'),
    ],
)
def test_a_malformed_member_is_reported(base: KeySet, member: dict[str, Any], reported: str) -> None:
    text = json.dumps(json.loads(base.to_json()) | member)
    with pytest.raises(KeyFileError, match=reported):
        parse_key_set(text)


def test_no_private_part_is_in_a_repr(base: KeySet) -> None:
    assert all(jwk["d"] not in repr(base) for jwk in base.jwks)
