"""Password hashes: their formats, making and verifying them, at a cost that does not reveal who has an account.

A password of up to 72 UTF-8 bytes is stored as plain bcrypt (`$2b$`). bcrypt reads no more than 72 bytes and treats a
NUL as an end, so a longer password, or one with a NUL, is stored in passlib's `$bcrypt-sha256$v=2` form. New
hashes are of passwords in NFC. Hashing takes as long as bcrypt takes: call it off the event loop.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import bcrypt

MIN_COST = 4
"""bcrypt's own minimum; the setting's is 10."""
MAX_STORED_COST = 16
"""Highest cost of a stored hash that is verified; cost 31 would take days."""
BCRYPT_MAX_BYTES = 72
CHECKSUM_LENGTH = 31

_ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
"""bcrypt's base64."""
_SALT_BITS = 0b110000
"""The bits that the last character of a salt holds; the others are padding."""
_CHECKSUM_BITS = 0b111100
"""The bits that the last character of a checksum holds."""

# The schemes of Spring Security, crypt(3) in LDAP, Dovecot, and Django; what follows is an ordinary bcrypt hash.
_BCRYPT = re.compile(
    r"(?:\{(?i:bcrypt|crypt|blf-crypt)\}|bcrypt\$)?(?P<variant>\$2[aby]\$)(?P<cost>[0-9]{2})\$"
    r"(?P<salt>[./A-Za-z0-9]{22})(?P<checksum>[./A-Za-z0-9]{31})"
)
_BCRYPT_SHA256 = re.compile(
    r"\$bcrypt-sha256\$v=2,t=2b,r=(?P<cost>[1-9][0-9]?)\$(?P<salt>[./A-Za-z0-9]{22})\$(?P<checksum>[./A-Za-z0-9]{31})"
)
_READABLE = "must be bcrypt or bcrypt-sha256 of cost 4 to 16"
_OTHER_HASHES = (
    (r"", "is empty"),
    (r"[*!].*", "is the mark of a locked account or unusable password"),
    (r"\$?argon2.*|\{argon2.*", "is argon2"),
    (r"\$?scrypt.*|\$7\$.*|\{scrypt.*", "is scrypt"),
    (r"\$?pbkdf2.*|\{pbkdf2.*", "is PBKDF2"),
    (r"\$wp\$.*", "is WordPress's, which hashes the password with SHA-384 before bcrypt"),
    (r"bcrypt_sha256\$.*", "is Django's bcrypt_sha256, which is not passlib's"),
    (r"\$bcrypt-sha256\$(?!v=2,).*", "is bcrypt-sha256 of another version than 2"),
    (r"\$bcrypt-sha256\$.*", "is a malformed or cut off bcrypt-sha256 hash"),
    (r".*\$2x\$.*", "is of bcrypt's variant 2x, which hashed some passwords wrongly"),
    (r".*\$2\$.*", "is of bcrypt's first variant, 2, which hashed other bytes"),
    (r".*\$2[aby]\$.*", "is a malformed or cut off bcrypt hash"),
    (r"\$[156y]\$.*|\{.*", "is a hash of another program"),
)
"""Forms of stored texts that cannot be verified, and what they are."""
_OTHER_FORMS = [(re.compile(form, re.IGNORECASE | re.DOTALL), problem) for form, problem in _OTHER_HASHES]


class UnreadableHashError(Exception):
    """A stored hash cannot be verified; the text says why, without the hash."""


@dataclass(frozen=True, slots=True)
class StoredHash:
    """A stored password hash that can be verified.

    Args:
        text: In its canonical form: without blanks and the prefix of another program, with padding bits cleared.
        cost: bcrypt's: 2**cost rounds.
        bcrypt_hash: The plain bcrypt hash in it.
        salt: 22 characters.
        is_prehashed: Whether it is a `$bcrypt-sha256$` hash.
    """

    text: str = field(repr=False)
    cost: int
    bcrypt_hash: bytes = field(repr=False)
    salt: str = field(repr=False)
    is_prehashed: bool


