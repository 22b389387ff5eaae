"""Conversions between DynamoDB items and models. Reading is strict: other programs write rows, too."""

import base64
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias, TypedDict, TypeVar

import structlog

from authsvc import fields
from authsvc.errors import CorruptItemError
from authsvc.models import AttemptCount, Session, User, UserState
from authsvc.stores.interface import OPTIMISTIC_LOCK_FIELDS
from authsvc.telemetry import metrics

Item: TypeAlias = Mapping[str, Mapping[str, Any]]
"""An item in DynamoDB's JSON: `{"email": {"S": "a@example.com"}, …}`."""

T = TypeVar("T")
D = TypeVar("D")

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"is_active": {"BOOL": True}, "token_generation": {"N": "0"}}
_EPOCH = datetime.fromtimestamp(0, UTC)
_MAX_DIGITS = 38  # of DynamoDB's numbers
_LEAP_SECOND = re.compile(r"([T ][0-9]{2}:[0-9]{2}:)60")

_log = structlog.get_logger(__name__)


def iso_time(time: datetime) -> str:
    """Return a time as stored: ISO 8601 in UTC with `Z`."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def item_of(**values: object) -> dict[str, dict[str, object]]:
    """Return an item with the types of its values; None and empty sets are left out."""
    return {name: _attribute(value) for name, value in values.items() if value not in (None, frozenset())}


def _attribute(value: object) -> dict[str, object]:
    match value:
        case bool():
            return {"BOOL": value}
        case int():
            return {"N": str(value)}
        case bytes():
            return {"B": value}
        case frozenset():
            return {"SS": sorted(value)}
    return {"S": value}


class PageStart(TypedDict, total=False):
    """The argument of a Query or Scan that continues after a page; empty for the first page."""

    ExclusiveStartKey: dict[str, dict[str, object]]


def page_start(**key: str | None) -> PageStart:
    """Return where a page begins, by the key of the last row before it; None: at the first row."""
    return {} if None in key.values() else {"ExclusiveStartKey": item_of(**key)}


def last_key(response: Mapping[str, Any], name: str) -> str | None:
    """Return a key attribute of a page's last row; None where no page follows."""
    last = response.get("LastEvaluatedKey")
    return None if last is None else str(last[name]["S"])


def user_item(user: User) -> dict[str, dict[str, object]]:
    """Return the row of a user."""
    expire_time = user.temporary_password_expire_time
    return item_of(
        user_id=user.user_id,
        email=user.email,
        password_hash=user.password_hash,
        role=user.role,
        is_active=user.is_active,
        created_at=user.create_time and iso_time(user.create_time),
        updated_at=user.update_time and iso_time(user.update_time),
        token_generation=user.token_generation,
        revoked_sessions=user.revoked_sessions,
        password_change_required=user.password_change_required or None,
        temporary_password_expires_at=expire_time and int(expire_time.timestamp()),
    )


def user_update(table: str, expected: User, new: User) -> dict[str, Any]:
    """Return an UpdateItem that writes the differences under the optimistic lock.

    Args:
        table: Name of the users table.
        expected: The user as read.
        new: The user as it is to be stored.
    """
    before, after = user_item(expected), user_item(new)
    changed = [name for name in (*before, *after) if before.get(name) != after.get(name)]
    written = {name: after[name] for name in changed if name in after}
    removed = [f"#{name}" for name in dict.fromkeys(changed) if name not in after]
    conditions = [_condition(name, before.get(name)) for name in OPTIMISTIC_LOCK_FIELDS]
    lock_values = {f":expected_{name}": before[name] for name in OPTIMISTIC_LOCK_FIELDS if name in before}
    sets = [f"#{name} = :{name}" for name in written]
    return {
        "TableName": table,
        "Key": item_of(user_id=new.user_id),
        "UpdateExpression": " ".join(
            f"{verb} {', '.join(of)}" for verb, of in (("SET", sets), ("REMOVE", removed)) if of
        ),
        "ConditionExpression": " AND ".join(conditions),
        "ExpressionAttributeNames": {f"#{name}": name for name in (*OPTIMISTIC_LOCK_FIELDS, *changed)},
        "ExpressionAttributeValues": {**lock_values, **{f":{name}": value for name, value in written.items()}},
    }


