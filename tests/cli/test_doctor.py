"""`authsvc doctor`: all is well, or each problem with a remedy that ends it."""

import contextlib
import json
import shlex
import sqlite3
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives import serialization

from authsvc.cli import doctor
from authsvc.errors import StoreUnavailableError
from authsvc.models import Finding, utc_now
from authsvc.stores.interface import UserPage
from authsvc.tokens.key_file import generate_key_file
from tests.e2e.certificates import Authority, Pair
from tests.e2e.process import invoke
from tests.engines import Engine
from tests.support import PASSWORD


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "the keys.json"
    generate_key_file(path, "ES256", utc_now())
    return path


@pytest.fixture
def settings(tmp_path: Path, keys: Path) -> dict[str, str]:
    """A good set-up, on SQLite."""
    settings = {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(keys),
    }
    assert invoke("tables", "create", **settings).exit_code == 0
    return settings


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def with_tls(settings: dict[str, str], pair: Pair, client_ca: Path | None = None) -> dict[str, str]:
    return {
        **settings,
        "AUTHSVC_TLS_CERT": str(pair.certificate),
        "AUTHSVC_TLS_KEY": str(pair.key),
        "AUTHSVC_TLS_CLIENT_CA": str(client_ca or ""),
    }


def wrong(result: Result) -> str:
    """Return the only line with a problem."""
    assert result.exit_code == 1
    assert result.stderr == ""
    lines = [line for line in result.stdout.splitlines() if not line.startswith("ok ")]
    assert len(lines) == 1, result.stdout
    assert lines[0].startswith("WRONG ")
    return lines[0].removeprefix("WRONG ")


def remedy(line: str) -> str:
    return line.partition(" Remedy: ")[2]


def test_says_ok_of_everything_that_is(settings: dict[str, str], keys: Path) -> None:
    result = invoke("doctor", **settings)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "ok    settings",
        f"ok    keys in {keys}",
        "ok    schema version 2",
        "ok    file integrity",
        f"ok    store {settings['AUTHSVC_STORE']}",
        "ok    password hashes",
    ]


def test_says_ok_of_an_engine_and_its_clock(settings: dict[str, str], dynoxide: Engine, table_prefix: str) -> None:
    on_engine = {
        **settings,
        **dynoxide.environ(),
        "AUTHSVC_STORE": "dynamodb",
        "AUTHSVC_TABLE_PREFIX": table_prefix,
        "AWS_ENDPOINT_URL_DYNAMODB": dynoxide.endpoint_url,
    }
    before = invoke("doctor", **on_engine)
    assert before.exit_code == 1
    assert "store dynamodb: the store cannot answer: ResourceNotFoundException. " in before.stdout
    assert invoke("tables", "create", **on_engine).exit_code == 0
    assert invoke("doctor", **on_engine).exit_code == 0


# Settings


def test_names_every_wrong_setting(settings: dict[str, str]) -> None:
    result = invoke("doctor", **{**settings, "AUTHSVC_LISTEN": "x", "AUTHSVC_AUDIENCE": ""})
    assert result.exit_code == 1
    listen, audience = result.stdout.splitlines()
    assert listen.startswith("WRONG setting AUTHSVC_LISTEN: must be HOST:PORT, for instance ")
    assert audience.startswith("WRONG setting AUTHSVC_AUDIENCE: must be set: ")
    assert remedy(listen) == remedy(audience) == "see authsvc serve --help"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("AUTHSVC_LISTN", "settings: AUTHSVC_LISTN is not a setting. Remedy: write AUTHSVC_LISTEN"),
        ("AUTHSVC_QQQQQQ", "settings: AUTHSVC_QQQQQQ is not a setting. Remedy: remove it"),
    ],
)
def test_names_what_is_no_setting(settings: dict[str, str], name: str, told: str) -> None:
    assert wrong(invoke("doctor", **{**settings, name: "x"})) == told


# Keys


def test_missing_keys(settings: dict[str, str], keys: Path) -> None:
    keys.unlink()
    line = wrong(invoke("doctor", **settings))
    assert line.startswith(f"keys in {keys}: no such file. ")
    program, *arguments = shlex.split(remedy(line))
    assert program == "authsvc"
    assert invoke(*arguments).exit_code == 0
    assert invoke("doctor", **settings).exit_code == 0


def test_broken_keys(settings: dict[str, str], keys: Path) -> None:
    keys.write_text("{}")
    line = wrong(invoke("doctor", **settings))
    assert line.startswith(f'keys in {keys}: not a JWK Set: {{"keys": […]}}. Remedy: restore it, or remove it and ')


