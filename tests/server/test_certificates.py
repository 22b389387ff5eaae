"""TLS files: the forms that are refused with a reason, and renewals while the service runs."""

import asyncio
import json
import math
import os
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from prometheus_client import REGISTRY

from authsvc.config import ServeSettings
from authsvc.errors import ConfigError
from authsvc.server import app
from authsvc.server.certificates import Certificates, certificate_fetcher, read_certificates, watch_certificates
from authsvc.stores.opening import open_store
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.watched_file import WatchedFile
from tests.e2e.certificates import Authority, Pair
from tests.support import PATIENT_LIMITS, WITNESS, FakeClock, connected, make_settings

FAST_POLLS = replace(PATIENT_LIMITS, file_poll_seconds=0.01)
BOM = b"\xef\xbb\xbf"


class Files:
    """The TLS files of a service, which a test replaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cert, self.key, self.client_ca = (folder / name for name in ("tls.crt", "tls.key", "ca.crt"))

    def put(self, path: Path, data: bytes) -> None:
        """Replace a file by rename."""
        other = self.folder / "other"
        other.write_bytes(data)
        other.replace(path)

    def put_pair(self, pair: Pair) -> None:
        self.put(self.cert, pair.certificate.read_bytes())
        self.put(self.key, pair.key.read_bytes())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path, "authority")


def make_authority(folder: Path, name: str) -> Authority:
    (folder / name).mkdir()
    return Authority(folder / name)


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Files:
    """A good pair, and its CA as that of clients."""
    (tmp_path / "tls").mkdir()
    files = Files(tmp_path / "tls")
    files.put_pair(authority.issue("first"))
    files.put(files.client_ca, authority.certificate.read_bytes())
    return files


@pytest.fixture
def settings(signing_keys: Path, tmp_path: Path, files: Files) -> ServeSettings:
    store = f"sqlite:{tmp_path / 'authsvc.db'}"
    return make_settings(signing_keys, store, tls_cert=files.cert, tls_key=files.key)


# What is refused


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Files, Authority], None]:
    def apply(files: Files, _: Authority) -> None:
        path: Path = getattr(files, name)
        path.write_bytes(change(path.read_bytes()))

    return apply


def key_as(form: PrivateFormat, encryption: Any) -> Callable[[bytes], bytes]:
    def change(pem: bytes) -> bytes:
        return load_pem_private_key(pem, None).private_bytes(Encoding.PEM, form, encryption)

    return change


def with_key(make: Callable[[], Any]) -> Callable[[Files, Authority], None]:
    return lambda files, authority: files.put_pair(authority.issue("other", key=make()))


def with_label(oid: bytes, other: bytes) -> Callable[[bytes], bytes]:
    """Change an object identifier, or the version, in a certificate."""

    def change(pem: bytes) -> bytes:
        der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
        return ssl.DER_cert_to_PEM_cert(der.replace(oid, other)).encode()

    return change


def rsa_with_a_large_exponent() -> rsa.RSAPrivateKey:
    """Return a key that OpenSSL takes and gRPC's BoringSSL does not."""
    numbers = rsa.generate_private_key(65537, 2048).private_numbers()
    e, phi = 2**34 + 25, (numbers.p - 1) * (numbers.q - 1)
    while math.gcd(e, phi) != 1:
        e += 2
    d = pow(e, -1, phi)
    return rsa.RSAPrivateNumbers(
        numbers.p,
        numbers.q,
        d,
        rsa.rsa_crt_dmp1(d, numbers.p),
        rsa.rsa_crt_dmq1(d, numbers.q),
        numbers.iqmp,
        rsa.RSAPublicNumbers(e, numbers.public_numbers.n),
    ).private_key()


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def half_chain(data: bytes) -> bytes:
    return data + half(data)


def chain_of_ca_first(files: Files, authority: Authority) -> None:
    files.put(files.cert, authority.certificate.read_bytes() + files.cert.read_bytes())


def remove_key(files: Files, _: Authority) -> None:
    files.key.unlink()


def make_pipe(files: Files, _: Authority) -> None:
    files.key.unlink()
    os.mkfifo(files.key)


PREFIX = "something stands before -----BEGIN on its line, for instance a byte order mark: remove it"
CUT = "is cut off: the last -----END is missing"
NO_KEY = r"holds no private key in PEM form \(PKCS #8\), or one that cannot be read"
NO_CERT = "holds no certificate in PEM form, or one that cannot be read"
NO_CLIENT = "the key of its first certificate is not RSA, P-256 or P-384: some gRPC clients cannot use it"
ENCRYPTED = "is encrypted: store the key without a passphrase, readable by the service alone"
OTHER_KEY = "is not the key of the first certificate in .*tls.crt"
TOGETHER = "AUTHSVC_TLS_CERT, AUTHSVC_TLS_KEY, AUTHSVC_TLS_CLIENT_CA: gRPC cannot use them together"
PKCS8, SEC1 = PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL

