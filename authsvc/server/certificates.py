"""TLS of the gRPC port: the server's certificate, its key and the client CA, checked and followed while it runs."""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import PublicKeyAlgorithmOID

from authsvc.config import ServeSettings
from authsvc.errors import ConfigError
from authsvc.telemetry import metrics
from authsvc.watched_file import WatchedFile, read_file

_CERT, _KEY, _CLIENT_CA = "AUTHSVC_TLS_CERT", "AUTHSVC_TLS_KEY", "AUTHSVC_TLS_CLIENT_CA"
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_BEGIN_OF_LINE = re.compile(rb"^-----BEGIN ", re.MULTILINE)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Certificates:
    """One version of the TLS files, checked.

    Args:
        chain: The server's certificate and its intermediates, PEM.
        key: The server's private key, PEM.
        client_ca: The CA certificates of clients, PEM; None where clients need no certificate.
        expire_times: The end of the `server` certificate, and of the first `client_ca` certificate to expire.
    """

    chain: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    expire_times: Mapping[str, datetime]


def watch_certificates(settings: ServeSettings) -> WatchedFile[Certificates] | None:
    """Return the TLS files, read again when they change; None where the port speaks plain text.

    Raises:
        ConfigError: They cannot be used now.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    paths = [path for path in (settings.tls_cert, settings.tls_key, settings.tls_client_ca) if path is not None]
    return WatchedFile(paths, lambda: read_certificates(settings), "certificates", _describe)


def server_credentials(file: WatchedFile[Certificates]) -> grpc.ServerCredentials:
    """Return credentials that serve each new connection with the current certificates.

    Whether clients need a certificate does not change: the settings say it.
    """
    return grpc.dynamic_ssl_server_credentials(
        _configuration(file.content),
        certificate_fetcher(file),  # type: ignore[arg-type]  # its stub forgets that None is "unchanged"
        require_client_authentication=file.content.client_ca is not None,
    )


def certificate_fetcher(
    file: WatchedFile[Certificates],
) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
    """Return what gRPC calls at each handshake, on a thread of its own: it returns new certificates once, else None."""
    served = file.content

    def fetch_if_changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        current = file.content
        if current is served:
            return None
        served = current
        return _configuration(current)

    return fetch_if_changed


def publish_expiry(certificates: Certificates) -> None:
    """Set the metric of the days that are left."""
    for certificate, time in certificates.expire_times.items():
        metrics.CERTIFICATE_EXPIRY.labels(certificate).set(time.timestamp())


def read_certificates(settings: ServeSettings) -> Certificates:
    """Read the TLS files, and check that the server can use them and gRPC's clients can connect.

    Dates are not checked: the metric and `authsvc doctor` show them.

    Args:
        settings: Name a certificate and a key.

    Raises:
        ConfigError: The files cannot be used. Each problem begins with the setting and the file.
    """
    problems: list[str] = []
    chain = _load(_CERT, settings.tls_cert, _parse_chain, problems)
    key = _load(_KEY, settings.tls_key, _parse_key, problems)
    client_ca = _load(_CLIENT_CA, settings.tls_client_ca, _parse_certificates, problems)
    if chain is None or key is None or problems:
        raise ConfigError(problems)
    if _public_key(chain.parsed[0]) != key.parsed.public_key():
        raise ConfigError(
            [f"{_KEY}: {settings.tls_key}: is not the key of the first certificate in {settings.tls_cert}"]
        )
    expire_times = {"server": chain.parsed[0].not_valid_after_utc}
    if client_ca is not None:
        expire_times["client_ca"] = min(certificate.not_valid_after_utc for certificate in client_ca.parsed)
    certificates = Certificates(chain.pem, key.pem, None if client_ca is None else client_ca.pem, expire_times)
    if not _is_usable_by_grpc(certificates):
        raise ConfigError([f"{_CERT}, {_KEY}, {_CLIENT_CA}: gRPC cannot use them together"])
    return certificates


@dataclass(frozen=True, slots=True)
class _Loaded(Generic[T]):
    pem: bytes
    parsed: T


def _load(setting: str, path: Path | None, parse: Callable[[bytes], T], problems: list[str]) -> _Loaded[T] | None:
    """Read and parse a file; add a problem and return None where that fails."""
    if path is None:
        return None
    try:
        pem = read_file(path)
        _check_form(pem)
        return _Loaded(pem, parse(pem))
    except OSError as error:
        problems.append(f"{setting}: {path}: cannot be read: {error.strerror}")
    except ValueError as error:
        problems.append(f"{setting}: {path}: {error}")
    return None


def _check_form(pem: bytes) -> None:
    """Refuse what gRPC's TLS library would skip or take for the end of the file, without an error."""
    begins = pem.count(b"-----BEGIN ")
    if begins != len(_BEGIN_OF_LINE.findall(pem)):
        raise ValueError("something stands before -----BEGIN on its line, for instance a byte order mark: remove it")
    if begins != pem.count(b"-----END "):
        raise ValueError("is cut off: the last -----END is missing")


def _parse_certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion):
        raise ValueError("holds no certificate in PEM form, or one that cannot be read") from None


def _parse_chain(pem: bytes) -> list[x509.Certificate]:
    chain = _parse_certificates(pem)
    if _public_key(chain[0]) is None:
        raise ValueError("the key of its first certificate is not RSA, P-256 or P-384: some gRPC clients cannot use it")
    return chain


def _parse_key(pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, None)
    except TypeError:
        raise ValueError("is encrypted: store the key without a passphrase, readable by the service alone") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("holds no private key in PEM form (PKCS #8), or one that cannot be read") from None


def _public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes | None:
    """Return the key of a certificate; None where not every gRPC client can check its signatures.

    gRPC's own TLS library serves Ed25519 and P-521 too, but as a client accepts neither.
    """
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    is_pss = certificate.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS
    is_rsa = isinstance(key, rsa.RSAPublicKey) and not is_pss
    is_known_curve = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)
    return key if is_rsa or is_known_curve else None


def _is_usable_by_grpc(certificates: Certificates) -> bool:
    """Return whether gRPC's TLS library takes the files, which another one has parsed: a server that never starts."""
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials(
        [(certificates.key, certificates.chain)],
        certificates.client_ca,
        require_client_auth=certificates.client_ca is not None,
    )
    try:
        server.add_secure_port("127.0.0.1:0", credentials)
    except RuntimeError:
        return False
    finally:
        server.stop(None)
    return True


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(certificates.key, certificates.chain)], certificates.client_ca)


def _describe(certificates: Certificates) -> Mapping[str, object]:
    return {"expire_times": {name: time.isoformat() for name, time in certificates.expire_times.items()}}
