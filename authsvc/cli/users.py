"""`authsvc users`: administration on the store itself, without a running service."""

import functools
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from authsvc.cli.command import command, echo, load_existing_store_settings, open_users, read_secret
from authsvc.config import StoreSettings
from authsvc.errors import (
    EmailAlreadyExistsError,
    InvalidFieldError,
    OperatorError,
    UserNotFoundError,
)
from authsvc.models import User

if TYPE_CHECKING:
    from authsvc.usecases.users import TemporaryPassword, Users

PASSWORD_LINE_MAX_BYTES = 4096
"""Read from standard input: far more than a password may have."""

_USER = click.argument("user")


@click.group()
def users() -> None:
    """Administer users without a running service.

    USER is an id or an address. An id that begins with a dash goes after --.
    """


@users.command(name="create")
@click.option("--email", required=True, help="Address of the user.")
@click.option("--role", default="user", show_default=True, help="Role; admin may call UserService.")
@click.option("--temporary", is_flag=True, help="Print a temporary password, to be changed within 24 hours.")
@command
def create_user(email: str, role: str, *, temporary: bool) -> Coroutine[Any, Any, None]:
    """Create a user and print its id.

    A terminal prompts for the password; otherwise it is the first line of standard input.
    A temporary password is printed on the line after the id.
    """
    settings = load_existing_store_settings()
    # Before the event loop runs, whose signal handling would keep Ctrl-C from the prompt.
    return _create_user(
        settings, email, role, None if temporary else read_secret("Password", PASSWORD_LINE_MAX_BYTES, confirm=True)
    )


async def _create_user(settings: StoreSettings, email: str, role: str, password: str | None) -> None:
    try:
        async with open_users(settings) as use_cases:
            if password is None:
                user, temporary = await use_cases.create_user_with_temporary_password(email=email, role=role)
            else:
                user, temporary = await use_cases.create_user(email=email, role=role, password=password), None
    except EmailAlreadyExistsError:
        raise OperatorError(f"another user has the address {email}: authsvc users list") from None
    echo(user.user_id)
    if temporary is not None:
        _print_temporary(temporary)


@users.command(name="list")
@command
async def list_users() -> None:
    """Print every user.

    A line has id, email, role, and active or disabled, separated by tabs. A domain
    that is not ASCII is followed by its A-labels in parentheses.
    """
    from authsvc.stores.opening import open_store
    from authsvc.usecases.users import iterate_users

    async with open_store(load_existing_store_settings()) as store:
        async for user in iterate_users(store):
            _print_user(user)


@users.command(name="disable")
@_USER
@command
async def disable_user(user: str) -> None:
    """End all sessions of USER and refuse its logins.

    USER is an id or an address.
    """
    await _set_active(user, is_active=False)


@users.command(name="enable")
@_USER
@command
async def enable_user(user: str) -> None:
    """Let USER log in again; ended sessions stay ended.

    USER is an id or an address.
    """
    await _set_active(user, is_active=True)


@users.command(name="reset-password")
@_USER
@command
async def reset_password(user: str) -> None:
    """End all sessions of USER; print a temporary password.

    It must be changed within 24 hours. USER is an id or an address.
    """
    async with open_users(load_existing_store_settings()) as use_cases:
        temporary = await use_cases.reset_password(await _find_user_id(use_cases, user))
    _print_temporary(temporary)


@users.command(name="revoke-sessions")
@_USER
@command
async def revoke_sessions(user: str) -> None:
    """End all sessions of USER.

    USER is an id or an address.
    """
    async with open_users(load_existing_store_settings()) as use_cases:
        user_id = await _find_user_id(use_cases, user)
        await use_cases.end_all_sessions(user_id)
    echo(f"ended all sessions of {user_id}")


@users.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@command
async def import_users(file: Path) -> None:
    """Create users with the password hashes of another program.

    Each line of FILE is a JSON object: email, password_hash, and role, which defaults to user.
    Hashes are bcrypt ($2a$, $2b$, $2y$) of cost 4 to 16, or $bcrypt-sha256$v=2.

    A line that cannot be imported is reported with its number, and the import goes on. A user
    who exists already is left as it is, so the same file may be imported again.
    """
    from authsvc.usecases import user_import

    async with open_users(load_existing_store_settings()) as use_cases:
        result = await user_import.import_users(use_cases, file, functools.partial(echo, err=True))
    echo(result)
    if result.wrong:
        sys.exit(1)


async def _set_active(name: str, *, is_active: bool) -> None:
    async with open_users(load_existing_store_settings()) as use_cases:
        user = await use_cases.update_user(await _find_user_id(use_cases, name), is_active=is_active)
    _print_user(user)


async def _find_user_id(use_cases: "Users", name: str) -> str:
    """Return the id of a user who is named by id or address; in rows of other programs an id may be an address."""
    try:
        return (await use_cases.get_user(name)).user_id
    except UserNotFoundError:
        if "@" not in name:
            raise
        return (await use_cases.get_user_by_email(name)).user_id


def _print_user(user: User) -> None:
    state = "active" if user.is_active else "disabled"
    echo(user.user_id, f"{user.email}{_a_labels(user.email)}", user.role, state)


def _a_labels(email: str) -> str:
    """Return a domain that is not ASCII in A-labels, which look-alikes do not share; else an empty text."""
    from authsvc import fields

    try:
        a_labels = fields.parse_email(email).ascii.partition("@")[2]
    except InvalidFieldError:  # a row of another program
        return ""
    return f" ({a_labels})" if a_labels.isascii() and not email.partition("@")[2].isascii() else ""


def _print_temporary(temporary: "TemporaryPassword") -> None:
    echo(temporary.text)
    echo(f"must be changed before {temporary.expire_time:%Y-%m-%d %H:%M} UTC", err=True)
