"""A TLS handshake of gRPC with itself, on the files that the service would use.

Other libraries accept files that gRPC refuses, and a pair that gRPC's server accepts may be refused by its clients.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from authsvc.server.certificates import Certificates

HANDSHAKE_SECONDS = 10.0
_LOOPBACK = "127.0.0.1"
_OF_DATES = re.compile("has expired|not yet valid")
_NO_NAME = "Hostname Verification Check failed"


def try_handshake(certificates: Certificates) -> str:
    """Connect a client to a server, both gRPC, on loopback.

    Takes some 10 ms of other threads. Dates are the caller's to check, who knows the time.

    Args:
        certificates: The server's.

    Returns:
        The reason why the handshake fails, mostly gRPC's own; empty where it does not fail, or fails for a date alone.
    """
    try:
        host = _host_name(certificates.chain)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return "the names in the certificate cannot be read"
    client = _new_client_certificate()
    served = certificates
    if certificates.client_ca is not None:
        # At the end: gRPC reads the file up to the first certificate that it cannot parse.
        served = replace(certificates, client_ca=certificates.client_ca + b"\n" + client.chain)
    try:
        with _serve(served) as port:
            return _connect(port, host, certificates.chain, client)
    except RuntimeError:
        return "the server does not accept the files"


@contextmanager
def _serve(certificates: Certificates) -> Iterator[int]:
    """Run a server without services; yield its port.

    Raises:
        RuntimeError: gRPC does not accept the files.
    """
    credentials = grpc.ssl_server_credentials(
        [(certificates.key, certificates.chain)],
        certificates.client_ca,
        require_client_auth=certificates.client_ca is not None,
    )
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        port = server.add_secure_port(f"{_LOOPBACK}:0", credentials)
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


def _connect(port: int, host: str, chain: bytes, client: Certificates) -> str:
    credentials = grpc.ssl_channel_credentials(chain, client.key, client.chain)
    options = (("grpc.ssl_target_name_override", host), ("grpc.enable_http_proxy", 0))
    with closing(grpc.secure_channel(f"{_LOOPBACK}:{port}", credentials, options)) as channel:
        method: Any = channel.unary_unary("/authsvc/None")
        call = method.future(b"", timeout=HANDSHAKE_SECONDS)
        code, details = call.code(), str(call.details())
    if code is grpc.StatusCode.UNIMPLEMENTED:  # the answer of a server without services
        return ""
    # Clients of a certificate without a host's name check something else.
    return "" if _OF_DATES.search(details) or _NO_NAME in details else details.rpartition("last error: ")[2]


def _host_name(chain: bytes) -> str:
    """Return a name by which a client may connect."""
    leaf = x509.load_pem_x509_certificate(chain)
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        hosts = [name.value for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    else:
        hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return str([*hosts, _LOOPBACK][0]).replace("*", "host")


def _new_client_certificate() -> Certificates:
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
    return Certificates(certificate.public_bytes(Encoding.PEM), pem, None, {})
