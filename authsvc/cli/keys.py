"""`authsvc keys`: the keys that sign access tokens, in a file or in AWS."""

import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from authsvc import config
from authsvc.cli.command import command, echo
from authsvc.config import AwsKeys, KeyLocation
from authsvc.models import utc_now

if TYPE_CHECKING:
    from authsvc.tokens.key_store import KeyStore
    from authsvc.tokens.keys import Key


class _Location(click.ParamType[KeyLocation]):
    """A place of keys, as the setting has it."""

    name = "keys"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> KeyLocation:
        """See click."""
        try:
            return config.key_location(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_LOCATION = click.argument("location", metavar="KEYS", type=_Location())


@click.group()
def keys() -> None:
    """Administer the keys that sign access tokens.

    KEYS is a file, ssm:NAME (AWS Parameter Store) or secretsmanager:NAME (AWS Secrets Manager),
    as in AUTHSVC_SIGNING_KEYS. Commands that run at the same time lose no key.
    """


@keys.command(name="generate")
@_LOCATION
@click.option(
    "--alg",
    type=click.Choice(["ES256", "RS256"]),
    default="ES256",
    show_default=True,
    help="RS256 for gateways that accept only RSA; not in ssm:NAME, whose 4 KB it exceeds.",
)
@command
async def generate_keys(location: KeyLocation, alg: str) -> None:
    """Create KEYS with a signing key and the next one.

    Only its owner may read the file; a parameter is a SecureString.
    """
    from authsvc.tokens import key_store

    async with _open(location) as store:
        _print_keys(await key_store.generate_keys(store, alg, utc_now()))


@keys.command(name="list")
@_LOCATION
@command
async def list_keys(location: KeyLocation) -> None:
    """Print each key of KEYS: id, algorithm, status.

    A retired key is followed by the time until which it verifies.
    """
    async with _open(location) as store:
        _print_keys((await store.read()).key_set.keys)


@keys.command(name="rotate")
@_LOCATION
@command
async def rotate_keys(location: KeyLocation) -> None:
    """Let the next key of KEYS sign, and add a new next one.

    The old key verifies until its last token has expired, by AUTHSVC_ACCESS_TOKEN_TTL as the
    service has it. Running services read a changed file within 2 seconds, keys in AWS within 60,
    and both at once after SIGHUP.
    """
    from authsvc.tokens import key_store

    now = utc_now()
    lifetime = config.load_setting(os.environ, "access_token_ttl")
    async with _open(location) as store:
        change = await key_store.rotate_keys(store, lifetime, now)
    _print_keys(key for key in change.after if key.status == "signing" or key not in change.before)
    before, after = _signing_key(change.before), _signing_key(change.after)
    if before == after:
        echo("there was no next key: one is published now; rotate again in 2 hours", err=True)
    else:
        echo(f"the old key verifies until that time, for tokens of AUTHSVC_ACCESS_TOKEN_TTL={lifetime}", err=True)
        _warn_of_early_use(after, now)


@keys.command(name="remove")
@_LOCATION
@click.argument("kid")
@command
async def remove_key(location: KeyLocation, kid: str) -> None:
    """Remove the key KID from KEYS; its tokens become invalid.

    For a key that has leaked. Where it signed, the next one signs. Running services read a
    changed file within 2 seconds, keys in AWS within 60, and both at once after SIGHUP. The
    remaining keys are printed. A KID that begins with a dash goes after --.
    """
    from authsvc.tokens import key_store

    now = utc_now()
    async with _open(location) as store:
        change = await key_store.remove_key(store, kid, now)
    _print_keys(change.after)
    _warn_of_early_use(_signing_key(change.after), now)


@asynccontextmanager
async def _open(location: KeyLocation) -> "AsyncIterator[KeyStore]":
    from authsvc.tokens.opening import open_key_store

    if isinstance(location, AwsKeys):
        from authsvc.telemetry import logs

        config.check_aws_variables(os.environ)
        logs.configure(config.load_setting(os.environ, "log_format"), "warning")
    async with open_key_store(location) as store:
        yield store


def _signing_key(listed: "Sequence[Key]") -> "Key":
    return next(key for key in listed if key.status == "signing")


def _warn_of_early_use(key: "Key", now: datetime) -> None:
    from authsvc.tokens.key_store import was_just_published

    if was_just_published(key, now):
        text = f"key {key.kid} signs less than 2 hours after it was published: gateways may not know it yet"
        echo(f"warning: {text}", err=True)


def _print_keys(listed: "Iterable[Key]") -> None:
    for key in listed:
        until = (
            () if key.retire_time is None else (f"{datetime.fromtimestamp(key.retire_time, UTC):%Y-%m-%dT%H:%M:%SZ}",)
        )
        echo(key.kid, key.alg, key.status, *until)
