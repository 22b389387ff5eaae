"""The real service as a process: `authsvc dev`, with a folder of its own."""

import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from authsvc.v1.auth_service_pb2 import AuthenticateRequest, AuthenticateResponse
from authsvc.v1.auth_service_pb2_grpc import AuthServiceStub
from authsvc.v1.user_service_pb2 import CreateUserRequest
from authsvc.v1.user_service_pb2_grpc import UserServiceStub

TIMEOUT_SECONDS = 30.0
_SETTINGS = {
    "AUTHSVC_LISTEN": "127.0.0.1:0",
    "AUTHSVC_HTTP_LISTEN": "",
    # The lowest cost: a test's password needs no strong hash.
    "AUTHSVC_BCRYPT_COST": "10",
}
_GREETING = re.compile(r"authsvc serves on (\S+): ")


@dataclass(frozen=True, slots=True, kw_only=True)
class DevUser:
    """A user who has logged in.

    Args:
        user_id: Identifier of the user.
        email: Email address of the user.
        role: Role of the user.
        password: Password of the user. Secret.
        access_token: Secret.
        refresh_token: Secret.
    """

    user_id: str
    email: str
    role: str
    password: str = field(repr=False)
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevService:
    """A running service.

    Args:
        address: Host and port, for AsyncClient and Client.
        admin_email: Email address of its admin.
        admin_password: Password of its admin. Secret.
    """

    address: str
    admin_email: str
    admin_password: str = field(repr=False)

    def create_user(self, role: str = "user") -> DevUser:
        """Create a user and log in.

        Args:
            role: Role of the user.

        Raises:
            grpc.RpcError: The service refuses.
        """
        email, password = f"{secrets.token_hex(8)}@example.com", secrets.token_urlsafe(18)
        # A proxy that the environment names does not lead back to this machine.
        with grpc.insecure_channel(self.address, (("grpc.enable_http_proxy", 0),)) as channel:
            admin = _log_in(channel, self.admin_email, self.admin_password)
            credentials = (("authorization", f"Bearer {admin.tokens.access_token}"),)
            request = CreateUserRequest(email=email, password=password, role=role)
            UserServiceStub(channel).CreateUser(request, metadata=credentials, timeout=TIMEOUT_SECONDS)
            session = _log_in(channel, email, password)
        return DevUser(
            user_id=session.user.user_id,
            email=email,
            role=session.user.role,
            password=password,
            access_token=session.tokens.access_token,
            refresh_token=session.tokens.refresh_token,
        )


@contextmanager
def run_dev_service() -> Iterator[DevService]:
    """Run the service; it and its data are gone after the `with` block.

    Raises:
        RuntimeError: It does not start, for instance because the extra `authsvc[server]` is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="authsvc-dev-") as name:
        folder = Path(name)
        log = folder / "log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(  # noqa: S603 - this package's own command
                [sys.executable, "-m", "authsvc", "dev", "--data-dir", str(folder / "data")],
                cwd=folder,  # a .env of the backend is not the service's
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        with process:
            try:
                address = _address(process)
                if address is None:
                    raise RuntimeError(f"`authsvc dev` did not start: {log.read_text().strip()}")
                yield _service(address, folder / "data" / "dev.env")
            finally:
                process.terminate()
                process.communicate()


def _environment() -> dict[str, str]:
    """Return this process's environment, without settings of a service: traces go to no collector of the backend."""
    settings = ("AUTHSVC_", "AWS_", "OTEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    return {**kept, **_SETTINGS}


def _address(process: "subprocess.Popen[str]") -> str | None:
    """Wait for the first line that the service prints; return None where it ends instead."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    for line in process.stdout:
        if match := _GREETING.match(line):
            return match[1]
    return None


def _service(address: str, credentials: Path) -> DevService:
    values = dict(line.split("=", 1) for line in credentials.read_text().splitlines())
    return DevService(
        address=address, admin_email=values["AUTHSVC_ADMIN_EMAIL"], admin_password=values["AUTHSVC_ADMIN_PASSWORD"]
    )


def _log_in(channel: grpc.Channel, email: str, password: str) -> AuthenticateResponse:
    request = AuthenticateRequest(email=email, password=password)
    return AuthServiceStub(channel).Authenticate(request, timeout=TIMEOUT_SECONDS, wait_for_ready=True)
