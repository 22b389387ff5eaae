"""Counts validated tokens by their outcome."""

from authsvc import request_context
from authsvc.telemetry import metrics
from authsvc.tokens.verification import InactiveReason
from authsvc.usecases.validation import ActiveToken

# Looking up a label takes longer than counting, so each outcome's counter is looked up once.
_count_active = metrics.TOKEN_VALIDATIONS.labels("ACTIVE").inc
_COUNT_INACTIVE = {reason: metrics.TOKEN_VALIDATIONS.labels(reason.name).inc for reason in InactiveReason}


def record_outcome(outcome: ActiveToken | InactiveReason) -> None:
    """Count the outcome of a request's one validation, and keep it for the request's span."""
    count_outcome(outcome)
    request_context.validation_outcome.set(outcome.name if isinstance(outcome, InactiveReason) else "ACTIVE")


def count_outcome(outcome: ActiveToken | InactiveReason) -> None:
    """Count the outcome of a finished validation."""
    if isinstance(outcome, InactiveReason):
        _COUNT_INACTIVE[outcome]()
    else:
        _count_active()
