"""`authsvc callers`: credentials of the backends that may call."""

import click

from authsvc.cli.command import command, echo


@click.group()
def callers() -> None:
    """Administer the backends that may call."""


@callers.command(name="new-key")
@command
async def new_api_key() -> None:
    """Print a new API key, and its SHA-256 for the callers file.

    The key is for the backend alone: it is stored nowhere.
    """
    from authsvc.rpc.callers import api_key_digest
    from authsvc.rpc.callers import new_api_key as generate_api_key

    key = generate_api_key()
    digest = api_key_digest(key)
    echo(key)
    echo(digest)
    echo(f'in the callers file: api_key_sha256 = ["{digest}"]', err=True)
