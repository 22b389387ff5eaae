"""Password policy: which new passwords are accepted."""

import functools
import gzip
import unicodedata
from importlib import resources

from authsvc.errors import PasswordRejectedError

MAX_LENGTH = 256
"""Longest password in code points; fields.PASSWORD_MAX_BYTES limits its UTF-8 form."""
LOCAL_PART_MIN_LENGTH = 3
"""Shorter local parts occur in passwords by chance."""


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
    folded = _fold(password)
    if any(part in _common_passwords() for part in _repeated_parts(folded)):
        raise PasswordRejectedError(field, "is a commonly used password")
    if _consists_of(folded, _fold(email)):
        raise PasswordRejectedError(field, "is made of the email address")


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


def _repeated_parts(text: str) -> list[str]:
    """Return every text of which this one is a repetition, itself included."""
    lengths = (n for n in range(1, len(text) + 1) if len(text) % n == 0)
    return [text[:n] for n in lengths if text[:n] * (len(text) // n) == text]


def _consists_of(password: str, email: str) -> bool:
    """Return whether a password has no letter outside the address and its local part."""
    local_part = email.partition("@")[0]
    rest = password.replace(email, "")
    if len(local_part) >= LOCAL_PART_MIN_LENGTH:
        rest = rest.replace(local_part, "")
    return rest != password and not any(c.isalpha() for c in rest)


@functools.cache
def _common_passwords() -> frozenset[str]:
    """Return the 20,000 most common passwords, as Django ships them."""
    data = resources.files("authsvc.passwords").joinpath("common_passwords.txt.gz").read_bytes()
    return frozenset(_fold(line) for line in gzip.decompress(data).decode().splitlines())
