"""`authsvc doctor`: checks everything that the service needs, one line each, with the remedy."""

import shlex
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from authsvc import config
from authsvc.config import ServeSettings
from authsvc.errors import CallersFileError, ConfigError, KeyFileError, OperatorError, StoreUnavailableError
from authsvc.models import Clock, Finding
from authsvc.rpc.callers import read_callers
from authsvc.stores.opening import open_store
from authsvc.tokens.key_file import read_keys
from authsvc.tokens.keys import KeyStatus
from authsvc.usecases import data_checks

MAX_CLOCK_DIFFERENCE = timedelta(seconds=5)
CERTIFICATE_WARNING = timedelta(days=14)

_MISSING_TABLE = ("no such table", "ResourceNotFoundException")


def remedy_for(error: StoreUnavailableError) -> str:
    """Return how to repair a store that cannot answer."""
    if any(cause in error.cause for cause in _MISSING_TABLE):
        return "authsvc tables create"
    if error.cause.startswith("sqlite"):
        return "check that the disk has space and no other program locks or changes the file"
    if "SSLError" in error.cause:
        return "check the certificate of the endpoint, its name and its end; if its CA is your own, set AWS_CA_BUNDLE"
    return "check AWS_REGION, the credentials, AWS_ENDPOINT_URL_DYNAMODB and the network"


async def examine(environ: Mapping[str, str], clock: Clock) -> AsyncIterator[Finding]:
    """Check settings, keys, callers, TLS files, store, tables and clock, in this order.

    Args:
        environ: The environment that `serve` would get.
        clock: This host's.

    Yields:
        A finding for each thing checked.
    """
    try:
        settings = config.load(environ)
    except ConfigError as error:
        for problem in error.problems:
            name, _, text = problem.partition(": ")
            yield Finding(f"setting {name}", text, "see authsvc serve --help")
        return
    yield Finding("settings")
    for line in config.unknown_settings(environ):
        problem, _, meant = line.partition("; ")
        yield Finding("settings", problem, f"write {meant.removesuffix('?')}" if meant else "remove it")
    yield _examine_keys(settings.signing_keys, clock)
    for finding in _examine_callers(settings):
        yield finding
    for finding in _examine_tls(settings, clock):
        yield finding
    async for finding in _examine_store(settings, clock):
        yield finding


def _examine_keys(path: Path, clock: Clock) -> Finding:
    subject, file = f"keys in {path}", shlex.quote(str(path))
    try:
        keys = read_keys(path)
    except KeyFileError as error:
        problem = str(error).removeprefix(f"{path}: ").partition("; ")[0]
        remedy = f"authsvc keys generate {file}"
        return Finding(subject, problem, f"restore it, or remove it and {remedy}" if path.exists() else remedy)
    if path.stat().st_mode & 0o077:
        return Finding(subject, "other users than the owner may read the file", f"chmod 600 {file}")
    if max(key.create_time for key in keys) > clock().timestamp():
        return Finding(subject, "were created in the future: this host's clock is slow", "set the clock")
    if not any(key.status is KeyStatus.NEXT for key in keys):
        return Finding(subject, "no next key is published", f"authsvc keys rotate {file}, which adds one")
    return Finding(subject)


def _examine_callers(settings: ServeSettings) -> Iterator[Finding]:
    path = settings.callers
    if path is None:
        return
    subject = f"callers in {path}"
    try:
        callers = read_callers(path)
    except CallersFileError as error:
        yield from (Finding(subject, problem, "correct the file") for problem in error.problems)
        return
    if path.stat().st_mode & 0o022:
        problem = "other users than the owner may write the file, and so decide who may call"
        yield Finding(subject, problem, f"chmod go-w {shlex.quote(str(path))}")
    elif callers.has_tls_identities and settings.tls_client_ca is None:
        yield Finding(subject, "TLS identities need a client CA", "set AUTHSVC_TLS_CLIENT_CA")
    else:
        yield Finding(subject)


def _examine_tls(settings: ServeSettings, clock: Clock) -> Iterator[Finding]:
    if settings.tls_cert is None or settings.tls_key is None:
        return
    subject = f"certificate in {settings.tls_cert}"
    try:
        # An empty password: for an encrypted key OpenSSL would prompt.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, "")
        yield _examine_dates(subject, x509.load_pem_x509_certificate(settings.tls_cert.read_bytes()), clock)
    except (OSError, ValueError) as error:
        problem = f"cannot be used with the key in {settings.tls_key}: {_reason(error)}"
        yield Finding(subject, problem, "name the certificate and its unencrypted key, both PEM files")
    if settings.tls_client_ca is None:
        return
    subject = f"client CA in {settings.tls_client_ca}"
    try:
        for certificate in x509.load_pem_x509_certificates(settings.tls_client_ca.read_bytes()):
            yield _examine_dates(subject, certificate, clock)
    except (OSError, ValueError):
        yield Finding(subject, "holds no certificate", "name the CA's certificate, a PEM file")


def _examine_dates(subject: str, certificate: x509.Certificate, clock: Clock) -> Finding:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if clock() < begin:
        return Finding(subject, f"is not valid before {begin}", "set the clock, or wait")
    return Finding(subject, "" if end - clock() > CERTIFICATE_WARNING else f"expires {end}", "renew it")


def _reason(error: Exception) -> str:
    """Return OpenSSL's name of the problem; it has none for a text that is not PEM."""
    if isinstance(error, ssl.SSLError):
        return error.reason.replace("_", " ").lower() if error.reason else "not PEM"
    return str(error)


async def _examine_store(settings: ServeSettings, clock: Clock) -> AsyncIterator[Finding]:
    subject = f"store {settings.store}"
    if settings.sqlite_path is not None and not settings.sqlite_path.exists():
        yield Finding(subject, "no such file", "authsvc tables create")
        return
    store_time = None
    try:
        async with open_store(settings) as store:
            for finding in await store.check_tables():
                yield finding
            store_time = await store.ping()
            yield Finding(subject)
            yield await data_checks.check_hashes(store, settings.bcrypt_cost)
    except StoreUnavailableError as error:
        yield Finding(subject, str(error), remedy_for(error))
    except OperatorError as error:
        yield Finding(subject, str(error), "correct AUTHSVC_STORE, or AWS's own settings")
    if store_time is not None:
        difference = abs(store_time - clock())
        problem = "" if difference <= MAX_CLOCK_DIFFERENCE else f"differs by {difference} from the store's"
        yield Finding("clock", problem, "run a time service, for instance chrony")
