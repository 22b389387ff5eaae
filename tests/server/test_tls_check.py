"""Files that gRPC's server or its clients refuse, each with its reason. gRPC itself decides which those are."""

import base64
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from authsvc.server import tls_check
from authsvc.server.tls_check import TlsFiles, TlsProblem, find_tls_problem
from tests.e2e.certificates import Authority, Pair

MARK = b"\xef\xbb\xbf"
NOT_DER = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def files(pair: Pair, client_ca: bytes | None = None) -> TlsFiles:
    return TlsFiles(pair.certificate.read_bytes(), pair.key.read_bytes(), client_ca)


@pytest.fixture
def good(authority: Authority) -> TlsFiles:
    return files(authority.issue("server"), authority.certificate.read_bytes())


KEYS: dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
}
REFUSED_KEYS: dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]] = {
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "secp521r1": lambda: ec.generate_private_key(ec.SECP521R1()),
    "brainpoolP256r1": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
}


@pytest.mark.parametrize("new_key", KEYS.values(), ids=KEYS)
def test_kinds_of_keys_that_clients_accept(authority: Authority, new_key: Callable[[], Any]) -> None:
    pair = authority.issue("server", key=new_key())
    assert find_tls_problem(files(pair)) is None
    assert find_tls_problem(files(pair, authority.certificate.read_bytes())) is None


@pytest.mark.parametrize(("kind", "new_key"), REFUSED_KEYS.items(), ids=REFUSED_KEYS)
def test_kinds_of_keys_that_the_server_or_clients_refuse(
    authority: Authority, kind: str, new_key: Callable[[], Any]
) -> None:
    assert find_tls_problem(files(authority.issue("server", key=new_key()))) == TlsProblem(
        "tls_cert", f"is for a key of the kind {kind}, which gRPC refuses", "issue one for a P-256, P-384 or RSA key"
    )


