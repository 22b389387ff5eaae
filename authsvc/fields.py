"""Rules of request fields, for every RPC and command that takes them. Page tokens (AIP-158) are among them."""

import base64
import ipaddress
import re
import unicodedata
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache

import email_validator
import idna
from email_validator import EmailNotValidError, validate_email

from authsvc.errors import InvalidFieldError
from authsvc.models import Email

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

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
PAGE_KEY_MAX_BYTES = 2048
"""Longest key in a page token: DynamoDB's limit for a user id, which other programs' rows may reach."""

_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_REQUEST_ID = re.compile(r"[ -~]{1,64}")
_EMAIL_MAX_LENGTH = 2 * EMAIL_MAX_BYTES  # code points; NFC shrinks 3 bytes to 2 at most
_NOT_IN_EMAILS = {"Cc", "Cs"}  # control characters; lone surrogates, which UTF-8 cannot encode
_PAGE_TOKEN_VERSION = b"1:"

# The library's list is for senders of mail. An address names a user here, and internal hosts have mailboxes, too.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()
_WRONG_LOCAL_PART = "must have only letters, digits and the characters of RFC 5322's atoms before the @"
_WRONG_DOMAIN = "must have a valid domain name after the @"
_NOT_NEW_EMAILS = (
    # "a"@example.com is the mailbox of a@example.com: one user would get two accounts.
    (re.compile(r'^"'), "must have no quoted text before the @"),
    (
        re.compile(r"^\.|\.@|\.\..*@"),
        "must have no period at the start or end of the part before the @, nor two in a row",
    ),
    # A host's address changes owners; a host name alone is another host in each network (RFC 5321 §2.3.5).
    (re.compile(r"@(\[.*|[\d.]+)$"), "must have a domain name after the @, not an IP address"),
    (re.compile(r"@[^.]+$"), "must have a domain name with a period after the @, not a host name alone"),
    # Names without mailboxes: reverse look-up, RFC 6761 §6.4, RFC 7686. `.example` is an ordinary name there.
    (
        re.compile(r"[@.](?:(?<!@home\.)(?<!\.home\.)arpa|invalid|onion)$"),
        "must not be in .arpa (other than home.arpa), .invalid or .onion, where no mail is delivered",
    ),
)
"""Forms of addresses that no user can be given, and why."""


def normalize_email(text: str) -> str:
    """Return the normal form of an address: NFC and lower case, the domain in Unicode (UTS #46), never trimmed.

    Raises:
        InvalidFieldError: The text is empty, too long, or does not have the form of an address.
    """
    return parse_email(text).normal


def parse_email(text: str) -> Email:
    """Return an address that is looked up.

    Raises:
        InvalidFieldError: As normalize_email.
    """
    if not text:
        raise InvalidFieldError("email", "must not be empty")
    if len(text) > _EMAIL_MAX_LENGTH:  # NFC takes quadratic time: megabytes of combining marks would block the loop
        raise InvalidFieldError("email", f"must have at most {EMAIL_MAX_BYTES} bytes")
    composed = unicodedata.normalize("NFC", text)
    unmapped = unicodedata.normalize("NFC", composed.lower())
    if any(c.isspace() or unicodedata.category(c) in _NOT_IN_EMAILS for c in unmapped):
        raise InvalidFieldError("email", "must have no white space or control characters")
    local, _, domain = unmapped.partition("@")
    if not local or not domain or "@" in domain:
        raise InvalidFieldError("email", "must have exactly one @, with text on both sides")
    # Not of the lower-case text: UTS #46 maps a capital sigma to another letter than str.lower() does at a word's end.
    ascii_domain, unicode_domain = mapped = _map_domain(composed.partition("@")[2])
    normal = f"{local}@{unicode_domain}"
    if len(normal.encode()) > EMAIL_MAX_BYTES:
        raise InvalidFieldError("email", f"must have at most {EMAIL_MAX_BYTES} bytes")
    is_same_mailbox = _map_domain(domain) == mapped
    return Email(normal, text, f"{local}@{ascii_domain}", unmapped if is_same_mailbox else "")


@lru_cache(maxsize=1024)  # takes a fifth of what a refused login does, and users share few domains
def _map_domain(domain: str) -> tuple[str, str]:
    """Return a domain in A-labels and in Unicode; in NFC and lower case where it is not a name of IDNA."""
    try:
        a_labels = idna.encode(domain, uts46=True)
        return a_labels.decode(), idna.decode(a_labels)
    except UnicodeError:
        unmapped = unicodedata.normalize("NFC", domain.lower())
        return unmapped, unmapped


def parse_new_email(text: str) -> Email:
    """Return an address that a user is to get.

    Raises:
        InvalidFieldError: The text is not a valid address (RFC 5321, RFC 6531). DNS is not asked.
    """
    email = parse_email(text)
    problem = next((problem for form, problem in _NOT_NEW_EMAILS if form.search(email.normal)), None)
    if problem is None and not _is_valid_email(email.normal):
        is_domain_valid = _is_valid_email("a@" + email.normal.partition("@")[2])
        problem = _WRONG_LOCAL_PART if is_domain_valid else _WRONG_DOMAIN
    if problem is not None:
        raise InvalidFieldError("email", problem)
    return email


