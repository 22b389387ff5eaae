"""The access token of an HTTP request: from its one `Authorization: Bearer` header, and from nowhere else."""

from collections.abc import Sequence
from enum import Enum

from authsvc.rpc.ext_authz_pb2 import AttributeContext

AUTHORIZATION = "authorization"


class NoToken(Enum):
    """Why a request has no token that could be validated."""

    ABSENT = "no credentials"
    OTHER_SCHEME = "credentials of another scheme, or a scheme alone"
    AMBIGUOUS = "two credentials"


def authorization_values(request: AttributeContext.Request) -> Sequence[str]:
    """Return the value of each Authorization header, in either form in which gateways send headers.

    Gateways send names in lower case. Bytes that are not ASCII become characters that no token has.
    """
    http = request.http
    joined = http.headers.get(AUTHORIZATION)
    values = [] if joined is None else [joined]
    if http.HasField("header_map"):
        listed = (header for header in http.header_map.headers if header.key.lower() == AUTHORIZATION)
        values += [header.raw_value.decode("latin-1") or header.value for header in listed]
    return values


def read_token(values: Sequence[str]) -> str | NoToken:
    """Return the bearer token of a request, or why it has none.

    Args:
        values: Of all its Authorization headers.
    """
    if not any(values):
        return NoToken.ABSENT
    # The backend may read the other one. Gateways join two headers with a comma, which no token has.
    if len(values) > 1 or "," in values[0]:
        return NoToken.AMBIGUOUS
    scheme, _, rest = values[0].partition(" ")
    token = rest.strip(" ")
    return token if token and scheme.lower() == "bearer" else NoToken.OTHER_SCHEME
