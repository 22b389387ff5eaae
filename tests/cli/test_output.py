"""What comes from rows, files and the environment neither forges a line of output nor controls the terminal."""

import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import Result

from authsvc.models import utc_now
from authsvc.telemetry.printable import escape
from authsvc.tokens.key_file import generate_key_file
from tests.e2e.process import invoke
from tests.support import PASSWORD

RAW = {
    "a line break": ("user\nforged admin@example.com admin", r"user\nforged admin@example.com admin"),
    "a carriage return": ("user\rforged", r"user\rforged"),
    "a tab, which separates columns": ("user\tactive", r"user\tactive"),
    "the terminal's title": ("a\x1b]0;t\x07", r"a\x1b]0;t\x07"),
    "C1": ("a\x9b31mb\x85c", r"a\x9b31mb\x85c"),
    "DEL and NUL": ("a\x7fb\0c", r"a\x7fb\x00c"),
    "another direction of writing": ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
    "line separators": ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
    "invisible": ("a\u200bb\ufeffc\xa0d", r"a\u200bb\ufeffc\xa0d"),
}
SHOWN = pytest.mark.parametrize(("raw", "shown"), RAW.values(), ids=RAW)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "authsvc.db"


@pytest.fixture
def store(database: Path) -> dict[str, str]:
    settings = {"AUTHSVC_STORE": f"sqlite:{database}"}
    assert invoke("tables", "create", **settings).exit_code == 0
    assert invoke("users", "create", "--email", "alice@example.com", stdin=PASSWORD, **settings).exit_code == 0
    return settings


def write(database: Path, **columns: str) -> None:
    """Change the only user's row, as another program might."""
    with closing(sqlite3.connect(database)) as db, db:
        for name, value in columns.items():
            db.execute(f"UPDATE users SET {name} = ?", (value,))  # noqa: S608 - a column


def assert_lines(result: Result, count: int) -> None:
    """Assert that every character of the output prints, and how many lines there are."""
    lines = (result.stdout + result.stderr).split("\n")
    assert lines.pop() == ""
    assert all(line.replace("\t", "").isprintable() for line in lines)
    assert len(lines) == count


@SHOWN
def test_every_column_of_a_user(store: dict[str, str], database: Path, raw: str, shown: str) -> None:
    write(database, user_id="u" + raw, email="e" + raw, role="r" + raw)
    for command in (["list"], ["disable", "u" + raw], ["enable", "u" + raw]):
        result = invoke("users", *command, **store)
        state = "disabled" if command[0] == "disable" else "active"
        assert result.stdout.endswith(f"u{shown}\te{shown}\tr{shown}\t{state}\n")
        assert_lines(result, 1)
    result = invoke("users", "revoke-sessions", "u" + raw, **store)
    assert result.stdout == f"ended all sessions of u{shown}\n"


def test_letters_of_every_script_are_shown_as_they_are() -> None:
    for text in ("jürgen@exämple.de", "इशा@उदाहरण.भारत", "用户@例子.公司", "a b", "e\u0301", "😀"):
        assert escape(text) == text


@SHOWN
def test_findings(store: dict[str, str], database: Path, tmp_path: Path, raw: str, shown: str) -> None:
    write(database, user_id="u" + raw, email="e" + raw)
    result = invoke("tables", "check", **store)
    assert f"WRONG user u{shown}: email: " in result.stdout
    assert_lines(result, 3)
    keys = tmp_path / "keys.json"
    generate_key_file(keys, "ES256", utc_now() - timedelta(days=1))
    raw, shown = raw.replace("\0", ""), shown.replace(r"\x00", "")
    more = {"AUTHSVC_ISSUER": "https://a.example", "AUTHSVC_AUDIENCE": "b", "AUTHSVC_SIGNING_KEYS": str(keys)}
    result = invoke("doctor", **store, **more, **{f"AUTHSVC_{raw}": "x"})
    assert f"AUTHSVC_{shown} is not a setting" in result.stdout
    assert_lines(result, 8)


@SHOWN
def test_problems_of_an_import(store: dict[str, str], tmp_path: Path, raw: str, shown: str) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text(json.dumps({"m" + raw: "x"}) + "\n" + json.dumps({"email": raw, "password_hash": raw}))
    result = invoke("users", "import", str(path), **store)
    assert (result.exit_code, result.stdout) == (1, "0 created, 0 already there, 2 wrong\n")
    assert_lines(result, 3)


@SHOWN
def test_keys(tmp_path: Path, raw: str, shown: str) -> None:
    path = tmp_path / "keys.json"
    generate_key_file(path, "ES256", utc_now())
    jwks = json.loads(path.read_text())
    jwks["keys"][0]["kid"] = "k" + raw
    path.write_text(json.dumps(jwks))
    assert_lines(invoke("keys", "list", str(path)), 2)
    assert_lines(invoke("keys", "remove", str(path), "none" + raw), 1 + raw.count("\n"))


@SHOWN
def test_errors_about_names_of_files(raw: str, shown: str) -> None:
    result = invoke("keys", "list", f"/nowhere/{raw.replace(chr(0), '')}")
    assert result.exit_code == 1
    assert_lines(result, 1 + raw.count("\n") * 2)
