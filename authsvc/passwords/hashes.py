"""Password hashes: their formats, making and verifying them, at a cost that does not reveal who has an account.

A password of up to 72 UTF-8 bytes is stored as plain bcrypt (`$2b$`). bcrypt reads no more than 72 bytes and treats a
NUL as an end, so a longer password, or one with a NUL, is stored in passlib's `$bcrypt-sha256$v=2` form. All functions
take passwords in NFC. Hashing takes as long as bcrypt takes: call it off the event loop.
"""

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field

import bcrypt

MIN_COST = 4
"""bcrypt's own minimum; the setting's is 10."""
MAX_STORED_COST = 16
"""Highest cost of a stored hash that is verified; cost 31 would take days."""
BCRYPT_MAX_BYTES = 72
CHECKSUM_LENGTH = 31

# The last character of a salt holds two bits; bcrypt refuses other characters there.
_BCRYPT = re.compile(
    r"\$2[aby]\$(?P<cost>0[4-9]|1[0-6])\$(?P<salt>[./A-Za-z0-9]{21}[.Oeu])(?P<checksum>[./A-Za-z0-9]{31})"
)
_BCRYPT_SHA256 = re.compile(
    r"\$bcrypt-sha256\$v=2,t=2b,r=(?P<cost>[4-9]|1[0-6])"
    r"\$(?P<salt>[./A-Za-z0-9]{21}[.Oeu])\$(?P<checksum>[./A-Za-z0-9]{31})"
)


@dataclass(frozen=True, slots=True)
class StoredHash:
    """A stored password hash that can be verified.

    Args:
        cost: bcrypt's: 2**cost rounds.
        bcrypt_hash: The plain bcrypt hash in it.
        salt: 22 characters.
        is_prehashed: Whether it is a `$bcrypt-sha256$` hash.
    """

    cost: int
    bcrypt_hash: bytes = field(repr=False)
    salt: str = field(repr=False)
    is_prehashed: bool


def parse_stored_hash(text: str | None) -> StoredHash | None:
    """Return a stored hash; None where it is absent, unreadable, or of a cost above MAX_STORED_COST."""
    if text is None:
        return None
    if match := _BCRYPT.fullmatch(text):
        return StoredHash(int(match["cost"]), text.encode(), match["salt"], is_prehashed=False)
    if match := _BCRYPT_SHA256.fullmatch(text):
        cost = int(match["cost"])
        bcrypt_hash = f"$2b${cost:02}${match['salt']}{match['checksum']}".encode()
        return StoredHash(cost, bcrypt_hash, match["salt"], is_prehashed=True)
    return None


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
    return f"$bcrypt-sha256$v=2,t=2b,r={cost}${salt_text}${checksum}"


def verify_password(password: str, stored: StoredHash | None, cost: int) -> bool:
    """Tell whether a password is the stored one; a wrong one takes a hash of the given cost, whatever is stored.

    A lower stored cost c is followed by dummy hashes of cost c, c+1, … cost-1, whose rounds add up exactly. Without a
    stored hash there is one dummy hash. Otherwise the time would reveal which addresses have an account.

    Args:
        password: In NFC.
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
