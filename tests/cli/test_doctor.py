"""`authsvc doctor`: all is well, or each problem with a remedy that ends it."""

import contextlib
import json
import os
import shlex
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives import serialization

from authsvc.cli import doctor
from authsvc.errors import WRONG_CLOCK, StoreUnavailableError
from authsvc.models import Finding, utc_now
from authsvc.stores.interface import UserPage
from authsvc.tokens import key_file
from authsvc.tokens.key_file import generate_key_file
from tests.e2e.certificates import Authority, Pair
from tests.e2e.process import invoke
from tests.engines import Engine
from tests.fake_aws import serving_aws
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
        "ok    AUTHSVC_BCRYPT_COST=10",
        "ok    schema version 3",
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


def test_names_the_misspelled_setting_beside_the_missing_one(settings: dict[str, str]) -> None:
    result = invoke("doctor", **{**settings, "AUTHSVC_AUDIENCE": "", "AUTHSVC_AUDIANCE": "backends"})
    missing, misspelled = result.stdout.splitlines()
    assert missing.startswith("WRONG setting AUTHSVC_AUDIENCE: must be set: ")
    assert misspelled.endswith("AUTHSVC_AUDIANCE is not a setting. Remedy: write AUTHSVC_AUDIENCE")


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("AUTHSVC_LISTN", "settings: AUTHSVC_LISTN is not a setting. Remedy: write AUTHSVC_LISTEN"),
        ("AUTHSVC_QQQQQQ", "settings: AUTHSVC_QQQQQQ is not a setting. Remedy: remove it"),
    ],
)
def test_names_what_is_no_setting(settings: dict[str, str], name: str, reported: str) -> None:
    assert wrong(invoke("doctor", **{**settings, name: "x"})) == reported


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
    assert line.startswith(
        f'keys in {keys}: not a JWK Set: {{"keys": […]}}. Remedy: restore it from a backup; without '
    )
    assert "authsvc keys generate" in line
    assert "every access token is invalid" in line


