import re
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc import config
from authsvc.config import Address, AwsKeys, ServeSettings, describe, load, load_setting, load_store, unknown_settings
from authsvc.errors import ConfigError
from authsvc.models import Budget

REQUIRED = {
    "AUTHSVC_STORE": "dynamodb",
    "AUTHSVC_ISSUER": "https://auth.example.com",
    "AUTHSVC_AUDIENCE": "backends",
    "AUTHSVC_SIGNING_KEYS": "keys.json",
}
VARIABLES = [f"AUTHSVC_{declared.name.upper()}" for declared in fields(ServeSettings)]


def load_with(**changes: str) -> ServeSettings:
    return load({**REQUIRED, **{f"AUTHSVC_{name.upper()}": text for name, text in changes.items()}})


def problems_with(**changes: str) -> list[str]:
    """Return the problems of otherwise good settings."""
    try:
        load_with(**changes)
    except ConfigError as error:
        return error.problems
    return []


@pytest.fixture
def pem(tmp_path: Path) -> str:
    path = tmp_path / "file.pem"
    path.touch()
    return str(path)


def test_only_what_has_no_sensible_default_must_be_set() -> None:
    with pytest.raises(ConfigError) as refused:
        load({})
    assert refused.value.problems == [
        "AUTHSVC_STORE: must be set: dynamodb, or sqlite:PATH",
        "AUTHSVC_ISSUER: must be set: URL of this deployment, the iss claim of its tokens",
        "AUTHSVC_AUDIENCE: must be set: aud claim of the tokens",
        "AUTHSVC_SIGNING_KEYS: must be set: key file, ssm:NAME or secretsmanager:NAME; see authsvc keys",
    ]


def test_the_defaults() -> None:
    assert load(REQUIRED) == ServeSettings(
        store="dynamodb",
        table_prefix="auth-",
        listen=Address("127.0.0.1", 50051),
        http_listen=Address("127.0.0.1", 8080),
        workers=1,
        issuer="https://auth.example.com",
        audience="backends",
        signing_keys=Path("keys.json"),
        access_token_ttl=timedelta(minutes=15),
        session_idle_ttl=timedelta(days=7),
        session_max_ttl=timedelta(days=30),
        refresh_grace=timedelta(seconds=60),
        max_staleness=timedelta(seconds=60),
        max_stale_if_error=timedelta(minutes=15),
        bcrypt_cost=12,
        password_min_length=15,
        failures_per_pair=Budget(10, timedelta(minutes=15)),
        failures_per_account=Budget(100, timedelta(hours=24)),
        failures_per_source=Budget(300, timedelta(minutes=15)),
        callers=None,
        tls_cert=None,
        tls_key=None,
        tls_client_ca=None,
        allow_plaintext=False,
        allow_open=False,
        reflection=True,
        log_format="",
        log_level="info",
        log_digest_key="",
    )


def test_the_documented_budgets_are_the_defaults() -> None:
    """ASVS-6.1.1."""
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text()
    documented = dict(re.findall(r"`(AUTHSVC_FAILURES_PER_\w+)=(\S+)`", guide))
    assert len(documented) == 3
    assert load({**REQUIRED, **documented}) == load(REQUIRED)


def test_the_defaults_of_passwords_are_those_of_the_standards() -> None:
    """NIST-3.1.1.2-a, ASVS-11.4.2."""
    settings = load(REQUIRED)
    assert settings.password_min_length == 15
    assert settings.bcrypt_cost >= 10


def test_an_empty_value_counts_as_absent_but_turns_the_side_port_off() -> None:
    empty = dict.fromkeys(set(VARIABLES) - set(REQUIRED), "")
    assert load({**REQUIRED, **empty}) == replace(load(REQUIRED), http_listen=None)


def test_the_side_port_is_an_address() -> None:
    assert load({**REQUIRED, "AUTHSVC_HTTP_LISTEN": "[::1]:0"}).http_listen == Address("::1", 0)
    assert problems_with(http_listen="off") == ["AUTHSVC_HTTP_LISTEN: must be HOST:PORT, for instance 127.0.0.1:50051"]


