"""Sockets of the addresses in the settings, which mean the same on both ports: what they mean to gRPC.

0.0.0.0 and [::] are every address of both families, localhost is 127.0.0.1 and [::1], another name is every address
that it resolves to.
"""

import errno
import ipaddress
import socket
from collections.abc import Iterator

from authsvc.config import Address
from authsvc.errors import ConfigError

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def bind(listen: Address, setting: str, *, shared: bool = False, remedy: str = "") -> list[socket.socket]:
    """Return a socket for each address that the setting means, all on the same port.

    Addresses that this host does not have are left out if it has another one.

    Args:
        listen: The address; port 0: any free one.
        setting: Its variable, for the error.
        shared: Other sockets may share the port, and these do not listen yet; else they listen, and share it with none.
        remedy: Ends the error.

    Raises:
        ConfigError: An address is taken, or this host has none of them.
    """
    sockets: list[socket.socket] = []
    failures: list[OSError] = []
    try:
        for family, host in _addresses(listen.host):
            port = sockets[0].getsockname()[1] if sockets else listen.port
            try:
                sockets.append(_bind(family, host, port, shared=shared))
            except OSError as error:
                failures.append(error)
    except OSError as error:
        failures.append(error)
    reasons = [error.strerror for error in failures if error.errno not in _NOT_HERE or not sockets]
    if reasons:
        for bound in sockets:
            bound.close()
        raise ConfigError([f"{setting}: cannot listen on {listen}: {reasons[0]}{remedy}"])
    return sockets


def _addresses(host: str) -> Iterator[tuple[socket.AddressFamily, str]]:
    """Yield each IP address that a host means, with its family; the wildcard of IPv6 is that of both families."""
    if host == "localhost":
        yield socket.AF_INET, "127.0.0.1"
        yield socket.AF_INET6, "::1"
        return
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise OSError(errno.EINVAL, "not a host name") from None
        yield from dict.fromkeys((family, str(sockaddr[0])) for family, _, _, _, sockaddr in found)
        return
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_unspecified:
        yield (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0")  # noqa: S104 - asked for
    else:
        yield socket.AF_INET6 if address.version == 6 else socket.AF_INET, str(address)  # noqa: PLR2004 - IP's version


def _bind(family: socket.AddressFamily, host: str, port: int, *, shared: bool) -> socket.socket:
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        bound.bind((host, port))
        if not shared:
            bound.listen()
    except OSError:
        bound.close()
        raise
    return bound
