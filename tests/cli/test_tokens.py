"""`authsvc token explain`: it answers as ValidateToken does, says why, and gives nobody a token."""

import asyncio
import json
import re
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from authsvc.cli import tokens as cli_tokens
from authsvc.config import ServeSettings
from authsvc.errors import CorruptItemError
from authsvc.models import utc_now
from authsvc.stores.sqlite import SQLiteStore
from authsvc.tokens.key_file import generate_key_file, read_keys
from authsvc.tokens.verification import InactiveReason, TokenCheck
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.e2e.process import AUTHSVC, Terminal, environment, invoke, run
from tests.security.forgeries import GROUPS, Forge, encode
from tests.support import WITNESS, Client, FakeClock

ISSUER, AUDIENCE = "https://auth.example.com", "backends"
USER = "user-1"
WINDOW = 16
"""Characters of a token in a row that no output may hold: fewer could occur by chance."""


@pytest.fixture(autouse=True)
def _same_clock(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_tokens, "utc_now", clock)


@pytest.fixture
def forge(signing_keys: Path, clock: FakeClock) -> Forge:
    second = int(clock().timestamp())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": USER, "client_id": "authsvc", "iat": second, "exp": second + 900}
    return Forge(read_keys(signing_keys), {**claims, "jti": "token-1", "sid": "session-1", "gen": 0})


@pytest.fixture
def offline(signing_keys: Path) -> dict[str, str]:
    """What decides about a token alone."""
    return {"AUTHSVC_ISSUER": ISSUER, "AUTHSVC_AUDIENCE": AUDIENCE, "AUTHSVC_SIGNING_KEYS": str(signing_keys)}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "authsvc.db"


@pytest.fixture
def complete(offline: dict[str, str], database: Path) -> dict[str, str]:
    """The same with a store, in which there is a user."""
    settings = {**offline, "AUTHSVC_STORE": f"sqlite:{database}"}
    assert invoke("tables", "create", **settings).exit_code == 0
    row = {"user_id": USER, "email": "alice@example.com", "role": "user", "is_active": 1, "token_generation": 0}
    row |= {"revoked_sessions": "[]", "password_change_required": 0}
    with closing(sqlite3.connect(database)) as db, db:
        columns = ", ".join(row)
        db.execute(f"INSERT INTO users ({columns}) VALUES (:{', :'.join(row)})", row)  # noqa: S608 - its columns
    return settings


def change_user(settings: dict[str, str], **columns: object) -> None:
    with closing(sqlite3.connect(settings["AUTHSVC_STORE"].removeprefix("sqlite:"))) as db, db:
        for name, value in columns.items():
            db.execute(f"UPDATE users SET {name} = ?", (value,))  # noqa: S608 - a column


def explain(token: str | bytes, settings: dict[str, str], *arguments: str) -> Result:
    """Explain a token; no output holds a part of it."""
    result = invoke(
        "token", "explain", *arguments, stdin=token if isinstance(token, bytes) else token + "\n", **settings
    )
    if isinstance(token, str):
        assert_holds_nothing_of(token, result.stdout + result.stderr)
    assert all(line.replace("\t", "").isprintable() for line in result.stdout.split("\n"))
    return result


def assert_holds_nothing_of(token: str, output: str) -> None:
    pieces = {token[at : at + WINDOW] for at in range(len(token) - WINDOW + 1)}
    assert not {output[at : at + WINDOW] for at in range(len(output))} & pieces


def verdicts(result: Result) -> list[str]:
    """The first word of each check's line, in order."""
    return [line.split(" ")[0] for line in result.stdout.splitlines() if re.match(r"(ok|WRONG|-) ", line)]


def wrong(result: Result) -> str:
    """The one line of a failed check."""
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("WRONG "))
    return line


def answer(result: Result) -> str:
    return result.stdout.splitlines()[-1]


# The answer is ValidateToken's


@dataclass
class Case:
    """A token that is inactive for a reason, made by a client of a running service."""

    reason: InactiveReason
    make: Callable[[Client, Forge, FakeClock], Awaitable[str]]


async def alice(client: Client) -> tuple[str, Any]:
    await client.create_user()
    tokens = (await client.log_in()).tokens
    return tokens.access_token, tokens


async def of_good(client: Client) -> str:
    return (await alice(client))[0]


