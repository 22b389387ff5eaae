"""Answers to a gateway: the headers to add to a request, or the response to its client."""

import json
import math
import re
from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import quote

import grpc

from authsvc.rpc.ext_authz.credentials import AUTHORIZATION
from authsvc.rpc.ext_authz_pb2 import (
    CheckResponse,
    DeniedHttpResponse,
    HeaderValue,
    HeaderValueOption,
    HttpStatus,
)

USER_ID, EMAIL, ROLE, SESSION_ID = IDENTITY_HEADERS = (
    "x-auth-user-id",
    "x-auth-email",
    "x-auth-role",
    "x-auth-session-id",
)
REALM = "authsvc"

_PLAIN = "".join(map(chr, range(ord("!"), ord("~") + 1))).replace("%", "")
"""Characters that stay as they are in the value of a header."""
_IS_PLAIN = re.compile(f"[{re.escape(_PLAIN)}]*").fullmatch
_OVERWRITE = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


def allow(identity: Mapping[str, str], *, remove_token: bool) -> CheckResponse:
    """Let a request pass with an identity.

    Args:
        identity: Values of the IDENTITY_HEADERS that the request gets; the others are removed from it. An empty value
            counts as none: some gateways ignore headers without a value, and would keep the client's own.
        remove_token: Whether the backend does not get the token.
    """
    response = CheckResponse(status=_OK)
    changes = response.ok_response
    for name in IDENTITY_HEADERS:
        value = identity.get(name)
        if value:  # in place: messages made one by one take twice as long
            option = changes.headers.add(append_action=_OVERWRITE)
            option.header.key, option.header.value = name, encode_value(value)
        else:  # gateways remove headers after they have set others, so none of those that are set
            changes.headers_to_remove.append(name)
    if remove_token:
        changes.headers_to_remove.append(AUTHORIZATION)
    return response


def encode_value(text: str) -> str:
    """Return the value of a header: each byte of UTF-8 that is not visible ASCII, and `%`, as `%XX`."""
    return text if _IS_PLAIN(text) else quote(text, safe=_PLAIN)


def unavailable(retry_delay: timedelta) -> CheckResponse:
    """Refuse a request whose token cannot be validated now."""
    seconds = str(max(1, math.ceil(retry_delay.total_seconds())))
    return _deny(
        HTTPStatus.SERVICE_UNAVAILABLE,
        grpc.StatusCode.UNAVAILABLE,
        "the token cannot be validated now",
        ("retry-after", seconds),
    )


def _unauthorized(error: str, challenge: str) -> CheckResponse:
    return _deny(
        HTTPStatus.UNAUTHORIZED, grpc.StatusCode.UNAUTHENTICATED, error, ("www-authenticate", _bearer(challenge))
    )


def _bearer(parameters: str) -> str:
    """Return a challenge of RFC 6750 section 3, which has at least one parameter."""
    return f'Bearer realm="{REALM}"{parameters}'


def _deny(status: HTTPStatus, code: grpc.StatusCode, error: str, *headers: tuple[str, str]) -> CheckResponse:
    return CheckResponse(
        status=_status(code),
        denied_response=DeniedHttpResponse(
            status=HttpStatus(code=status),
            headers=[_header(name, value) for name, value in (("content-type", "application/json"), *headers)],
            body=json.dumps({"error": error}),
        ),
    )


def _header(name: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(header=HeaderValue(key=name, value=value), append_action=_OVERWRITE)


def _status(code: grpc.StatusCode) -> CheckResponse.Status:
    return CheckResponse.Status(code=code.value[0])


_OK = _status(grpc.StatusCode.OK)
NO_TOKEN = _unauthorized("a bearer token is required", "")
BAD_TOKEN = _unauthorized("the token is invalid", ', error="invalid_token"')
NO_ROLE = _deny(
    HTTPStatus.FORBIDDEN,
    grpc.StatusCode.PERMISSION_DENIED,
    "the role is missing",
    ("www-authenticate", _bearer(', error="insufficient_scope"')),
)
INTERNAL_ERROR = _deny(HTTPStatus.INTERNAL_SERVER_ERROR, grpc.StatusCode.INTERNAL, "internal error")