@pytest.mark.parametrize(("given", "minutes"), [({}, 15), ({"AUTHSVC_ACCESS_TOKEN_TTL": "1h"}, 60)])
def test_the_life_of_access_tokens_is_read_alone(given: dict[str, str], minutes: int) -> None:
    assert load_setting({**given, "AUTHSVC_LISTEN": "nowhere"}, "access_token_ttl") == timedelta(minutes=minutes)


def test_a_lifetime_of_access_tokens_out_of_range_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"^AUTHSVC_ACCESS_TOKEN_TTL: must be from 1s to 24h$"):
        load_setting({"AUTHSVC_ACCESS_TOKEN_TTL": "25h"}, "access_token_ttl")


def test_the_environment_goes_before_given_defaults_and_these_before_built_in_ones() -> None:
    defaults = {"AUTHSVC_AUDIENCE": "given", "AUTHSVC_LOG_LEVEL": "debug", "AUTHSVC_BCRYPT_COST": "11"}
    settings = load({**REQUIRED, "AUTHSVC_BCRYPT_COST": "10"}, defaults)
    assert (settings.audience, settings.log_level, settings.bcrypt_cost) == ("backends", "debug", 10)


def test_all_problems_are_reported_at_once() -> None:
    problems = problems_with(
        store="redis",
        issuer="auth.example.com",
        bcrypt_cost="9",
        listen="0.0.0.0:50051",
        access_token_ttl="25h",
        tls_key="/nowhere",
    )
    assert [problem.partition(":")[0] for problem in problems] == [
        "AUTHSVC_STORE",
        "AUTHSVC_BCRYPT_COST",
        "AUTHSVC_ISSUER",
        "AUTHSVC_ACCESS_TOKEN_TTL",
        "AUTHSVC_TLS_CERT, AUTHSVC_TLS_KEY",
        "AUTHSVC_TLS_KEY",
        "AUTHSVC_LISTEN",
        "AUTHSVC_LISTEN",
    ]


def test_a_malformed_setting_hides_no_problem_of_others() -> None:
    problems = problems_with(access_token_ttl="soon", listen="somewhere", tls_key="/nowhere")
    assert problems == [
        "AUTHSVC_LISTEN: must be HOST:PORT, for instance 127.0.0.1:50051",
        "AUTHSVC_ACCESS_TOKEN_TTL: must be a number and a unit (s, m, h or d), for instance 15m",
        "AUTHSVC_TLS_CERT, AUTHSVC_TLS_KEY: must be set together",
        "AUTHSVC_TLS_KEY: /nowhere cannot be read",
    ]


