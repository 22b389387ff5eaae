"""`authsvc tables`: creates and checks what the store needs."""

import click

from authsvc.cli.command import command, echo, load_existing_store_settings, load_store_settings, report
from authsvc.errors import StoreUnavailableError
from authsvc.models import Finding


@click.group()
def tables() -> None:
    """Create and check what the store needs."""


@tables.command(name="create")
@command
async def create_tables() -> None:
    """Create what is missing, and leave what is there."""
    from authsvc.stores.opening import open_store

    async with open_store(load_store_settings()) as store:
        for line in await store.create_tables() or ["nothing to do"]:
            echo(line)


@tables.command(name="check")
@command
async def check_tables() -> None:
    """Compare what is there with what must be there.

    Lists the users whose rows are unreadable, who share an address, or whose address is not in
    normal form.
    """
    from authsvc.cli.doctor import remedy_for
    from authsvc.stores.opening import open_store
    from authsvc.usecases.data_checks import check_addresses

    # An unreadable row is reported as a finding, not as a log line.
    async with open_store(load_existing_store_settings("critical")) as store:
        findings = list(await store.check_tables())
        try:
            findings += (await check_addresses(store)).lines()
        except StoreUnavailableError as error:
            findings.append(Finding("addresses", str(error), remedy_for(error)))
    report(findings)