def test_an_rsa_key_for_pss_alone(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "pss.pem", tmp_path / "pss.key")
    key = ["openssl", "genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(pair.key)]
    certificate = ["openssl", "req", "-x509", "-new", "-key", str(pair.key), "-subj", "/CN=a", "-out"]
    subprocess.run(key, check=True, capture_output=True)
    subprocess.run([*certificate, str(pair.certificate)], check=True, capture_output=True)
    problem = find_tls_problem(files(pair))
    assert problem is not None
    assert problem.problem == "is for an RSA-PSS key, which gRPC refuses"


def test_a_key_of_an_unknown_kind(good: TlsFiles) -> None:
    """The number of the algorithm is changed, in DER: of an elliptic curve's key to one that nobody has."""
    der = x509.load_pem_x509_certificate(good.certificate).public_bytes(Encoding.DER)
    number = bytes.fromhex("06072a8648ce3d0201")
    unknown = der.replace(number, number[:-1] + b"\x7f")
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(unknown) + b"-----END CERTIFICATE-----\n"
    problem = find_tls_problem(replace(good, certificate=pem))
    assert problem is not None
    assert problem.problem == "is for a key of an unknown kind, which gRPC refuses"


@pytest.mark.parametrize(
    "names",
    [
        [x509.DNSName("*.example.com")],
        [x509.UniformResourceIdentifier("spiffe://example.com/authsvc")],
        [x509.IPAddress(ip_address("::1"))],
    ],
    ids=["a wildcard", "no host", "IPv6"],
)
def test_whatever_a_certificate_names(authority: Authority, names: list[x509.GeneralName]) -> None:
    assert find_tls_problem(files(authority.issue("server", names=names, loopback=False))) is None


def test_a_name_in_the_subject_alone(authority: Authority) -> None:
    assert find_tls_problem(files(authority.issue("server.example.com", loopback=False))) is None


def test_dates_are_not_its_subject(authority: Authority) -> None:
    """Nor do they hide another problem."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    for pair in (authority.issue("expired", days=-0.5), authority.issue("early", begin=tomorrow)):
        assert find_tls_problem(files(pair)) is None
    problem = find_tls_problem(files(authority.issue("both", days=-0.5, key=ed25519.Ed25519PrivateKey.generate())))
    assert problem is not None
    assert problem.problem == "is for a key of the kind Ed25519, which gRPC refuses"


NO_MARK = "save it as ASCII, without the mark"
MARKED = "begins with a byte order mark, behind which gRPC finds nothing"
NO_CERTIFICATE = "name a PEM file with a line -----BEGIN CERTIFICATE-----"
NO_KEY = "name a PEM file with a line -----BEGIN PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda pem: MARK + pem, TlsProblem("tls_cert", MARKED, NO_MARK)),
        (lambda pem: pem.decode().encode("utf-16"), TlsProblem("tls_cert", MARKED, NO_MARK)),
        (lambda _: b"", TlsProblem("tls_cert", "is empty", NO_CERTIFICATE)),
        (lambda _: b"garbage", TlsProblem("tls_cert", "holds no certificate: not PEM", NO_CERTIFICATE)),
        (
            lambda pem: x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER),
            TlsProblem("tls_cert", "holds no certificate: not PEM", NO_CERTIFICATE),
        ),
        (lambda _: NOT_DER, TlsProblem("tls_cert", "holds a certificate that cannot be read", "issue it again")),
        (
            lambda pem: b" " + pem,
            TlsProblem("tls_cert", "has a -----BEGIN inside a line", "put a line break before each -----BEGIN"),
        ),
    ],
    ids=["marked", "UTF-16", "empty", "garbage", "DER", "not DER", "indented"],
)
def test_a_certificate_that_is_not_found(good: TlsFiles, edit: Callable[[bytes], bytes], problem: TlsProblem) -> None:
    assert find_tls_problem(replace(good, certificate=edit(good.certificate))) == problem


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda pem: MARK + pem, TlsProblem("tls_key", MARKED, NO_MARK)),
        (lambda _: b"", TlsProblem("tls_key", "is empty", NO_KEY)),
        (lambda _: b"garbage", TlsProblem("tls_key", "holds no private key: not PEM", NO_KEY)),
        (
            lambda _: NOT_DER.replace(b"CERTIFICATE", b"PRIVATE KEY"),
            TlsProblem("tls_key", "holds a key that cannot be read", "name the key of the certificate, a PEM file"),
        ),
    ],
    ids=["marked", "empty", "garbage", "not DER"],
)
def test_a_key_that_is_not_found(good: TlsFiles, edit: Callable[[bytes], bytes], problem: TlsProblem) -> None:
    assert find_tls_problem(replace(good, key=edit(good.key))) == problem


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_key(good: TlsFiles, form: PrivateFormat) -> None:
    key = load_pem_private_key(good.key, None).private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"secret"))
    problem = find_tls_problem(replace(good, key=key))
    assert problem is not None
    assert (problem.setting, problem.problem) == ("tls_key", "is encrypted")


def test_files_that_do_not_belong_together(authority: Authority, good: TlsFiles) -> None:
    other = files(authority.issue("other"))
    assert find_tls_problem(replace(good, key=other.key)) == TlsProblem(
        "tls_key", "is the key of another certificate", "name the certificate and its own key"
    )
    assert find_tls_problem(replace(good, certificate=other.certificate + good.certificate)) == TlsProblem(
        "tls_cert", "begins with the certificate of another key", "put the server's own certificate first"
    )
    assert find_tls_problem(replace(good, certificate=good.certificate + other.certificate)) is None


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda pem: MARK + pem, MARKED),
        (lambda pem: MARK + pem + pem, MARKED),
        (lambda _: b"", "is empty"),
        (lambda _: b"garbage", "holds no certificate: not PEM"),
        (lambda pem: pem.rstrip() + pem, "has a -----BEGIN inside a line"),
        (lambda pem: pem + NOT_DER, "holds a certificate that cannot be read"),
    ],
    ids=["marked", "marked, two", "empty", "garbage", "without a line break", "half readable"],
)
def test_a_client_ca_that_is_not_found(good: TlsFiles, edit: Callable[[bytes], bytes], problem: str) -> None:
    assert good.client_ca is not None
    found = find_tls_problem(replace(good, client_ca=edit(good.client_ca)))
    assert found is not None
    assert (found.setting, found.problem) == ("tls_client_ca", problem)


def test_a_handshake_that_fails_for_another_reason(good: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC's own reason is shown: here that of a client that gives up."""
    monkeypatch.setattr(tls_check, "HANDSHAKE_SECONDS", 0.0)
    problem = find_tls_problem(good)
    assert problem is not None
    assert problem.problem == "a handshake of gRPC with itself fails: Deadline Exceeded"


def test_a_proxy_of_the_environment_is_not_used(good: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert find_tls_problem(good) is None


def test_no_representation_shows_the_key(good: TlsFiles) -> None:
    assert "PRIVATE" not in repr(good)