GOOD: list[tuple[str, str, object]] = [
    ("store", "dynamodb", "dynamodb"),
    ("store", "sqlite:/var/lib/auth.db", "sqlite:/var/lib/auth.db"),
    ("store", "sqlite:a", "sqlite:a"),
    ("table_prefix", "x", "x"),
    ("table_prefix", "Prod.auth_1-", "Prod.auth_1-"),
    ("table_prefix", "a" * 200, "a" * 200),
    ("listen", "127.0.0.1:0", Address("127.0.0.1", 0)),
    ("listen", "localhost:65535", Address("localhost", 65535)),
    ("listen", "[::1]:50051", Address("::1", 50051)),
    ("issuer", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ("issuer", "https://example.com/auth/v1", "https://example.com/auth/v1"),
    ("audience", "https://api.example.com", "https://api.example.com"),
    ("signing_keys", "/etc/keys.json", Path("/etc/keys.json")),
    ("signing_keys", "ssm.json", Path("ssm.json")),
    ("signing_keys", "./ssm:keys", Path("./ssm:keys")),
    ("signing_keys", "s3:keys", Path("s3:keys")),
    ("signing_keys", "ssm:/authsvc/prod-1/keys_2.json", AwsKeys("ssm", "/authsvc/prod-1/keys_2.json")),
    ("signing_keys", "ssm:keys", AwsKeys("ssm", "keys")),
    ("signing_keys", "secretsmanager:authsvc/keys+1=a@b", AwsKeys("secretsmanager", "authsvc/keys+1=a@b")),
    (
        "signing_keys",
        "secretsmanager:arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:authsvc/keys-AbCdEf",
        AwsKeys("secretsmanager", "arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:authsvc/keys-AbCdEf"),
    ),
    ("access_token_ttl", "1s", timedelta(seconds=1)),
    ("access_token_ttl", "90m", timedelta(minutes=90)),
    ("access_token_ttl", "24h", timedelta(days=1)),
    ("session_max_ttl", "36500d", timedelta(days=36_500)),
    ("session_max_ttl", "2592000s", timedelta(days=30)),
    ("refresh_grace", "0s", timedelta()),
    ("refresh_grace", "10m", timedelta(minutes=10)),
    ("bcrypt_cost", "10", 10),
    ("bcrypt_cost", "16", 16),
    ("password_min_length", "8", 8),
    ("password_min_length", "256", 256),
    ("failures_per_pair", "1/1s", Budget(1, timedelta(seconds=1))),
    ("failures_per_account", "100/2d", Budget(100, timedelta(days=2))),
    ("failures_per_source", "1000/1h", Budget(1000, timedelta(hours=1))),
    ("reflection", "false", False),
    ("allow_open", "true", True),
    ("log_format", "json", "json"),
    ("log_format", "console", "console"),
    ("log_level", "error", "error"),
    ("log_digest_key", "any text", "any text"),
]
FORM_OF_DURATIONS = "must be a number and a unit (s, m, h or d), for instance 15m"
FORM_OF_ADDRESSES = "must be HOST:PORT, for instance 127.0.0.1:50051"
FORM_OF_URLS = "must be an http or https URL without query, fragment or trailing slash (RFC 8414 §2)"
BAD: list[tuple[str, str, tuple[str, ...]]] = [
    ("store", "must be dynamodb or sqlite:PATH", ("redis", "DynamoDB", "sqlite:", "sqlite", "file:a")),
    (
        "table_prefix",
        "must be 1 to 200 letters (a-z, A-Z), digits, dots, dashes or underscores",
        ("a b", "a/b", "ä", "a" * 201),
    ),
    (
        "listen",
        FORM_OF_ADDRESSES,
        (
            "x",
            ":1",
            "1.2.3.4",
            "1.2.3.4:",
            "a:65536",
            "a:123456",
            "::1:1",
            "a:-1",
            "a b:1",
            "a:\u0661",
            "[]:1",
        ),
    ),
    (
        "issuer",
        FORM_OF_URLS,
        (
            "x",
            "ftp://a",
            "https://",
            "https://a/",
            "https://a/b/",
            "https://a?b",
            "https://a#b",
            "https://a b",
        ),
    ),
    ("issuer", "must be UTF-8", ("https://a\udcff",)),
    ("audience", "must be UTF-8", ("\udcff",)),
    ("log_digest_key", "must be UTF-8", ("secret \udcff",)),
    ("access_token_ttl", FORM_OF_DURATIONS, ("15", "m", "1.5h", "-1m", "+1m", "15 m", "15M", "1h30m", "1w", "\u0661m")),
    ("session_max_ttl", "must be at most 36500d", ("36501d", "999999999d", "999999999h")),
    ("refresh_grace", "must be from 0s to 10m", ("11m", "601s", "1d")),
    (
        "bcrypt_cost",
        "must be a whole number from 10 to 16",
        ("9", "17", "x", "12.0", "-12", "1_2", "9" * 5000, "\u0661\u0662"),
    ),
    ("password_min_length", "must be a whole number from 8 to 256", ("7", "257")),
    (
        "failures_per_account",
        "must be FAILURES/WINDOW, with 1 to 100 failures, for instance 10/15m",
        ("101/24h", "0/24h", "10", "10/", "/15m", "10/15", "10 / 15m", "-1/15m", "\u0661/15m"),
    ),
    (
        "failures_per_source",
        "must be FAILURES/WINDOW, with 1 to 1000 failures, for instance 10/15m",
        ("1001/15m",),
    ),
    ("failures_per_pair", "must have a window of at least 1s", ("10/0s",)),
    ("failures_per_pair", "must be at most 36500d", ("10/36501d",)),
    (
        "signing_keys",
        "must have a name without a version after ssm:, for instance ssm:authsvc/keys",
        ("ssm:", "ssm:keys:3", "ssm:/", "ssm:a//b", "ssm:a/", "ssm:a b", "ssm:ä", "ssm:arn:aws:ssm:x:1:parameter/a"),
    ),
    (
        "signing_keys",
        "must have a name without a version after secretsmanager:, for instance secretsmanager:authsvc/keys",
        ("secretsmanager:", "secretsmanager:a:b", "secretsmanager:a b", "secretsmanager:arn:aws:iam::1:secret:a"),
    ),
    ("workers", "must be a whole number from 1 to 256", ("0", "257", "all")),
    ("reflection", "must be true or false", ("True", "1", "yes", "on")),
    ("log_format", "must be console or json", ("JSON", "text")),
    ("log_level", "must be debug, info, warning or error", ("INFO", "trace", "0")),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_good_values(name: str, text: str, value: object) -> None:
    assert getattr(load_with(**{name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "problem", "text"), [(name, problem, text) for name, problem, texts in BAD for text in texts]
)
def test_bad_values(name: str, problem: str, text: str) -> None:
    assert problems_with(**{name: text}) == [f"AUTHSVC_{name.upper()}: {problem}"]


@given(values=st.dictionaries(st.sampled_from(VARIABLES), st.text() | st.from_regex(r"[0-9]{1,12}[smhd:]?[0-9]*")))
def test_whatever_is_set_the_only_error_is_a_config_error(values: dict[str, str]) -> None:
    values = {name: text.replace("\0", "") for name, text in values.items()}  # the environment holds no NUL
    try:
        settings = load({**REQUIRED, **values})
    except ConfigError:
        return
    assert isinstance(settings, ServeSettings)


@given(seconds=st.integers(1, 86_400))
def test_a_time_to_live_is_what_it_says(seconds: int) -> None:
    assert load_with(access_token_ttl=f"{seconds}s").access_token_ttl == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"access_token_ttl": "0s"}, "AUTHSVC_ACCESS_TOKEN_TTL: must be from 1s to 24h"),
        ({"access_token_ttl": "25h"}, "AUTHSVC_ACCESS_TOKEN_TTL: must be from 1s to 24h"),
        (
            {"access_token_ttl": "2h", "session_idle_ttl": "1h"},
            "AUTHSVC_SESSION_IDLE_TTL: must be at least AUTHSVC_ACCESS_TOKEN_TTL",
        ),
        ({"session_idle_ttl": "31d"}, "AUTHSVC_SESSION_MAX_TTL: must be at least AUTHSVC_SESSION_IDLE_TTL"),
    ],
)
def test_lifetimes_that_do_not_fit_together(changes: dict[str, str], problem: str) -> None:
    assert problems_with(**changes) == [problem]


