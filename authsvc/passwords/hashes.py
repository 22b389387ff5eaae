"""Passwords: which ones are allowed, and the forms in which they are kept.

Up to 72 bytes a password is kept as plain bcrypt (`$2b$`). bcrypt looks at no more than 72 bytes and repeats what ends
in a NUL, so a longer password, or one with a NUL, is kept in passlib's `$bcrypt-sha256$v=2` form, which looks at all
of it. All functions take passwords in NFC and take as long as bcrypt takes: call them off the loop.
"""

import base64
import functools
import gzip
import hashlib
import hmac
import re
import unicodedata
from importlib import resources

import bcrypt

from authsvc.errors import PasswordRejectedError

MAX_LENGTH = 256
"""Longest password, in code points; at most PASSWORD_MAX_BYTES in UTF-8."""
MIN_COST = 4
"""bcrypt's own; no setting goes below 10."""
MAX_STORED_COST = 16
"""Highest cost of a stored hash that is computed; cost 31 would take days."""
BCRYPT_MAX_BYTES = 72
LOCAL_PART_MIN_LENGTH = 3
"""Shorter local parts occur in any password by chance."""

# The last character of a salt holds two bits; bcrypt refuses any other there.
_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>0[4-9]|1[0-6])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_BCRYPT_SHA256 = re.compile(
    r"\$bcrypt-sha256\$v=2,t=2b,r=(?P<cost>[4-9]|1[0-6])"
    r"\$(?P<salt>[./A-Za-z0-9]{21}[.Oeu])\$(?P<sum>[./A-Za-z0-9]{31})"
)


def check_policy(password: str, email: str, min_length: int, field: str = "password") -> None:
    """Refuse a password that is easily guessed (NIST SP 800-63B §3.1.1.2).

    Args:
        password: The password, in NFC.
        email: Address of its user, in normal form.
        min_length: Shortest length allowed, in code points.
        field: Name of the request field that holds the password.

    Raises:
        PasswordRejectedError: It is too short, too long, common, or made of the address.
    """
    if len(password) < min_length:
        raise PasswordRejectedError(field, f"must have at least {min_length} characters")
    if len(password) > MAX_LENGTH:
        raise PasswordRejectedError(field, f"must have at most {MAX_LENGTH} characters")
    folded = _folded(password)
    if any(part in _common_passwords() for part in _repeated_parts(folded)):
        raise PasswordRejectedError(field, "is a commonly used password")
    if _is_made_of(folded, _folded(email)):
        raise PasswordRejectedError(field, "is made of the email address")


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


def _repeated_parts(text: str) -> list[str]:
    """Return every text of which this one is a repetition, itself included."""
    lengths = (n for n in range(1, len(text) + 1) if len(text) % n == 0)
    return [text[:n] for n in lengths if text[:n] * (len(text) // n) == text]


def _is_made_of(password: str, email: str) -> bool:
    """Tell whether a password has no letter beside the address or its local part."""
    local_part = email.partition("@")[0]
    rest = password.replace(email, "")
    if len(local_part) >= LOCAL_PART_MIN_LENGTH:
        rest = rest.replace(local_part, "")
    return rest != password and not any(c.isalpha() for c in rest)


@functools.cache
def _common_passwords() -> frozenset[str]:
    """Return the 20,000 most common passwords, as Django ships them."""
    data = resources.files("authsvc.passwords").joinpath("common_passwords.txt.gz").read_bytes()
    return frozenset(_folded(line) for line in gzip.decompress(data).decode().splitlines())


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