def test_keys_that_others_can_read(settings: dict[str, str], keys: Path) -> None:
    keys.chmod(0o640)
    line = wrong(invoke("doctor", **settings))
    assert "other users than the owner may read the file" in line
    subprocess.run(shlex.split(remedy(line)), check=True)
    assert invoke("doctor", **settings).exit_code == 0


def change_keys(path: Path, change: Callable[[list[dict[str, object]]], object]) -> None:
    jwks = json.loads(path.read_text())
    change(jwks["keys"])
    path.write_text(json.dumps(jwks))


def test_keys_from_the_future(settings: dict[str, str], keys: Path) -> None:
    tomorrow = int((utc_now() + timedelta(days=1)).timestamp())
    change_keys(keys, lambda keys: keys[0].update(create_time=tomorrow))
    assert "were created in the future: this host's clock is slow. Remedy: set the clock" in wrong(
        invoke("doctor", **settings)
    )


def test_no_next_key(settings: dict[str, str], keys: Path) -> None:
    change_keys(keys, list.pop)
    line = wrong(invoke("doctor", **settings))
    assert line.startswith(f"keys in {keys}: no next key is published. ")
    program, *arguments = shlex.split(remedy(line).removesuffix(", which adds one"))
    assert program == "authsvc"
    assert invoke(*arguments).exit_code == 0
    assert invoke("doctor", **settings).exit_code == 0


# Callers


@pytest.fixture
def callers(tmp_path: Path) -> Path:
    path = tmp_path / "the callers.toml"
    path.write_text('[callers.a]\ntls_identities = ["a.example.com"]\npermissions = ["login"]\n')
    path.chmod(0o644)
    return path


def test_good_callers(settings: dict[str, str], callers: Path, authority: Authority) -> None:
    with_callers = {
        **with_tls(settings, authority.issue("server"), authority.certificate),
        "AUTHSVC_CALLERS": str(callers),
    }
    result = invoke("doctor", **with_callers)
    assert result.exit_code == 0
    assert f"ok    callers in {callers}" in result.stdout.splitlines()


def test_each_problem_of_the_callers(settings: dict[str, str], callers: Path) -> None:
    callers.write_text("[callers.a]\n[callers.b]\n")
    result = invoke("doctor", **settings, AUTHSVC_CALLERS=str(callers))
    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if "caller" in line] == [
        f"WRONG callers in {callers}: caller '{name}': {problem}. Remedy: correct the file"
        for name in "ab"
        for problem in (
            "has no credential; set api_key_sha256 or tls_identities",
            "has no permission; set permissions to a list of validate, login, sessions, users",
        )
    ]


def test_callers_that_others_can_change(settings: dict[str, str], callers: Path) -> None:
    callers.write_text(
        callers.read_text().replace("tls_identities", "api_key_sha256").replace("a.example.com", "0" * 64)
    )
    callers.chmod(0o664)
    line = wrong(invoke("doctor", **settings, AUTHSVC_CALLERS=str(callers)))
    assert line.startswith(
        f"callers in {callers}: other users than the owner may write the file, and so decide who may call. "
    )
    subprocess.run(shlex.split(remedy(line)), check=True)
    assert invoke("doctor", **settings, AUTHSVC_CALLERS=str(callers)).exit_code == 0


def test_tls_identities_that_nobody_can_show(settings: dict[str, str], callers: Path) -> None:
    line = wrong(invoke("doctor", **settings, AUTHSVC_CALLERS=str(callers)))
    assert line == (f"callers in {callers}: TLS identities need a client CA. Remedy: set AUTHSVC_TLS_CLIENT_CA")


# TLS


def test_good_certificates(settings: dict[str, str], authority: Authority) -> None:
    result = invoke("doctor", **with_tls(settings, authority.issue("server"), authority.certificate))
    assert result.exit_code == 0
    assert "ok    certificate in " in result.stdout
    assert "ok    client CA in " in result.stdout


@pytest.mark.parametrize("days", [-0.5, 13])
def test_a_certificate_that_expires(settings: dict[str, str], authority: Authority, days: float) -> None:
    line = wrong(invoke("doctor", **with_tls(settings, authority.issue("server", days=days))))
    assert ": expires 20" in line
    assert line.endswith(" Remedy: renew it")


def test_a_certificate_from_the_future(settings: dict[str, str], authority: Authority) -> None:
    pair = authority.issue("server", begin=datetime.now(UTC) + timedelta(days=1))
    assert ": is not valid before 20" in wrong(invoke("doctor", **with_tls(settings, pair)))