def test_lifetimes_may_be_equal() -> None:
    assert problems_with(access_token_ttl="1h", session_idle_ttl="1h", session_max_ttl="1h") == []


@pytest.mark.parametrize(
    ("listen", "http_listen"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("127.0.0.1:8080", "[::]:8080"),
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("localhost:65535", "localhost:65535"),
    ],
)
def test_the_two_ports_must_differ(listen: str, http_listen: str) -> None:
    consent = {"allow_open": "true", "allow_plaintext": "true"}
    (problem,) = problems_with(listen=listen, http_listen=http_listen, **consent)
    assert problem.startswith(f"AUTHSVC_LISTEN, AUTHSVC_HTTP_LISTEN: {listen} and {http_listen} are the same port: set")


@pytest.mark.parametrize(
    ("listen", "http_listen"),
    [("127.0.0.1:8080", "[::1]:8080"), ("127.0.0.1:0", "127.0.0.1:0"), ("127.0.0.1:8080", "")],
    ids=["on two addresses", "any free ones", "off"],
)
def test_ports_that_do_differ(listen: str, http_listen: str) -> None:
    assert problems_with(listen=listen, http_listen=http_listen) == []


def test_the_parts_of_tls_belong_together(pem: str) -> None:
    together = "AUTHSVC_TLS_CERT, AUTHSVC_TLS_KEY: must be set together"
    needs = "AUTHSVC_TLS_CLIENT_CA: needs AUTHSVC_TLS_CERT and AUTHSVC_TLS_KEY"
    assert problems_with(tls_cert=pem) == [together]
    assert problems_with(tls_key=pem) == [together]
    assert problems_with(tls_client_ca=pem) == [needs]
    assert problems_with(tls_cert=pem, tls_key=pem) == []
    assert problems_with(tls_cert=pem, tls_key=pem, tls_client_ca=pem) == []


