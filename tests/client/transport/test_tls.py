"""TLS: who is trusted, client certificates, and files that are renewed while calls run."""

import asyncio
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from authsvc.client import AsyncClient, InvalidTokenError, UnavailableError
from authsvc.client.clock import Clock
from authsvc.client.transport.tls_files import TlsFiles
from authsvc.config import ServeSettings
from authsvc.server import app
from tests.e2e.certificates import Authority
from tests.support import FakeClock, served


@dataclass
class Secured:
    """A service with TLS that wants a client certificate of `authority`."""

    address: str
    authority: Authority
    folder: Path

    def copy(self, name: str) -> tuple[Path, Path]:
        """Issue a certificate into the files that a client reads."""
        pair = self.authority.issue(name)
        cert, key = self.folder / "client.pem", self.folder / "client.key"
        shutil.copy(pair.certificate, cert)
        shutil.copy(pair.key, key)
        return cert, key


@pytest.fixture
async def secured(tmp_path: Path, settings: ServeSettings, clock: FakeClock) -> AsyncIterator[Secured]:
    (tmp_path / "ca").mkdir()
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("server")
    secure = replace(settings, tls_cert=pair.certificate, tls_key=pair.key, tls_client_ca=authority.certificate)
    async with served(settings, clock), app.run_app(secure, clock) as service:
        yield Secured(service.address, authority, tmp_path)


async def is_reached(client: AsyncClient) -> bool:
    try:
        await client.validate(secrets.token_hex(4), timeout=5)  # never from the cache
    except InvalidTokenError:
        return True
    except UnavailableError:
        return False
    raise AssertionError


async def test_mutual_tls(secured: Secured) -> None:
    cert, key = secured.copy("backend")
    async with AsyncClient(secured.address, ca=str(secured.authority.certificate), cert=cert, key=key) as client:
        assert await is_reached(client)


async def test_a_service_of_another_authority_is_not_trusted(secured: Secured) -> None:
    cert, key = secured.copy("backend")
    (secured.folder / "other").mkdir()
    other = Authority(secured.folder / "other")
    async with AsyncClient(secured.address, ca=other.certificate, cert=cert, key=key) as client:
        with pytest.raises(UnavailableError, match=r"(?i)certificate"):
            await client.validate("garbage", timeout=5)


async def test_plain_text_gets_no_answer(secured: Secured) -> None:
    async with AsyncClient(secured.address) as client:
        assert not await is_reached(client)


@pytest.fixture
def time() -> FakeClock:
    return FakeClock()


async def test_renewed_files_mean_new_connections(
    secured: Secured, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = secured.copy("first")
    its_clock = Clock(time.monotonic)
    with caplog.at_level(logging.INFO, "authsvc.client"):
        async with AsyncClient(
            secured.address, ca=secured.authority.certificate, cert=cert, key=key, clock=its_clock
        ) as client:
            assert await is_reached(client)
            before = _channels(client)
            time.advance(seconds=1)
            assert await is_reached(client)
            assert _channels(client) == before
            calls = [asyncio.create_task(client.validate(f"garbage {number}")) for number in range(20)]
            secured.copy("second")
            time.advance(seconds=1)
            assert await is_reached(client)
            assert _channels(client) != before
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {InvalidTokenError}
    assert [record.getMessage() for record in caplog.records] == [
        "the TLS files have changed: new connections use them"
    ]


def _wrong_key(secured: Secured) -> None:
    shutil.copy(secured.authority.issue("another").key, secured.folder / "client.key")


def _no_pem(secured: Secured) -> None:
    (secured.folder / "client.pem").write_text("no certificate")


def _encrypted(secured: Secured) -> None:
    path = secured.folder / "client.key"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    path.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"passphrase")))


def _missing(secured: Secured) -> None:
    (secured.folder / "client.key").unlink()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_wrong_key, "not PEM files that can be used together"),
        (_no_pem, "not PEM files that can be used together"),
        (_encrypted, "client.key: is encrypted: store it without a passphrase"),
        (_missing, "No such file or directory"),
    ],
)
async def test_files_that_cannot_be_used_leave_the_last_good_ones(
    secured: Secured,
    time: FakeClock,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Secured], None],
    problem: str,
) -> None:
    cert, key = secured.copy("first")
    async with AsyncClient(
        secured.address, ca=secured.authority.certificate, cert=cert, key=key, clock=Clock(time.monotonic)
    ) as client:
        assert await is_reached(client)
        before = _channels(client)
        spoil(secured)
        for _ in range(3):
            time.advance(seconds=1)
            assert await is_reached(client)
        assert _channels(client) == before
        assert [problem in record.getMessage() for record in caplog.records if record.name == "authsvc.client"] == [
            True
        ]
        secured.copy("second")
        time.advance(seconds=1)
        assert await is_reached(client)
        assert _channels(client) != before


async def test_files_that_cannot_be_used_at_the_first_call(secured: Secured) -> None:
    cert, key = secured.copy("first")
    missing = secured.folder / "missing.pem"
    for ca, client_cert, problem in ((missing, cert, "ca: "), (cert, missing, "cert, key: ")):
        async with AsyncClient(secured.address, ca=ca, cert=client_cert, key=key) as client:
            with pytest.raises(ValueError, match=f"{problem}.*missing.pem.*: No such file"):
                await client.validate("garbage")


def test_an_authority_alone_and_a_certificate_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("backend")
    for files in (TlsFiles(authority.certificate, None, None), TlsFiles(None, pair.certificate, pair.key)):
        assert files.load() is not None
    assert TlsFiles(tmp_path / "missing", None, None).version() == ((),)


def _channels(client: AsyncClient) -> list[int]:
    channels = client._sessions.current().channels  # noqa: SLF001 - a new one looks the same from outside
    return [id(channel) for channel in channels._channels]  # noqa: SLF001