def _condition(name: str, expected: Mapping[str, Any] | None) -> str:
    """Require an attribute to be as expected; an absent one equals its default."""
    if expected is None:
        return f"attribute_not_exists(#{name})"
    equal = f"#{name} = :expected_{name}"
    return f"({equal} OR attribute_not_exists(#{name}))" if expected == _DEFAULTS.get(name) else equal


def user_from_item(item: Item) -> User:
    """Return the user in a row.

    Only absent attributes get defaults; an attribute of a wrong type makes the row corrupt, never active. Times that
    decide nothing are the exception: one that is unreadable is logged and None.

    Raises:
        CorruptItemError: An attribute is missing or unreadable. It is logged.
    """
    read = _Reader(item)
    try:
        return User(
            **_user_state_values(read),
            password_hash=read.optional("password_hash", _any_text, None),
            password_change_required=read.optional("password_change_required", _flag, default=False),
            temporary_password_expire_time=read.optional("temporary_password_expires_at", _second, None),
            create_time=read.informative("created_at", _time),
            update_time=read.informative("updated_at", _time),
        )
    except CorruptItemError as error:
        _log_corrupt_user(error)
        raise


def user_state_from_item(item: Item) -> UserState:
    """Return the user state in a row, as strictly as user_from_item.

    Raises:
        CorruptItemError: An attribute is missing or unreadable. It is logged.
    """
    try:
        return UserState(**_user_state_values(_Reader(item)))
    except CorruptItemError as error:
        _log_corrupt_user(error)
        raise


def _user_state_values(read: "_Reader") -> dict[str, Any]:
    return {
        "user_id": read.required("user_id", _user_id),
        "email": read.required("email", _text),
        "role": read.required("role", _text),
        "is_active": read.optional("is_active", _flag, default=True),
        "token_generation": read.optional("token_generation", _integer, 0),
        "revoked_sessions": read.optional("revoked_sessions", _texts, frozenset()),
    }


def _log_corrupt_user(error: CorruptItemError) -> None:
    metrics.CORRUPT_ITEMS.inc()
    _log.error("row_broken", table="users", user_id=error.key, attribute=error.attribute)


def owner_id_from_item(item: Item) -> str:
    """Return the user id that the claim of an address names.

    Raises:
        CorruptItemError: It is unreadable. It is logged without the address, which is the row's key.
    """
    try:
        return _Reader(item).required("user_id", _text)
    except CorruptItemError as error:
        metrics.CORRUPT_ITEMS.inc()
        _log.error("row_broken", table="unique", attribute=error.attribute)
        raise


def attempt_count_from_item(item: Item) -> AttemptCount:
    """Return the attempt count in an item of the login attempts.

    Raises:
        CorruptItemError: It is unreadable. It is logged.
    """
    read = _Reader(item)
    try:
        attempts = read.optional("attempts", _texts, frozenset())
        return AttemptCount(len(attempts), read.required("expires_at", _second))
    except CorruptItemError as error:
        _log.error("row_broken", table="login_attempts", attribute=error.attribute)
        raise


def session_item(session: Session) -> dict[str, dict[str, object]]:
    """Return the row of a session."""
    return item_of(
        user_id=session.user_id,
        session_id=session.session_id,
        token_generation=session.token_generation,
        session_part_sha256=session.session_part_sha256,
        rotating_part_sha256=session.rotating_part_sha256,
        previous_part_sha256=session.previous_part_sha256,
        rotation_nonce=session.rotation_nonce,
        created_at=iso_time(session.create_time),
        last_refreshed_at=session.last_refresh_time and iso_time(session.last_refresh_time),
        max_expires_at=int(session.max_expire_time.timestamp()),
        last_token_expires_at=int(session.last_token_expire_time.timestamp()),
        ended_at=session.end_time and iso_time(session.end_time),
        client_label=session.client_label,
        client_address=session.client_address,
        expires_at=int(session.expire_time.timestamp()),
    )