def test_files_of_tls_must_be_readable(pem: str) -> None:
    problems = problems_with(tls_cert="/nowhere/cert", tls_key=pem, tls_client_ca="/nowhere/ca")
    assert problems == [
        "AUTHSVC_TLS_CERT: /nowhere/cert cannot be read",
        "AUTHSVC_TLS_CLIENT_CA: /nowhere/ca cannot be read",
    ]


STRAY = {
    "a line break at the end": ("x\n", "must not hold a line break or another control character"),
    "a carriage return": ("x\r", "must not hold a line break or another control character"),
    "a line break inside": ("x\ny", "must not hold a line break or another control character"),
    "another line break": ("x\u2028", "must not hold a line break or another control character"),
    "a tab": ("\tx", "must not hold a line break or another control character"),
    "DEL": ("x\x7f", "must not hold a line break or another control character"),
    "C1": ("x\x85y", "must not hold a line break or another control character"),
    "a blank at the end": ("x ", "must not end with a blank or an invisible character"),
    "a blank at the beginning": (" x", "must not begin with a blank or an invisible character"),
    "nothing else": (" ", "must not begin with a blank or an invisible character"),
    "a no-break space": ("x\xa0", "must not end with a blank or an invisible character"),
    "an ideographic space": ("\u3000x", "must not begin with a blank or an invisible character"),
    "a byte order mark": ("\ufeffx", "must not begin with a blank or an invisible character"),
    "a zero width space": ("x\u200b", "must not end with a blank or an invisible character"),
}
STRAY_TEXTS = pytest.mark.parametrize(("text", "problem"), STRAY.values(), ids=STRAY)


@STRAY_TEXTS
def test_stray_characters_are_refused_by_the_name_of_the_setting(text: str, problem: str) -> None:
    for name in VARIABLES:
        with pytest.raises(ConfigError) as refused:
            load({**REQUIRED, name: text})
        assert f"{name}: {problem}" in refused.value.problems


@STRAY_TEXTS
def test_stray_characters_in_what_aws_reads_are_refused(text: str, problem: str) -> None:
    for name in (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
        *("AWS_ENDPOINT_URL_DYNAMODB", "AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_ROLE_ARN", "HTTPS_PROXY", "http_proxy"),
    ):
        for read in (load, load_store):
            with pytest.raises(ConfigError) as refused:
                read({**REQUIRED, name: text})
            assert refused.value.problems == [f"{name}: {problem}"]
            read({**REQUIRED, name: text, "AUTHSVC_STORE": "sqlite:x"})  # uses nothing of AWS
        with pytest.raises(ConfigError) as refused:
            load({**REQUIRED, name: text, "AUTHSVC_STORE": "sqlite:x", "AUTHSVC_SIGNING_KEYS": "ssm:keys"})
        assert refused.value.problems == [f"{name}: {problem}"]