async def of_refresh(client: Client, forge: Forge, clock: FakeClock) -> str:
    refresh_token: str = (await alice(client))[1].refresh_token
    return refresh_token


async def of_other_issuer(client: Client, forge: Forge, clock: FakeClock) -> str:
    return forge.with_claims(iss="https://other.example.com")


async def of_other_audience(client: Client, forge: Forge, clock: FakeClock) -> str:
    return forge.with_claims(aud="gateways")


async def of_changed(client: Client, forge: Forge, clock: FakeClock) -> str:
    return forge.with_signature(bytes(64))


async def of_cut(client: Client, forge: Forge, clock: FakeClock) -> str:
    return (await of_good(client)).rpartition(".")[0]


async def of_expired(client: Client, forge: Forge, clock: FakeClock) -> str:
    token = await of_good(client)
    clock.advance(hours=1)
    return token


async def of_future(client: Client, forge: Forge, clock: FakeClock) -> str:
    token = await of_good(client)
    clock.advance(hours=-1)
    return token


async def of_deleted(client: Client, forge: Forge, clock: FakeClock) -> str:
    token, _ = await alice(client)
    await client.delete_user((await client.get_user(email="alice@example.com")).user_id)
    return token


async def of_disabled(client: Client, forge: Forge, clock: FakeClock) -> str:
    token, _ = await alice(client)
    await client.update_user((await client.get_user(email="alice@example.com")).user_id, is_active=False)
    return token


async def of_revoked(client: Client, forge: Forge, clock: FakeClock) -> str:
    token = await of_good(client)
    await client.revoke(token)
    return token


CASES = [
    Case(InactiveReason.MALFORMED, of_cut),
    Case(InactiveReason.WRONG_TYPE, of_refresh),
    Case(InactiveReason.BAD_SIGNATURE, of_changed),
    Case(InactiveReason.WRONG_ISSUER, of_other_issuer),
    Case(InactiveReason.WRONG_AUDIENCE, of_other_audience),
    Case(InactiveReason.EXPIRED, of_expired),
    Case(InactiveReason.NOT_YET_VALID, of_future),
    Case(InactiveReason.USER_NOT_FOUND, of_deleted),
    Case(InactiveReason.USER_DISABLED, of_disabled),
    Case(InactiveReason.SESSION_REVOKED, of_revoked),
]


def test_every_reason_has_its_case() -> None:
    assert [case.reason for case in CASES] == list(InactiveReason)


def of_service(settings: ServeSettings) -> dict[str, str]:
    return {
        "AUTHSVC_STORE": settings.store,
        "AUTHSVC_ISSUER": settings.issuer,
        "AUTHSVC_AUDIENCE": settings.audience,
        "AUTHSVC_SIGNING_KEYS": str(settings.signing_keys),
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason.name)
async def test_an_inactive_token_is_inactive_for_the_reason_of_validate_token(
    client: Client, settings: ServeSettings, forge: Forge, clock: FakeClock, case: Case
) -> None:
    token = await case.make(client, forge, clock)
    validated = await client.validate(token)
    result = await asyncio.to_thread(explain, token, of_service(settings))
    assert result.exit_code == 1, result.stderr
    assert auth_pb2.InactiveReason.Name(validated.reason) == f"INACTIVE_REASON_{case.reason.name}"
    assert answer(result) == f"ValidateToken answers INACTIVE: {case.reason.name}"
    failed = verdicts(result).index("WRONG")
    assert list(TokenCheck)[failed].reason is case.reason
    assert verdicts(result) == ["ok"] * failed + ["WRONG"] + ["-"] * (len(TokenCheck) - failed - 1)
    assert ". Remedy: " in wrong(result)


async def test_a_good_token_is_active(client: Client, settings: ServeSettings) -> None:
    token, _ = await alice(client)
    validated = await client.validate(token)
    result = await asyncio.to_thread(explain, token, of_service(settings))
    assert (result.exit_code, result.stderr, answer(result)) == (0, "", "ValidateToken answers ACTIVE")
    assert verdicts(result) == ["ok"] * len(TokenCheck)
    assert f"\nuser\t{validated.user_id}\talice@example.com\tuser\tactive\n" in result.stdout


def is_utf_8(text: str) -> bool:
    return text.encode(errors="replace").decode() == text


