"""What keeps gRPC's clients from connecting with the TLS files: a handshake of gRPC with itself, and its explanation.

Other libraries accept files that gRPC refuses, and a pair that gRPC's server accepts may be refused by its clients.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID, PublicKeyAlgorithmOID

from authsvc.errors import ConfigError

HANDSHAKE_SECONDS = 10.0
_LOOPBACK = "127.0.0.1"
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_BEGINS_INSIDE_A_LINE = re.compile(rb"[^\r\n]-----BEGIN ")
_OF_DATES = re.compile("has expired|not yet valid")
_UNREADABLE = "holds a certificate that cannot be read"
_NO_NAME = "Hostname Verification Check failed"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The contents of the TLS files.

    Args:
        certificate: The server's chain, its own certificate first.
        key: Its private key.
        client_ca: Certificates of the CAs of client certificates; None where clients need none.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None


def read_tls_files(certificate: Path, key: Path, client_ca: Path | None) -> TlsFiles:
    """Read the TLS files.

    Raises:
        ConfigError: A file cannot be read.
    """
    return TlsFiles(_read(certificate), _read(key), None if client_ca is None else _read(client_ca))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None


@dataclass(frozen=True, slots=True)
class TlsProblem:
    """Why clients cannot connect.

    Args:
        setting: Of the file: `tls_cert`, `tls_key` or `tls_client_ca`.
        problem: What is wrong with the file.
        remedy: How to repair it.
    """

    setting: str
    problem: str
    remedy: str


def find_tls_problem(files: TlsFiles) -> TlsProblem | None:
    """Return why gRPC's clients cannot connect; None where they can, or where only a date keeps them from it.

    Takes some 10 ms of other threads. Dates are the caller's to check, who knows the time.
    """
    reason = _try_handshake(files)
    if not reason:  # gRPC also accepts a file of CAs in which it finds some of the certificates
        return next(_client_ca_problems(files), None)
    unexplained = TlsProblem("tls_cert", f"a handshake of gRPC with itself fails: {reason}", "use another certificate")
    return next(_explain(files), unexplained)


def _try_handshake(files: TlsFiles) -> str:
    """Return gRPC's reason why a handshake fails; empty where it does not fail, or fails for a date alone."""
    try:
        # Alone first: with one more certificate in it, a file without any would pass.
        with _serve(files):
            pass
        client = _new_client_certificate()
        client_ca = None if files.client_ca is None else files.client_ca + b"\n" + client.certificate
        with _serve(TlsFiles(files.certificate, files.key, client_ca)) as port:
            return _connect(port, files.certificate, client)
    except RuntimeError:
        return "the server does not accept the files"


@contextmanager
def _serve(files: TlsFiles) -> Iterator[int]:
    """Run a server without services; yield its port.

    Raises:
        RuntimeError: gRPC does not accept the files.
    """
    credentials = grpc.ssl_server_credentials(
        [(files.key, files.certificate)], files.client_ca, require_client_auth=files.client_ca is not None
    )
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        port = server.add_secure_port(f"{_LOOPBACK}:0", credentials)
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


def _connect(port: int, certificate: bytes, client: TlsFiles) -> str:
    credentials = grpc.ssl_channel_credentials(certificate, client.key, client.certificate)
    options = (("grpc.ssl_target_name_override", _host_name(certificate)), ("grpc.enable_http_proxy", 0))
    with closing(grpc.secure_channel(f"{_LOOPBACK}:{port}", credentials, options)) as channel:
        method: Any = channel.unary_unary("/authsvc/None")
        call = method.future(b"", timeout=HANDSHAKE_SECONDS)
        code, details = call.code(), str(call.details())
    if code is grpc.StatusCode.UNIMPLEMENTED:  # the answer of a server without services
        return ""
    # Clients of a certificate without a host's name check something else.
    return "" if _OF_DATES.search(details) or _NO_NAME in details else details.rpartition("last error: ")[2]


