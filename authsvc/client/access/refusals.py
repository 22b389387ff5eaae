"""What a request that may not pass is answered, as RFC 6750 section 3 has it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from authsvc.client.errors import (
    DEFAULT_RETRY_DELAY,
    AuthsvcError,
    CallerRefusedError,
    InvalidTokenError,
    RetryLaterError,
)


class MissingTokenError(AuthsvcError):
    """The request has no bearer token."""

    summary = "the request has no bearer token"


class MissingRoleError(AuthsvcError):
    """The token is valid, but its user does not have the role."""

    summary = "the user does not have the role"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that may not pass.

    Args:
        status: Status code of HTTP.
        detail: The text for the client; fixed.
        challenge: Value of the header WWW-Authenticate; empty for none.
        retry_delay: When the client may try again; None for never.
    """

    status: int
    detail: str
    challenge: str = ""
    retry_delay: timedelta | None = None

    @property
    def body(self) -> bytes:
        """The body of an HTTP response, as FastAPI writes its own."""
        return json.dumps({"detail": self.detail}).encode()

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """The headers of an HTTP response that say more than its status."""
        headers = []
        if self.challenge:
            headers.append(("www-authenticate", self.challenge))
        if self.retry_delay is not None:
            headers.append(("retry-after", str(max(1, math.ceil(self.retry_delay.total_seconds())))))
        return headers

    @property
    def response_headers(self) -> Sequence[tuple[str, str]]:
        """All headers of an HTTP response, those of its body included."""
        return [("content-type", "application/json"), ("content-length", str(len(self.body))), *self.headers]


_NO_TOKEN = Refusal(401, "a bearer token is required", "Bearer")
_BAD_TOKEN = Refusal(401, "the token is invalid", 'Bearer error="invalid_token"')
_NO_ROLE = Refusal(403, "the role is missing", 'Bearer error="insufficient_scope"')
INTERNAL_ERROR = Refusal(500, "internal error")


def refusal_of(error: AuthsvcError) -> Refusal:
    """Return the answer to a request whose check ended in an error: 401 only where it is known that the token is bad.

    Args:
        error: Why the request is refused, or why the token could not be validated.
    """
    match error:
        case MissingTokenError():
            return _NO_TOKEN
        case InvalidTokenError():
            return _BAD_TOKEN
        case MissingRoleError():
            return _NO_ROLE
        case CallerRefusedError():
            # The client has logged it.
            return INTERNAL_ERROR
        case _:
            delay = error.retry_delay if isinstance(error, RetryLaterError) else DEFAULT_RETRY_DELAY
            return Refusal(503, "the token cannot be validated now", retry_delay=delay)
