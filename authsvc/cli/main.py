"""The `authsvc` command. A command imports what it needs when it runs, so that help comes at once."""

import asyncio
import functools
import io
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from authsvc import __version__, config
from authsvc.config import Settings
from authsvc.errors import (
    AuthsvcError,
    ConfigError,
    EmailAlreadyExistsError,
    OperatorError,
    StoreUnavailableError,
    UserNotFoundError,
)
from authsvc.models import Finding, User, utc_now
from authsvc.stores.interface import Store
from authsvc.stores.opening import open_store

if TYPE_CHECKING:
    from authsvc.tokens.keys import Key
    from authsvc.usecases.users import TemporaryPassword, Users

PASSWORD_LINE_MAX_BYTES = 4096
"""Read of standard input; far more than a password may have."""

P = ParamSpec("P")
_USER = click.argument("user")
_KEY_FILE = click.argument("file", type=click.Path(path_type=Path))


def on_uvloop(main: Coroutine[Any, Any, None]) -> None:
    """Run what serves on uvloop, which spends far less on each call than asyncio's own loop."""
    import uvloop

    uvloop.run(main)


def command(
    function: Callable[P, Coroutine[Any, Any, None]],
    run_loop: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
) -> Callable[P, None]:
    """Make a command of a coroutine: errors go to stderr as one line each, with exit code 1."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            run_loop(function(*args, **kwargs))
        except AuthsvcError as error:
            for line in _text_of(error).splitlines():
                click.echo(f"error: {line}", err=True)
            sys.exit(1)

    return run


class CommandOfIds(click.Command):
    """A command without options of its own: one id in 64 begins with a dash."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click.Command."""
        has_option = {"-h", "--help", "--"}.intersection(args)
        return super().parse_args(ctx, args if has_option else ["--", *args])


def _text_of(error: AuthsvcError) -> str:
    """Return an error's own text, with the remedy where one is known; else what its class is for."""
    if isinstance(error, StoreUnavailableError):
        from authsvc.cli.doctor import remedy_for

        return f"{error}. Remedy: {remedy_for(error)}"
    return str(error) or (type(error).__doc__ or "").partition("\n")[0]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="authsvc")
def main() -> None:
    """Authentication as a gRPC service: users, passwords, sessions and access tokens."""
    # gRPC's own lines have no structure, and say less than the errors that they come with.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A path may have bytes that are no text: show them, rather than fail.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@main.command(name="dev")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=".authsvc",
    show_default=True,
    help="Folder of the store, the keys and the admin's password.",
)
@functools.partial(command, run_loop=on_uvloop)
async def run_dev(data_dir: Path) -> None:
    """Serve on this machine, ready to call.

    The store is embedded. The first start creates an admin; each start prints grpcurl commands
    that work as pasted. Settings come from the environment and from a file .env beside it.
    """
    from authsvc.cli import dev

    environ = dev.environment(data_dir, os.environ)
    settings = config.load(environ, dev.DEFAULTS)
    _start_logs(settings, environ)
    await dev.run(data_dir, settings)


@main.command(epilog="\b\nSettings, from the environment:\n" + config.describe())
@functools.partial(command, run_loop=on_uvloop)
async def serve() -> None:
    """Serve in production.

    Every setting is explicit; all problems of the configuration are reported at once.
    """
    settings = config.load(os.environ)
    _start_logs(settings, os.environ)
    if settings.workers > 1:
        from authsvc.server import workers

        await workers.serve(settings)
    else:
        from authsvc.server import app

        await app.serve(settings)


@main.command(name="worker", hidden=True)
@click.argument("number", type=int)
@functools.partial(command, run_loop=on_uvloop)
async def run_worker(number: int) -> None:
    """Serve as one of the workers that `serve` starts."""
    from authsvc.server import app, workers
    from authsvc.telemetry import logs

    settings = config.load(os.environ)
    logs.configure(settings.log_format, settings.log_level, settings.log_digest_key or None, worker=number)
    workers.end_with_parent()
    await app.serve(settings, on_start=workers.report_to_parent)


