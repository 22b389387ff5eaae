"""Use case: telling whether access tokens are good now, by themselves and by what the store says of their users."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from authsvc import request_context
from authsvc.errors import StoreUnavailableError
from authsvc.models import Clock, UserState
from authsvc.stores.interface import Store
from authsvc.tokens.access_tokens import AccessTokens
from authsvc.tokens.verification import AccessToken, InactiveReason
from authsvc.usecases.user_state_cache import CachedRead, UserStateCache

STALE_FALLBACK_TIMEOUT_SECONDS = 0.5
"""How long the store is waited for where something remembered may stand in for it."""
_ZERO = timedelta()


class Check(NamedTuple):
    """A token to check.

    Args:
        token: Anything but an empty text.
        max_staleness: How old the deciding read may be; zero: it begins after the check.
        stale_if_error: The same, where the store cannot answer; zero: then there is no answer.
    """

    token: str
    max_staleness: timedelta = _ZERO
    stale_if_error: timedelta = _ZERO


class ActiveToken(NamedTuple):
    """A token that is good, and the user for whom it speaks."""

    token: AccessToken
    user: UserState


class Validation(NamedTuple):
    """A finished check of a token.

    Args:
        checked_time: When the read that decided began; now, where none was needed.
        degraded: Whether the store could not answer and something older was used.
    """

    checked_time: datetime
    outcome: ActiveToken | InactiveReason
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class StalenessLimits:
    """How old a read may be that a check rests on.

    Args:
        max_staleness: Upper limit of a check's max_staleness.
        max_stale_if_error: Upper limit of a check's stale_if_error.
        fallback_timeout: How long the store is waited for where an older read may answer instead.
    """

    max_staleness: timedelta
    max_stale_if_error: timedelta
    fallback_timeout: timedelta = timedelta(seconds=STALE_FALLBACK_TIMEOUT_SECONDS)


class Validations:
    """The use case, on one store with one key ring."""

    def __init__(
        self, store: Store, tokens: AccessTokens, cache: UserStateCache, clock: Clock, limits: StalenessLimits
    ) -> None:
        self._store = store
        self.tokens = tokens
        self._cache = cache
        self._clock = clock
        self._limits = limits

    async def validate(self, check: Check) -> Validation:
        """Decide whether an access token is good now.

        Raises:
            CorruptItemError: The stored user is unreadable.
            StoreUnavailableError: The check cannot be finished; that is never "inactive".
        """
        now = self._clock()
        token = self.tokens.verify(check.token, now)
        if isinstance(token, InactiveReason):
            return Validation(now, token)
        user_id = token.user_id
        reading: CachedRead | Exception | None = self._get_cached(user_id, check)
        if reading is None:
            use_full_timeout = self._get_stale(user_id, check) is None
            (found,) = (await self._read((user_id,), now, use_full_timeout=use_full_timeout)).values()
            reading = self._or_stale(found, user_id, check)
        validation = _to_validation(token, reading)
        if isinstance(validation, Exception):
            raise validation
        return validation

    async def validate_all(self, checks: Sequence[Check]) -> list[Validation | Exception]:
        """Decide of each token whether it is good now, or tell why that cannot be decided, in the same order."""
        now = self._clock()
        tokens = [self._verify(check.token, now) for check in checks]
        authentic = [(t.user_id, c) for t, c in zip(tokens, checks, strict=True) if isinstance(t, AccessToken)]
        readings = iter(await self._readings(authentic, now))
        return [_to_validation(token, next(readings)) if isinstance(token, AccessToken) else token for token in tokens]

    def _verify(self, text: str, now: datetime) -> AccessToken | Validation | Exception:
        """Return the claims of a token, or what is to be said of it without a look at the store."""
        try:
            token = self.tokens.verify(text, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is about this token alone
            return error
        return Validation(now, token) if isinstance(token, InactiveReason) else token

    async def _readings(self, wanted: Sequence[tuple[str, Check]], now: datetime) -> list[CachedRead | Exception]:
        """Return what each check may rest on, or why there is nothing."""
        recalled = [self._get_cached(user_id, check) for user_id, check in wanted]
        missing = [pair for pair, reading in zip(wanted, recalled, strict=True) if reading is None]
        use_full_timeout = any(self._get_stale(user_id, check) is None for user_id, check in missing)
        found = await self._read({user_id for user_id, _ in missing}, now, use_full_timeout=use_full_timeout)
        return [r or self._or_stale(found[u], u, c) for (u, c), r in zip(wanted, recalled, strict=True)]

    async def _read(
        self, user_ids: Collection[str], now: datetime, *, use_full_timeout: bool
    ) -> Mapping[str, CachedRead | Exception]:
        """Ask the store, by the request's deadline, or without patience where something else may stand in."""
        begun = self._cache.begin()
        if use_full_timeout:
            standings = await self._store.get_user_states(user_ids)
        else:
            with request_context.time_limit(
                min(self._limits.fallback_timeout.total_seconds(), request_context.remaining_seconds())
            ):
                standings = await self._store.get_user_states(user_ids)
        readings: dict[str, CachedRead | Exception] = {}
        for user_id, standing in standings.items():
            if isinstance(standing, Exception):
                readings[user_id] = standing
            else:
                readings[user_id] = reading = CachedRead(standing, now)
                self._cache.put(user_id, begun, reading)
        return readings

    def _get_cached(self, user_id: str, check: Check) -> CachedRead | None:
        """Return what the check may rest on without a look at the store."""
        if not check.max_staleness:
            return None
        return self._cache.get(user_id, min(check.max_staleness, self._limits.max_staleness))

    def _or_stale(self, reading: CachedRead | Exception, user_id: str, check: Check) -> CachedRead | Exception:
        """Return what was read before, where the store cannot answer and the check allows that."""
        if not isinstance(reading, StoreUnavailableError):
            return reading
        stand_in = self._get_stale(user_id, check)
        return reading if stand_in is None else stand_in._replace(degraded=True)

    def _get_stale(self, user_id: str, check: Check) -> CachedRead | None:
        if not check.stale_if_error:
            return None
        return self._cache.get(user_id, min(check.stale_if_error, self._limits.max_stale_if_error))


def _to_validation(token: AccessToken, reading: CachedRead | Exception) -> Validation | Exception:
    if isinstance(reading, Exception):
        return reading
    return Validation(reading.checked_time, _outcome(token, reading.standing), reading.degraded)


def _outcome(token: AccessToken, user: UserState | None) -> ActiveToken | InactiveReason:
    if user is None:
        return InactiveReason.USER_NOT_FOUND
    if not user.is_active:
        return InactiveReason.USER_DISABLED
    if user.token_generation != token.token_generation or user.has_revoked(token.session_id):
        return InactiveReason.SESSION_REVOKED
    return ActiveToken(token, user)
