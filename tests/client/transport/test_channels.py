"""Connections: how many, restarts of a service, and addresses that DNS changes."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from authsvc.client import AsyncClient, InvalidTokenError, UnavailableError
from authsvc.client.transport.channel_options import CHANNEL_OPTIONS, SERVICE_CONFIG
from authsvc.client.transport.methods import AUTH_METHODS, HASHING, RETRYABLE, USER_METHODS
from authsvc.rpc.middleware import HASHING_METHODS
from tests.client.conftest import Two
from tests.client.switch import switch_to
from tests.support import Client

ALL = {**AUTH_METHODS, **USER_METHODS}


def test_grpc_gets_the_service_config() -> None:
    assert json.loads(str(dict(CHANNEL_OPTIONS)["grpc.service_config"])) == SERVICE_CONFIG
    assert set(ALL) >= RETRYABLE


def test_calls_that_hash_have_the_services_own_deadline() -> None:
    assert {name.rpartition(".")[2] for name in HASHING_METHODS} == HASHING
    assert {name for name, method in ALL.items() if method.timeout_seconds == 10} == HASHING
    assert ALL["GetUser"].timeout_seconds == 2.5


@pytest.mark.parametrize("connections", [1, 2, 3])
async def test_connections(client: Client, connections: int) -> None:
    async with (
        switch_to(client.address) as front,
        AsyncClient(front.address, connections=connections) as backend,
    ):
        for number in range(10):
            with pytest.raises(InvalidTokenError):
                await backend.validate(f"garbage {number}")
        assert front.connections == connections


@pytest.mark.parametrize("prefix", ["", "ipv4:", "dns:///"])
@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
async def test_no_proxy_stands_between_this_machine_and_itself(
    client: Client, monkeypatch: pytest.MonkeyPatch, variable: str, prefix: str
) -> None:
    """Plain text goes to loopback alone: a proxy would read the API key and the tokens."""
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    async with AsyncClient(prefix + client.address) as backend:
        with pytest.raises(InvalidTokenError):
            await backend.validate("garbage")


async def test_the_end_of_connections_fails_no_call(client: Client) -> None:
    await client.create_user()
    token = await client.access_token()
    async with switch_to(client.address) as front, AsyncClient(front.address) as backend:
        for _ in range(5):
            calls = [asyncio.create_task(backend.validate(token)) for _ in range(20)]
            await asyncio.sleep(0)
            await front.lead_to(client.address)
            await asyncio.gather(*calls)


async def test_one_of_two_services_stops(two: Two) -> None:
    await two.first.create_user()
    token = await two.first.access_token()
    async with (
        switch_to(two.first.address) as front,
        AsyncClient(f"ipv4:{front.address},{two.second.address}") as backend,
    ):
        for state in ("up", "down", "up"):
            await (front.lead_to(two.first.address) if state == "up" else front.refuse())
            for _ in range(10):
                await asyncio.gather(*(backend.validate(token) for _ in range(5)))


class NameServer(asyncio.DatagramProtocol):
    """Answers every A query with the addresses of the moment, for no time."""

    def __init__(self) -> None:
        self.addresses = ["127.0.0.1"]
        self.queries = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        question = data[12:end]
        is_a = question[-4:] == struct.pack(">HH", 1, 1)
        self.queries += is_a
        answers = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + socket.inet_aton(each) for each in self.addresses if is_a
        )
        count = len(self.addresses) if is_a else 0
        header = data[:2] + struct.pack(">HHHHH", 0x8180, 1, count, 0, 0)
        self.transport.sendto(header + question + answers, address)


@asynccontextmanager
async def name_server() -> AsyncIterator[tuple[NameServer, int]]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    yield protocol, transport.get_extra_info("sockname")[1]
    transport.close()


async def test_a_name_that_moves_to_other_addresses(client: Client) -> None:
    await client.create_user()
    token = await client.access_token()
    port = client.address.rpartition(":")[2]
    async with name_server() as (names, dns_port):
        names.addresses = ["127.0.0.2"]  # nothing listens there
        async with AsyncClient(f"dns://127.0.0.1:{dns_port}/auth.test:{port}", insecure=True) as backend:
            with pytest.raises(UnavailableError):
                await backend.validate(token)
            names.addresses = ["127.0.0.1"]
            async with asyncio.timeout(20):
                while not await _answers(backend, token):
                    await asyncio.sleep(0.1)
            names.addresses = ["127.0.0.3", "127.0.0.1"]
            assert await _answers(backend, token)


async def _answers(backend: AsyncClient, token: str) -> bool:
    try:
        await backend.validate(token)
    except UnavailableError:
        return False
    return True
