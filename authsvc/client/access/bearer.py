"""The token of a request: from its one `Authorization: Bearer` header, and from nowhere else."""

import re
from collections.abc import Sequence

from authsvc.client.access.refusals import MissingTokenError
from authsvc.client.errors import InvalidTokenError

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""b64token of RFC 6750 section 2.1. It has no comma: some servers join two headers with one."""


def read_token(headers: Sequence[str]) -> str:
    """Return the bearer token of a request.

    Args:
        headers: The values of all its Authorization headers.

    Raises:
        MissingTokenError: There is no header, another scheme, or nothing after the scheme.
        InvalidTokenError: There is more than one header, or text that cannot be a token.
    """
    if not headers:
        raise MissingTokenError
    # Two headers: a proxy or the application might judge by the other one.
    if len(headers) > 1:
        raise InvalidTokenError("MALFORMED")
    scheme, _, rest = headers[0].partition(" ")
    token = rest.strip(" ")
    if scheme.lower() != "bearer" or not token:
        raise MissingTokenError
    if not _TOKEN.fullmatch(token):
        raise InvalidTokenError("MALFORMED")
    return token
