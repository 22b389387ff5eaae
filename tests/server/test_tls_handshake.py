"""A handshake of gRPC with itself; tests/server/test_certificates.py has what is refused before it."""

import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from authsvc.server.certificates import Certificates
from authsvc.server.tls_handshake import try_handshake
from tests.e2e.certificates import Authority, Pair

MARK = b"\xef\xbb\xbf"
NOT_DER = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def certificates(pair: Pair, client_ca: bytes | None = None) -> Certificates:
    return Certificates(pair.certificate.read_bytes(), pair.key.read_bytes(), client_ca, {})


@pytest.fixture
def good(authority: Authority) -> Certificates:
    return certificates(authority.issue("server"), authority.certificate.read_bytes())


@pytest.mark.parametrize(
    "new_key",
    [
        lambda: rsa.generate_private_key(65537, 2048),
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
    ],
    ids=["RSA", "P-256", "P-384"],
)
def test_keys_that_clients_accept(authority: Authority, new_key: Callable[[], Any]) -> None:
    pair = authority.issue("server", key=new_key())
    for client_ca in (None, authority.certificate.read_bytes()):
        assert try_handshake(certificates(pair, client_ca)) == ""


@pytest.mark.parametrize(
    "new_key",
    [
        lambda: ec.generate_private_key(ec.SECP256K1()),
        lambda: ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["secp256k1", "P-521", "Ed25519"],
)
def test_keys_that_the_server_or_clients_refuse(authority: Authority, new_key: Callable[[], Any]) -> None:
    """An expired certificate hides nothing."""
    for days in (30, -0.5):
        reason = try_handshake(certificates(authority.issue("server", key=new_key(), days=days)))
        assert reason.startswith(("UNAVAILABLE: ", "the server does not accept the files"))


@pytest.mark.parametrize(
    "names",
    [
        [x509.DNSName("*.example.com")],
        [x509.UniformResourceIdentifier("spiffe://example.com/authsvc")],
        [x509.IPAddress(ip_address("::1"))],
        [],
    ],
    ids=["a wildcard", "no host", "IPv6", "in the subject alone"],
)
def test_whatever_a_certificate_names(authority: Authority, names: list[x509.GeneralName]) -> None:
    pair = authority.issue("server.example.com", names=names, loopback=False)
    assert try_handshake(certificates(pair)) == ""


def test_names_that_cannot_be_read(authority: Authority) -> None:
    pair = authority.issue("server", names=[x509.DNSName("name.example.com")])
    der = ssl.PEM_cert_to_DER_cert(pair.certificate.read_text()).replace(b"name.", b"\xff\xff\xff\xff.")
    pair.certificate.write_text(ssl.DER_cert_to_PEM_cert(der))
    assert try_handshake(certificates(pair)) == "the names in the certificate cannot be read"


def test_dates_are_not_its_subject(authority: Authority) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    for pair in (authority.issue("expired", days=-0.5), authority.issue("early", begin=tomorrow)):
        assert try_handshake(certificates(pair)) == ""


def test_files_that_grpc_reads_in_part(good: Certificates) -> None:
    assert good.client_ca is not None
    assert try_handshake(replace(good, client_ca=good.client_ca + NOT_DER)) != ""
    assert try_handshake(replace(good, chain=MARK + good.chain)) == "the server does not accept the files"


def test_a_proxy_of_the_environment_is_not_used(good: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert try_handshake(good) == ""
