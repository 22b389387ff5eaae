"""`authsvc serve` with several workers: processes that share the gRPC port, and the parent that supervises them.

The kernel spreads connections over the workers (SO_REUSEPORT), which share nothing else. The parent owns the HTTP side
port and serves no RPC. SIGTERM stops a worker. A worker writes a line to its standard output once it listens; the end
of its standard input means that the parent has ended.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from authsvc.config import Address, ServeSettings
from authsvc.errors import OperatorError
from authsvc.models import utc_now
from authsvc.server import http_server, listening
from authsvc.server.process import on_signals, raise_open_files_limit
from authsvc.telemetry import metrics
from authsvc.telemetry.worker_metrics import WorkerMetrics, metrics_folder
from authsvc.tokens.keys import KeyRing
from authsvc.tokens.opening import watch_keys
from authsvc.watched_file import Watched

_LISTEN = "AUTHSVC_LISTEN"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionLimits:
    """When a worker is restarted or killed. Tests pass their own.

    Args:
        min_backoff_seconds: Before the second restart in a row; doubled at each further one. The first is immediate.
        max_backoff_seconds: The longest backoff.
        backoff_reset_seconds: A worker that ran this long is restarted immediately.
        kill_seconds: From SIGTERM to SIGKILL: far longer than an orderly stop takes.
    """

    min_backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    backoff_reset_seconds: float = 60.0
    kill_seconds: float = 20.0


PRODUCTION_LIMITS = SupervisionLimits()


async def serve(settings: ServeSettings, limits: SupervisionLimits = PRODUCTION_LIMITS) -> None:
    """Run the workers until SIGTERM or SIGINT, then stop them in order. SIGHUP reads the watched files again.

    Args:
        settings: All of them. The workers read the same from the environment.
        limits: Those of production, or a test's own.

    Raises:
        ConfigError: The port is taken.
        KeyFileError: The signing keys cannot be used.
        OperatorError: The first worker cannot serve; it has logged why.
    """
    raise_open_files_limit()
    reload = asyncio.Event()
    supervision = asyncio.create_task(_run_workers(settings, limits, reload))

    def stop() -> None:
        if not supervision.cancelling():  # a second signal must not cut the orderly stop short
            _log.info("stopping")
            supervision.cancel()

    on_signals(stop, reload.set)
    with contextlib.suppress(asyncio.CancelledError):
        await supervision
    _log.info("stopped")


async def _run_workers(settings: ServeSettings, limits: SupervisionLimits, reload: asyncio.Event) -> None:
    with _reserve_port(settings.listen) as address, metrics_folder() as folder:
        counts = WorkerMetrics(folder)
        async with (
            watch_keys(settings.signing_keys, utc_now) as keys,
            http_server.serve_http(
                settings, lambda: keys.reload_if_changed().jwks(utc_now().timestamp()), counts.registry
            ) as http_address,
        ):
            environ = _environ(settings, address, folder)
            workers = [_Worker(number + 1, environ, counts, limits) for number in range(settings.workers)]
            first, *others = workers
            try:
                # Alone, so that a problem of settings or files is reported once.
                if not await first.start():
                    raise OperatorError("the first worker ended before it listened; see the log lines above")
                _log.info("listening", address=str(address), http_address=http_address and str(http_address))
                async with asyncio.TaskGroup() as group:
                    for work in (
                        first.supervise(),
                        *(worker.run() for worker in others),
                        _reload_on_demand(reload, keys, workers),
                    ):
                        group.create_task(work)
            finally:
                await asyncio.gather(*(worker.stop() for worker in workers))


async def _reload_on_demand(demanded: asyncio.Event, keys: Watched[KeyRing], workers: "Sequence[_Worker]") -> None:
    """Read the keys again, here and with the other watched files in each worker, whenever that is demanded."""
    while True:
        await demanded.wait()
        demanded.clear()
        keys.reload()
        for worker in workers:
            worker.reload()


def _environ(settings: ServeSettings, address: Address, folder: Path) -> Mapping[str, str]:
    """Return the workers' environment: the parent's, with the real port and without the side port."""
    return {
        **os.environ,
        _LISTEN: str(address),
        "AUTHSVC_HTTP_LISTEN": "",
        metrics.FOLDER_VARIABLE: str(folder),
        "AUTHSVC_LOG_DIGEST_KEY": settings.log_digest_key or secrets.token_hex(),
    }


class _Worker:
    """A worker: one process at a time, restarted when it ends.

    Args:
        number: From 1; the worker's name in the log.
        environ: The environment of its processes.
        counts: Takes over what its processes have counted.
        limits: When it is restarted or killed.
    """

    def __init__(
        self, number: int, environ: Mapping[str, str], counts: WorkerMetrics, limits: SupervisionLimits
    ) -> None:
        self._number = number
        self._environ = environ
        self._counts = counts
        self._limits = limits
        self._process: Process | None = None
        self._is_listening = False

    async def start(self) -> bool:
        """Start a process; return whether it listens."""
        # A new interpreter: gRPC's threads do not survive a fork. -P: it imports nothing from the working folder.
        command = (sys.executable, "-P", "-m", "authsvc", "worker", str(self._number))
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=self._environ)
        except OSError as error:
            _log.error("worker_not_started", worker=self._number, problem=error.strerror)
            return False
        self._process = process
        _log.info("worker_started", worker=self._number, pid=process.pid)
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        self._is_listening = bool(await process.stdout.readline())
        return self._is_listening

    async def run(self) -> None:
        """Start a process, and restart it whenever it ends."""
        await self.start()
        await self.supervise()

    async def supervise(self) -> None:
        """Restart the process whenever it ends, with backoff."""
        now = asyncio.get_running_loop().time
        limits, backoff = self._limits, 0.0
        while True:
            begin = now()
            code = await self._wait()
            metrics.WORKER_ENDS.inc()
            backoff = backoff if now() - begin < limits.backoff_reset_seconds else 0.0
            _log.warning("worker_ended", worker=self._number, exit_code=code, restart_seconds=backoff)
            await asyncio.sleep(backoff)
            backoff = min(max(2 * backoff, limits.min_backoff_seconds), limits.max_backoff_seconds)
            await self.start()

    def reload(self) -> None:
        """Let the process read its watched files again; one that does not listen yet has just read them."""
        if self._process is not None and self._is_listening:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)

    async def stop(self) -> None:
        """Stop the process: SIGTERM, then SIGKILL where it takes too long."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(self._limits.kill_seconds):
                await self._wait()
        except TimeoutError:
            _log.error("worker_killed", worker=self._number, pid=self._process.pid)
            self._process.kill()
            await self._wait()

    async def _wait(self) -> int | None:
        """Wait for the process to end; return its exit code, None where there is no process."""
        if self._process is None:
            return None
        code = await self._process.wait()
        self._counts.end_process(self._process.pid)
        self._process, self._is_listening = None, False
        return code


@contextmanager
def _reserve_port(listen: Address) -> Iterator[Address]:
    """Reserve a port that only the workers share; yield its address with the real port.

    Raises:
        ConfigError: Another program has the port.
    """
    # Fails where another program has the port; binding a shared port would not.
    alone = listening.bind(listen, _LISTEN)
    address = Address(listen.host, alone[0].getsockname()[1])
    for probe in alone:
        probe.close()
    with ExitStack() as stack:
        # They never listen, so the kernel gives them no connection.
        for holder in listening.bind(address, _LISTEN, shared=True):
            stack.enter_context(holder)
            # From now on the check above fails for other programs, also before a worker listens.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        yield address


def stop_with_parent() -> None:
    """Stop this worker in order when standard input ends, which happens when the parent does."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(sys.stdin)
        signal.raise_signal(signal.SIGTERM)

    loop.add_reader(sys.stdin, stop)


async def report_to_parent(_: object) -> None:
    """Report to the parent that this worker listens."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), b"listening\n")