@pytest.mark.engines
def test_every_forgery_is_explained_by_its_reason(complete: dict[str, str], forge: Forge) -> None:
    count = 0
    for case in (case for make in GROUPS.values() for case in make(forge)):
        # A line has no other line break and begins after a byte order mark; no request has what is not UTF-8.
        if (
            case.token
            and not re.match("\ufeff", case.token)
            and not re.search(r"[\r\n]", case.token)
            and is_utf_8(case.token)
        ):
            result = explain(case.token, complete)
            count += 1
            assert (result.exit_code, answer(result)) == (1, f"ValidateToken answers INACTIVE: {case.reason.name}")
    assert count > 500


# What it says


def test_header_claims_key_and_time(offline: dict[str, str], forge: Forge, clock: FakeClock) -> None:
    second = int(clock().timestamp())
    clock.advance(seconds=100)
    lines = explain(forge.with_claims(nbf=second + 101), offline).stdout.splitlines()
    assert lines[:13] == [
        'header\talg\t"ES256"',
        f'header\tkid\t"{forge.key.kid}"',
        'header\ttyp\t"at+jwt"',
        f'claim\tiss\t"{ISSUER}"',
        f'claim\taud\t"{AUDIENCE}"',
        f'claim\tsub\t"{USER}"',
        'claim\tclient_id\t"authsvc"',
        f"claim\tiat\t{second}\t2030-01-01T12:00:00Z\t0:01:40 ago",
        f"claim\texp\t{second + 900}\t2030-01-01T12:15:00Z\tin 0:13:20",
        'claim\tjti\t"token-1"',
        'claim\tsid\t"session-1"',
        "claim\tgen\t0",
        f"claim\tnbf\t{second + 101}\t2030-01-01T12:01:41Z\tin 0:00:01",
    ]
    assert lines[13:15] == [f"key\t{forge.key.kid}\tES256\tsigning", f"now\t{second + 100}\t2030-01-01T12:01:40Z"]


Make = Callable[[Forge], str]
SAID: dict[str, tuple[Make, str]] = {
    "a refresh token": (lambda f: f"rt_{f.good}", "refresh tokens are for RefreshTokens"),
    "too long": (lambda f: f.good + "x" * 10_000, "at most 8,192 characters: it has more"),
    "no ASCII": (lambda f: f.good + "é", "it has characters that are not ASCII"),
    "a scheme": (lambda f: f"Bearer {f.good}", "it begins with Bearer"),
    "a blank": (lambda f: f"{f.good} ", "it has blanks in it"),
    "quotes": (lambda f: f'"{f.good}"', "it is in quotes"),
    "one word": (lambda _: "garbage", "it has 1 segment. Remedy"),
    "a part": (lambda f: f.good.rpartition(".")[0], "it has 2 segments"),
    "an encrypted token": (lambda f: f"{f.good}.x.x", "it has 5 segments"),
    "padding": (lambda f: f"{f.good}=", "a segment is empty, or not base64url"),
    "a header of more": (lambda f: f.with_header(jku="x", b64=False), "it has more: b64, jku"),
    "a header of less": (lambda f: f.signed(header={"alg": "ES256"}), "one of these is missing or not a string"),
    "a kid of another type": (lambda f: f.with_header(kid=[1]), "one of these is missing or not a string"),
    "a header that is no object": (lambda f: f.signed(header=b"[]"), "all strings: not a JSON object"),
    "another use": (lambda f: f.with_header(typ="JWT"), 'typ is at+jwt: it is "JWT"'),
    "an unknown key": (lambda f: f.with_header(kid="x"), "no key has the kid"),
    "another deployment's": (
        lambda f: f.signed({**f.header, "kid": "x"}, {**f.claims, "iss": "https://b.example"}),
        f'send the token to its issuer, "https://b.example"; this one is {ISSUER}',
    ),
    "another algorithm": (lambda f: f.with_header(alg="HS256"), 'the key is for ES256, and alg is "HS256"'),
    "changed": (lambda f: f.with_signature(bytes(64)), "changed or cut"),
    "a claim too few": (lambda f: f.signed(payload={"iss": ISSUER}), "iat is missing: a whole number"),
    "a claim of another type": (lambda f: f.with_claims(aud=[AUDIENCE]), "aud must be a text, not empty"),
    "an empty user": (lambda f: f.with_claims(sub="x" * 257), "sub must have at most 256 bytes"),
    "too long a life": (
        lambda f: f.with_claims(exp=f.claims["iat"] + 86_401),
        "exp must be at most 24 hours after iat",
    ),
    "claims that are no object": (lambda f: f.signed(payload=b"1"), "well-formed: not a JSON object"),
    "another issuer": (
        lambda f: f.with_claims(iss=f"{ISSUER}/"),
        f'it is "{ISSUER}/", and AUTHSVC_ISSUER is {ISSUER}. Remedy',
    ),
    "another audience": (
        lambda f: f.with_claims(aud="x"),
        f'it is "x", and AUTHSVC_AUDIENCE is {AUDIENCE}. Remedy',
    ),
    "expired": (lambda f: f.with_claims(iat=f.claims["iat"] - 90, exp=f.claims["iat"] - 60), "it was 0:01:00 ago"),
    "long ago": (lambda f: f.with_claims(iat=-(10**99), exp=-(10**99)), "it was 365000 days, 0:00:00 ago"),
    "not yet": (lambda f: f.with_claims(nbf=f.claims["iat"] + 60), "they are 0:01:00 ahead"),
    "issued in the future": (
        lambda f: f.with_claims(iat=f.claims["iat"] + 60),
        "they are 0:01:00 ahead. Remedy: compare this host's clock",
    ),
}