@pytest.mark.parametrize("text", ["AKIA EXAMPLE", "AKIA\u200bEXAMPLE", "AKIAÉXAMPLE"])
def test_aws_credentials_have_no_character_that_a_header_cannot_hold(text: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        with pytest.raises(ConfigError) as refused:
            load_store({**REQUIRED, name: text})
        assert refused.value.problems == [f"{name}: must be ASCII without blanks"]
    load_store({**REQUIRED, "AWS_PROFILE": "my profile"})


def test_an_invisible_character_inside_a_text_is_refused() -> None:
    for name, text in (("audience", "back\u200bends"), ("log_digest_key", "a\u2060b"), ("issuer", "https://a\u200b.b")):
        assert problems_with(**{name: text}) == [f"AUTHSVC_{name.upper()}: must not hold an invisible character"]


def test_the_path_of_a_store_begins_with_no_blank() -> None:
    problem = "must not begin with a blank or an invisible character"
    assert problems_with(store="sqlite: x") == [f"AUTHSVC_STORE: {problem}"]


@pytest.mark.parametrize("path", ["a b", "می\u200cشود", "\udcff", "ключи.json", "\ue000"])
def test_a_path_may_hold_whatever_is_no_line_break(path: str) -> None:
    assert load_with(signing_keys=path).signing_keys == Path(path)
    assert load_with(store=f"sqlite:{path}").sqlite_path == Path(path)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.255.254", "localhost", "[::1]", "[0:0:0:0:0:0:0:1]"])
def test_on_loopback_nothing_more_is_needed(host: str) -> None:
    assert load_with(listen=f"{host}:1").listen.is_loopback


EXPOSED = (
    *("0.0.0.0", "[::]", "192.0.2.7", "example.com"),  # noqa: S104
    *("127.example.com", "127.0.0.1.nip.io", "localhost.example.com"),  # names that a foreign DNS server resolves
)


@pytest.mark.parametrize("host", EXPOSED)
def test_beyond_loopback_an_open_or_plain_port_is_refused(host: str) -> None:
    is_open, is_plain = problems_with(listen=f"{host}:1")
    assert is_open == (
        f"AUTHSVC_LISTEN: {host}:1 would be open to every client that can connect: set AUTHSVC_CALLERS or"
        " AUTHSVC_TLS_CLIENT_CA, or AUTHSVC_ALLOW_OPEN=true where the network lets only your backends in"
    )
    assert is_plain == (
        f"AUTHSVC_LISTEN: {host}:1 would send passwords in plain text: set AUTHSVC_TLS_CERT and"
        " AUTHSVC_TLS_KEY, or AUTHSVC_ALLOW_PLAINTEXT=true where a proxy or the network encrypts"
    )


@pytest.mark.parametrize(
    ("names", "flags", "expected"),
    [
        ("", {"allow_open": "true"}, ["would send passwords"]),
        ("", {"allow_plaintext": "true"}, ["would be open to every client"]),
        ("", {"allow_open": "true", "allow_plaintext": "true"}, []),
        ("tls_cert tls_key", {}, ["would be open to every client"]),
        ("tls_cert tls_key", {"allow_open": "true"}, []),
        ("tls_cert tls_key tls_client_ca", {}, []),
        ("tls_cert tls_key callers", {}, []),
        ("callers", {}, ["would send passwords"]),
        ("callers", {"allow_plaintext": "true"}, []),
    ],
)
def test_beyond_loopback_each_danger_has_its_own_consent(
    pem: str, names: str, flags: dict[str, str], expected: list[str]
) -> None:
    problems = problems_with(listen="[::]:1", **dict.fromkeys(names.split(), pem), **flags)
    assert len(problems) == len(expected)
    assert all(text in problem for text, problem in zip(expected, problems, strict=True))


@pytest.mark.parametrize(
    ("address", "text"), [(Address("127.0.0.1", 1), "127.0.0.1:1"), (Address("::1", 1), "[::1]:1")]
)
def test_an_address_is_written_as_grpc_takes_it(address: Address, text: str) -> None:
    assert str(address) == text


@pytest.mark.parametrize(
    ("store", "path"), [("dynamodb", None), ("sqlite:a/b.db", Path("a/b.db")), ("sqlite:/a", Path("/a"))]
)
def test_the_path_of_the_sqlite_store(store: str, path: Path | None) -> None:
    assert load_with(store=store).sqlite_path == path


def test_work_on_the_store_alone_needs_nothing_about_tokens() -> None:
    assert load_store({"AUTHSVC_STORE": "sqlite:a"}).sqlite_path == Path("a")
    with pytest.raises(ConfigError) as refused:
        load_store({})
    assert refused.value.problems == ["AUTHSVC_STORE: must be set: dynamodb, or sqlite:PATH"]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("AUTHSVC_LISTENS", ["AUTHSVC_LISTENS is not a setting; AUTHSVC_LISTEN?"]),
        ("AUTHSVC_BCRYPT_COSTS", ["AUTHSVC_BCRYPT_COSTS is not a setting; AUTHSVC_BCRYPT_COST?"]),
        ("AUTHSVC_ZZZZZZZZZZZZZZZZZZZZ", ["AUTHSVC_ZZZZZZZZZZZZZZZZZZZZ is not a setting"]),
        ("AUTHSVC_LISTEN", []),
        ("AUTHSVCS", []),
        ("PATH", []),
        # what Kubernetes puts into every container of a namespace with a service called authsvc
        ("AUTHSVC_SERVICE_HOST", []),
        ("AUTHSVC_SERVICE_PORT", []),
        ("AUTHSVC_SERVICE_PORT_GRPC", []),
        ("AUTHSVC_PORT", []),
        ("AUTHSVC_PORT_50051_TCP", []),
        ("AUTHSVC_PORT_50051_TCP_ADDR", []),
        ("AUTHSVC_HTTP_SERVICE_HOST", []),
        ("AUTHSVC_HTTP_PORT_8080_TCP_PROTO", []),
        # what other parts of the project read
        ("AUTHSVC_ADMIN_EMAIL", []),
        ("AUTHSVC_TEST_DYNAMODB_ENDPOINT", []),
    ],
)
def test_a_variable_that_looks_like_a_setting_and_is_none_is_reported(name: str, lines: list[str]) -> None:
    assert unknown_settings({name: "x"}) == lines


