"""`authsvc serve` with several workers: processes that share the gRPC port, and the parent that keeps them running.

The kernel spreads connections over the workers (SO_REUSEPORT), which share nothing else. The parent owns the HTTP side
port and serves no RPC. SIGTERM ends a worker. A worker says on its standard output that it listens, and knows by the
end of its standard input that its parent is gone.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import structlog

from authsvc.config import Address, ServeSettings
from authsvc.errors import ConfigError, OperatorError
from authsvc.models import utc_now
from authsvc.server import http_server
from authsvc.telemetry import metrics
from authsvc.tokens.key_file import watch_key_file

BACKOFF_RESET_SECONDS = 60.0
"""The pause before a restart begins anew after a life as long as this: the first restart is at once."""
MIN_PAUSE_SECONDS = 0.5
"""Before the second restart; doubled at each further one."""
MAX_PAUSE_SECONDS = 30.0
KILL_SECONDS = 20.0
"""From SIGTERM to SIGKILL, far more than an orderly end takes."""

_log = structlog.get_logger(__name__)


async def serve(settings: ServeSettings) -> None:
    """Run the workers until SIGTERM or SIGINT, then end them in order.

    Raises:
        ConfigError: The port cannot be had.
        KeyFileError: The signing keys cannot be used.
        OperatorError: The first worker cannot serve; it has said why.
    """
    supervision = asyncio.create_task(_run_workers(settings))

    def stop() -> None:
        if not supervision.cancelling():  # a second signal would cut the orderly end short
            _log.info("stopping")
            supervision.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await supervision
    _log.info("stopped")


async def _run_workers(settings: ServeSettings) -> None:
    key_file = watch_key_file(settings.signing_keys, utc_now)

    def jwks() -> str:
        return key_file.refresh().jwks(utc_now().timestamp())

    with _reserved(settings.listen) as address, _metrics_folder() as folder:
        async with http_server.listening(settings, jwks, metrics.registry_of(folder)) as http_address:
            environ = _environ(settings, address, folder)
            first, *others = [_Worker(number + 1, environ, folder) for number in range(settings.workers)]
            try:
                # Alone, so that what is wrong with settings or files is said once.
                if not await first.start():
                    raise OperatorError("a worker ended before it listened")
                _log.info("listening", address=str(address), http_address=http_address and str(http_address))
                async with asyncio.TaskGroup() as group:
                    for work in (first.supervise(), *(worker.run() for worker in others)):
                        group.create_task(work)
            finally:
                await asyncio.gather(*(worker.stop() for worker in (first, *others)))


@contextmanager
def _metrics_folder() -> Iterator[Path]:
    """Make the folder where workers count, for as long as the body runs.

    Raises:
        OperatorError: It cannot be made.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="authsvc-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OperatorError(f"no folder for metrics: {error.strerror}; name one that can be written: TMPDIR") from None
    with folder as path:
        yield Path(path)


def _environ(settings: ServeSettings, address: Address, folder: Path) -> Mapping[str, str]:
    """Return the environment of workers: the parent's, with the port that it got, and without the side port."""
    return {
        **os.environ,
        "AUTHSVC_LISTEN": str(address),
        "AUTHSVC_HTTP_LISTEN": "",
        metrics.FOLDER_VARIABLE: str(folder),
        "AUTHSVC_LOG_DIGEST_KEY": settings.log_digest_key or secrets.token_hex(),
    }


class _Worker:
    """A worker, whichever process does its work at the moment.

    Args:
        number: Tells it from the others, in the log.
        environ: Of its processes.
        folder: Where they count.
    """

    def __init__(self, number: int, environ: Mapping[str, str], folder: Path) -> None:
        self._number = number
        self._environ = environ
        self._folder = folder
        self._process: Process | None = None

    async def start(self) -> bool:
        """Start a process; tell whether it came to listen."""
        # A new interpreter, for gRPC's threads do not survive a fork; -P: it imports nothing from the working folder.
        command = (sys.executable, "-P", "-m", "authsvc", "worker", str(self._number))
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=self._environ)
        except OSError as error:
            _log.error("worker_not_started", worker=self._number, problem=error.strerror)
            return False
        self._process = process
        _log.info("worker_started", worker=self._number, pid=process.pid)
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        return bool(await process.stdout.readline())

    async def run(self) -> None:
        """Start a process, and keep one running."""
        await self.start()
        await self.supervise()

    async def supervise(self) -> None:
        """Let another process follow the one that ends, time and again."""
        now = asyncio.get_running_loop().time
        pause = 0.0
        while True:
            begin = now()
            code = await self._ended()
            pause = pause if now() - begin < BACKOFF_RESET_SECONDS else 0.0
            _log.warning("worker_ended", worker=self._number, exit_code=code, restart_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(max(2 * pause, MIN_PAUSE_SECONDS), MAX_PAUSE_SECONDS)
            await self.start()

    async def stop(self) -> None:
        """End the process in order, by force where it takes too long."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(KILL_SECONDS):
                await self._ended()
        except TimeoutError:
            _log.error("worker_killed", worker=self._number, pid=self._process.pid)
            self._process.kill()
            await self._ended()

    async def _ended(self) -> int | None:
        """Wait for the end of the process; return its exit code, None where there is no process."""
        if self._process is None:
            return None
        code = await self._process.wait()
        metrics.forget_process(self._process.pid, self._folder)
        self._process = None
        return code


@contextmanager
def _reserved(listen: Address) -> Iterator[Address]:
    """Hold a port that the workers share and no other program has; return it with its real number.

    Raises:
        ConfigError: It cannot be had.
    """
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family) as holder:
        try:
            # Fails where anybody has the port, as the port of a single process does; what is shared does not fail.
            with socket.create_server((listen.host, listen.port), family=family) as alone:
                port = alone.getsockname()[1]
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # It never listens, so that no connection comes to it.
            holder.bind((listen.host, port))
            # From now on the test above fails for others, also before a worker listens.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError as error:
            reason = str(error.strerror).partition(" (")[0]  # some versions tell the address as well
            raise ConfigError([f"AUTHSVC_LISTEN: cannot listen on {listen}: {reason}"]) from None
        yield Address(listen.host, port)


def stop_with_parent() -> None:
    """Let this worker end in order when its parent is gone, and with it the other end of standard input."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(sys.stdin)
        signal.raise_signal(signal.SIGTERM)

    loop.add_reader(sys.stdin, stop)


async def report_to_parent(_: object) -> None:
    """Say that this worker listens."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), b"listening\n")
