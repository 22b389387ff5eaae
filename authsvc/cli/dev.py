"""`authsvc dev`: the service on this machine, with its store, keys and admin in one folder."""

import json
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dotenv import dotenv_values

from authsvc import config, request_context
from authsvc.cli.command import echo
from authsvc.config import ServeSettings
from authsvc.errors import (
    ConfigError,
    InvalidCredentialsError,
    InvalidFieldError,
    KeyFileError,
    OperatorError,
    PasswordChangeRequiredError,
    TooManyAttemptsError,
    UserNotFoundError,
)
from authsvc.models import ADMIN_ROLE, User, utc_now
from authsvc.passwords.hash_queue import HashQueue
from authsvc.server import app, http_server
from authsvc.server.app import PRODUCTION_LIMITS, Limits
from authsvc.stores.interface import Store
from authsvc.stores.opening import open_store
from authsvc.tokens.access_tokens import IssuedToken
from authsvc.tokens.key_file import generate_key_file, read_keys
from authsvc.usecases.users import Users

KEY_FILE = "keys.json"
ADMIN_EMAIL = "admin@example.com"
EMAIL_VARIABLE = "AUTHSVC_ADMIN_EMAIL"
PASSWORD_VARIABLE = "AUTHSVC_ADMIN_PASSWORD"  # noqa: S105 - the variable's name
DEFAULTS: Mapping[str, str] = {
    "AUTHSVC_ISSUER": "http://127.0.0.1:8080",
    "AUTHSVC_AUDIENCE": "authsvc-dev",
    # The printed token lasts an afternoon.
    "AUTHSVC_ACCESS_TOKEN_TTL": "8h",
    "AUTHSVC_LOG_FORMAT": "console",
}
_EXAMPLE_EMAIL = "alice@example.com"
_EXAMPLE_PASSWORD = "correct horse battery staple"  # noqa: S105 - printed in an example


