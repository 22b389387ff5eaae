"""`authsvc dev`: what it reads, makes and refuses before it serves. tests/e2e/test_dev.py has the rest."""

import asyncio
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dotenv import dotenv_values

from authsvc import config
from authsvc.cli import dev
from authsvc.errors import ConfigError, OperatorError
from authsvc.server.app import PRODUCTION_LIMITS
from tests.e2e.process import FREE, invoke
from tests.support import PASSWORD, WITNESS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder, below an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".authsvc"


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that cannot be listened on, so that dev ends by itself when all else is well."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def used(folder: Path, taken: str) -> Path:
    """The data folder after a first start."""
    assert is_ready(taken)
    return folder


def is_ready(taken: str) -> bool:
    """Return whether nothing but the port keeps dev from serving."""
    result = invoke("dev", AUTHSVC_LISTEN=taken)
    assert result.exit_code == 1
    password = dotenv_values(".authsvc/dev.env").get("AUTHSVC_ADMIN_PASSWORD")
    WITNESS.hide(password or "")
    return "Address already in use" in result.stderr


def last_line(text: str) -> str:
    return text.splitlines()[-1]


# Settings


def test_the_environment_goes_before_a_file_beside() -> None:
    Path(".env").write_text("AUTHSVC_LISTEN=127.0.0.1:1\nAUTHSVC_ACCESS_TOKEN_TTL=1h\nAUTHSVC_LOG_LEVEL\n")
    given = {"AUTHSVC_LISTEN": "127.0.0.1:2", "AUTHSVC_ACCESS_TOKEN_TTL": ""}
    settings = config.load(dev.environment(Path("d"), given), dev.DEFAULTS)
    assert settings.listen.port == 2
    assert settings.access_token_ttl.total_seconds() == 3600
    assert settings.log_level == "info"


def test_a_byte_order_mark_hides_no_variable_of_the_file() -> None:
    Path(".env").write_bytes(b"\xef\xbb\xbfAUTHSVC_ACCESS_TOKEN_TTL=1h\n")
    assert dev.environment(Path("d"), {})["AUTHSVC_ACCESS_TOKEN_TTL"] == "1h"


def test_store_keys_and_plain_text_are_its_own(signing_keys: Path) -> None:
    others = {
        "AUTHSVC_STORE": "dynamodb",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
        "AUTHSVC_CALLERS": str(signing_keys),
        "AUTHSVC_TLS_CERT": str(signing_keys),
        "AUTHSVC_TLS_KEY": str(signing_keys),
        "AUTHSVC_REFLECTION": "false",
    }
    settings = config.load(dev.environment(Path("d"), others), dev.DEFAULTS)
    assert settings.store == "sqlite:d/authsvc.db"
    assert settings.signing_keys == Path("d/keys.json")
    assert settings.callers is settings.tls_cert is settings.tls_key is settings.tls_client_ca is None
    assert settings.reflection


def test_a_file_beside_that_is_no_text_is_said() -> None:
    Path(".env").write_bytes(b"\xff")
    result = invoke("dev")
    assert (result.exit_code, result.stderr) == (1, "error: .env: cannot be read: not UTF-8\n")


def test_a_file_beside_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> dict[str, str | None]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(dev, "dotenv_values", refuse)
    with pytest.raises(ConfigError, match=r"^\.env: cannot be read: Permission denied$"):
        dev.environment(Path("d"), {})


@pytest.mark.parametrize("allowed", [{}, {"AUTHSVC_ALLOW_OPEN": "true"}, {"AUTHSVC_ALLOW_PLAINTEXT": "true"}])
def test_stays_on_this_machine_unless_both_flags_allow_more(allowed: dict[str, str], folder: Path) -> None:
    result = invoke("dev", AUTHSVC_LISTEN="0.0.0.0:0", **allowed)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: AUTHSVC_LISTEN: 0.0.0.0:0 ")
    assert not folder.exists()


# What it makes


