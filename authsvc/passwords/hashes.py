"""Passwords: which ones are allowed, and the forms in which they are kept.

Up to 72 bytes a password is kept as plain bcrypt (`$2b$`). bcrypt looks at no more than 72 bytes and repeats what ends
in a NUL, so a longer password, or one with a NUL, is kept in passlib's `$bcrypt-sha256$v=2` form, which looks at all
of it. All functions take passwords in NFC and take as long as bcrypt takes: call them off the loop.
"""

import base64
import hashlib
import hmac
import re

import bcrypt

MIN_COST = 4
"""bcrypt's own; no setting goes below 10."""
MAX_STORED_COST = 16
"""Highest cost of a stored hash that is computed; cost 31 would take days."""
BCRYPT_MAX_BYTES = 72

# The last character of a salt holds two bits; bcrypt refuses any other there.
_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>0[4-9]|1[0-6])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_BCRYPT_SHA256 = re.compile(
    r"\$bcrypt-sha256\$v=2,t=2b,r=(?P<cost>[4-9]|1[0-6])"
    r"\$(?P<salt>[./A-Za-z0-9]{21}[.Oeu])\$(?P<sum>[./A-Za-z0-9]{31})"
)


def stored_cost(stored: str) -> int | None:
    """Return the cost of a stored hash, None where it is unreadable or its cost above MAX_STORED_COST."""
    match = _BCRYPT.fullmatch(stored) or _BCRYPT_SHA256.fullmatch(stored)
    return int(match["cost"]) if match else None


def hash_password(password: str, cost: int) -> str:
    """Return the form in which a password is kept.

    Args:
        password: In NFC.
        cost: bcrypt's, 4 to 16: 2**cost rounds.
    """
    secret = password.encode()
    salt = bcrypt.gensalt(cost)
    if _fits_bcrypt(secret):
        return bcrypt.hashpw(secret, salt).decode()
    salt_text = salt.decode().rpartition("$")[2]
    checksum = bcrypt.hashpw(_digest(secret, salt_text), salt).decode()[-31:]
    return f"$bcrypt-sha256$v=2,t=2b,r={cost}${salt_text}${checksum}"


def verify_password(password: str, stored: str | None, cost: int) -> bool:
    """Tell whether a password is the stored one; a wrong one costs a hash of the given cost, whatever is stored.

    A lower stored cost c is followed by dummies of c, c+1, … cost-1, whose rounds add up exactly; where nothing
    readable is stored, one dummy stands in. Otherwise the time taken would tell which addresses have an account.

    Args:
        password: In NFC.
        stored: A hash; None where there is none.
        cost: The configured cost.
    """
    secret = password.encode()
    found = None if stored is None else stored_cost(stored)
    if stored is None or found is None:
        spend(cost)
        return False
    if _is_right(secret, stored, found):
        return True
    for dummy_cost in range(found, cost):
        spend(dummy_cost)
    return False


def _is_right(secret: bytes, stored: str, cost: int) -> bool:
    match = _BCRYPT_SHA256.fullmatch(stored)
    if match is not None:
        secret = _digest(secret, match["salt"])
        stored = f"$2b${cost:02}${match['salt']}{match['sum']}"
    elif not _fits_bcrypt(secret):
        spend(cost)
        return False
    return bcrypt.checkpw(secret, stored.encode())


def spend(cost: int) -> None:
    """Take as long as a hash of that cost takes."""
    bcrypt.hashpw(b"", bcrypt.gensalt(cost))


def _fits_bcrypt(secret: bytes) -> bool:
    return len(secret) <= BCRYPT_MAX_BYTES and b"\0" not in secret


def _digest(secret: bytes, salt: str) -> bytes:
    """Return what bcrypt-sha256 hands to bcrypt (passlib.hash.bcrypt_sha256, version 2)."""
    return base64.b64encode(hmac.digest(salt.encode(), secret, hashlib.sha256))
