"""Budgets of failed logins: which counters an attempt is added to, and when one is full. No I/O.

A counter counts the attempts of a window that starts with the first one; it is full once it holds as many as its budget
admits. Keys contain the SHA-256 of the address in normal form, so an address without an account counts like any other.
"""

import hashlib
import ipaddress
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from authsvc.models import AttemptCount, Budget, Counter, CounterUpdate

KNOWN_SOURCE_LIFE = timedelta(days=30)
"""How long a source stays known to an account after a login from it."""
KNOWN_SOURCE_RENEWAL = timedelta(days=1)
"""A login renews the mark of a known source at most this often: one write a day, not one per login."""
IPV6_SOURCE_BITS = 64
"""One subscriber's prefix; the further bits are the subscriber's choice."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """The budgets that limit guessing.

    Args:
        pair: One account from one source.
        account: One account from all sources that are unknown to it.
        source: One source over all accounts.
    """

    pair: Budget
    account: Budget
    source: Budget


@dataclass(frozen=True, slots=True)
class AttemptKeys:
    """The keys under which a login attempt is counted.

    Args:
        account: SHA-256 of the address in normal form, in hexadecimal digits.
        source: As source_of returns it; empty where the source is not given.
    """

    account: str
    source: str

    @classmethod
    def of(cls, email: str, client_address: str) -> "AttemptKeys":
        """Return the keys of an attempt.

        Args:
            email: In normal form.
            client_address: An IP address, or empty.
        """
        return cls(hashlib.sha256(email.encode()).hexdigest(), source_of(client_address))

    @property
    def account_key(self) -> str:
        """Key of the account's counter."""
        return f"account#{self.account}"

    @property
    def source_key(self) -> str:
        """Key of the source's counter."""
        return f"source#{self.source}"

    @property
    def pair_key(self) -> str:
        """Key of the counter of account and source; the account's own where the source is not given."""
        return f"pair#{self.account}#{self.source}" if self.source else self.account_key

    @property
    def known_key(self) -> str:
        """Key of the mark that the source is known to the account."""
        return f"known#{self.account}#{self.source}"

    @property
    def all(self) -> list[str]:
        """Every key that decides an attempt."""
        return [self.known_key, self.pair_key, self.account_key, self.source_key] if self.source else [self.account_key]


def source_of(client_address: str) -> str:
    """Return the source of an IP address: an IPv4 address itself, the /64 of an IPv6 address; empty stays empty."""
    if not client_address:
        return ""
    address = ipaddress.ip_address(client_address)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_SOURCE_BITS), strict=False))


def counters_for(
    keys: AttemptKeys, stored: Mapping[str, AttemptCount], budgets: Budgets, now: datetime
) -> list[Counter]:
    """Return the counters of an attempt, narrowest first.

    The account's counter does not apply to sources known to the account: an attacker can fill it, and must not lock the
    user out. Where the source is not given, it is the only counter.
    """
    counters = []
    if keys.source:
        counters.append(_counter("pair", keys.pair_key, budgets.pair, stored, now))
    if keys.known_key not in stored:
        counters.append(_counter("account", keys.account_key, budgets.account, stored, now))
    if keys.source:
        counters.append(_counter("source", keys.source_key, budgets.source, stored, now))
    return counters


def _counter(name: str, key: str, budget: Budget, stored: Mapping[str, AttemptCount], now: datetime) -> Counter:
    expire_time = datetime.fromtimestamp(math.ceil((now + budget.window).timestamp()), UTC)
    return Counter(name, key, budget.failures, expire_time, is_running=key in stored and stored[key].count > 0)


def find_full_counter(counters: Iterable[Counter], stored: Mapping[str, AttemptCount]) -> Counter | None:
    """Return the full counter that refuses longest, with its stored expiry; None where none is full."""
    full = [
        replace(counter, expire_time=attempts.expire_time)
        for counter in counters
        if (attempts := stored.get(counter.key)) is not None and attempts.count >= counter.limit
    ]
    return max(full, key=lambda counter: counter.expire_time, default=None)


def update_after_login(
    keys: AttemptKeys, counters: Iterable[Counter], stored: Mapping[str, AttemptCount], now: datetime
) -> CounterUpdate:
    """Return the effect of a login: it clears its pair, from a known source also the account, and marks the source."""
    is_known = keys.known_key in stored
    cleared = [keys.pair_key] if keys.source else []
    if is_known:
        cleared.append(keys.account_key)
    released = [counter.key for counter in counters if counter.key not in cleared]
    is_fresh = is_known and stored[keys.known_key].expire_time > now + KNOWN_SOURCE_LIFE - KNOWN_SOURCE_RENEWAL
    known = None if is_fresh or not keys.source else (keys.known_key, now.replace(microsecond=0) + KNOWN_SOURCE_LIFE)
    return CounterUpdate(tuple(released), tuple(cleared), known)


def update_after_refund(counters: Iterable[Counter]) -> CounterUpdate:
    """Return the effect of an attempt that was not evaluated, or whose right password began no session."""
    return CounterUpdate(released=tuple(counter.key for counter in counters))