def test_a_first_start_that_fails_is_made_up_for(used: Path, taken: str) -> None:
    before = (used / "dev.env").read_text()
    (used / "authsvc.db").unlink()
    assert is_ready(taken)
    after = (used / "dev.env").read_text()
    assert after != before, "the password of an admin that no longer exists is worth nothing"


async def test_a_password_that_is_gone_is_replaced(used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (used / "dev.env").read_text()
    for _ in range(2):
        (used / "dev.env").unlink()
        assert "/CreateUser" in await started(used, capsys), "the new password lets the admin in"
    assert (used / "dev.env").read_text() != before
    assert (used / "dev.env").stat().st_mode & 0o777 == 0o600


def test_a_new_password_that_cannot_be_written_down_is_replaced_again(
    used: Path, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OperatorError("dev.env: cannot be written: No space left on device")

    (used / "dev.env").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(dev, "_write_credentials", refuse)
        assert "No space left" in invoke("dev", AUTHSVC_LISTEN=taken).stderr
    assert is_ready(taken)
    assert (used / "dev.env").exists()


def test_broken_keys_are_said_and_a_new_file_made_where_there_is_none(used: Path, taken: str) -> None:
    keys = used / "keys.json"
    keys.write_text("{")
    result = invoke("dev", AUTHSVC_LISTEN=taken)
    assert result.exit_code == 1
    assert result.stderr == (
        'error: .authsvc/keys.json: not a JWK Set: {"keys": […]}; remove the file to get new keys\n'
    )
    keys.unlink()
    assert is_ready(taken)


def test_a_folder_that_cannot_be_made_is_said() -> None:
    Path("file").touch()
    result = invoke("dev", "--data-dir", "file/folder")
    assert (result.exit_code, result.stderr) == (1, "error: cannot create the folder file/folder: Not a directory\n")


def test_a_folder_that_is_a_file_is_said() -> None:
    Path("file").touch()
    result = invoke("dev", "--data-dir", "file")
    assert (result.exit_code, result.stderr) == (1, "error: cannot create the folder file: File exists\n")


def test_a_folder_that_cannot_be_written_is_said() -> None:
    result = invoke("dev", "--data-dir", "/proc/self")
    assert result.exit_code == 1
    # Where there is no /proc, it cannot be made.
    assert re.fullmatch(
        "error: (/proc/self/keys.json: cannot be written|cannot make .* /proc/self): .*\n", result.stderr
    )


def test_a_password_that_cannot_be_written_down_makes_no_admin(used: Path, taken: str) -> None:
    for name in ("authsvc.db", "dev.env"):
        (used / name).unlink()
    (used / "dev.env").mkdir()
    result = invoke("dev", AUTHSVC_LISTEN=taken)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: .authsvc/dev.env: cannot be written: ")
    assert invoke("users", "list", AUTHSVC_STORE=f"sqlite:{used / 'authsvc.db'}").stdout == ""


# What it prints


async def screen(settings: config.ServeSettings, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Start dev on this loop, and end it once it has printed what it has to say."""
    serving = asyncio.create_task(dev.run(folder, settings, replace(PRODUCTION_LIMITS, drain_seconds=0.0)))
    shown = ""
    while not shown and not serving.done():
        await asyncio.wait([serving], timeout=0.01)
        shown = capsys.readouterr().out
    os.kill(os.getpid(), signal.SIGINT)
    await serving
    WITNESS.hide(dotenv_values(folder / "dev.env").get("AUTHSVC_ADMIN_PASSWORD") or "")
    return shown


async def started(folder: Path, capsys: pytest.CaptureFixture[str], **more: str) -> str:
    """Return what dev prints with these settings."""
    given = {**FREE, "AUTHSVC_LISTEN": "127.0.0.1:0", **more}
    return await screen(config.load(dev.environment(folder, given), dev.DEFAULTS), folder, capsys)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder of the path, empty."""
    folder = tmp_path / "bin, it's"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
async def test_shows_three_commands(
    address: str, folder: Path, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path / "grpcurl").touch(mode=0o755)
    shown = await started(folder, capsys, AUTHSVC_LISTEN=address)
    assert shown.count("\ngrpcurl -plaintext ") == 3
    assert ("'[::1]:" in shown) == ("::1" in address), "a shell would look for files named so"
    assert "brew" not in shown


async def test_its_passwords_are_as_long_as_the_setting_asks(
    folder: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path / "grpcurl").touch(mode=0o755)
    shown = await started(folder, capsys, AUTHSVC_PASSWORD_MIN_LENGTH="256")
    assert [len(password) for password in re.findall(r'"password": "([^"]*)"', shown)] == [256] * 3


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
async def test_shows_them_for_the_buf_beside_python_where_grpcurl_is_missing(
    address: str, folder: Path, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    buf = path / "buf"
    buf.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(path / "python"))
    monkeypatch.setenv("PATH", "")
    shown = await started(folder, capsys, AUTHSVC_LISTEN=address)
    assert shown.count(f"\n{shlex.quote(str(buf))} curl --protocol grpc ") == 3
    assert shown.count(" 'http://[::1]:" if "::1" in address else " http://127.0.0.1:") == 4
    assert "grpcurl" not in shown


@pytest.mark.parametrize(
    "written",
    [
        "AUTHSVC_ADMIN_EMAIL=admin@example.com\nAUTHSVC_ADMIN_PASSWORD=another password\n",
        "AUTHSVC_ADMIN_PASSWORD=" + PASSWORD,
        "",
    ],
)
async def test_a_password_that_is_wrong_is_said(written: str, used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (used / "dev.env").write_text(written)
    shown = await started(used, capsys)
    assert "correct it, or remove the file to get a new one." in shown
    assert "/CreateUser" not in shown


async def test_names_the_tool_that_the_commands_need_where_there_is_none(
    folder: Path, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(path / "python"))
    shown = await started(folder, capsys)
    assert shown.count("brew install grpcurl") == 1
    assert shown.count("\ngrpcurl -plaintext ") == 3


async def test_says_where_the_keys_are_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = await started(folder, capsys)
    shown = await started(folder, capsys, AUTHSVC_HTTP_LISTEN="127.0.0.1:0")
    assert "jwks" not in without
    assert len(shown.splitlines()) == len(without.splitlines()) + 1
    assert re.search(r"\nPublic keys are at http://127\.0\.0\.1:[1-9]\d*/\.well-known/jwks\.json\.\n", shown)


def test_the_side_port_is_off_where_it_is_set_to_nothing() -> None:
    Path(".env").write_text("AUTHSVC_HTTP_LISTEN=127.0.0.1:1\n")
    read = {
        name: config.load(dev.environment(Path("d"), given), dev.DEFAULTS).http_listen
        for name, given in {"file": {}, "off": {"AUTHSVC_HTTP_LISTEN": ""}}.items()
    }
    assert (str(read["file"]), read["off"]) == ("127.0.0.1:1", None)


def test_a_side_port_that_is_taken_is_said_with_its_setting(taken: str) -> None:
    result = invoke("dev", AUTHSVC_LISTEN="127.0.0.1:0", AUTHSVC_HTTP_LISTEN=taken)
    assert result.exit_code == 1
    assert last_line(result.stderr) == (
        f"error: AUTHSVC_HTTP_LISTEN: cannot listen on {taken}: Address already in use; "
        "set another address, or an empty value to turn it off"
    )


async def test_beyond_this_machine_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allowed = {"AUTHSVC_ALLOW_OPEN": "true", "AUTHSVC_ALLOW_PLAINTEXT": "true"}
    assert "open to every client that can connect" in await started(
        folder, capsys, AUTHSVC_LISTEN="0.0.0.0:0", **allowed
    )
    assert "this machine only" in await started(folder, capsys)