@main.group()
def tables() -> None:
    """Make and check what the store needs."""


@tables.command(name="create")
@command
async def create_tables() -> None:
    """Make what is missing, and leave what is there."""
    async with _opened_store(_store_settings()) as store:
        for line in await store.create_tables() or ["nothing to do"]:
            click.echo(line)


@tables.command(name="check")
@command
async def check_tables() -> None:
    """Compare what is there with what must be there.

    Rows of users that are unreadable, share an address, or have one that is not in normal form,
    are listed too.
    """
    from authsvc.cli.doctor import remedy_for
    from authsvc.usecases.data_checks import check_addresses

    # What is logged of an unreadable row is a finding here.
    async with _opened_store(_existing_store_settings("critical")) as store:
        findings = list(await store.check_tables())
        try:
            findings += (await check_addresses(store)).lines()
        except StoreUnavailableError as error:
            findings.append(Finding("addresses", str(error), remedy_for(error)))
    _report(findings)


@main.group()
def users() -> None:
    """Administer users without a running service."""


@users.command(name="create")
@click.option("--email", required=True, help="Address of the user.")
@click.option("--role", default="user", show_default=True, help="Role; admin may call UserService.")
@click.option("--temporary", is_flag=True, help="Print a temporary password, to be changed within 24 hours.")
@command
def create_user(email: str, role: str, *, temporary: bool) -> Coroutine[Any, Any, None]:
    """Create a user and print its id.

    The password is asked for on a terminal; otherwise it is the first line of standard input.
    A temporary one is printed in a line after the id.
    """
    settings = _existing_store_settings()
    # Before the event loop runs, which would keep Ctrl-C from the prompt.
    return _create_user(settings, email, role, None if temporary else _read_password())


async def _create_user(settings: Settings, email: str, role: str, password: str | None) -> None:
    try:
        async with _opened_accounts(settings) as accounts:
            if password is None:
                user, temporary = await accounts.create_user_with_temporary_password(email=email, role=role)
            else:
                user, temporary = await accounts.create_user(email=email, role=role, password=password), None
    except EmailAlreadyExistsError:
        raise OperatorError(f"a user has the address {email} already: authsvc users list") from None
    click.echo(user.user_id)
    if temporary is not None:
        _print_temporary(temporary)


def _print_temporary(temporary: "TemporaryPassword") -> None:
    click.echo(temporary.text)
    click.echo(f"must be changed before {temporary.expire_time:%Y-%m-%d %H:%M} UTC", err=True)


@users.command(name="list")
@command
async def list_users() -> None:
    """Print every user.

    A line has id, email, role, and active or disabled, separated by tabs.
    """
    from authsvc.usecases.users import iterate_users

    async with _opened_store(_existing_store_settings()) as store:
        async for user in iterate_users(store):
            _print_user(user)


def _print_user(user: User) -> None:
    state = "active" if user.is_active else "disabled"
    click.echo(f"{user.user_id}\t{user.email}\t{user.role}\t{state}")


@users.command(name="disable", cls=CommandOfIds)
@_USER
@command
async def disable_user(user: str) -> None:
    """End all sessions of USER and let none begin.

    USER is an id or an address.
    """
    await _set_active(user, is_active=False)


@users.command(name="enable", cls=CommandOfIds)
@_USER
@command
async def enable_user(user: str) -> None:
    """Let USER log in again; no session revives.

    USER is an id or an address.
    """
    await _set_active(user, is_active=True)


async def _set_active(named: str, *, is_active: bool) -> None:
    async with _opened_accounts(_existing_store_settings()) as accounts:
        user = await accounts.update_user(await _user_id(accounts, named), is_active=is_active)
    _print_user(user)


