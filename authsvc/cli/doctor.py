"""`authsvc doctor`: checks everything that the service needs, one line each, with the remedy."""

import asyncio
import math
import os
import shlex
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from authsvc import config
from authsvc.config import KeyLocation, ServeSettings
from authsvc.errors import (
    WRONG_CLOCK,
    CallersFileError,
    ConfigError,
    KeyFileError,
    OperatorError,
    StoreUnavailableError,
)
from authsvc.models import Clock, Finding
from authsvc.passwords.hasher import SLOW_HASH_SECONDS, estimate_seconds
from authsvc.rpc.callers import read_callers
from authsvc.server.certificates import read_certificates
from authsvc.server.tls_handshake import try_handshake
from authsvc.stores.opening import open_store
from authsvc.tokens.keys import KeyStatus
from authsvc.tokens.opening import open_key_store
from authsvc.usecases import data_checks

MAX_CLOCK_DIFFERENCE = timedelta(seconds=5)
CERTIFICATE_WARNING = timedelta(days=14)
ADVISED_HASH_SECONDS = 1.0
MIN_COST_SETTING = 10
"""The lowest that the setting accepts."""

_CLIENT_CA_REMEDY = "set AUTHSVC_TLS_CLIENT_CA, with which every client needs a certificate; or remove tls_identities"
_CLOCK_REMEDY = "run a time service, for instance chrony"


def remedy_for(error: StoreUnavailableError) -> str:
    """Return how to repair a store that cannot answer."""
    if "no such table" in error.cause:
        return "authsvc tables create"
    if "ResourceNotFoundException" in error.cause:
        return "authsvc tables create, where AWS_REGION and AUTHSVC_TABLE_PREFIX are right"
    if error.cause.startswith("sqlite"):
        is_damaged = "damaged" in error.cause or "malformed" in error.cause
        check = "check that the disk has space and no other program locks or changes the file"
        return "restore the file from a backup" if is_damaged else check
    if WRONG_CLOCK in error.cause:
        return _CLOCK_REMEDY
    if "SSLError" in error.cause:
        return (
            "check the certificate of the endpoint or of the proxy, its name and its end, and this host's clock;"
            " if its CA is your own, set AWS_CA_BUNDLE"
        )
    return "check AWS_REGION, the credentials, AWS_ENDPOINT_URL_DYNAMODB and the network"


async def examine(environ: Mapping[str, str], clock: Clock) -> AsyncIterator[Finding]:
    """Check settings, keys, callers, TLS files, store, tables and clock, in this order.

    Args:
        environ: The environment that `serve` would get.
        clock: This host's.

    Yields:
        A finding for each thing checked.
    """
    settings = None
    try:
        settings = config.load(environ)
    except ConfigError as error:
        for problem in error.problems:
            name, _, text = problem.partition(": ")
            yield Finding(f"setting {name}", text, "see authsvc serve --help")
    else:
        yield Finding("settings")
    for line in config.unknown_settings(environ):
        problem, _, meant = line.partition("; ")
        yield Finding("settings", problem, f"write {meant.removesuffix('?')}" if meant else "remove it")
    if settings is None:
        return
    yield await _examine_keys(settings.signing_keys, clock)
    for finding in _examine_callers(settings):
        yield finding
    async for finding in _examine_tls(settings, clock):
        yield finding
    seconds_per_hash = await asyncio.to_thread(estimate_seconds, settings.bcrypt_cost)
    yield _examine_hash_cost(settings.bcrypt_cost, seconds_per_hash)
    async for finding in _examine_store(settings, clock, seconds_per_hash):
        yield finding


