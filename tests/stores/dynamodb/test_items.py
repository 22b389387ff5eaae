"""What the attributes of rows mean that programs in other languages write."""

from datetime import UTC, datetime
from typing import Any

import pytest

from authsvc.errors import CorruptItemError
from authsvc.stores.dynamodb.items import user_from_item, user_state_from_item
from tests.support import WITNESS

ROW = {"user_id": {"S": "carol"}, "email": {"S": "carol@example.com"}, "role": {"S": "user"}}
TIME = datetime(2026, 11, 22, 21, 32, 54, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-22T21:32:54Z", TIME),
        ("2026-11-22t21:32:54z", TIME),
        ("2026-11-22t22:32:54+01:00", TIME),
        ("2026-11-22 21:32:54", TIME),
        ("20261122T213254Z", TIME),
        ("2026-11-22T21:32:54.5Z", TIME.replace(microsecond=500_000)),
        ("2026-11-22T21:32:54.123456789Z", TIME.replace(microsecond=123_456)),
        ("2026-11-22t21:32:54.123456789z", TIME.replace(microsecond=123_456)),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2016-12-31 23:59:60z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2016-12-31T15:59:60.25-08:00", datetime(2017, 1, 1, 0, 0, 0, 250_000, UTC)),
        ("2026-11-22", TIME.replace(hour=0, minute=0, second=0)),
    ],
)
def test_times_in_other_spellings_are_read(text: str, time: datetime) -> None:
    user = user_from_item({**ROW, "created_at": {"S": text}, "updated_at": {"S": text}})
    assert (user.create_time, user.update_time) == (time, time)


@pytest.mark.parametrize(
    "value",
    [
        {"S": "Sun Nov 22 2026 21:32:54 GMT+0000"},
        {"S": "2026-11-22 21:32:54.123456789 +0000 UTC"},
        {"S": "2026-11-22T21:32:61Z"},
        {"S": "yesterday"},
        {"S": ""},
        {"S": "\ud800"},
        # Outside the range of datetime in UTC.
        {"S": "0001-01-01T00:00:00+14:00"},
        {"S": "9999-12-31T23:59:59-14:00"},
        {"S": "9999-12-31T23:59:60Z"},
        {"N": "1795383174"},
        {"BOOL": True},
        {"NULL": True},
        {"M": {}},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["created_at", "updated_at"])
def test_a_time_that_decides_nothing_and_cannot_be_read_is_absent(name: str, value: dict[str, Any]) -> None:
    position = len(WITNESS.lines.getvalue())
    assert user_from_item({**ROW, name: value}) == user_from_item(ROW)
    lines = WITNESS.lines.getvalue()[position:]
    assert f'"attribute": "{name}"' in lines
    assert '"user_id": "carol"' in lines


@pytest.mark.parametrize(
    ("number", "generation"),
    [("7", 7), ("7.0", 7), ("7.000", 7), ("0.7E1", 7), ("7E2", 700), ("-0.0", 0), ("1E37", 10**37)],
)
def test_a_whole_number_may_have_a_zero_fraction(number: str, generation: int) -> None:
    row = {**ROW, "token_generation": {"N": number}}
    assert user_from_item(row).token_generation == user_state_from_item(row).token_generation == generation


@pytest.mark.parametrize(
    ("number", "second"),
    [("1795383174", 0), ("1795383174.0", 0), ("1795383174.123", 0), ("1.795383174999E9", 0), ("1795383173.999", -1)],
)
def test_a_fraction_of_a_second_is_dropped(number: str, second: int) -> None:
    user = user_from_item({**ROW, "temporary_password_expires_at": {"N": number}})
    assert user.temporary_password_expire_time == TIME.replace(second=TIME.second + second)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("token_generation", {"N": number})
            for number in ("7.5", "7.0000001", "NaN", "Infinity", "1E999999999", "x", "")
        ),
        ("user_id", {"S": "u" * 257}),
        ("user_id", {"S": "ü" * 129}),
        ("token_generation", {"S": "7"}),
        ("is_active", {"N": "1"}),
        ("is_active", {"S": "true"}),
        # Milliseconds, nanoseconds, and a number that no clock reaches: taken for seconds they would never expire.
        *(
            ("temporary_password_expires_at", {"N": number})
            for number in ("1795383174123", "1795383174123456789", "-1E17", "1E30", "-1E30", "NaN")
        ),
        ("temporary_password_expires_at", {"S": "2026-11-22T21:32:54Z"}),
        ("temporary_password_expires_at", {"NULL": True}),
        ("password_change_required", {"NULL": True}),
    ],
    ids=str,
)
def test_what_decides_and_cannot_be_read_breaks_the_row(name: str, value: dict[str, Any]) -> None:
    with pytest.raises(CorruptItemError, match=name):
        user_from_item({**ROW, name: value})