@users.command(name="reset-password", cls=CommandOfIds)
@_USER
@command
async def reset_password(user: str) -> None:
    """End all sessions of USER; print a temporary password.

    It must be changed within 24 hours. USER is an id or an address.
    """
    async with _opened_accounts(_existing_store_settings()) as accounts:
        temporary = await accounts.reset_password(await _user_id(accounts, user))
    _print_temporary(temporary)


@users.command(name="revoke-sessions", cls=CommandOfIds)
@_USER
@command
async def revoke_sessions(user: str) -> None:
    """End all sessions of USER.

    USER is an id or an address.
    """
    async with _opened_accounts(_existing_store_settings()) as accounts:
        user_id = await _user_id(accounts, user)
        await accounts.end_all_sessions(user_id)
    click.echo(f"ended all sessions of {user_id}")


async def _user_id(accounts: "Users", named: str) -> str:
    """Return the id of a user who is named by id or address; other programs may have made addresses ids."""
    try:
        return (await accounts.get_user(named)).user_id
    except UserNotFoundError:
        if "@" not in named:
            raise
        return (await accounts.get_user_by_email(named)).user_id


@users.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@command
async def import_users(file: Path) -> None:
    """Create users with the password hashes of another program.

    Each line of FILE is a JSON object: email, password_hash, and role, which is user where left out.
    Hashes are bcrypt ($2a$, $2b$, $2y$) of cost 4 to 16, or $bcrypt-sha256$v=2.

    What is wrong with a line is told with its number, and the others go on. An address that a
    user has already is left as it is, so the same file may be imported again.
    """
    from authsvc.usecases import user_import

    async with _opened_accounts(_existing_store_settings()) as accounts:
        result = await user_import.import_users(accounts, file, lambda line: click.echo(line, err=True))
    click.echo(str(result))
    if result.wrong:
        sys.exit(1)


@main.group(name="keys")
def key_files() -> None:
    """Administer the keys that sign access tokens."""


@key_files.command(name="generate")
@_KEY_FILE
@click.option(
    "--alg",
    type=click.Choice(["ES256", "RS256"]),
    default="ES256",
    show_default=True,
    help="RS256 for gateways that take only RSA.",
)
@command
async def generate_keys(file: Path, alg: str) -> None:
    """Make FILE with a signing key and the next one.

    Only its owner may read it.
    """
    from authsvc.tokens.key_file import generate_key_file

    _print_keys(generate_key_file(file, alg, utc_now()))


@key_files.command(name="list")
@_KEY_FILE
@command
async def list_keys(file: Path) -> None:
    """Print each key of FILE: id, algorithm, status.

    A retired key has the time after that until which it verifies.
    """
    from authsvc.tokens.key_file import read_keys

    _print_keys(read_keys(file))


@key_files.command(name="rotate")
@_KEY_FILE
@command
async def rotate_keys(file: Path) -> None:
    """Let the next key of FILE sign, and add a new next one.

    The old key verifies until its last token is over, by AUTHSVC_ACCESS_TOKEN_TTL as the service
    has it. Running services follow within 2 seconds.
    """
    from authsvc.tokens import key_file

    now = utc_now()
    lifetime = config.load_access_token_ttl(os.environ)
    rotation = key_file.rotate_keys(file, lifetime, now)
    _print_keys(filter(None, (rotation.retired, rotation.signing, rotation.following)))
    if rotation.retired is None:
        click.echo("there was no next key: one is published now; rotate again in 2 hours", err=True)
    else:
        click.echo(f"the old key verifies until then for tokens of AUTHSVC_ACCESS_TOKEN_TTL={lifetime}", err=True)
        _warn_of_early_use(rotation.signing, now)


@key_files.command(name="remove", cls=CommandOfIds)
@_KEY_FILE
@click.argument("kid")
@command
async def remove_key(file: Path, kid: str) -> None:
    """Remove the key KID from FILE; its tokens are dead.

    For a key that others have. Where it signed, the next one signs. Running services follow
    within 2 seconds. What is left is printed.
    """
    from authsvc.tokens import key_file

    now = utc_now()
    left = key_file.remove_key(file, kid, now)
    _print_keys(left)
    _warn_of_early_use(next(key for key in left if key.status == "signing"), now)


