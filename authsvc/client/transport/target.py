"""Where the service is, and whether plain text may go there."""

import ipaddress
import re
from urllib.parse import unquote

_DNS = re.compile(r"dns:(?://[^/]*/)?(.+)", re.IGNORECASE)
_SCHEME = re.compile(r"(ipv4|ipv6|passthrough):(?:///)?(.+)", re.IGNORECASE)
_UNIX = re.compile(r"unix(-abstract)?:", re.IGNORECASE)


def is_loopback(target: str) -> bool:
    """Return whether every address of a gRPC target is on this machine, by its text alone.

    Args:
        target: For instance 127.0.0.1:50051, dns:///localhost:50051, ipv4:127.0.0.1:1,127.0.0.1:2 or unix:/path.
    """
    if _UNIX.match(target):
        return True
    match = _DNS.fullmatch(target)
    if match is not None:
        return _is_loopback_host(_host(match[1]))
    match = _SCHEME.fullmatch(target)
    addresses = match[2].split(",") if match is not None else [target]
    return all(_is_loopback_host(_host(address)) for address in addresses)


def _host(address: str) -> str:
    """Return the host of HOST:PORT, [HOST]:PORT or HOST."""
    address = unquote(address)
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def _is_loopback_host(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
