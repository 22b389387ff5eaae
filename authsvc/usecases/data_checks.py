"""Checks over all stored users: their addresses and claims, and the cost of their password hashes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from authsvc import fields
from authsvc.errors import CorruptItemError, InvalidFieldError
from authsvc.models import Finding
from authsvc.passwords.hasher import SLOW_HASH_SECONDS
from authsvc.passwords.hashes import parse_stored_hash
from authsvc.stores.interface import Store
from authsvc.usecases.users import PAGE_SIZE, iterate_user_pages, iterate_users


@dataclass(frozen=True, slots=True)
class AddressCheck:
    """The result of a check of all users and claims.

    Args:
        findings: Problems alone; empty where users and claims agree.
        stale_claims: Claims whose user is gone or has another address; the next user of the address takes them over.
        unclaimed: Users with an address of their own without a claim: rows of other programs before a first login.
    """

    findings: Sequence[Finding]
    stale_claims: int
    unclaimed: int

    def lines(self) -> Sequence[Finding]:
        """Return the findings; where there are none, one line with the counts."""
        counts = {"stale claims": self.stale_claims, "users without a claim": self.unclaimed}
        text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return self.findings or [Finding(f"addresses ({text}: harmless)" if text else "addresses")]


async def check_addresses(store: Store, page_size: int = PAGE_SIZE) -> AddressCheck:
    """Find rows that are unreadable, share an address, or hold one that is not in normal form.

    Other programs can write such rows. A user who is written during the check may be reported falsely.
    """
    rows = await _read_rows(store, page_size)
    claims = await _read_claims(store, page_size)
    ids_by_address = rows.ids_by_address
    shared = {address: ids for address, ids in ids_by_address.items() if len(ids) > 1}
    live, stale = _sort_claims(claims, rows)
    unclaimed = [a for a, ids in ids_by_address.items() if a not in shared and not live.get(a)]
    findings = [
        *rows.findings,
        *(_shared_finding(ids, _owner_id(address, live.get(address, {}))) for address, ids in shared.items()),
        *(_claim_finding(address) for address, user_id in claims.items() if not user_id),
        *(
            _older_claim_finding(spelling, user_id, address)
            for address, user_ids in live.items()
            for spelling, user_id in user_ids.items()
            if spelling != address
        ),
    ]
    return AddressCheck(findings, len(stale), len(unclaimed))


def _sort_claims(claims: Mapping[str, str], rows: "_Rows") -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the user ids of live claims by address and claimed spelling, and the spellings of stale claims."""
    live: dict[str, dict[str, str]] = {}
    stale = []
    for spelling, user_id in claims.items():
        address, _ = _normal_form(spelling)
        if user_id in rows.ids_by_address.get(address, ()):
            live.setdefault(address, {})[spelling] = user_id
        elif user_id and user_id not in rows.corrupt_ids:
            stale.append(spelling)
    return live, stale


def _owner_id(address: str, live: Mapping[str, str]) -> str | None:
    """Return who owns an address by the live claims of its spellings."""
    user_ids = {live[address]} if address in live else set(live.values())
    return user_ids.pop() if len(user_ids) == 1 else None


async def check_hashes(store: Store, cost: int, seconds_per_hash: float) -> Finding:
    """Report hashes above the configured cost: a wrong password takes longer there, which reveals the account.

    Args:
        store: Where the users are.
        cost: The configured bcrypt cost.
        seconds_per_hash: CPU time of a hash of that cost on this host.
    """
    stored = {user.user_id: parse_stored_hash(user.password_hash) async for user in iterate_users(store)}
    above = {user_id: each.cost for user_id, each in stored.items() if each is not None and each.cost > cost}
    if not above:
        return Finding("password hashes")
    problem = f"{len(above)} cost more than AUTHSVC_BCRYPT_COST={cost}, for instance that of user {min(above)}"
    highest = max(above.values())
    if seconds_per_hash * 2 ** (highest - cost) <= SLOW_HASH_SECONDS:
        return Finding("password hashes", problem, f"set AUTHSVC_BCRYPT_COST={highest}")
    # With that setting nobody could log in here.
    remedy = (
        "leave it; a new password has a new hash: ChangePassword, or authsvc users reset-password, which ends sessions"
    )
    return Finding("password hashes", problem, remedy)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the users' rows hold, by address in normal form."""

    ids_by_address: dict[str, list[str]] = field(default_factory=dict)
    corrupt_ids: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)


async def _read_rows(store: Store, page_size: int) -> _Rows:
    rows = _Rows()
    async for page in iterate_user_pages(store, page_size):
        rows.corrupt_ids.update(error.key for error in page.corrupt)
        rows.findings.extend(_corrupt_finding(error) for error in page.corrupt)
        for user in page.users:
            address, problem = _normal_form(user.email)
            if problem:
                rows.findings.append(Finding(f"user {user.user_id}: email", problem, "write it in normal form"))
            if address:
                rows.ids_by_address.setdefault(address, []).append(user.user_id)
    return rows


async def _read_claims(store: Store, page_size: int) -> dict[str, str]:
    """Return the user id that each claim names, by its address."""
    user_ids: dict[str, str] = {}
    last_key = None
    while True:
        page = await store.list_claims(page_size, last_key)
        user_ids.update(page.user_ids)
        if page.last_key is None:
            return user_ids
        last_key = page.last_key


def _normal_form(text: str) -> tuple[str, str]:
    """Return an address in normal form, empty where the text is none, and what is wrong with the text as stored."""
    try:
        address = fields.normalize_email(text)
    except InvalidFieldError as error:
        return "", error.problem
    return address, "" if address == text else "is not in normal form (NFC, lower case, domain in Unicode)"


def _corrupt_finding(error: CorruptItemError) -> Finding:
    problem = f"attribute {error.attribute} is missing or unreadable: the user cannot log in"
    return Finding(f"user {error.key}", problem, "correct the attribute")


def _shared_finding(user_ids: Sequence[str], owner_id: str | None) -> Finding:
    effect = "none owns it by claim, so none can log in" if owner_id is None else f"{owner_id} owns it by claim"
    return Finding(
        f"users {', '.join(sorted(user_ids))}",
        f"have the same address: {effect}",
        "give all but one another address",
    )


def _claim_finding(address: str) -> Finding:
    return Finding(
        f"claim of {address}",
        "is unreadable: no user can log in by that address",
        "delete the claim, not the user: a login claims it again",
    )


def _older_claim_finding(spelling: str, user_id: str, address: str) -> Finding:
    problem = f"is in the normal form of an earlier version: not every spelling finds user {user_id}"
    return Finding(f"claim of {spelling}", problem, f"UpdateUser of {user_id} with the email {address}")