def _is_valid_email(text: str) -> bool:
    try:
        validate_email(text, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True


def user_id(text: str) -> str:
    """Return a user id.

    Raises:
        InvalidFieldError: The text is empty, too long, or not UTF-8.
    """
    if not text:
        raise InvalidFieldError("user_id", "must not be empty")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:  # a command's argument may hold any bytes
        raise InvalidFieldError("user_id", "must be UTF-8") from None
    if length > USER_ID_MAX_BYTES:
        raise InvalidFieldError("user_id", f"must have at most {USER_ID_MAX_BYTES} bytes")
    return text


def role(text: str) -> str:
    """Return a role; DEFAULT_ROLE for an empty text.

    Raises:
        InvalidFieldError: The text has another form.
    """
    if text and not _ROLE.fullmatch(text):
        raise InvalidFieldError("role", "must match [a-z][a-z0-9_-]{0,62}")
    return text or DEFAULT_ROLE


def password(text: str, name: str = "password") -> str:
    """Return a password in NFC.

    Args:
        text: The password as it arrived.
        name: Name of its field, for the error.

    Raises:
        InvalidFieldError: The password is empty or too long to be checked.
    """
    if not text:
        raise InvalidFieldError(name, "must not be empty")
    if len(text.encode()) > PASSWORD_MAX_BYTES:
        raise InvalidFieldError(name, f"must have at most {PASSWORD_MAX_BYTES} bytes")
    return unicodedata.normalize("NFC", text)


def password_spellings(text: str, name: str = "password") -> tuple[str, ...]:
    """Return a password that is to be verified: in NFC and, where that differs, as typed.

    Hashes of other programs may be of the bytes as typed. Args and errors are those of password.
    """
    return tuple(dict.fromkeys((password(text, name), text)))


def request_id(text: str) -> str | None:
    """Return a request id; None for an empty text.

    Raises:
        InvalidFieldError: The text is too long or has characters other than printable ASCII.
    """
    if text and not _REQUEST_ID.fullmatch(text):
        raise InvalidFieldError("request_id", f"must have at most {REQUEST_ID_MAX_LENGTH} printable ASCII characters")
    return text or None


def client_address(text: str) -> str:
    """Return an IP address in canonical form; an empty text stays empty.

    Raises:
        InvalidFieldError: The text is not an IPv4 or IPv6 address, or has a zone.
    """
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidFieldError("client_address", "must be an IPv4 or IPv6 address") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:  # a zone may be any text of any length
            raise InvalidFieldError("client_address", "must have no zone")
        return str(address.ipv4_mapped or address)
    return str(address)


def client_label(text: str) -> str:
    """Return a session's label.

    Raises:
        InvalidFieldError: The text is too long.
    """
    if len(text) > CLIENT_LABEL_MAX_LENGTH:
        raise InvalidFieldError("client_label", f"must have at most {CLIENT_LABEL_MAX_LENGTH} characters")
    return text


def token(text: str, name: str = "token") -> str:
    """Return a token unchanged.

    Args:
        text: The token as it arrived.
        name: Name of its field, for the error.

    Raises:
        InvalidFieldError: The text is empty.
    """
    if not text:
        raise InvalidFieldError(name, "must not be empty")
    return text


def session_ids(texts: Sequence[str]) -> Sequence[str]:
    """Return session ids unchanged; a text that is not one names no session.

    Raises:
        InvalidFieldError: There are too many, or one is empty or too long.
    """
    if len(texts) > MAX_SESSION_IDS:
        raise InvalidFieldError("session_ids", f"must be at most {MAX_SESSION_IDS}")
    if not all(0 < len(text.encode()) <= SESSION_ID_MAX_BYTES for text in texts):
        raise InvalidFieldError("session_ids", f"must each have from 1 to {SESSION_ID_MAX_BYTES} bytes")
    return texts


def duration(seconds: int, nanos: int, name: str) -> timedelta:
    """Return a google.protobuf.Duration.

    Args:
        seconds: Its seconds.
        nanos: Its nanoseconds.
        name: Name of its field, for the error.

    Raises:
        InvalidFieldError: It is negative or malformed (duration.proto).
    """
    if not (0 <= seconds <= DURATION_MAX_SECONDS and 0 <= nanos <= DURATION_MAX_NANOS):
        raise InvalidFieldError(name, "must be a well-formed duration of zero or more")
    return timedelta(seconds=seconds, microseconds=nanos // 1000)


def page_size(number: int) -> int:
    """Return how many entries a page has: DEFAULT_PAGE_SIZE for 0, never more than MAX_PAGE_SIZE.

    Raises:
        InvalidFieldError: The number is negative.
    """
    if number < 0:
        raise InvalidFieldError("page_size", "must not be negative")
    return min(number or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def encode_page_token(last_key: str | None) -> str:
    """Return the token of the page that begins after a key; an empty text where there is no further page."""
    return "" if last_key is None else base64.urlsafe_b64encode(_PAGE_TOKEN_VERSION + last_key.encode()).decode()


def decode_page_token(page_token: str, max_bytes: int = PAGE_KEY_MAX_BYTES) -> str | None:
    """Return the key after which a page begins; None for the first page.

    Args:
        page_token: As it arrived.
        max_bytes: Of the key.

    Raises:
        InvalidFieldError: The text was not made by encode_page_token.
    """
    if not page_token:
        return None
    try:
        data = base64.b64decode(page_token, altchars=b"-_", validate=True)
        key = data.removeprefix(_PAGE_TOKEN_VERSION).decode()
    except ValueError:
        key = ""
    if not 0 < len(key.encode()) <= max_bytes or encode_page_token(key) != page_token:
        raise InvalidFieldError("page_token", "must be a next_page_token of this list")
    return key
