"""Counts validated tokens by their outcome."""

from authsvc.telemetry import metrics
from authsvc.tokens.verification import InactiveReason
from authsvc.usecases.validation import ActiveToken

# Looking up a label takes longer than counting, so each outcome's counter is looked up once.
_count_active = metrics.TOKEN_VALIDATIONS.labels("ACTIVE").inc
_COUNT_INACTIVE = {reason: metrics.TOKEN_VALIDATIONS.labels(reason.name).inc for reason in InactiveReason}


def count_outcome(outcome: ActiveToken | InactiveReason) -> None:
    """Count the outcome of a finished validation."""
    if isinstance(outcome, InactiveReason):
        _COUNT_INACTIVE[outcome]()
    else:
        _count_active()
