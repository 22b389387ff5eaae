"""The `authsvc` command: `dev`, `serve`, `doctor`, `health`, `descriptor`, and the groups of the other modules.

A command imports what it needs when it runs, so that help is printed at once.
"""

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from authsvc import __version__, config
from authsvc.cli.callers import callers
from authsvc.cli.command import command, echo, log_line, output_errors, report, serving_command
from authsvc.cli.keys import keys
from authsvc.cli.tables import tables
from authsvc.cli.tokens import token
from authsvc.cli.users import users
from authsvc.config import ServeSettings
from authsvc.errors import OperatorError
from authsvc.models import utc_now

_STDERR = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="authsvc")
def main() -> None:
    """Authentication as a gRPC service: users, passwords, sessions and access tokens."""
    _occupy_standard_descriptors()
    # gRPC's own log lines are unstructured and repeat errors that are reported anyway.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A path may hold bytes that are not UTF-8: show them escaped instead of failing.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


for group in (tables, users, keys, callers, token):
    main.add_command(group)


@main.command(name="dev")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=".authsvc",
    show_default=True,
    help="Folder of the store, the keys and the admin's password.",
)
@serving_command
async def run_dev(data_dir: Path) -> None:
    """Serve on this machine, ready to call.

    The store is embedded. The first start creates an admin; each start prints commands that work
    as pasted, for grpcurl or, where that is not on the path, for the buf of this environment.
    Settings come from the environment and from the file .env in the current folder.
    """
    from authsvc.cli import dev

    environ = dev.environment(data_dir, os.environ)
    await dev.run(data_dir, _prepare(environ, dev.DEFAULTS))


@main.command(epilog="\b\nSettings, from the environment:\n" + config.describe())
@serving_command
async def serve() -> None:
    """Serve in production.

    Every setting is explicit; all problems of the configuration are reported at once.
    """
    settings = _prepare(os.environ)
    if settings.workers > 1:
        from authsvc.server import workers

        await workers.serve(settings)
    else:
        from authsvc.server import app

        await app.serve(settings)


@main.command(name="worker", hidden=True)
@click.argument("number", type=int)
@serving_command
async def run_worker(number: int) -> None:
    """Serve as one of the workers that `serve` starts."""
    from authsvc.server import app, workers
    from authsvc.telemetry import logs

    settings = config.load(os.environ)
    logs.configure_service(settings.log_format, settings.log_level, settings.log_digest_key or None, number)
    workers.stop_with_parent()
    await app.serve(settings, on_start=workers.report_to_parent)


@main.command(name="doctor")
@command
async def run_doctor() -> None:
    """Find what is wrong, and say how to repair it.

    Checks the settings, keys, callers, TLS files, clock, store and tables.
    """
    from authsvc.cli import doctor

    report([finding async for finding in doctor.examine(os.environ, utc_now)])


@main.command(name="health")
@command
async def check_health() -> None:
    """Ask the running service whether it serves.

    The exit code is 0 if it does. The image's health check. Reads AUTHSVC_LISTEN and AUTHSVC_TLS_CERT.
    """
    from authsvc.cli import health

    listen = config.load_setting(os.environ, "listen")
    has_tls = config.load_setting(os.environ, "tls_cert") is not None
    if not health.is_serving(listen, has_tls=has_tls):
        raise OperatorError(f"no service serves on {listen}")
    echo("serving")


@main.command(name="descriptor")
@command
async def write_descriptor() -> None:
    """Write the API's descriptor set, which is binary.

    For gateways, and for tools where reflection is off: authsvc descriptor > authsvc.binpb, then
    grpcurl -protoset authsvc.binpb, or buf curl --schema authsvc.binpb. The types of the error
    details are in it.
    """
    if sys.stdout is None or sys.stdout.isatty():
        raise click.UsageError("the output is binary: write it to a file, authsvc descriptor > authsvc.binpb")
    from authsvc.cli.descriptor import descriptor_set

    with output_errors():
        sys.stdout.buffer.write(descriptor_set())
        sys.stdout.buffer.flush()


def _occupy_standard_descriptors() -> None:
    """Open /dev/null in place of closed standard files: a socket in their place could not be closed under uvloop."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(descriptor)


def _prepare(environ: Mapping[str, str], defaults: Mapping[str, str] | None = None) -> ServeSettings:
    """Return the settings of a process that serves, and configure its log; name what is not a setting."""
    from authsvc.telemetry import logs

    # First: a misspelled variable is the reason why the setting that it means is missing.
    for line in config.unknown_settings(environ):
        log_line(f"warning: {line}")
    settings = config.load(environ, defaults)
    logs.configure_service(settings.log_format, settings.log_level, settings.log_digest_key or None)
    return settings