async def _examine_keys(location: KeyLocation, clock: Clock) -> Finding:
    subject, quoted = f"keys in {location}", shlex.quote(str(location))
    try:
        async with open_key_store(location) as store:
            keys = (await store.read()).key_set.keys
    except ConfigError as error:
        return Finding(subject, str(error), "correct AWS's own settings")
    except KeyFileError as error:
        problem, _, remedy = str(error).removeprefix(f"{location}: ").partition("; ")
        return Finding(subject, problem, remedy.removeprefix("create it: ") or _broken_keys_remedy(quoted))
    if isinstance(location, Path) and _is_readable_by_others(location.stat()):
        return Finding(subject, "other users than the owner may read the file", f"chmod 600 {quoted}")
    if max(key.create_time for key in keys) > clock().timestamp():
        return Finding(subject, "were created in the future: this host's clock is slow", "set the clock")
    if not any(key.status is KeyStatus.NEXT for key in keys):
        return Finding(subject, "no next key is published", f"authsvc keys rotate {quoted}, which adds one")
    return Finding(subject)


def _is_readable_by_others(status: os.stat_result) -> bool:
    """Return whether others than the service may read its keys, which it may itself read as a member of a group."""
    is_for_service_group = status.st_uid == 0 != status.st_gid
    return bool(status.st_mode & (0o007 if is_for_service_group else 0o077))


def _broken_keys_remedy(keys: str) -> str:
    lost = "after which every access token is invalid and clients refresh"
    return f"restore it from a backup; without one, move it away and authsvc keys generate {keys}, {lost}"


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
        yield Finding(subject, "TLS identities need a client CA", _CLIENT_CA_REMEDY)
    else:
        yield Finding(subject)


async def _examine_tls(settings: ServeSettings, clock: Clock) -> AsyncIterator[Finding]:
    if settings.tls_cert is None:
        return
    try:
        certificates = read_certificates(settings)
    except ConfigError as error:
        for problem in error.problems:
            yield Finding("TLS files", problem, "correct the file: serve refuses it too")
        return
    subject = f"certificate in {settings.tls_cert}"
    reason = await asyncio.to_thread(try_handshake, certificates)
    if reason:
        yield Finding(subject, f"a handshake of gRPC with itself fails: {reason}", "use another certificate")
    else:
        yield _examine_dates(subject, certificates.chain, clock)
    if certificates.client_ca is not None:
        yield _examine_dates(f"client CA in {settings.tls_client_ca}", certificates.client_ca, clock)


def _examine_dates(subject: str, pem: bytes, clock: Clock) -> Finding:
    """Return the first problem with a date of the certificates of a file."""
    for certificate in x509.load_pem_x509_certificates(pem):
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if clock() < begin:
            return Finding(subject, f"is not valid before {begin}", "set the clock, or wait")
        if end - clock() <= CERTIFICATE_WARNING:
            return Finding(subject, f"expires {end}", "renew it")
    return Finding(subject)


def _examine_hash_cost(cost: int, seconds_per_hash: float) -> Finding:
    """Warn of a cost with which logins fail on this host, which need not be the one that serves."""
    subject = f"AUTHSVC_BCRYPT_COST={cost}"
    if seconds_per_hash <= SLOW_HASH_SECONDS:
        return Finding(subject)
    # Each step down halves the time.
    advised = cost - math.ceil(math.log2(seconds_per_hash / ADVISED_HASH_SECONDS))
    remedy = f"set AUTHSVC_BCRYPT_COST={advised}" if advised >= MIN_COST_SETTING else "use a faster host"
    problem = f"a hash takes about {seconds_per_hash:.0f} s of this host's CPU, and a login at most 10 s"
    return Finding(subject, problem, remedy, is_warning=True)


async def _examine_store(settings: ServeSettings, clock: Clock, seconds_per_hash: float) -> AsyncIterator[Finding]:
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
            yield await data_checks.check_hashes(store, settings.bcrypt_cost, seconds_per_hash)
    except StoreUnavailableError as error:
        yield Finding(subject, str(error), remedy_for(error))
    except OperatorError as error:
        yield Finding(subject, str(error), "correct AUTHSVC_STORE, or AWS's own settings")
    if store_time is not None:
        difference = abs(store_time - clock())
        problem = "" if difference <= MAX_CLOCK_DIFFERENCE else f"differs by {difference} from the store's"
        yield Finding("clock", problem, _CLOCK_REMEDY)
