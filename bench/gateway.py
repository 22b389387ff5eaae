"""The ext_authz requests that Envoy sends for a browser's requests, and the check of the responses."""

from collections.abc import Iterable

from authsvc.rpc.ext_authz_pb2 import AttributeContext, CheckRequest, CheckResponse

METHOD = "/envoy.service.auth.v3.Authorization/Check"

_PASSED = b"\x0a\x00\x1a"
"""The first bytes of a response that allows a request: an empty `status`, then `ok_response`."""
_HEADERS = {
    ":authority": "shop.example.com",
    ":method": "GET",
    ":path": "/api/v1/orders/4711?expand=items",
    ":scheme": "https",
    "accept": "application/json",
    "accept-encoding": "gzip, deflate, br, zstd",
    "accept-language": "de-DE,de;q=0.9,en;q=0.8",
    "cookie": "theme=dark; basket=3f2b8c1e6a9d4f7083c5",
    "referer": "https://shop.example.com/orders",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "x-forwarded-for": "192.0.2.7",
    "x-forwarded-proto": "https",
    "x-request-id": "fd31bcff-935d-41e6-81a2-bc0961272e65",
}
# As Envoy 1.40 sends them: source, destination, time, id, method, path, host, scheme, protocol, metadata.
_OTHER_FIELDS = (
    b"\n\x9d\x01\n\x13\n\x11\n\x0f\x12\t127.0.0.1\x18\xae\x9c\x02\x12\x13\n\x11\n\x0f\x12\t127.0.0.1\x18\xa2\x8d\x01"
    b'"m\n\x0b\x08\xca\xb3\xa5\xd8\x06\x10\xd0\xa4\xacl\x12^\n\x1413988044706323800727\x12\x03GET"'
    b" /api/v1/orders/4711?expand=items*\x10shop.example.com2\x05httpsR\x06HTTP/2Z\x00j\x00"
)


def requests(tokens: Iterable[str]) -> list[bytes]:
    """Return a CheckRequest for each token."""
    return [_request(token) for token in tokens]


def _request(token: str) -> bytes:
    http = AttributeContext.HttpRequest(headers={**_HEADERS, "authorization": f"Bearer {token}"})
    known = CheckRequest(attributes=AttributeContext(request=AttributeContext.Request(http=http)))
    # Two serialized messages, concatenated, are one message with the fields of both.
    return _OTHER_FIELDS + known.SerializeToString()


def check(answer: bytes) -> None:
    """Raise ValueError if the response does not allow the request."""
    if not answer.startswith(_PASSED):
        raise ValueError(str(CheckResponse.FromString(answer)))