def test_keys_that_another_user_may_read_are_not_called_broken(
    settings: dict[str, str], keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read every file, so the test fakes the refusal."""

    def refuse(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(key_file, "read_file", refuse)
    line = wrong(invoke("doctor", **settings))
    assert line == f"keys in {keys}: cannot be read: Permission denied. Remedy: run this as the file's owner"


def test_keys_that_root_owns_and_a_group_may_read(
    settings: dict[str, str], keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service reads them as a member of the group: chmod 600 would lock it out."""
    stat, mode = Path.stat, 0o100640

    def owned(path: Path, **options: bool) -> os.stat_result:
        values = list(stat(path, **options))
        return os.stat_result([mode, *values[1:4], 0, 4711, *values[6:]]) if path == keys else stat(path, **options)

    monkeypatch.setattr(Path, "stat", owned)
    assert invoke("doctor", **settings).exit_code == 0
    mode = 0o100644
    assert "other users than the owner may read the file" in wrong(invoke("doctor", **settings))


def test_keys_that_others_can_read(settings: dict[str, str], keys: Path) -> None:
    keys.chmod(0o640)
    line = wrong(invoke("doctor", **settings))
    assert "other users than the owner may read the file" in line
    subprocess.run(shlex.split(remedy(line)), check=True)
    assert invoke("doctor", **settings).exit_code == 0


@pytest.mark.parametrize("keys_in_aws", ["ssm:/authsvc/keys", "secretsmanager:authsvc/keys"])
def test_keys_in_aws(settings: dict[str, str], keys_in_aws: str) -> None:
    with serving_aws() as aws:
        settings |= {**aws.environ(), "AUTHSVC_SIGNING_KEYS": keys_in_aws}
        missing = wrong(invoke("doctor", **settings))
        assert missing.startswith(f"keys in {keys_in_aws}: no such ")
        assert remedy(missing) == f"authsvc keys generate {keys_in_aws}; or correct AWS_REGION"
        assert invoke("keys", "generate", keys_in_aws, **settings).exit_code == 0
        assert f"ok    keys in {keys_in_aws}" in invoke("doctor", **settings).stdout
        aws.refusals = dict.fromkeys(("GetParameter", "GetSecretValue"), "AccessDeniedException")
        denied = wrong(invoke("doctor", **settings))
        assert " is refused: AccessDeniedException. Remedy: allow " in denied
        without_region = {**settings, "AWS_REGION": "", "AWS_CONFIG_FILE": "/nowhere"}
        assert wrong(invoke("doctor", **without_region)).endswith("Remedy: correct AWS's own settings")


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
    assert line.startswith(
        f"callers in {callers}: TLS identities need a client CA. Remedy: set AUTHSVC_TLS_CLIENT_CA, "
    )


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


def test_an_issuer_that_expires(settings: dict[str, str], authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("server")
    pair.certificate.write_bytes(
        pair.certificate.read_bytes() + authority.issue("between", days=1).certificate.read_bytes()
    )
    assert f"certificate in {pair.certificate}: expires 20" in wrong(invoke("doctor", **with_tls(settings, pair)))


def test_files_that_serve_refuses(settings: dict[str, str], authority: Authority) -> None:
    """tests/server/test_certificates.py has the other reasons."""
    pair = Pair(authority.issue("one").certificate, authority.issue("other").key)
    line = wrong(invoke("doctor", **with_tls(settings, pair)))
    problem = f"AUTHSVC_TLS_KEY: {pair.key}: is not the key of the first certificate in {pair.certificate}"
    assert line == f"TLS files: {problem}. Remedy: correct the file: serve refuses it too"


def test_a_certificate_that_clients_refuse(
    settings: dict[str, str], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "try_handshake", lambda _: "Socket closed")
    pair = authority.issue("server")
    line = wrong(invoke("doctor", **with_tls(settings, pair)))
    assert line.startswith(f"certificate in {pair.certificate}: a handshake of gRPC with itself fails: Socket closed. ")


def test_an_encrypted_key_is_not_asked_for_its_password(settings: dict[str, str], authority: Authority) -> None:
    pair = authority.issue("server")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pair.key.write_bytes(key.private_bytes(pem, pkcs8, secret))
    assert "is encrypted" in wrong(invoke("doctor", **with_tls(settings, pair)))


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
    assert line == "schema version 3: is 7. Remedy: use the authsvc that wrote the file"


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        ("sqlite: no such table: users", "authsvc tables create"),
        ("ResourceNotFoundException", "authsvc tables create"),
        ("sqlite: database is locked", "check that the disk has space and no other program locks or changes the file"),
        ("sqlite: database disk image is malformed", "restore the file from a backup"),
        ("sqlite: a row is damaged", "restore the file from a backup"),
        ("no AWS credentials are configured", "check AWS_REGION, "),
        (f"InvalidSignatureException: {WRONG_CLOCK}, 3:00:00 slow", "run a time service, "),
        ("DescribeTable: SSLError", "check the certificate of the endpoint or of the proxy, "),
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


def seconds_at_cost_10(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make this host as slow as that, as far as doctor can see."""
    monkeypatch.setattr(doctor, "estimate_seconds", lambda cost: seconds * 2 ** (cost - 10))


def test_hashes_that_cost_more_than_this_host_can_afford(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raising the setting would refuse every login."""
    stored = f"$2b$16${'.' * 53}"
    assert invoke("users", "create", "--email", "a@example.com", stdin=PASSWORD, **settings).exit_code == 0
    with sqlite3.connect(settings["AUTHSVC_STORE"].removeprefix("sqlite:")) as db:
        db.execute("UPDATE users SET password_hash = ?", (stored,))
    db.close()
    for seconds, advice in ((0.07, "set AUTHSVC_BCRYPT_COST=16"), (0.09, "leave it; a new password has a new hash: ")):
        seconds_at_cost_10(monkeypatch, seconds)
        line = wrong(invoke("doctor", **settings))
        assert line.startswith("password hashes: 1 cost more than AUTHSVC_BCRYPT_COST=10, ")
        assert remedy(line).startswith(advice)


@pytest.mark.parametrize(
    ("cost", "seconds", "reported"),
    [
        ("16", 0.07, "ok    AUTHSVC_BCRYPT_COST=16"),
        ("16", 0.1, "Remedy: set AUTHSVC_BCRYPT_COST=13"),
        (
            "16",
            0.1,
            "WARN  AUTHSVC_BCRYPT_COST=16: a hash takes about 6 s of this host's CPU, and a login at most 10 s. Remedy",
        ),
        ("15", 0.3, "Remedy: set AUTHSVC_BCRYPT_COST=11"),
        ("10", 5.1, "Remedy: use a faster host"),
    ],
)
def test_a_cost_with_which_logins_fail_is_a_warning(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, cost: str, seconds: float, reported: str
) -> None:
    """Nothing is refused by what one host measured."""
    seconds_at_cost_10(monkeypatch, seconds)
    result = invoke("doctor", **{**settings, "AUTHSVC_BCRYPT_COST": cost})
    assert result.exit_code == 0
    assert reported in result.stdout
    assert ("WARN " in result.stdout) is ("Remedy" in reported)


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


@contextlib.contextmanager
def refusing(code: str, hours_ahead: float) -> Iterator[str]:
    """A server that refuses every signature, with a clock of its own; its URL."""

    class Refusal(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"__type": f"com.amazon.coral.service#{code}", "message": "Signature expired"}).encode()
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(utc_now().timestamp() + hours_ahead * 3600)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("code", ["InvalidSignatureException", "RequestExpired", "SignatureDoesNotMatch"])
def test_the_clock_is_named_where_the_store_refuses_signatures_of_another_time(
    settings: dict[str, str], code: str
) -> None:
    aws = {"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    with refusing(code, hours_ahead=3) as url:
        more = {**settings, **aws, "AUTHSVC_STORE": "dynamodb", "AWS_ENDPOINT_URL_DYNAMODB": url}
        line = wrong(invoke("doctor", **more))
        listed = invoke("users", "list", **more)
    reported = f"the store cannot answer: {code}: this host's clock is wrong, 3:00:00 slow by the server's"
    assert line == f"store dynamodb: {reported}. Remedy: run a time service, for instance chrony"
    assert listed.stderr == f"error: {reported}. Remedy: run a time service, for instance chrony\n"


def test_where_the_clock_is_right_the_credentials_are_named(settings: dict[str, str]) -> None:
    aws = {"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    with refusing("InvalidSignatureException", hours_ahead=0) as url:
        more = {**settings, **aws, "AUTHSVC_STORE": "dynamodb", "AWS_ENDPOINT_URL_DYNAMODB": url}
        line = wrong(invoke("doctor", **more))
    assert "InvalidSignatureException. Remedy: check AWS_REGION, the credentials, " in line
