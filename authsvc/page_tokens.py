"""Pages of lists (AIP-158): sizes, and tokens that say where the next page goes on."""

import base64
import binascii

from authsvc.errors import InvalidFieldError

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_KEY_BYTES = 1024
"""Longest key that a page goes on after: DynamoDB takes no longer one for a session id."""
_VERSION = b"1:"


def page_size(number: int) -> int:
    """Return how many entries a page has: the default for 0, never more than MAX_PAGE_SIZE.

    Raises:
        InvalidFieldError: It is negative.
    """
    if number < 0:
        raise InvalidFieldError("page_size", "must not be negative")
    return min(number or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def token_of(last_key: str | None) -> str:
    """Return the token of the page after a key, empty where there is none."""
    return "" if last_key is None else base64.urlsafe_b64encode(_VERSION + last_key.encode()).decode()


def key_of(page_token: str) -> str | None:
    """Return the key after which a page begins, None for the first page.

    Raises:
        InvalidFieldError: It is no token of token_of.
    """
    if not page_token:
        return None
    try:
        data = base64.b64decode(page_token, altchars=b"-_", validate=True)
        key = data.removeprefix(_VERSION).decode()
    except (binascii.Error, ValueError):
        key = ""
    if not 0 < len(key.encode()) <= MAX_KEY_BYTES or token_of(key) != page_token:
        raise InvalidFieldError("page_token", "must be a next_page_token of this list")
    return key