def test_unknown_settings_are_reported_in_order_without_their_values() -> None:
    lines = unknown_settings({"AUTHSVC_YYYYYYYYYY": "secret", "AUTHSVC_XXXXXXXXXX": "secret"})
    assert lines == ["AUTHSVC_XXXXXXXXXX is not a setting", "AUTHSVC_YYYYYYYYYY is not a setting"]


def test_secrets_are_masked() -> None:
    settings = load_with(log_digest_key="very secret")
    assert settings.log_digest_key == "very secret"
    assert "very secret" not in repr(settings)
    assert "auth.example.com" in repr(settings)


def test_no_problem_quotes_a_secret() -> None:
    problems = problems_with(log_digest_key="very secret", store="x", log_level="x")
    assert not any("very secret" in problem for problem in problems)


def test_every_setting_is_described() -> None:
    lines = describe().splitlines()
    assert [line.split()[0] for line in lines] == VARIABLES
    described = dict(line.split(maxsplit=1) for line in lines)
    assert described["AUTHSVC_STORE"] == "dynamodb, or sqlite:PATH (required)"
    assert described["AUTHSVC_BCRYPT_COST"] == "bcrypt cost of new password hashes, 10 to 16 (default 12)"
    assert described["AUTHSVC_TLS_CERT"].endswith("(PEM) (optional)")


PARSERS: list[tuple[str, Callable[[str], Any]]] = [(f.name, f.metadata["parse"]) for f in fields(ServeSettings)]


@pytest.mark.parametrize("parse", [parser for _, parser in PARSERS], ids=[name for name, _ in PARSERS])
@given(text=st.text() | st.from_regex(r"(sqlite:|https?://|\[)?[0-9a-z.:/]*[smhd\]]?(:[0-9]+)?"))
def test_a_parser_raises_nothing_but_value_errors_that_do_not_quote(parse: Callable[[str], Any], text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        assert str(error).startswith("must ")  # noqa: PT017
        assert len(str(error)) < 100  # noqa: PT017


def test_settings_are_named_by_the_prefix() -> None:
    assert all(name.startswith(config.PREFIX) for name in VARIABLES)
