"""Use case: validate access tokens, by the token itself and by what the store says of its user."""

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


@dataclass(frozen=True, slots=True)
class StalenessLimits:
    """How old the deciding read may be.

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
        """Validate one token.

        Raises:
            CorruptItemError: The user's row cannot be read.
            StoreUnavailableError: The store cannot answer. An outage never reads as "inactive".
        """
        now = self._clock()
        token = self.tokens.verify(check.token, now)
        if isinstance(token, InactiveReason):
            return Validation(now, token)
        user_id = token.user_id
        read: CachedRead | Exception | None = self._get_cached(user_id, check)
        if read is None:
            use_full_timeout = self._get_stale(user_id, check) is None
            (answer,) = (await self._read((user_id,), now, use_full_timeout=use_full_timeout)).values()
            read = self._or_stale(answer, user_id, check)
        validation = _to_validation(token, read)
        if isinstance(validation, Exception):
            raise validation
        return validation

    async def validate_all(self, checks: Sequence[Check]) -> list[Validation | Exception]:
        """Validate several tokens; return for each, in order, its validation or the error that prevented it."""
        now = self._clock()
        tokens = [self._verify(check.token, now) for check in checks]
        verified = [(t.user_id, c) for t, c in zip(tokens, checks, strict=True) if isinstance(t, AccessToken)]
        reads = iter(await self._read_all(verified, now))
        return [_to_validation(token, next(reads)) if isinstance(token, AccessToken) else token for token in tokens]

    def _verify(self, text: str, now: datetime) -> AccessToken | Validation | Exception:
        """Return a token's claims, or its answer where the store is not needed."""
        try:
            token = self.tokens.verify(text, now)
        except Exception as error:  # noqa: BLE001 - a bug met by one token must not fail the others
            return error
        return Validation(now, token) if isinstance(token, InactiveReason) else token

    async def _read_all(self, wanted: Sequence[tuple[str, Check]], now: datetime) -> list[CachedRead | Exception]:
        """Return the deciding read of each check, in order, from the cache or from one read of the store."""
        cached = [self._get_cached(user_id, check) for user_id, check in wanted]
        missing = [pair for pair, read in zip(wanted, cached, strict=True) if read is None]
        use_full_timeout = any(self._get_stale(user_id, check) is None for user_id, check in missing)
        answers = await self._read({user_id for user_id, _ in missing}, now, use_full_timeout=use_full_timeout)
        return [r or self._or_stale(answers[u], u, c) for (u, c), r in zip(wanted, cached, strict=True)]

    async def _read(
        self, user_ids: Collection[str], now: datetime, *, use_full_timeout: bool
    ) -> Mapping[str, CachedRead | Exception]:
        """Read from the store and fill the cache; without the full timeout, give up early for a stale fallback."""
        start = self._cache.start_read()
        if use_full_timeout:
            states = await self._store.get_user_states(user_ids)
        else:
            timeout_seconds = self._limits.fallback_timeout.total_seconds()
            with request_context.time_limit(min(timeout_seconds, request_context.remaining_seconds())):
                states = await self._store.get_user_states(user_ids)
        reads: dict[str, CachedRead | Exception] = {}
        for user_id, state in states.items():
            if isinstance(state, Exception):
                reads[user_id] = state
            else:
                reads[user_id] = read = CachedRead(state, now)
                self._cache.put(user_id, start, read)
        return reads

    def _get_cached(self, user_id: str, check: Check) -> CachedRead | None:
        """Return a read within the check's max_staleness."""
        if not check.max_staleness:
            return None
        return self._cache.get(user_id, min(check.max_staleness, self._limits.max_staleness))

    def _get_stale(self, user_id: str, check: Check) -> CachedRead | None:
        """Return a read within the check's stale_if_error."""
        if not check.stale_if_error:
            return None
        return self._cache.get(user_id, min(check.stale_if_error, self._limits.max_stale_if_error))

    def _or_stale(self, answer: CachedRead | Exception, user_id: str, check: Check) -> CachedRead | Exception:
        """Return the store's answer; for an outage a stale read, where the check allows one that is there."""
        if not isinstance(answer, StoreUnavailableError):
            return answer
        stale = self._get_stale(user_id, check)
        return answer if stale is None else stale._replace(degraded=True)


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