BAD: dict[str, tuple[Callable[[Files, Authority], object], str]] = {
    "key removed": (remove_key, "TLS_KEY: .*tls.key: cannot be read: No such file or directory"),
    "key a pipe": (make_pipe, "TLS_KEY: .*tls.key: cannot be read: not a regular file"),
    "key empty": (edit("key", lambda _: b""), NO_KEY),
    "key cut off": (edit("key", half), CUT),
    "key encrypted": (edit("key", key_as(PKCS8, BestAvailableEncryption(b"secret"))), ENCRYPTED),
    "key encrypted as of old": (edit("key", key_as(SEC1, BestAvailableEncryption(b"secret"))), ENCRYPTED),
    "key of OpenSSH": (edit("key", key_as(PrivateFormat.OpenSSH, NoEncryption())), NO_KEY),
    "key after a byte order mark": (edit("key", lambda pem: BOM + pem), PREFIX),
    "key indented": (edit("key", lambda pem: b"  " + pem), PREFIX),
    "key in UTF-16": (edit("key", lambda pem: pem.decode().encode("utf-16")), NO_KEY),
    "key of another certificate": (
        edit("key", lambda _: ec_key()),
        OTHER_KEY,
    ),
    "certificate empty": (edit("cert", lambda _: b""), NO_CERT),
    "certificate garbage": (edit("cert", lambda pem: pem.replace(b"M", b"!")), NO_CERT),
    "certificate cut off": (edit("cert", half), CUT),
    "chain cut off": (edit("cert", half_chain), CUT),
    "certificate in DER": (edit("cert", lambda pem: ssl.PEM_cert_to_DER_cert(pem.decode())), NO_CERT),
    "certificate after a byte order mark": (edit("cert", lambda pem: BOM + pem), PREFIX),
    "chain in the wrong order": (chain_of_ca_first, OTHER_KEY),
    "Ed25519": (with_key(ed25519.Ed25519PrivateKey.generate), NO_CLIENT),
    "P-521": (with_key(lambda: ec.generate_private_key(ec.SECP521R1())), NO_CLIENT),
    "secp256k1": (with_key(lambda: ec.generate_private_key(ec.SECP256K1())), NO_CLIENT),
    "unknown curve": (
        edit("cert", with_label(bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030106"))),
        NO_CLIENT,
    ),
    "unknown version": (edit("cert", with_label(bytes.fromhex("a003020102"), bytes.fromhex("a003020109"))), NO_CERT),
    "large RSA exponent": (with_key(rsa_with_a_large_exponent), TOGETHER),
    "client CA empty": (edit("client_ca", lambda _: b""), NO_CERT),
    "client CA cut off": (edit("client_ca", half_chain), CUT),
    "client CA after a byte order mark": (edit("client_ca", lambda pem: BOM + pem), PREFIX),
}


def ec_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PKCS8, NoEncryption())


@pytest.mark.parametrize(("damage", "reason"), BAD.values(), ids=BAD)
def test_files_that_cannot_be_used_are_refused_with_the_reason(
    settings: ServeSettings,
    files: Files,
    authority: Authority,
    damage: Callable[[Files, Authority], object],
    reason: str,
) -> None:
    damage(files, authority)
    with pytest.raises(ConfigError, match=reason) as refused:
        read_certificates(replace(settings, tls_client_ca=files.client_ca))
    assert len(refused.value.problems) == 1
    assert "secret" not in str(refused.value)


def test_every_problem_is_reported_at_once(settings: ServeSettings, files: Files) -> None:
    files.key.write_bytes(b"")
    files.client_ca.write_bytes(b"")
    files.cert.unlink()
    files.cert.mkdir()
    with pytest.raises(ConfigError) as refused:
        read_certificates(replace(settings, tls_client_ca=files.client_ca))
    assert [problem.partition(": ")[0] for problem in refused.value.problems] == [
        "AUTHSVC_TLS_CERT",
        "AUTHSVC_TLS_KEY",
        "AUTHSVC_TLS_CLIENT_CA",
    ]


GOOD: dict[str, Callable[[Files, Authority], object]] = {
    "P-384": with_key(lambda: ec.generate_private_key(ec.SECP384R1())),
    "SEC 1": edit("key", key_as(SEC1, NoEncryption())),
    "Windows lines": edit("key", lambda pem: pem.replace(b"\n", b"\r\n")),
    "text before": edit("cert", lambda pem: b"subject: CN = server\n" + pem),
    "chain": lambda files, authority: files.put(
        files.cert, files.cert.read_bytes() + authority.certificate.read_bytes()
    ),
    "both in one file": lambda files, _: files.put(files.key, files.cert.read_bytes() + files.key.read_bytes()),
}


@pytest.mark.parametrize("change", GOOD.values(), ids=GOOD)
def test_other_forms_are_taken(
    settings: ServeSettings, files: Files, authority: Authority, change: Callable[[Files, Authority], object]
) -> None:
    change(files, authority)
    certificates = read_certificates(replace(settings, tls_client_ca=files.client_ca))
    assert "PRIVATE KEY" not in repr(certificates)


# Renewals


class Watched:
    """Watched files, and the events that they log."""

    def __init__(self, settings: ServeSettings) -> None:
        file = watch_certificates(settings)
        assert file is not None
        self.file: WatchedFile[Certificates] = file
        self._position = len(WITNESS.lines.getvalue())

    @property
    def chain(self) -> bytes:
        """The certificates that a new connection gets."""
        return self.file.reload_if_changed().chain

    @property
    def events(self) -> list[str]:
        """The events that were logged since this was last read."""
        text = WITNESS.lines.getvalue()[self._position :]
        self._position += len(text)
        return [json.loads(line)["event"] for line in text.splitlines()]


@pytest.fixture
def watched(settings: ServeSettings, files: Files) -> Watched:
    return Watched(replace(settings, tls_client_ca=files.client_ca))


def test_the_moment_between_the_two_renames_is_nothing(watched: Watched, files: Files, authority: Authority) -> None:
    before, renewed = watched.chain, authority.issue("renewed")
    files.put(files.cert, renewed.certificate.read_bytes())
    assert watched.chain == before
    files.put(files.key, renewed.key.read_bytes())
    assert watched.chain == renewed.certificate.read_bytes()
    assert watched.events == ["certificates_reloaded"]


def test_a_pair_that_does_not_match_is_reported_once(watched: Watched, files: Files, authority: Authority) -> None:
    before, renewed = watched.chain, authority.issue("renewed")
    files.put(files.key, renewed.key.read_bytes())
    for _ in range(4):
        assert watched.chain == before
    assert watched.events == ["certificates_not_reloaded"]
    files.put(files.cert, renewed.certificate.read_bytes())
    assert watched.chain == renewed.certificate.read_bytes()
    assert watched.events == ["certificates_reloaded"]


def test_grpc_gets_each_version_once(watched: Watched, files: Files, authority: Authority) -> None:
    """It builds a new TLS context of what it gets, for each handshake."""
    fetch = certificate_fetcher(watched.file)
    assert fetch() is None
    files.put_pair(authority.issue("renewed"))
    assert watched.chain == files.cert.read_bytes()
    assert isinstance(fetch(), grpc.ServerCertificateConfiguration)
    assert fetch() is None


@pytest.mark.parametrize(("damage", "reason"), BAD.values(), ids=BAD)
def test_broken_files_leave_the_last_good_ones(
    watched: Watched,
    files: Files,
    authority: Authority,
    damage: Callable[[Files, Authority], object],
    reason: str,
) -> None:
    before = watched.file.content
    damage(files, authority)
    for _ in range(3):
        assert watched.file.reload_if_changed() is before
    assert watched.events == ["certificates_not_reloaded"]


def test_a_secret_of_kubernetes_is_swapped_as_a_whole(
    settings: ServeSettings, tmp_path: Path, files: Files, authority: Authority
) -> None:
    """Each file is a link through the link ..data to a folder, and that link is replaced."""
    volume = tmp_path / "volume"
    for version in ("1", "2"):
        shutil.copytree(files.folder, volume / version)
    renewed = authority.issue("renewed")
    shutil.copy(renewed.certificate, volume / "2" / "tls.crt")
    shutil.copy(renewed.key, volume / "2" / "tls.key")
    (volume / "..data").symlink_to("1")
    for name in ("tls.crt", "tls.key"):
        (volume / name).symlink_to(f"..data/{name}")
    watched = Watched(replace(settings, tls_cert=volume / "tls.crt", tls_key=volume / "tls.key"))
    (volume / "..new").symlink_to("2")
    (volume / "..new").replace(volume / "..data")
    assert watched.chain == renewed.certificate.read_bytes()
    assert watched.events == ["certificates_reloaded"]


# Over the wire


async def until(condition: Callable[[], Any]) -> None:
    while not await condition():  # noqa: ASYNC110 - the service polls its files
        await asyncio.sleep(0.01)


async def certificate_of(address: str) -> str:
    """Return the certificate that a new connection gets, PEM."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return ssl.DER_cert_to_PEM_cert(der)


def trusting(authority: Authority, client: Pair | None = None) -> grpc.ChannelCredentials:
    if client is None:
        return grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    return grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(), client.key.read_bytes(), client.certificate.read_bytes()
    )


@asynccontextmanager
async def running(settings: ServeSettings, clock: FakeClock) -> AsyncIterator[app.App]:
    async with open_store(settings) as store:
        await store.create_tables()
    async with app.run_app(settings, clock, limits=FAST_POLLS) as service:
        yield service


async def is_served(service: app.App, credentials: grpc.ChannelCredentials) -> bool:
    """Return whether a new connection serves a call."""
    async with connected(service, credentials) as client:
        answer: Any
        (answer,) = await asyncio.gather(client.validate("x"), return_exceptions=True)
    if isinstance(answer, grpc.aio.AioRpcError):
        assert answer.code() is grpc.StatusCode.UNAVAILABLE
        return False
    return bool(answer.state == auth_pb2.TOKEN_STATE_INACTIVE)


async def test_new_connections_get_the_renewed_certificate_and_open_ones_live_on(
    settings: ServeSettings, clock: FakeClock, files: Files, authority: Authority, tmp_path: Path
) -> None:
    other = make_authority(tmp_path, "another authority")
    async with running(settings, clock) as service, connected(service, trusting(authority)) as before:
        await before.validate("x")
        renewed = other.issue("renewed")
        files.put_pair(renewed)

        async def is_renewed() -> bool:
            return await certificate_of(service.address) == renewed.certificate.read_text()

        await until(is_renewed)
        assert await is_served(service, trusting(other))
        await before.validate("x")
        assert before.channel.get_state() is grpc.ChannelConnectivity.READY
        assert not await is_served(service, trusting(authority)), "the open connection did not connect anew"


async def test_broken_files_change_nothing_for_new_connections(
    settings: ServeSettings, clock: FakeClock, files: Files, authority: Authority
) -> None:
    first = files.cert.read_text()
    async with running(settings, clock) as service:
        position = len(WITNESS.lines.getvalue())
        files.put(files.cert, authority.issue("renewed").certificate.read_bytes())

        async def is_reported() -> bool:
            return '"certificates_not_reloaded"' in WITNESS.lines.getvalue()[position:]

        await until(is_reported)
        assert await certificate_of(service.address) == first
        assert await is_served(service, trusting(authority))


async def test_a_renewed_client_ca_decides_who_connects(
    settings: ServeSettings, clock: FakeClock, files: Files, authority: Authority, tmp_path: Path
) -> None:
    other = make_authority(tmp_path, "another authority")
    old, new = trusting(authority, authority.issue("client")), trusting(authority, other.issue("client"))
    async with running(replace(settings, tls_client_ca=files.client_ca), clock) as service:
        assert await is_served(service, old)
        assert not await is_served(service, new)
        files.put(files.client_ca, other.certificate.read_bytes())
        await until(lambda: is_served(service, new))
        assert not await is_served(service, old)
        assert not await is_served(service, trusting(authority)), "a certificate is still needed"


async def test_the_metric_shows_when_certificates_expire(
    settings: ServeSettings, clock: FakeClock, files: Files, authority: Authority
) -> None:
    def expiry(certificate: str) -> float | None:
        return REGISTRY.get_sample_value("authsvc_certificate_expiry_timestamp_seconds", {"certificate": certificate})

    def end(pem: bytes) -> float:
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()

    soon, late = authority.issue("soon", days=3), authority.issue("late", days=300)
    files.put(files.client_ca, authority.certificate.read_bytes() + soon.certificate.read_bytes())
    async with running(replace(settings, tls_client_ca=files.client_ca), clock):
        assert expiry("server") == end(files.cert.read_bytes())
        assert expiry("client_ca") == end(soon.certificate.read_bytes()), "the first to expire"
        files.put_pair(late)

        async def is_renewed() -> bool:
            return expiry("server") == end(late.certificate.read_bytes())

        await until(is_renewed)


async def test_all_files_are_read_again_on_demand(
    settings: ServeSettings, clock: FakeClock, files: Files, tmp_path: Path
) -> None:
    callers = tmp_path / "callers.toml"
    callers.write_text('[callers.a]\ntls_identities = ["a.example.com"]\npermissions = ["login"]\n')
    async with open_store(settings) as store:
        await store.create_tables()
    demand, position = asyncio.Event(), len(WITNESS.lines.getvalue())
    never = replace(PATIENT_LIMITS, file_poll_seconds=3600)
    async with app.run_app(replace(settings, callers=callers), clock, limits=never, reload=demand):
        demand.set()

        async def is_done() -> bool:
            return all(
                f'"{subject}_reloaded"' in WITNESS.lines.getvalue()[position:]
                for subject in ("keys", "callers", "certificates")
            )

        await until(is_done)
        assert not demand.is_set()