def _warn_of_early_use(key: "Key", now: datetime) -> None:
    from authsvc.tokens.key_file import was_just_published

    if was_just_published(key, now):
        text = f"key {key.kid} signs under 2 hours after it was made: gateways may not know it yet"
        click.echo(f"warning: {text}", err=True)


@main.group(name="callers")
def callers_files() -> None:
    """Administer the backends that may call."""


@callers_files.command(name="new-key")
@command
async def new_api_key() -> None:
    """Print a new API key, and its SHA-256 for the callers file.

    The key is for the backend alone: nothing keeps it.
    """
    from authsvc.rpc import callers

    key = callers.new_api_key()
    digest = callers.api_key_digest(key)
    click.echo(f"{key}\n{digest}")
    click.echo(f'in the callers file: api_key_sha256 = ["{digest}"]', err=True)


@main.command(name="doctor")
@command
async def run_doctor() -> None:
    """Look for what is wrong, and say what to do about it.

    Settings, keys, callers, TLS, clock, store and tables are looked at.
    """
    from authsvc.cli import doctor

    _report([finding async for finding in doctor.examine(os.environ, utc_now)])


def _start_logs(settings: Settings, environ: Mapping[str, str]) -> None:
    from authsvc.telemetry import logs

    logs.configure(settings.log_format, settings.log_level, settings.log_digest_key or None)
    for line in config.unknown_settings(environ):
        click.echo(f"warning: {line}", err=True)


def _store_settings(log_level: str = "warning") -> Settings:
    from authsvc.telemetry import logs

    settings = config.load_store(os.environ)
    logs.configure(settings.log_format, log_level)
    return settings


def _existing_store_settings(log_level: str = "warning") -> Settings:
    """Return the settings of a store that is not made by looking at it."""
    settings = _store_settings(log_level)
    if settings.sqlite_path is not None and not settings.sqlite_path.exists():
        raise OperatorError(f"{settings.sqlite_path}: no such file; make it: authsvc tables create")
    return settings


@asynccontextmanager
async def _opened_store(settings: Settings) -> AsyncIterator[Store]:

    async with open_store(settings) as store:
        yield store


@asynccontextmanager
async def _opened_accounts(settings: Settings) -> "AsyncIterator[Users]":
    """Open the store for use cases, all of which together may take as long as a command may."""
    from authsvc import request_context
    from authsvc.passwords.hash_queue import HashQueue
    from authsvc.usecases.users import Users

    with closing(HashQueue(settings.bcrypt_cost)) as hashing:
        async with _opened_store(settings) as store:
            with request_context.time_limit(request_context.COMMAND_DEADLINE_SECONDS):
                yield Users(store, hashing, utc_now, settings.password_min_length)


def _read_password() -> str:
    if sys.stdin is None:
        raise ConfigError(["standard input: is closed; the password is its first line"])
    try:
        if sys.stdin.isatty():
            password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
            return password
        line = sys.stdin.buffer.readline(PASSWORD_LINE_MAX_BYTES)
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ConfigError(["standard input: the password is not UTF-8"]) from None


def _print_keys(listed: "Iterable[Key]") -> None:
    for key in listed:
        until = (
            "" if key.retire_time is None else f"\t{datetime.fromtimestamp(key.retire_time, UTC):%Y-%m-%dT%H:%M:%SZ}"
        )
        click.echo(f"{key.kid}\t{key.alg}\t{key.status}{until}")


def _report(findings: Iterable[Finding]) -> None:
    """Print each finding; with a problem among them, end with exit code 1."""
    has_problem = False
    for finding in findings:
        click.echo(str(finding))
        has_problem = has_problem or bool(finding.problem)
    if has_problem:
        sys.exit(1)
