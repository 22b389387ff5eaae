"""What an address means: the same on both ports."""

import asyncio
import contextlib
import errno
import socket
from pathlib import Path
from typing import Any

import pytest

from authsvc.config import Address
from authsvc.errors import ConfigError
from authsvc.server import app, listening
from tests.support import PATIENT_LIMITS, FakeClock, make_settings

BOTH = {"127.0.0.1", "::1"}


async def reachable(port: int) -> set[str]:
    """Return the loopback addresses at which a port accepts connections."""
    found = set()
    for host in BOTH:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.transport.abort()
            found.add(host)
    return found


@pytest.mark.parametrize(
    ("host", "hosts"),
    [
        ("0.0.0.0", BOTH),  # noqa: S104 - what is tested
        ("::", BOTH),
        ("::ffff:0.0.0.0", BOTH),
        ("localhost", BOTH),
        ("127.0.0.1", {"127.0.0.1"}),
        ("::ffff:127.0.0.1", {"127.0.0.1"}),
        ("::1", {"::1"}),
    ],
)
async def test_an_address_means_the_same_on_both_ports(
    tmp_path: Path, signing_keys: Path, clock: FakeClock, host: str, hosts: set[str]
) -> None:
    settings = make_settings(
        signing_keys, f"sqlite:{tmp_path / 'authsvc.db'}", listen=Address(host, 0), http_listen=Address(host, 0)
    )
    async with app.run_app(settings, clock, limits=PATIENT_LIMITS) as service:
        assert service.http_address is not None
        assert await reachable(int(service.address.rpartition(":")[2])) == hosts
        assert await reachable(service.http_address.port) == hosts


def close(*sockets: socket.socket) -> None:
    for each in sockets:
        each.close()


@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("host", ["localhost", "::", "0.0.0.0"])  # noqa: S104 - what is tested
def test_a_part_that_is_taken_is_the_whole(taken: str, host: str) -> None:
    """Else clients of one family would reach another program."""
    (other,) = listening.bind(Address(taken, 0), "OTHER")
    address = Address(host, other.getsockname()[1])
    with pytest.raises(ConfigError) as refused:
        listening.bind(address, "SETTING", remedy="; remedy")
    assert refused.value.problems == [f"SETTING: cannot listen on {address}: Address already in use; remedy"]
    close(other)


def test_shared_sockets_share_with_each_other_alone() -> None:
    (first,) = listening.bind(Address("::", 0), "SETTING", shared=True)
    address = Address("::", first.getsockname()[1])
    close(first, *listening.bind(address, "SETTING", shared=True))
    (alone,) = listening.bind(address, "SETTING")
    with pytest.raises(ConfigError, match="Address already in use"):
        listening.bind(address, "SETTING", shared=True)
    close(alone)


async def test_a_port_that_is_taken_meanwhile_is_reported(
    tmp_path: Path, signing_keys: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other,) = listening.bind(Address("127.0.0.1", 0), "OTHER")
    address = Address("127.0.0.1", other.getsockname()[1])
    monkeypatch.setattr(listening, "bind", lambda *_args, **_options: [])
    settings = make_settings(signing_keys, f"sqlite:{tmp_path / 'authsvc.db'}", listen=address)
    with pytest.raises(ConfigError, match=f"AUTHSVC_LISTEN: gRPC cannot listen on {address}"):
        async with app.run_app(settings, clock, limits=PATIENT_LIMITS):
            pass
    close(other)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "Cannot assign requested address"),
        ("2001:db8::1", ""),
        ("nowhere.invalid", ""),
        (f"{'x' * 64}.example", "not a host name"),
    ],
)
def test_an_address_of_another_host_is_reported(host: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"SETTING: cannot listen on .*: {reason}"):
        listening.bind(Address(host, 0), "SETTING")


def test_a_name_may_have_addresses_that_this_host_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_args: object, **_options: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, None, None, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.1", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    (bound,) = listening.bind(Address("auth.example", 0), "SETTING")
    assert bound.getsockname()[0] == "127.0.0.1"
    close(bound)


def test_a_host_without_ipv6_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket(socket.socket):
        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Socket)
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    for host, expected in (("localhost", "127.0.0.1"), ("::", "0.0.0.0")):  # noqa: S104 - what is tested
        (bound,) = listening.bind(Address(host, 0), "SETTING")
        assert bound.getsockname()[0] == expected
        close(bound)
