"""What every command shares: error lines, exit codes, and the store that it works on."""

import asyncio
import functools
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from authsvc import config
from authsvc.config import StoreSettings
from authsvc.errors import AuthsvcError, ConfigError, OperatorError, StoreUnavailableError
from authsvc.models import Finding, utc_now
from authsvc.telemetry.printable import escape

if TYPE_CHECKING:
    from authsvc.usecases.users import Users

P = ParamSpec("P")


def echo(*columns: object, err: bool = False) -> None:
    """Print a line; every command prints with this function alone, because values may come from other programs' rows.

    Args:
        columns: Separated by tabs; what does not print is escaped.
        err: Print to stderr.
    """
    with output_errors(err=err):
        click.echo("\t".join(escape(str(column)) for column in columns), err=err)  # noqa: TID251 - escaped here


@contextmanager
def output_errors(*, err: bool = False) -> Iterator[None]:
    """Turn a failing write, for instance to a full disk, into an error with its reason.

    Args:
        err: The write is to stderr: it is given up, because its reason could not be written either.

    Raises:
        OperatorError: A write to standard output fails.
    """
    try:
        yield
    except BrokenPipeError:  # as under `head`: click ends the command without a word
        raise
    except OSError as error:
        # What waits in the buffer would fail once more at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), (sys.stderr if err else sys.stdout).fileno())
        if not err:
            raise OperatorError(f"standard output: cannot be written: {error.strerror}") from None


def run_on_uvloop(main: Coroutine[Any, Any, None]) -> None:
    """Run a service on uvloop, whose overhead per call is a fraction of asyncio's own loop."""
    import uvloop

    uvloop.run(main)


def print_line(line: str) -> None:
    """Print a line on stderr."""
    echo(line, err=True)


def log_line(line: str) -> None:
    """Queue a line for stderr, whose reader must not block a process that serves."""
    from authsvc.telemetry.log_queue import Kind, stderr_queue

    stderr_queue().put(Kind.EVENT, escape(line))


def command(
    function: Callable[P, Coroutine[Any, Any, None]],
    run_loop: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
    show: Callable[[str], None] = print_line,
    failure_code: int = 1,
) -> Callable[P, None]:
    """Make a command of a coroutine function: an error becomes lines on stderr, and the failure's exit code."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            run_loop(function(*args, **kwargs))
        except AuthsvcError as error:
            for line in _message(error).split("\n"):
                show(f"error: {line}")
            sys.exit(failure_code)

    return run


serving_command = functools.partial(command, run_loop=run_on_uvloop, show=log_line)
"""The same for a command that runs the service."""


def _message(error: AuthsvcError) -> str:
    """Return an error's text, with the remedy where one is known; else its class's description."""
    if isinstance(error, StoreUnavailableError):
        from authsvc.cli.doctor import remedy_for

        return f"{error}. Remedy: {remedy_for(error)}"
    return str(error) or (type(error).__doc__ or "").partition("\n")[0]


def load_store_settings(log_level: str = "warning") -> StoreSettings:
    """Return the settings of the store, and configure the log."""
    from authsvc.telemetry import logs

    settings = config.load_store(os.environ)
    logs.configure(settings.log_format, log_level)
    return settings


def load_existing_store_settings(log_level: str = "warning") -> StoreSettings:
    """Return the settings of a store that must exist: a command that reads must not create a SQLite file.

    Raises:
        OperatorError: The SQLite file does not exist.
    """
    settings = load_store_settings(log_level)
    require_existing_file(settings)
    return settings


def require_existing_file(settings: StoreSettings) -> None:
    """Refuse a SQLite store whose file does not exist.

    Raises:
        OperatorError: It does not.
    """
    if settings.sqlite_path is not None and not settings.sqlite_path.exists():
        raise OperatorError(f"{settings.sqlite_path}: no such file; create it: authsvc tables create")


def read_secret(prompt: str, max_bytes: int, *, confirm: bool = False) -> str:
    """Return a secret that a terminal prompts for, without showing it; otherwise the first line of standard input.

    Args:
        prompt: The secret's name.
        max_bytes: How much of the line is read.
        confirm: Whether the terminal prompts a second time.

    Raises:
        ConfigError: Standard input is closed or not UTF-8.
    """
    name = prompt.lower()
    if sys.stdin is None:
        raise ConfigError([f"standard input: is closed; the {name} is its first line"])
    try:
        if sys.stdin.isatty():
            secret: str = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm)
            return secret
        line = sys.stdin.buffer.readline(max_bytes)
        return line.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ConfigError([f"standard input: the {name} is not UTF-8"]) from None


@asynccontextmanager
async def open_users(settings: StoreSettings) -> "AsyncIterator[Users]":
    """Open the store for the use cases on users, with a command's deadline for all of them together."""
    from authsvc import request_context
    from authsvc.passwords.hash_queue import HashQueue
    from authsvc.stores.opening import open_store
    from authsvc.usecases.users import Users

    with closing(HashQueue(settings.bcrypt_cost)) as hash_queue:
        async with open_store(settings) as store:
            with request_context.time_limit(request_context.COMMAND_DEADLINE_SECONDS):
                yield Users(store, hash_queue, utc_now, settings.password_min_length)


def report(findings: Iterable[Finding]) -> None:
    """Print each finding; exit with code 1 where one is more than a warning."""
    has_problem = False
    for finding in findings:
        echo(finding)
        has_problem = has_problem or bool(finding.problem and not finding.is_warning)
    if has_problem:
        sys.exit(1)