@pytest.mark.parametrize(("make", "said"), SAID.values(), ids=SAID)
def test_the_failed_check_says_what_is_wrong(offline: dict[str, str], forge: Forge, make: Make, said: str) -> None:
    result = explain(make(forge), offline)
    assert result.exit_code == 1
    assert said in wrong(result)


def test_every_check_of_a_token_is_among_them(offline: dict[str, str], forge: Forge) -> None:
    met = {list(TokenCheck)[verdicts(explain(make(forge), offline)).index("WRONG")] for make, _ in SAID.values()}
    assert met == set(TokenCheck) - {TokenCheck.USER, TokenCheck.ENABLED, TokenCheck.SESSION}


@pytest.mark.parametrize(
    ("columns", "claims", "said"),
    [
        ({"user_id": "user-2"}, {}, f'the user exists: the store has no user "{USER}". Remedy'),
        ({"is_active": 0}, {}, "the user is not disabled: it is. Remedy: enable the user"),
        ({"token_generation": 2}, {}, "generation 0, the user of 2: all sessions were ended since"),
        ({}, {"gen": 1}, "generation 1, the user of 0: the store was restored, or is another one"),
        ({"revoked_sessions": '["session-1:1"]'}, {}, "the session is not revoked: it was ended on its own"),
    ],
)
def test_a_check_of_the_user_says_what_is_wrong(
    complete: dict[str, str], forge: Forge, columns: dict[str, object], claims: dict[str, object], said: str
) -> None:
    change_user(complete, **columns)
    result = explain(forge.with_claims(**claims), complete)
    assert result.exit_code == 1
    assert said in wrong(result)


# What it does not know


def test_without_a_store_nothing_is_said_of_the_user(offline: dict[str, str], forge: Forge) -> None:
    result = explain(forge.good, offline)
    assert result.exit_code == 3
    assert result.stderr == "error: AUTHSVC_STORE: is not set, so nothing is known of the user and the session\n"
    assert verdicts(result) == ["ok"] * 12 + ["-"] * 3
    assert answer(result) == "What ValidateToken answers depends on the store"


def test_a_store_that_does_not_exist_is_not_made(complete: dict[str, str], forge: Forge, database: Path) -> None:
    database.unlink()
    result = explain(forge.good, complete)
    assert (result.exit_code, answer(result)) == (3, "What ValidateToken answers depends on the store")
    assert result.stderr == f"error: {database}: no such file; create it: authsvc tables create\n"
    assert not database.exists()


DEAD = {"AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:1", "AWS_REGION": "us-east-1"}
KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}


@pytest.mark.parametrize("store", ["sqlite", pytest.param("dynamodb", marks=pytest.mark.engines)])
def test_an_outage_is_said_to_be_one(complete: dict[str, str], forge: Forge, database: Path, store: str) -> None:
    if store == "dynamodb":
        complete = {**complete, "AUTHSVC_STORE": store, **DEAD, **KEYS}
    else:
        database.write_bytes(b"")
    result = explain(forge.good, complete)
    assert result.exit_code == 3
    assert result.stderr.startswith("error: the store cannot answer: ")
    assert ". Remedy: " in result.stderr
    assert verdicts(result) == ["ok"] * 12 + ["-"] * 3
    assert answer(result).startswith("ValidateToken answers UNAVAILABLE, STORE_UNAVAILABLE: an outage")