def _host_name(certificate: bytes) -> str:
    """Return a name by which a client may connect."""
    names, hosts = [], []
    try:
        leaf = x509.load_pem_x509_certificate(certificate)
        names = [name.value for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [*alternatives.get_values_for_type(x509.DNSName), *alternatives.get_values_for_type(x509.IPAddress)]
    except (ValueError, x509.ExtensionNotFound):
        pass  # the common name, or none
    return str([*hosts, *names, _LOOPBACK][0]).replace("*", "host")


def _new_client_certificate() -> TlsFiles:
    """Return a certificate of a client that no file knows, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authsvc doctor")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return TlsFiles(certificate.public_bytes(Encoding.PEM), pem, None)


def _explain(files: TlsFiles) -> Iterator[TlsProblem]:
    """Yield what gRPC does not say of files that it does not use, the first problem first."""
    yield from _file_problems("tls_cert", "certificate", files.certificate)
    try:
        chain = x509.load_pem_x509_certificates(files.certificate)
    except ValueError:
        yield TlsProblem("tls_cert", _UNREADABLE, "issue it again")
        return
    kind = _unsupported_kind(chain[0])
    if kind:
        yield TlsProblem("tls_cert", f"is for {kind}, which gRPC refuses", "issue one for a P-256, P-384 or RSA key")
    yield from _file_problems("tls_key", "private key", files.key)
    yield from _key_problems(chain, files.key)
    yield from _client_ca_problems(files)


def _client_ca_problems(files: TlsFiles) -> Iterator[TlsProblem]:
    if files.client_ca is None:
        return
    yield from _file_problems("tls_client_ca", "certificate", files.client_ca)
    try:
        x509.load_pem_x509_certificates(files.client_ca)
    except ValueError:  # gRPC reads the file up to there
        yield TlsProblem("tls_client_ca", _UNREADABLE, "issue it again")


def _file_problems(setting: str, content: str, data: bytes) -> Iterator[TlsProblem]:
    if data.startswith(_BYTE_ORDER_MARKS):
        yield TlsProblem(
            setting,
            "begins with a byte order mark, behind which gRPC finds nothing",
            "save it as ASCII, without the mark",
        )
    if f"{content.upper()}-----".encode() not in data:
        remedy = f"name a PEM file with a line -----BEGIN {content.upper()}-----"
        yield TlsProblem(setting, f"holds no {content}: not PEM" if data else "is empty", remedy)
    if _BEGINS_INSIDE_A_LINE.search(data):
        yield TlsProblem(setting, "has a -----BEGIN inside a line", "put a line break before each -----BEGIN")


def _unsupported_kind(certificate: x509.Certificate) -> str:
    """Return the kind of a certificate's key, where gRPC does not use it."""
    try:
        key = certificate.public_key()
    except (UnsupportedAlgorithm, ValueError):
        return "a key of an unknown kind"
    if certificate.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS:
        return "an RSA-PSS key"
    if isinstance(key, rsa.RSAPublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)
    ):
        return ""
    curve = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__.strip("_")
    return f"a key of the kind {curve.removesuffix('PublicKey')}"


def _key_problems(chain: list[x509.Certificate], data: bytes) -> Iterator[TlsProblem]:
    if b"ENCRYPTED" in data:
        yield TlsProblem("tls_key", "is encrypted", "name a file with the unencrypted key (openssl pkey writes one)")
        return
    try:
        key = serialization.load_pem_private_key(data, None)
    except (UnsupportedAlgorithm, TypeError, ValueError):
        yield TlsProblem("tls_key", "holds a key that cannot be read", "name the key of the certificate, a PEM file")
        return
    public = _public_bytes(key)
    first, *others = (_public_bytes(certificate) for certificate in chain)
    if public in others and public != first:
        yield TlsProblem(
            "tls_cert", "begins with the certificate of another key", "put the server's own certificate first"
        )
    elif public != first:
        yield TlsProblem("tls_key", "is the key of another certificate", "name the certificate and its own key")


def _public_bytes(holder: Any) -> bytes:  # noqa: ANN401 - a certificate or a private key of any kind
    data: bytes = holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return data
