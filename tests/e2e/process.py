"""Processes of `authsvc` as its users start them."""

import io
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from click.testing import CliRunner, Result

from authsvc.cli.main import main
from authsvc.telemetry import logs
from authsvc.telemetry.log_queue import stderr_queue
from tests.support import WITNESS

AUTHSVC = str(Path(sys.executable).with_name("authsvc"))
GIVE_UP_SECONDS = 30.0
POLL_SECONDS = 0.01
FREE = {"AUTHSVC_BCRYPT_COST": "10", "AUTHSVC_HTTP_LISTEN": ""}
"""Settings of tests: hashes that cost little, and no port that another test may have."""

T = TypeVar("T")


def environment(**more: str) -> dict[str, str]:
    """Return an environment with nothing of the developer's settings, and what measures coverage."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"} or "COV" in name}
    return {**kept, **FREE, "AUTHSVC_LISTEN": "127.0.0.1:0", **more}


def poll(look: Callable[[], T], what: str) -> T:
    """Return the first true answer.

    Raises:
        AssertionError: There was none within GIVE_UP_SECONDS.
    """
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while not (answer := look()):
        assert time.monotonic() < give_up, f"never {what}"
        time.sleep(POLL_SECONDS)
    return answer


def resident_kib(pid: int) -> int:
    """Return a process's resident memory; only Linux tells."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


def open_files(pid: int) -> int:
    """Return how many files a process has open; only Linux tells."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def patiently(call: Callable[[], T]) -> T:
    """Call again while the service says that too many passwords wait: the machine may have much else to do."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            is_expired = time.monotonic() > give_up
            if is_expired or error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise


class Process:
    """A running `authsvc`.

    Args:
        popen: The process.
        folder: Where its output goes.
    """

    def __init__(self, popen: "subprocess.Popen[bytes]", folder: Path) -> None:
        self._popen = popen
        self._folder = folder

    @property
    def pid(self) -> int:
        """Its id."""
        return self._popen.pid

    @property
    def output(self) -> str:
        """What it has written to stdout."""
        return (self._folder / "stdout").read_text()

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        return (self._folder / "stderr").read_text()

    def wait_for(self, look: Callable[[], T], what: str) -> T:
        """Return the first true answer, while the process runs."""

        def look_again() -> T:
            answer = look()
            assert answer or self._popen.poll() is None, f"ended before it {what}:\n{self.log}"
            return answer

        return poll(look_again, what)

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        return self._popen.wait(GIVE_UP_SECONDS)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(number)
        return self.wait()


@contextmanager
def started(*arguments: str, cwd: Path, environ: Mapping[str, str], program: str = AUTHSVC) -> Iterator[Process]:
    """Run `authsvc` with arguments; it is ended on leaving, and its log is searched for secrets."""
    with tempfile.TemporaryDirectory(prefix="authsvc-") as name:
        folder = Path(name)
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            popen = subprocess.Popen(
                [program, *arguments], cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
        process = Process(popen, folder)
        try:
            yield process
        finally:
            popen.terminate()
            try:
                process.wait()
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()
            WITNESS.add_log(process.log)


def run(*arguments: str, environ: Mapping[str, str], stdin: bytes = b"") -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    done = subprocess.run(
        arguments, env=environ, input=stdin, capture_output=True, timeout=GIVE_UP_SECONDS, check=False
    )
    WITNESS.add_messages(done.stderr.decode())
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


class Terminal:
    """A command on a terminal of its own."""

    # The helper copies what it is given to the terminal, and what the terminal shows to its output.
    SPAWN = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"

    def __init__(self, output: Path, *arguments: str, environ: dict[str, str]) -> None:
        self._output = output
        with output.open("wb") as file:
            self._helper = subprocess.Popen(
                [sys.executable, "-c", self.SPAWN, AUTHSVC, *arguments],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def shown(self) -> str:
        return self._output.read_text()

    def answer(self, question: str, line: str) -> None:
        poll(lambda: self.shown.endswith(question), f"asked {question!r}")
        assert self._helper.stdin is not None
        self._helper.stdin.write(line.encode())
        self._helper.stdin.flush()

    def wait(self) -> int:
        try:
            return self._helper.wait(GIVE_UP_SECONDS)
        finally:
            self._helper.communicate()
            WITNESS.add_messages(self.shown)


@contextmanager
def process_stderr() -> Iterator[io.BytesIO]:
    """Collect what a command that serves queues for this process's stderr; undo what it changes in the interpreter."""
    collected, real = io.BytesIO(), os.dup(2)
    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        for module, hook in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
            patch.setattr(module, hook, getattr(module, hook))
        os.dup2(file.fileno(), 2)
        try:
            yield collected
        finally:
            stderr_queue().flush()
            os.dup2(real, 2)
            os.close(real)
            logging.captureWarnings(capture=False)
        file.seek(0)
        collected.write(file.read())


def invoke(*arguments: str, stdin: str | bytes = b"", **settings: str) -> Result:
    """Run a command in this process, for what a process of its own would add nothing to."""
    without = {name: None for name in os.environ if name.startswith(("AUTHSVC_", "AWS_"))}
    environ = {**without, **FREE, **settings}
    with process_stderr() as queued:
        result = CliRunner().invoke(main, arguments, input=stdin, env=environ, prog_name="authsvc")
    result.stderr_bytes = (result.stderr_bytes or b"") + queued.getvalue()
    logs.configure("json", "debug", stream=WITNESS.lines)
    WITNESS.add_messages(result.stderr)
    return result