def test_a_row_that_cannot_be_read_is_said(
    complete: dict[str, str], forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> dict[str, Exception]:
        return {USER: CorruptItemError(USER, "role")}

    monkeypatch.setattr(SQLiteStore, "get_user_states", fail)  # rows of other programs are in DynamoDB alone
    result = explain(forge.good, complete)
    assert result.exit_code == 3
    assert result.stderr == f"error: row '{USER}': attribute role is missing or unreadable\n"
    assert answer(result).startswith("ValidateToken answers INTERNAL: the user's row cannot be read")


def test_every_missing_setting_is_said_before_the_token_is_read() -> None:
    result = invoke("token", "explain")
    assert (result.exit_code, result.stdout) == (3, "")
    names = [line.split(": ")[1] for line in result.stderr.splitlines()]
    assert names == ["AUTHSVC_ISSUER", "AUTHSVC_AUDIENCE", "AUTHSVC_SIGNING_KEYS"]


def test_keys_that_cannot_be_read_are_said(offline: dict[str, str], forge: Forge, tmp_path: Path) -> None:
    result = explain(forge.good, {**offline, "AUTHSVC_SIGNING_KEYS": str(tmp_path / "keys.json")})
    assert (result.exit_code, result.stdout) == (3, "")
    assert "no such file; create it: authsvc keys generate" in result.stderr


# Nothing in the output is a token


SECRETS: dict[str, Callable[[Forge], object]] = {
    "a token": lambda f: f.good,
    "a token in a text": lambda f: f"see {f.good}!",
    "a token in a list": lambda f: ["x", f.good],
    "an unsigned token": lambda f: f.good.rpartition(".")[0] + ".",
    "a token of another algorithm": lambda f: f.message() + "." + encode(bytes(32)),
    "a signature": lambda f: f.good.rpartition(".")[2],
    "a refresh token": lambda _: f"rt_dXNlcg.{'a' * 22}.{'b' * 22}.{'c' * 43}",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_token_in_a_claim_or_header_is_not_shown(
    offline: dict[str, str], forge: Forge, secret: Callable[[Forge], object]
) -> None:
    value = secret(forge)
    (text,) = [str(each) for each in (value if isinstance(value, list) else [value]) if each != "x"]
    token = forge.signed({**forge.header, "kid": value}, {**forge.claims, "sub": value, text: "name"})
    shown = explain(token, offline)
    assert_holds_nothing_of(text.removeprefix("see ").removesuffix("!"), shown.stdout + shown.stderr)
    assert shown.stdout.count("characters like those of a token, not shown)") >= 3


def test_hostile_claims_control_no_terminal_and_forge_no_line(offline: dict[str, str], forge: Forge) -> None:
    hostile = "x\nValidateToken answers ACTIVE\r\x1b]0;t\x07\x9b31m\u202e\u2028\tok"
    result = explain(forge.with_claims(iss=hostile, **{hostile: 1}), offline)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "ValidateToken answers INACTIVE: WRONG_ISSUER"
    assert "ValidateToken answers ACTIVE" not in result.stdout.splitlines()
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("claim\tiss\t"))
    assert line == r'claim	iss	"x\nValidateToken answers ACTIVE\r\u001b]0;t\u0007\x9b31m\u202e\u2028\tok"'


def test_long_and_nested_claims_are_cut(offline: dict[str, str], forge: Forge) -> None:
    nested = {"deep": [{"x": [[1]]}]}
    shown = explain(forge.with_claims(long="word " * 500, nested=nested, many=[nested], list=["a", 1]), offline).stdout
    assert re.search(r'\nclaim\tlong\t"(word ){39}word… \(2502 characters\)\n', shown)
    assert "\nclaim\tnested\t(nested, not shown)\nclaim\tmany\t(nested, not shown)\n" in shown
    assert '\nclaim\tlist\t["a", 1]\n' in shown


@pytest.mark.parametrize(
    "nested", [b"[" * depth + b"]" * depth for depth in (300, 900, 980, 3000)], ids=lambda text: len(text) // 2
)
def test_deep_nesting_ends_nothing(offline: dict[str, str], forge: Forge, nested: bytes) -> None:
    result = explain(forge.signed(payload=b'{"iss": %s}' % nested), offline)
    assert (result.exit_code, answer(result)) == (1, "ValidateToken answers INACTIVE: MALFORMED")


def test_times_that_no_calendar_has_are_shown_as_numbers(offline: dict[str, str], forge: Forge) -> None:
    shown = explain(forge.with_claims(iat=10**50, exp=-1, nbf=True), offline).stdout
    assert f"\nclaim\tiat\t{10**50}\n" in shown
    assert "\nclaim\texp\t-1\n" in shown
    assert "\nclaim\tnbf\ttrue\n" in shown


# How the token is read


def test_what_is_no_token_is_malformed(offline: dict[str, str]) -> None:
    for text in (b"\n\xff", b" ", b"\0\x1b[2J", "é".encode() * 5000, b"x" * 1_000_000, b"." * 9_000, b".."):
        result = explain(text, offline)
        if text.startswith(b"\n"):
            assert result.exit_code == 2
        else:
            assert (result.exit_code, answer(result)) == (1, "ValidateToken answers INACTIVE: MALFORMED")


def test_bytes_that_are_not_utf_8_are_said(offline: dict[str, str]) -> None:
    result = explain(b"\xff\xfe", offline)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "error: standard input: the token is not UTF-8\n"


@pytest.mark.parametrize("stdin", [b"", b"\n", b"\r\n", b"\xef\xbb\xbf\n"])
def test_an_empty_token_is_wrong_usage(offline: dict[str, str], stdin: bytes) -> None:
    result = explain(stdin, offline)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the token is empty, which ValidateToken refuses" in result.stderr


def test_a_token_on_the_command_line_is_refused_and_not_repeated(offline: dict[str, str], forge: Forge) -> None:
    result = explain(forge.good, offline, forge.good)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the token is read from a prompt or standard input" in result.stderr


@pytest.mark.parametrize("arguments", ["token {}", "token explain --tokn {}", "token explain --tokn={}"])
def test_one_in_the_place_of_a_command_or_option_is_not_repeated_either(forge: Forge, arguments: str) -> None:
    result = invoke(*arguments.format(forge.good).split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert_holds_nothing_of(forge.good, result.stderr)


def test_a_closed_standard_input_is_said(offline: dict[str, str]) -> None:
    done = run("/bin/bash", "-c", f"exec {AUTHSVC} token explain <&-", environ=environment(**offline))
    assert (done.returncode, done.stderr) == (3, "error: standard input: is closed; the token is its first line\n")


def test_a_terminal_prompts_for_it_and_does_not_show_it(offline: dict[str, str], forge: Forge, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "shown", "token", "explain", environ=environment(**offline))
    terminal.answer("Token: ", forge.good + "\n")
    assert terminal.wait() == 1
    assert_holds_nothing_of(forge.good, terminal.shown)
    assert terminal.shown.splitlines()[-1] == "ValidateToken answers INACTIVE: NOT_YET_VALID", "it is of 2030"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `authsvc dev` leaves."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "dev"
    folder.mkdir()
    generate_key_file(folder / "keys.json", "ES256", utc_now() - timedelta(days=1))
    assert invoke("tables", "create", AUTHSVC_STORE=f"sqlite:{folder / 'authsvc.db'}").exit_code == 0
    return folder


def test_tokens_of_dev_are_explained_with_its_folder(data_dir: Path, clock: FakeClock) -> None:
    second = int(clock().timestamp())
    claims = {"iss": "http://127.0.0.1:8080", "aud": "authsvc-dev", "sub": USER, "client_id": "authsvc"}
    times = {"iat": second, "exp": second + 900, "jti": "t", "sid": "s", "gen": 0}
    token = Forge(read_keys(data_dir / "keys.json"), {**claims, **times}).good
    WITNESS.hide(token)
    result = explain(token, {"AUTHSVC_STORE": "dynamodb"}, "--data-dir", str(data_dir))
    assert (result.exit_code, answer(result)) == (1, "ValidateToken answers INACTIVE: USER_NOT_FOUND"), result.stderr
    Path(".env").write_text("AUTHSVC_AUDIENCE=x\n")
    assert answer(explain(token, {}, "--data-dir", str(data_dir))).endswith("WRONG_AUDIENCE")
    assert json.loads((data_dir / "keys.json").read_text())["keys"]