def test_a_key_of_another_certificate(settings: dict[str, str], authority: Authority) -> None:
    pair = Pair(authority.issue("one").certificate, authority.issue("other").key)
    line = wrong(invoke("doctor", **with_tls(settings, pair)))
    assert f"cannot be used with the key in {pair.key}: key values mismatch. " in line


def test_an_encrypted_key_is_not_asked_for_its_password(settings: dict[str, str], authority: Authority) -> None:
    pair = authority.issue("server")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pair.key.write_bytes(key.private_bytes(pem, pkcs8, secret))
    assert "unencrypted key" in remedy(wrong(invoke("doctor", **with_tls(settings, pair))))


def test_files_that_are_no_pem(settings: dict[str, str], authority: Authority, keys: Path) -> None:
    pair = authority.issue("server")
    assert "not PEM" in wrong(invoke("doctor", **with_tls(settings, Pair(keys, pair.key))))
    assert "holds no certificate" in wrong(invoke("doctor", **with_tls(settings, pair, keys)))


def test_a_folder_for_a_tls_file(settings: dict[str, str], tmp_path: Path) -> None:
    assert "Is a directory" in wrong(invoke("doctor", **with_tls(settings, Pair(tmp_path, tmp_path))))


# Store


def test_a_store_that_is_not_there(settings: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "authsvc.db").unlink()
    line = wrong(invoke("doctor", **settings))
    assert line.endswith("authsvc.db: no such file. Remedy: authsvc tables create")
    assert not (tmp_path / "authsvc.db").exists()


def test_a_file_that_is_no_store(settings: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "authsvc.db").write_text("Dear diary, " * 1000)
    line = wrong(invoke("doctor", **settings))
    assert "cannot open the SQLite file" in line
    assert remedy(line).startswith("correct AUTHSVC_STORE")


def test_a_store_of_another_version(settings: dict[str, str], tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "authsvc.db") as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    line = wrong(invoke("doctor", **settings))
    assert line == "schema version 2: is 7. Remedy: use the authsvc that wrote the file"


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        ("sqlite: no such table: users", "authsvc tables create"),
        ("ResourceNotFoundException", "authsvc tables create"),
        ("sqlite: database is locked", "check that the disk has space and no other program locks or changes the file"),
        ("no AWS credentials are configured", "check AWS_REGION, "),
        ("DescribeTable: SSLError", "check the certificate of the endpoint, "),
    ],
)
def test_what_to_do_where_the_store_does_not_answer(cause: str, remedy: str) -> None:
    assert doctor.remedy_for(StoreUnavailableError(cause)).startswith(remedy)


def test_hashes_that_cost_more_than_a_wrong_try(settings: dict[str, str]) -> None:
    """They tell who has an account."""
    for cost in ("10", "11", "12"):
        more = {**settings, "AUTHSVC_BCRYPT_COST": cost}
        assert invoke("users", "create", "--email", f"{cost}@example.com", stdin=PASSWORD, **more).exit_code == 0
    listed = invoke("users", "list", **settings).stdout.splitlines()
    above = min(line.split("\t")[0] for line in listed if "\t10@" not in line)
    line = wrong(invoke("doctor", **settings))
    assert line == (
        f"password hashes: 2 cost more than AUTHSVC_BCRYPT_COST=10, for instance that of user {above}. "
        "Remedy: set AUTHSVC_BCRYPT_COST=12"
    )
    assert invoke("doctor", **{**settings, "AUTHSVC_BCRYPT_COST": "12"}).exit_code == 0


# Clock


class StoreWithAClock:
    """Answers all that doctor asks of a store."""

    def __init__(self, time: datetime) -> None:
        self._time = time

    async def check_tables(self) -> list[Finding]:
        return []

    async def ping(self) -> datetime:
        return self._time

    async def list_users(self, _limit: int, _after_user_id: str | None) -> UserPage:
        return UserPage([], None)


@pytest.mark.parametrize(("seconds", "problem"), [(-7, "differs by 0:00:07 from the store's"), (-4, ""), (4, "")])
async def test_a_clock_that_goes_wrong(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, seconds: int, problem: str
) -> None:
    now = utc_now()
    store = contextlib.nullcontext(StoreWithAClock(now + timedelta(seconds=seconds)))
    monkeypatch.setattr(doctor, "open_store", lambda _: store)
    *_, clock = [finding async for finding in doctor.examine(settings, lambda: now)]
    assert clock == Finding("clock", problem, "run a time service, for instance chrony")
