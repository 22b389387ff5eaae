"""Plain text goes to loopback alone, unless `insecure` allows it."""

import pytest

from authsvc.client import AsyncClient
from authsvc.client.transport.target import is_loopback

LOOPBACK = [
    "localhost:50051",
    "LOCALHOST:50051",
    "localhost",
    "127.0.0.1:50051",
    "127.9.9.9:50051",
    "[::1]:50051",
    "::1",
    "dns:localhost:50051",
    "dns:///127.0.0.1:50051",
    "dns://10.0.0.1/localhost:50051",
    "ipv4:127.0.0.1:1",
    "ipv4:127.0.0.1:1,127.0.0.2:2",
    "ipv4:///127.0.0.1:1",
    "ipv6:[::1]:1",
    "ipv6:%5B::1%5D:1",
    "passthrough:///localhost:1",
    "unix:/run/authsvc.sock",
    "unix-abstract:authsvc",
]
BEYOND = [
    "auth.internal:50051",
    "auth.internal",
    "localhost.evil.example:50051",
    "127.0.0.1.evil.example:50051",
    "10.0.0.1:50051",
    "[2001:db8::1]:50051",
    "dns:///auth.internal:50051",
    "dns://127.0.0.1/auth.internal:50051",
    "ipv4:127.0.0.1:1,10.0.0.1:1",
    "ipv6:[2001:db8::1]:1",
    "xds:///auth",
    "0.0.0.0:1",
    "",
]


@pytest.mark.parametrize("target", LOOPBACK)
def test_loopback(target: str) -> None:
    assert is_loopback(target)


@pytest.mark.parametrize("target", BEYOND)
def test_beyond(target: str) -> None:
    assert not is_loopback(target)


def tls_of(target: str, **options: object) -> object:
    client = AsyncClient(target, **options)  # type: ignore[arg-type]
    return client._sessions._arguments[0].tls  # noqa: SLF001 - nothing is sent


def test_who_gets_plain_text() -> None:
    assert tls_of("127.0.0.1:1") is None
    assert tls_of("auth.internal:1", insecure=True) is None
    assert tls_of("auth.internal:1") is not None
    assert tls_of("127.0.0.1:1", ca="ca.pem") is not None


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"cert": "a"}, "cert and key belong together"),
        ({"key": "a"}, "cert and key belong together"),
        ({"ca": "a", "insecure": True}, "insecure means plain text"),
        ({"cert": "a", "key": "b", "insecure": True}, "insecure means plain text"),
        ({"api_key": ""}, "api_key must be"),
        ({"api_key": "ask_\n"}, "api_key must be"),
        ({"api_key": "ask_é"}, "api_key must be"),
        ({"cache_size": 0}, "cache_size and connections"),
        ({"connections": 0}, "cache_size and connections"),
        ({"max_staleness": -1}, "max_staleness must be zero or more"),
        ({"stale_if_error": -1}, "stale_if_error must be zero or more"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        AsyncClient("127.0.0.1:1", **options)  # type: ignore[arg-type]
