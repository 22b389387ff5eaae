"""`authsvc keys`: the file of the keys that sign access tokens."""

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from authsvc import config
from authsvc.cli.command import command, echo
from authsvc.models import utc_now

if TYPE_CHECKING:
    from authsvc.tokens.keys import Key

_KEY_FILE = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def keys() -> None:
    """Administer the keys that sign access tokens."""


@keys.command(name="generate")
@_KEY_FILE
@click.option(
    "--alg",
    type=click.Choice(["ES256", "RS256"]),
    default="ES256",
    show_default=True,
    help="RS256 for gateways that accept only RSA.",
)
@command
async def generate_keys(file: Path, alg: str) -> None:
    """Create FILE with a signing key and the next one.

    Only its owner may read it.
    """
    from authsvc.tokens.key_file import generate_key_file

    _print_keys(generate_key_file(file, alg, utc_now()))


@keys.command(name="list")
@_KEY_FILE
@command
async def list_keys(file: Path) -> None:
    """Print each key of FILE: id, algorithm, status.

    A retired key is followed by the time until which it verifies.
    """
    from authsvc.tokens.key_file import read_keys

    _print_keys(read_keys(file))


@keys.command(name="rotate")
@_KEY_FILE
@command
async def rotate_keys(file: Path) -> None:
    """Let the next key of FILE sign, and add a new next one.

    The old key verifies until its last token has expired, by AUTHSVC_ACCESS_TOKEN_TTL as the
    service has it. Running services reload the file within 2 seconds.
    """
    from authsvc.tokens import key_file

    now = utc_now()
    lifetime = config.load_setting(os.environ, "access_token_ttl")
    rotation = key_file.rotate_keys(file, lifetime, now)
    _print_keys(filter(None, (rotation.retired, rotation.signing, rotation.following)))
    if rotation.retired is None:
        echo("there was no next key: one is published now; rotate again in 2 hours", err=True)
    else:
        echo(f"the old key verifies until that time, for tokens of AUTHSVC_ACCESS_TOKEN_TTL={lifetime}", err=True)
        _warn_of_early_use(rotation.signing, now)


@keys.command(name="remove")
@_KEY_FILE
@click.argument("kid")
@command
async def remove_key(file: Path, kid: str) -> None:
    """Remove the key KID from FILE; its tokens become invalid.

    For a key that has leaked. Where it signed, the next one signs. Running services reload the
    file within 2 seconds. The remaining keys are printed. A KID that begins with a dash goes
    after --.
    """
    from authsvc.tokens import key_file

    now = utc_now()
    remaining = key_file.remove_key(file, kid, now)
    _print_keys(remaining)
    _warn_of_early_use(next(key for key in remaining if key.status == "signing"), now)


def _warn_of_early_use(key: "Key", now: datetime) -> None:
    from authsvc.tokens.key_file import was_just_published

    if was_just_published(key, now):
        text = f"key {key.kid} signs less than 2 hours after it was published: gateways may not know it yet"
        echo(f"warning: {text}", err=True)


def _print_keys(listed: "Iterable[Key]") -> None:
    for key in listed:
        until = (
            () if key.retire_time is None else (f"{datetime.fromtimestamp(key.retire_time, UTC):%Y-%m-%dT%H:%M:%SZ}",)
        )
        echo(key.kid, key.alg, key.status, *until)
