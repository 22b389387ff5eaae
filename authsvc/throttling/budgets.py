"""How many failed logins are let through, and when to try again: decisions on stored counters, without any I/O.

A try is counted before its password is looked at, in each of its counters, or 1,000 guesses at once would all be looked
at. A counter counts for a span that begins with its first try; it is full once it holds as many as its budget allows.
What is stored is named by SHA-256 of the address in normal form, so an address without an account counts like any
other.
"""

import hashlib
import ipaddress
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from authsvc.models import AttemptCount, Budget, Counter, CounterUpdate

KNOWN_SOURCE_LIFE = timedelta(days=30)
"""How long a source is known to an account after a login from it."""
KNOWN_SOURCE_RENEWAL = timedelta(days=1)
"""How old that knowledge may get before a login renews it: one write a day, not one for each login."""
IPV6_SOURCE_BITS = 64
"""What one subscriber has of IPv6, whose further bits are chosen at will."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """What bounds guessing.

    Args:
        pair: Of one account and one source.
        account: Of one account, from all sources that are not known to it.
        source: Of one source, over all accounts.
    """

    pair: Budget
    account: Budget
    source: Budget


@dataclass(frozen=True, slots=True)
class AttemptKeys:
    """Whose password is tried, and from where.

    Args:
        account: SHA-256 of the address in normal form, in hexadecimal digits.
        source: As source_of returns it; empty where it is not known.
    """

    account: str
    source: str

    @classmethod
    def of(cls, email: str, client_address: str) -> "AttemptKeys":
        """Return the target of a try.

        Args:
            email: In normal form.
            client_address: An IP address, or empty.
        """
        return cls(hashlib.sha256(email.encode()).hexdigest(), source_of(client_address))

    @property
    def account_key(self) -> str:
        """Names the account's counter."""
        return f"account#{self.account}"

    @property
    def source_key(self) -> str:
        """Names the source's counter."""
        return f"source#{self.source}"

    @property
    def pair_key(self) -> str:
        """Names the counter of account and source; the account's own, where there is no source."""
        return f"pair#{self.account}#{self.source}" if self.source else self.account_key

    @property
    def known_key(self) -> str:
        """Names the mark that the source is known to the account."""
        return f"known#{self.account}#{self.source}"

    @property
    def keys(self) -> list[str]:
        """All that a try rests on."""
        return [self.known_key, self.pair_key, self.account_key, self.source_key] if self.source else [self.account_key]


def source_of(client_address: str) -> str:
    """Return the source that an IP address belongs to: an IPv4 address itself, of IPv6 the /64; empty stays empty."""
    if not client_address:
        return ""
    address = ipaddress.ip_address(client_address)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_SOURCE_BITS), strict=False))


def counters_for(
    target: AttemptKeys, stored: Mapping[str, AttemptCount], budgets: Budgets, now: datetime
) -> list[Counter]:
    """Return the counters of a try, narrowest first.

    The account's counter is not for sources that are known to it: it is there for strangers to fill, and must shut out
    nobody else. Where the source is not known, it is the only one.
    """
    counters = []
    if target.source:
        counters.append(_counter("pair", target.pair_key, budgets.pair, stored, now))
    if target.known_key not in stored:
        counters.append(_counter("account", target.account_key, budgets.account, stored, now))
    if target.source:
        counters.append(_counter("source", target.source_key, budgets.source, stored, now))
    return counters


def _counter(name: str, key: str, budget: Budget, stored: Mapping[str, AttemptCount], now: datetime) -> Counter:
    expire_time = datetime.fromtimestamp(math.ceil((now + budget.window).timestamp()), UTC)
    return Counter(name, key, budget.failures, expire_time, is_running=key in stored and stored[key].count > 0)


def find_full_counter(counters: Iterable[Counter], stored: Mapping[str, AttemptCount]) -> Counter | None:
    """Return the counter that refuses a try longest, with its real expiry; None where all have room."""
    full = [
        replace(counter, expire_time=tries.expire_time)
        for counter in counters
        if (tries := stored.get(counter.key)) is not None and tries.count >= counter.limit
    ]
    return max(full, key=lambda counter: counter.expire_time, default=None)


def update_after_login(
    target: AttemptKeys, counters: Iterable[Counter], stored: Mapping[str, AttemptCount], now: datetime
) -> CounterUpdate:
    """Return what a login does: it clears its pair, and from a known source the account; its source becomes known."""
    is_known = target.known_key in stored
    cleared = [target.pair_key] if target.source else []
    if is_known:
        cleared.append(target.account_key)
    released = [counter.key for counter in counters if counter.key not in cleared]
    is_fresh = is_known and stored[target.known_key].expire_time > now + KNOWN_SOURCE_LIFE - KNOWN_SOURCE_RENEWAL
    known = (
        None if is_fresh or not target.source else (target.known_key, now.replace(microsecond=0) + KNOWN_SOURCE_LIFE)
    )
    return CounterUpdate(tuple(released), tuple(cleared), known)


def update_after_refund(counters: Iterable[Counter]) -> CounterUpdate:
    """Return what a try does whose password was not looked at, or was right without letting anybody in."""
    return CounterUpdate(released=tuple(counter.key for counter in counters))