def environment(data_dir: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of `dev`: `.env`, overridden by the environment, overridden by what dev itself needs.

    Raises:
        ConfigError: `.env` cannot be read.
    """
    own = {
        "AUTHSVC_STORE": f"sqlite:{data_dir / 'authsvc.db'}",
        "AUTHSVC_SIGNING_KEYS": str(data_dir / KEY_FILE),
        # The printed commands use plain text, no API key, and reflection.
        "AUTHSVC_CALLERS": "",
        "AUTHSVC_TLS_CERT": "",
        "AUTHSVC_TLS_KEY": "",
        "AUTHSVC_TLS_CLIENT_CA": "",
        "AUTHSVC_REFLECTION": "true",
        "AUTHSVC_WORKERS": "1",
    }
    return {**_read_env(Path(".env")), **config.effective_environ(environ), **own}


def _read_env(path: Path) -> dict[str, str]:
    """Return the variables of a file; empty where the file does not exist.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        values = dotenv_values(path, interpolate=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError([f"{path}: cannot be read: {reason}"]) from None
    return {name: value for name, value in values.items() if value is not None}


async def run(data_dir: Path, settings: ServeSettings, limits: Limits = PRODUCTION_LIMITS) -> None:
    """Create what is missing in the folder, then serve until Ctrl-C.

    Args:
        data_dir: The folder.
        settings: Of the service.
        limits: As for server.app.serve.

    Raises:
        OperatorError: The folder cannot be used, or the service cannot start.
    """
    _make_folder(data_dir)
    _prepare_keys(data_dir / KEY_FILE)
    credentials = data_dir / "dev.env"
    with request_context.time_limit(request_context.COMMAND_DEADLINE_SECONDS):
        await _prepare_store(settings, credentials)

    async def show(service: app.App) -> None:
        with request_context.time_limit(request_context.COMMAND_DEADLINE_SECONDS):
            token = await _admin_token(service, credentials)
        for line in _welcome(service, token, credentials, settings).split("\n"):
            echo(line)

    await app.serve(settings, on_start=show, limits=limits)


def _make_folder(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"cannot create the folder {data_dir}: {error.strerror}") from None


def _prepare_keys(path: Path) -> None:
    if not path.exists():
        generate_key_file(path, "ES256", utc_now())
    try:
        read_keys(path)
    except KeyFileError as error:
        raise OperatorError(f"{error}; remove the file to get new keys") from None


async def _prepare_store(settings: ServeSettings, credentials: Path) -> None:
    """Create the tables and the admin, and write the admin's password to a file before the service starts.

    A first password is written before the admin is created, a new one after it is set: the next start repairs whatever
    fails in between.
    """
    hash_queue = HashQueue(settings.bcrypt_cost)
    try:
        async with open_store(settings) as store:
            await store.create_tables()
            users = Users(store, hash_queue, utc_now, settings.password_min_length)
            password = secrets.token_urlsafe(192)[: max(24, settings.password_min_length)]
            try:
                admin = await users.get_user_by_email(ADMIN_EMAIL)
            except UserNotFoundError:
                _write_credentials(credentials, password)
                await users.create_user(email=ADMIN_EMAIL, role=ADMIN_ROLE, password=password)
                return
            if not credentials.exists():  # noqa: ASYNC240 - the service does not run yet
                await _set_password(store, hash_queue, admin, password)
                _write_credentials(credentials, password)
    finally:
        hash_queue.close()


async def _set_password(store: Store, hash_queue: HashQueue, user: User, password: str) -> None:
    """Give a user a permanent password, and end every session."""
    changed = replace(
        user.with_sessions_ended(),
        password_hash=await hash_queue.hash(password),
        password_change_required=False,
        temporary_password_expire_time=None,
        update_time=utc_now(),
    )
    await store.update_user(user, changed)


def _write_credentials(path: Path, password: str) -> None:
    text = f"{EMAIL_VARIABLE}={ADMIN_EMAIL}\n{PASSWORD_VARIABLE}={password}\n"
    try:
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    except OSError as error:
        raise OperatorError(f"{path}: cannot be written: {error.strerror}") from None


async def _admin_token(service: app.App, credentials: Path) -> IssuedToken | None:
    """Log the admin in with the password of the file; return None where the login is refused."""
    values = _read_env(credentials)
    try:
        tokens, _ = await service.logins.authenticate(
            email=values.get(EMAIL_VARIABLE, ""),
            password=values.get(PASSWORD_VARIABLE, ""),
            client_address="127.0.0.1",
            client_label="authsvc dev",
        )
    except (InvalidFieldError, InvalidCredentialsError, PasswordChangeRequiredError, TooManyAttemptsError):
        return None
    return tokens.access_token


def _welcome(service: app.App, token: IssuedToken | None, credentials: Path, settings: ServeSettings) -> str:
    address = service.address
    reach = "this machine only" if settings.listen.is_loopback else "open to every client that can connect"
    greeting = f"authsvc serves on {address}: gRPC, plain text, {reach}. Ctrl-C ends it."
    if token is None:
        advice = "correct it, or remove the file to get a new one."
        return f"{greeting}\nThe admin cannot log in with the password in {credentials}: {advice}"
    example = {"email": _EXAMPLE_EMAIL, "password": _EXAMPLE_PASSWORD.ljust(settings.password_min_length, "!")}
    tool = _find_tool(address)
    admin = f"-H {shlex.quote(f'authorization: Bearer {token.text}')} "
    create = tool.call("UserService/CreateUser", {**example, "request_id": "first"}, admin)
    log_in = tool.call("AuthService/Authenticate", example)
    to_request = r"""sed -n 's/.*"access_*[tT]oken": *\("[^"]*"\).*/{"token": \1}/p'"""
    validate = tool.call("AuthService/ValidateToken")
    return f"""\
{greeting}
Data, keys and the admin's password (dev.env) are in {credentials.parent}.
{_describe_public_keys(service)}\
The token below is the admin's, valid until {token.expire_time.astimezone():%H:%M}; each start prints a new one.
{tool.advice}
# Create a user:
{create}

# Log in:
{log_in}

# Log in and validate the token:
{log_in} | {to_request} | {validate}
"""


def _describe_public_keys(service: app.App) -> str:
    """Return the line about the HTTP side port; empty where it is off."""
    if service.http_address is None:
        return ""
    return f"Public keys are at http://{service.http_address}{http_server.JWKS_PATH}.\n"


@dataclass(frozen=True, slots=True)
class _Tool:
    """A command-line client that calls the service.

    Args:
        command: What a call begins with, for a shell.
        stdin: The option that reads the request from standard input.
        target: What stands before the method: the service's address.
        advice: How to install the tool, a line; empty where it is installed.
    """

    command: str
    stdin: str
    target: str
    advice: str = ""

    def call(self, method: str, request: Mapping[str, str] | None = None, options: str = "") -> str:
        """Return the command that calls a method; without a request it reads one from standard input."""
        data = self.stdin if request is None else shlex.quote(json.dumps(request))
        return f"{self.command} {options}-d {data} {self.target}authsvc.v1.{method}"


def _find_tool(address: str) -> _Tool:
    """Return grpcurl; where it is missing, the buf that is installed beside this Python, if it is."""
    grpcurl = _Tool("grpcurl -plaintext", "@", f"{shlex.quote(address)} ")
    if shutil.which("grpcurl"):
        return grpcurl
    # The whole path: the terminal into which the commands are pasted may be in another folder.
    buf = shutil.which(str(Path(sys.executable).with_name("buf")))
    if buf is not None:
        return _Tool(f"{shlex.quote(buf)} curl --protocol grpc", "@-", f"{shlex.quote(f'http://{address}')}/")
    releases = "https://github.com/fullstorydev/grpcurl/releases"
    return replace(grpcurl, advice=f"The commands need grpcurl: brew install grpcurl, or download it from {releases}\n")
