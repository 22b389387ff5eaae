"""A server process on loopback: ready when started, gone when stopped."""

import http.client
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

READY_SECONDS = 20.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.005
LIST_TABLES = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20250101/us-east-1/dynamodb/aws4_request, "
    "SignedHeaders=host;x-amz-date, Signature=unchecked",
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amz-Date": "20250101T000000Z",
    "X-Amz-Target": "DynamoDB_20120810.ListTables",
}


def free_port() -> int:
    """Return a loopback port that nothing uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """One server on one port; `start` after `stop` brings it back on the same port.

    Args:
        command: with `{port}` already filled in.
        port: on 127.0.0.1, what readiness is judged by.
        cwd: an existing folder; the server's output goes to `server.log` in it.
        env: the whole environment, so that nothing of the developer's changes the engine.
        ready: whether the server at the port answers; None: as DynamoDB does.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        cwd: Path,
        env: Mapping[str, str],
        ready: Callable[[int], bool] | None = None,
    ) -> None:
        self.port = port
        self._ready = ready or answers
        self._command = command
        self._cwd = cwd
        self._env = env
        self._log = cwd / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        if self._process is not None:
            raise RuntimeError("already started")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process and wait for it; harmless when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._ready(self.port):
            if process.poll() is not None:
                raise RuntimeError(self._failure(f"ended with status {process.returncode}"))
            if time.monotonic() > deadline:
                raise RuntimeError(self._failure(f"not ready after {READY_SECONDS:.0f} s"))
            time.sleep(POLL_SECONDS)

    def _failure(self, what: str) -> str:
        tail = self._log.read_text(errors="replace")[-2000:]
        return f"{self._command[0]} {what}:\n{tail}"


def answers(port: int) -> bool:
    """Return whether DynamoDB answers there; engines load much of themselves for the first call."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)
    try:
        connection.request("POST", "/", "{}", LIST_TABLES)
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()
