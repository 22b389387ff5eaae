"""base64url without padding (RFC 7515 §2), in its one canonical spelling."""

import base64
import binascii


def encode(data: bytes) -> str:
    """Return data as base64url text without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Return the data of a canonical base64url text.

    Raises:
        ValueError: The text is not base64url, has padding, or is another spelling of the same data.
    """
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise ValueError("not base64url") from None
    if encode(data) != text:
        raise ValueError("not canonical base64url")
    return data
