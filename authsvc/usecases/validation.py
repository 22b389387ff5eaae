"""Use case: validate access tokens, by the token itself and by what the store says of its user."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from authsvc.models import Clock, UserState
from authsvc.stores.interface import Store
from authsvc.tokens.access_tokens import AccessTokens
from authsvc.tokens.verification import AccessToken, InactiveReason
from authsvc.usecases.user_state_cache import CachedRead, StalenessLimits, UserStateCache, UserStates, Wanted

_ZERO = timedelta()


class Check(NamedTuple):
    """A token to validate.

    Args:
        token: Any non-empty text.
        max_staleness: Maximum age of the deciding read; zero: the read begins after the request.
        stale_if_error: Maximum age of a read that may decide while the store cannot answer; zero: none may.
    """

    token: str
    max_staleness: timedelta = _ZERO
    stale_if_error: timedelta = _ZERO


class ActiveToken(NamedTuple):
    """An active token and its user."""

    token: AccessToken
    user: UserState


class Validation(NamedTuple):
    """A finished validation.

    Args:
        checked_time: When the deciding read began; now, where none was needed.
        outcome: The token and its user, or why the token is inactive.
        degraded: Whether an older read decided because the store could not answer.
    """

    checked_time: datetime
    outcome: ActiveToken | InactiveReason
    degraded: bool = False


class Validations:
    """The use case, on one store with one key ring."""

    def __init__(
        self, store: Store, tokens: AccessTokens, cache: UserStateCache, clock: Clock, limits: StalenessLimits
    ) -> None:
        self.tokens = tokens
        self._clock = clock
        self._states = UserStates(store, cache, limits)

    async def validate(self, check: Check) -> Validation:
        """Validate one token.

        Raises:
            CorruptItemError: The user's row cannot be read.
            StoreUnavailableError: The store cannot answer. An outage never reads as "inactive".
        """
        now = self._clock()
        token = self.tokens.verify(check.token, now)
        if isinstance(token, InactiveReason):
            return Validation(now, token)
        read = await self._states.get(Wanted(token.user_id, check.max_staleness, check.stale_if_error), now)
        validation = _to_validation(token, read)
        if isinstance(validation, Exception):
            raise validation
        return validation

    async def validate_all(self, checks: Sequence[Check]) -> list[Validation | Exception]:
        """Validate several tokens; return for each, in order, its validation or the error that prevented it."""
        now = self._clock()
        tokens = [self._verify(check.token, now) for check in checks]
        wanted = [
            Wanted(token.user_id, check.max_staleness, check.stale_if_error)
            for token, check in zip(tokens, checks, strict=True)
            if isinstance(token, AccessToken)
        ]
        reads = iter(await self._states.get_all(wanted, now))
        return [_to_validation(token, next(reads)) if isinstance(token, AccessToken) else token for token in tokens]

    def _verify(self, text: str, now: datetime) -> AccessToken | Validation | Exception:
        """Return a token's claims, or its answer where the store is not needed."""
        try:
            token = self.tokens.verify(text, now)
        except Exception as error:  # noqa: BLE001 - a bug met by one token must not fail the others
            return error
        return Validation(now, token) if isinstance(token, InactiveReason) else token


def _to_validation(token: AccessToken, read: CachedRead | Exception) -> Validation | Exception:
    if isinstance(read, Exception):
        return read
    return Validation(read.checked_time, _outcome(token, read.user_state), read.degraded)


def _outcome(token: AccessToken, user: UserState | None) -> ActiveToken | InactiveReason:
    if user is None:
        return InactiveReason.USER_NOT_FOUND
    if not user.is_active:
        return InactiveReason.USER_DISABLED
    if user.token_generation != token.token_generation or user.has_revoked(token.session_id):
        return InactiveReason.SESSION_REVOKED
    return ActiveToken(token, user)