def session_from_item(item: Item) -> Session:
    """Return the session in a row.

    Raises:
        CorruptItemError: An attribute is missing or unreadable. It is logged.
    """
    read = _Reader(item)
    try:
        return Session(
            user_id=read.required("user_id", _text),
            session_id=read.required("session_id", _text),
            token_generation=read.required("token_generation", _integer),
            session_part_sha256=read.required("session_part_sha256", _bytes),
            rotating_part_sha256=read.required("rotating_part_sha256", _bytes),
            previous_part_sha256=read.optional("previous_part_sha256", _bytes, None),
            rotation_nonce=read.optional("rotation_nonce", _bytes, None),
            create_time=read.required("created_at", _time),
            last_refresh_time=read.optional("last_refreshed_at", _time, None),
            expire_time=read.required("expires_at", _second),
            max_expire_time=read.required("max_expires_at", _second),
            last_token_expire_time=read.required("last_token_expires_at", _second),
            end_time=read.optional("ended_at", _time, None),
            client_label=read.optional("client_label", _any_text, ""),
            client_address=read.optional("client_address", _any_text, ""),
        )
    except CorruptItemError as error:
        metrics.CORRUPT_ITEMS.inc()
        _log.error("row_broken", table="sessions", user_id=error.key, attribute=error.attribute)
        raise


class _Reader:
    """Reads attributes of a row, each by its required type."""

    def __init__(self, item: Item) -> None:
        self._item = item
        self._key = str(item.get("user_id", {}).get("S", ""))

    def required(self, name: str, parse: Callable[[Mapping[str, Any]], T]) -> T:
        try:
            return parse(self._item[name])
        except (KeyError, ValueError, ArithmeticError, TypeError, AttributeError):
            raise CorruptItemError(self._key, name) from None

    def optional(self, name: str, parse: Callable[[Mapping[str, Any]], T], default: D) -> T | D:
        return self.required(name, parse) if name in self._item else default

    def informative(self, name: str, parse: Callable[[Mapping[str, Any]], T]) -> T | None:
        """Return an attribute that decides nothing; None where it is absent or unreadable."""
        try:
            return self.optional(name, parse, None)
        except CorruptItemError as error:
            _log.warning("attribute_ignored", table="users", user_id=error.key, attribute=name)
            return None


def _text(attribute: Mapping[str, Any]) -> str:
    text = _any_text(attribute)
    if not text:
        raise ValueError("empty")
    return text


def _user_id(attribute: Mapping[str, Any]) -> str:
    text = _text(attribute)
    if len(text.encode()) > fields.USER_ID_MAX_BYTES:  # in no request, and in no token that is accepted
        raise ValueError("too long")
    return text


def _any_text(attribute: Mapping[str, Any]) -> str:
    text: str = attribute["S"]
    text.encode()  # fails for a lone surrogate, which could not be sent to a client
    return text


def _bytes(attribute: Mapping[str, Any]) -> bytes:
    # Responses are read as they are; botocore encodes requests alone.
    return base64.b64decode(attribute["B"], validate=True)


def _flag(attribute: Mapping[str, Any]) -> bool:
    flag: bool = attribute["BOOL"]
    return flag


def _number(attribute: Mapping[str, Any]) -> Decimal:
    number = Decimal(attribute["N"])
    if not number.is_finite() or number.adjusted() >= _MAX_DIGITS:  # an int of 1E+999999999 would fill the memory
        raise ValueError("not a number of DynamoDB")
    return number


def _integer(attribute: Mapping[str, Any]) -> int:
    """Read a whole number, which other languages may write as `1.0`."""
    number = _number(attribute)
    if number != number.to_integral_value():
        raise ValueError("not a whole number")
    return int(number)


def _texts(attribute: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(attribute["SS"])


def _second(attribute: Mapping[str, Any]) -> datetime:
    """Read a Unix time; a fraction of a second is dropped."""
    # Of a far second fromtimestamp raises OSError on some systems, the sum OverflowError on all.
    return _EPOCH + timedelta(seconds=math.floor(_number(attribute)))


def _time(attribute: Mapping[str, Any]) -> datetime:
    """Read an ISO 8601 or RFC 3339 time, in UTC where it names no offset; a leap second is the second after it."""
    text, leap_seconds = _LEAP_SECOND.subn(r"\g<1>59", attribute["S"].upper())
    time = datetime.fromisoformat(text) + timedelta(seconds=leap_seconds)
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
