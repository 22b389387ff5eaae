"""The rules that request fields obey, whichever RPC or command they arrive by."""

import base64
import binascii
import ipaddress
import re
import unicodedata
from collections.abc import Sequence
from datetime import timedelta

from email_validator import EmailNotValidError, validate_email

from authsvc.errors import InvalidFieldError

EMAIL_MAX_BYTES = 254  # RFC 5321 §4.5.3.1.3, less the angle brackets
USER_ID_MAX_BYTES = 256
PASSWORD_MAX_BYTES = 1024
REQUEST_ID_MAX_LENGTH = 64
CLIENT_LABEL_MAX_LENGTH = 128
SESSION_ID_MAX_BYTES = 128
MAX_SESSION_IDS = 100
DEFAULT_ROLE = "user"

DURATION_MAX_SECONDS = 315_576_000_000  # duration.proto: 10,000 years
DURATION_MAX_NANOS = 999_999_999

_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_REQUEST_ID = re.compile(r"[ -~]{1,64}")
_EMAIL_MAX_LENGTH = 2 * EMAIL_MAX_BYTES  # code points; NFC makes of 3 at least 2 bytes
_NOT_IN_ADDRESSES = {"Cc", "Cs"}  # control characters; lone surrogates, which no UTF-8 can hold


def normal_email(text: str) -> str:
    """Return an address in normal form: NFC and lower case, never trimmed.

    Raises:
        InvalidFieldError: It is empty, too long, or not an address in form.
    """
    if not text:
        raise InvalidFieldError("email", "must not be empty")
    if len(text) > _EMAIL_MAX_LENGTH:  # NFC takes quadratic time: combining marks would hold the loop for hours
        raise InvalidFieldError("email", f"must have at most {EMAIL_MAX_BYTES} bytes")
    email = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    if any(c.isspace() or unicodedata.category(c) in _NOT_IN_ADDRESSES for c in email):
        raise InvalidFieldError("email", "must have no white space or control characters")
    if len(email.encode()) > EMAIL_MAX_BYTES:
        raise InvalidFieldError("email", f"must have at most {EMAIL_MAX_BYTES} bytes")
    local, _, domain = email.partition("@")
    if not local or not domain or "@" in domain:
        raise InvalidFieldError("email", "must have exactly one @, with text on both sides")
    return email


def new_email(text: str) -> str:
    """Return the normal form of an address that a user is to get.

    Raises:
        InvalidFieldError: It is not a valid address (RFC 5321, RFC 6531); DNS is not asked.
    """
    email = normal_email(text)
    try:
        validate_email(email, check_deliverability=False)
    except EmailNotValidError:
        raise InvalidFieldError("email", "must be a valid email address") from None
    return email


def user_id(text: str) -> str:
    """Return a user id that can be looked up.

    Raises:
        InvalidFieldError: It is empty, too long, or not UTF-8.
    """
    if not text:
        raise InvalidFieldError("user_id", "must not be empty")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:  # an argument of a command, of bytes that are no UTF-8
        raise InvalidFieldError("user_id", "must be UTF-8") from None
    if length > USER_ID_MAX_BYTES:
        raise InvalidFieldError("user_id", f"must have at most {USER_ID_MAX_BYTES} bytes")
    return text


def role(text: str) -> str:
    """Return a role, the default one for an empty text.

    Raises:
        InvalidFieldError: It has another form.
    """
    if text and not _ROLE.fullmatch(text):
        raise InvalidFieldError("role", "must match [a-z][a-z0-9_-]{0,62}")
    return text or DEFAULT_ROLE


def password(text: str, name: str = "password") -> str:
    """Return a password that arrived in the field `name`, in NFC.

    Raises:
        InvalidFieldError: It is empty or too long to be looked at.
    """
    if not text:
        raise InvalidFieldError(name, "must not be empty")
    if len(text.encode()) > PASSWORD_MAX_BYTES:
        raise InvalidFieldError(name, f"must have at most {PASSWORD_MAX_BYTES} bytes")
    return unicodedata.normalize("NFC", text)


def request_id(text: str) -> str | None:
    """Return a request id, None for an empty text.

    Raises:
        InvalidFieldError: It is too long or has other characters than printable ASCII.
    """
    if text and not _REQUEST_ID.fullmatch(text):
        raise InvalidFieldError("request_id", f"must have at most {REQUEST_ID_MAX_LENGTH} printable ASCII characters")
    return text or None


def client_address(text: str) -> str:
    """Return an IP address in its canonical spelling, or an empty text.

    Raises:
        InvalidFieldError: It is no IPv4 or IPv6 address, or has a zone.
    """
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidFieldError("client_address", "must be an IPv4 or IPv6 address") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:  # any text of any length
            raise InvalidFieldError("client_address", "must have no zone")
        return str(address.ipv4_mapped or address)
    return str(address)


def client_label(text: str) -> str:
    """Return what a session is called.

    Raises:
        InvalidFieldError: It is too long.
    """
    if len(text) > CLIENT_LABEL_MAX_LENGTH:
        raise InvalidFieldError("client_label", f"must have at most {CLIENT_LABEL_MAX_LENGTH} characters")
    return text


def token(text: str, name: str = "token") -> str:
    """Return a token as it is.

    Raises:
        InvalidFieldError: It is empty.
    """
    if not text:
        raise InvalidFieldError(name, "must not be empty")
    return text


def session_ids(texts: Sequence[str]) -> Sequence[str]:
    """Return session ids as they are; what is none names no session.

    Raises:
        InvalidFieldError: There are too many, or one is empty or too long.
    """
    if len(texts) > MAX_SESSION_IDS:
        raise InvalidFieldError("session_ids", f"must be at most {MAX_SESSION_IDS}")
    if not all(0 < len(text.encode()) <= SESSION_ID_MAX_BYTES for text in texts):
        raise InvalidFieldError("session_ids", f"must each have from 1 to {SESSION_ID_MAX_BYTES} bytes")
    return texts


def span(seconds: int, nanos: int, name: str) -> timedelta:
    """Return a google.protobuf.Duration that arrived in the field `name`.

    Args:
        seconds: Its seconds.
        nanos: Its nanoseconds.
        name: Name of the field.

    Raises:
        InvalidFieldError: It is negative or malformed (duration.proto).
    """
    if not (0 <= seconds <= DURATION_MAX_SECONDS and 0 <= nanos <= DURATION_MAX_NANOS):
        raise InvalidFieldError(name, "must be a well-formed duration of zero or more")
    return timedelta(seconds=seconds, microseconds=nanos // 1000)


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
