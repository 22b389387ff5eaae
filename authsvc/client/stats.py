"""What the client counts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the client was made.

    Args:
        hits: Validations answered from the cache, refusals included.
        misses: Validations that needed the service.
        coalesced: Misses that shared the request of another call.
        batches: Requests sent as BatchValidateTokens.
        stale_answers: Validations answered from an older answer because the service could not answer.
        errors: Errors raised, by the name of their class.
    """

    hits: int
    misses: int
    coalesced: int
    batches: int
    stale_answers: int
    errors: Mapping[str, int]


class Counts:
    """The counters behind Stats."""

    __slots__ = ("batches", "coalesced", "errors", "hits", "misses", "stale_answers")

    def __init__(self) -> None:
        self.hits = self.misses = self.coalesced = self.batches = self.stale_answers = 0
        self.errors: Counter[str] = Counter()

    def snapshot(self) -> Stats:
        """Return the counts of this moment."""
        return Stats(
            hits=self.hits,
            misses=self.misses,
            coalesced=self.coalesced,
            batches=self.batches,
            stale_answers=self.stale_answers,
            errors=dict(self.errors),
        )
