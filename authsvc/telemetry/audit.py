"""The audit log: one line per login, refusal, session and user change, with fixed members per event.

docs/operations.md lists events and members. Every log line also has the request's `trace_id`, `span_id` and `caller`.
"""

import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import structlog

from authsvc.telemetry.log_queue import Kind

_LOGGER = "authsvc.audit"
_log = structlog.get_logger(_LOGGER, Kind.AUDIT)
_refusals = structlog.get_logger(_LOGGER, Kind.REFUSAL)


class Event(StrEnum):
    """The audit events."""

    LOGIN = "login"
    LOGIN_REFUSED = "login_refused"
    LOGIN_THROTTLED = "login_throttled"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - an event's name
    PASSWORD_RESET = "password_reset"  # noqa: S105 - an event's name
    REFRESH = "refresh"
    REFRESH_REFUSED = "refresh_refused"
    REFRESH_REPLAYED_ELSEWHERE = "refresh_replayed_elsewhere"
    REFRESH_TOKEN_REUSE = "refresh_token_reuse"  # noqa: S105 - an event's name
    SESSION_REVOKED = "session_revoked"
    SESSIONS_REVOKED = "sessions_revoked"
    USER_CREATED = "user_created"
    USER_UPDATED = "user_updated"
    USER_DELETED = "user_deleted"
    CALLER_REFUSED = "caller_refused"
    KEYS_RELOADED = "keys_reloaded"
    KEYS_NOT_RELOADED = "keys_not_reloaded"
    CALLERS_RELOADED = "callers_reloaded"
    CALLERS_NOT_RELOADED = "callers_not_reloaded"
    CERTIFICATES_RELOADED = "certificates_reloaded"
    CERTIFICATES_NOT_RELOADED = "certificates_not_reloaded"


class Outcome(StrEnum):
    """The result of an event."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


_DONE = (Outcome.DONE, logging.INFO, _log)
_OUTCOMES: Mapping[Event, tuple[Outcome, int, Any]] = {
    Event.LOGIN_REFUSED: (Outcome.REFUSED, logging.INFO, _refusals),
    Event.LOGIN_THROTTLED: (Outcome.REFUSED, logging.INFO, _refusals),
    Event.REFRESH_REFUSED: (Outcome.REFUSED, logging.INFO, _refusals),
    Event.REFRESH_REPLAYED_ELSEWHERE: (Outcome.DONE, logging.WARNING, _log),
    # Only who had a token of the session can cause it, so it is not among the refusals that a flood consists of.
    Event.REFRESH_TOKEN_REUSE: (Outcome.REFUSED, logging.WARNING, _log),
    Event.CALLER_REFUSED: (Outcome.REFUSED, logging.WARNING, _refusals),
    Event.KEYS_NOT_RELOADED: (Outcome.FAILED, logging.ERROR, _log),
    Event.CALLERS_NOT_RELOADED: (Outcome.FAILED, logging.ERROR, _log),
    Event.CERTIFICATES_NOT_RELOADED: (Outcome.FAILED, logging.ERROR, _log),
}
"""Outcome, log level and logger of each event that is not DONE at level info."""


def record(event: Event, **members: object) -> None:
    """Write an audit line.

    Args:
        event: What happened.
        members: By the same names for every event: `user_id`, `email_digest`, `session_id`, `source` (the end user's
            address), `reason` (why it was refused or failed).
    """
    outcome, level, log = _OUTCOMES.get(event, _DONE)
    log.log(level, event.value, outcome=outcome.value, **members)