def parse_hash(text: str) -> StoredHash:
    """Return a hash that this or another program stored.

    Padding bits, which some programs fill at random and bcrypt takes for an error, are cleared.

    Raises:
        UnreadableHashError: It is not bcrypt or bcrypt-sha256, or is of a cost above MAX_STORED_COST.
    """
    text = text.strip()
    match = _BCRYPT.fullmatch(text) or _BCRYPT_SHA256.fullmatch(text)
    if match is None:
        problem = next((problem for form, problem in _OTHER_FORMS if form.fullmatch(text)), "is in no known format")
        raise UnreadableHashError(f"{problem}: {_READABLE}")
    cost = int(match["cost"])
    if not MIN_COST <= cost <= MAX_STORED_COST:
        raise UnreadableHashError(f"is of cost {'below 4' if cost < MIN_COST else 'above 16'}: {_READABLE}")
    salt = _without_padding(match["salt"], _SALT_BITS)
    checksum = _without_padding(match["checksum"], _CHECKSUM_BITS)
    is_prehashed = match.re is _BCRYPT_SHA256
    bcrypt_hash = f"{'$2b$' if is_prehashed else match['variant']}{cost:02}${salt}{checksum}"
    canonical = _bcrypt_sha256(cost, salt, checksum) if is_prehashed else bcrypt_hash
    return StoredHash(canonical, cost, bcrypt_hash.encode(), salt, is_prehashed)


def parse_stored_hash(text: str | None) -> StoredHash | None:
    """Return a stored hash; None where it is absent or parse_hash refuses it."""
    try:
        return None if text is None else parse_hash(text)
    except UnreadableHashError:
        return None


def hash_problem(text: str) -> str | None:
    """Return why a stored text cannot be verified; None where it can."""
    try:
        parse_hash(text)
    except UnreadableHashError as error:
        return str(error)
    return None


def _without_padding(digits: str, last_bits: int) -> str:
    return digits[:-1] + _ALPHABET[_ALPHABET.index(digits[-1]) & last_bits]


def _bcrypt_sha256(cost: int, salt: str, checksum: str) -> str:
    return f"$bcrypt-sha256$v=2,t=2b,r={cost}${salt}${checksum}"


def hash_password(password: str, cost: int) -> str:
    """Return the hash under which a password is stored.

    Args:
        password: In NFC.
        cost: bcrypt's, 4 to 16: 2**cost rounds.
    """
    password_bytes = password.encode()
    salt = bcrypt.gensalt(cost)
    if _fits_bcrypt(password_bytes):
        return bcrypt.hashpw(password_bytes, salt).decode()
    salt_text = salt.decode().rpartition("$")[2]
    checksum = bcrypt.hashpw(_prehash(password_bytes, salt_text), salt).decode()[-CHECKSUM_LENGTH:]
    return _bcrypt_sha256(cost, salt_text, checksum)


def verify_password(password: str, stored: StoredHash | None, cost: int) -> bool:
    """Return whether a password is the stored one; a wrong one takes a hash of the given cost, whatever is stored.

    A lower stored cost c is followed by dummy hashes of cost c, c+1, … cost-1, whose rounds add up exactly. Without a
    stored hash there is one dummy hash. Otherwise the time would reveal which addresses have an account.

    Args:
        password: In NFC, or as typed.
        stored: None where there is no readable hash.
        cost: The configured cost.
    """
    if stored is None:
        dummy_hash(cost)
        return False
    if _matches(password.encode(), stored):
        return True
    for dummy_cost in range(stored.cost, cost):
        dummy_hash(dummy_cost)
    return False


def find_password(passwords: Sequence[str], stored: StoredHash | None, cost: int) -> str | None:
    """Return the first of some passwords that is the stored one; None, after a hash for each, if none is.

    Args:
        passwords: Spellings of one password.
        stored: None where there is no readable hash.
        cost: The configured cost.
    """
    return next((password for password in passwords if verify_password(password, stored, cost)), None)


def _matches(password: bytes, stored: StoredHash) -> bool:
    if stored.is_prehashed:
        return bcrypt.checkpw(_prehash(password, stored.salt), stored.bcrypt_hash)
    if not _fits_bcrypt(password):
        dummy_hash(stored.cost)
        return False
    return bcrypt.checkpw(password, stored.bcrypt_hash)


def dummy_hash(cost: int) -> None:
    """Take as long as a hash of that cost takes."""
    bcrypt.hashpw(b"", bcrypt.gensalt(cost))


def _fits_bcrypt(password: bytes) -> bool:
    return len(password) <= BCRYPT_MAX_BYTES and b"\0" not in password


def _prehash(password: bytes, salt: str) -> bytes:
    """Return the input of bcrypt in bcrypt-sha256 (passlib.hash.bcrypt_sha256, version 2)."""
    return base64.b64encode(hmac.digest(salt.encode(), password, hashlib.sha256))
