"""Settings from the environment. Loading them reports every problem at once."""

import difflib
import ipaddress
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from authsvc import otel_variables
from authsvc.errors import ConfigError
from authsvc.models import ACCESS_TOKEN_MAX_LIFETIME, Budget

PREFIX = "AUTHSVC_"
MAX_PORT = 65535
MAX_DURATION_DAYS = 36_500
"""Keeps now plus a duration within the range of `datetime`."""
MAX_ACCOUNT_FAILURES = 100
"""The maximum of NIST SP 800-63B §3.2.2."""
MAX_FAILURES = 1000
"""Bounds the DynamoDB item of a counter, which holds the id of every attempt."""
MAX_REFRESH_GRACE = timedelta(minutes=10)
"""A stolen refresh token is answered that long after its owner's refresh."""
DEFAULT_HTTP_LISTEN = "127.0.0.1:8080"
DYNAMODB = "dynamodb"
SQLITE_SCHEME = "sqlite:"

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(?P<port>[0-9]{1,5})")
_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_BUDGET = re.compile(r"([0-9]{1,4})/([0-9]{1,9}[smhd])")
_NUMBER = re.compile(r"[0-9]{1,9}")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TABLE_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,200}")
# What Kubernetes and Docker links put into the environment for a service that is called authsvc.
_SERVICE_LINK = re.compile(r"AUTHSVC_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\w+)?)")
_NOT_SETTINGS = ("AUTHSVC_ADMIN_", "AUTHSVC_TEST_")
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
_LINE_CATEGORIES = frozenset({"Cc", "Zl", "Zp"})
"""Unicode's categories of control characters and line breaks."""
_INVISIBLE_CATEGORIES = _LINE_CATEGORIES | {"Cf", "Zs"}
"""The same with blanks and format characters, such as a byte order mark."""
_AWS_KEY_NAMES = {
    "ssm": re.compile(r"/?[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*"),
    "secretsmanager": re.compile(r"(arn:[a-z-]+:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:)?[A-Za-z0-9/_+=.@-]+"),
}
"""Names of parameters and secrets, by service. A parameter's name with a version or a label names no key ring."""
_LIBRARY_VARIABLE = re.compile(r"AWS_\w+|REQUESTS_CA_BUNDLE|(?i:https?_proxy)")
"""Variables that AWS's libraries read."""
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on.

    Args:
        host: A name, or an IP address without brackets.
        port: 0 for any free port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        """Return HOST:PORT, an IPv6 address in brackets, as gRPC expects it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """Signing keys that are kept in AWS.

    Args:
        service: `ssm` (Parameter Store) or `secretsmanager`.
        name: Of the parameter or the secret.
    """

    service: str
    name: str

    def __str__(self) -> str:
        """Return SERVICE:NAME, as the setting has it."""
        return f"{self.service}:{self.name}"


KeyLocation = Path | AwsKeys
"""Where the signing keys are kept."""


def _require_visible(text: str) -> None:
    """Refuse what a copied line or a file leaves behind: it would go into tokens, signatures and names of files.

    Raises:
        ValueError: The text has a control character, or a blank at an end. The message does not show the text, which
            may be a secret.
    """
    if any(unicodedata.category(character) in _LINE_CATEGORIES for character in text):
        raise ValueError("must not hold a line break or another control character")
    for end, character in (("begin", text[:1]), ("end", text[-1:])):
        if character and unicodedata.category(character) in _INVISIBLE_CATEGORIES:
            raise ValueError(f"must not {end} with a blank or an invisible character")


def _text(text: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):  # bytes of the environment that are not UTF-8
        raise ValueError("must be UTF-8")
    if not text.isprintable():
        raise ValueError("must not hold an invisible character")
    return text


def _store(text: str) -> str:
    path = text.removeprefix(SQLITE_SCHEME)
    if text == DYNAMODB or path not in ("", text):
        _require_visible(path)
        return text
    raise ValueError(f"must be {DYNAMODB} or {SQLITE_SCHEME}PATH")


def _table_prefix(text: str) -> str:
    if _TABLE_PREFIX.fullmatch(text):
        return text
    raise ValueError("must be 1 to 200 letters (a-z, A-Z), digits, dots, dashes or underscores")


def _address(text: str) -> Address:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > MAX_PORT:
        raise ValueError("must be HOST:PORT, for instance 127.0.0.1:50051")
    return Address(match["host"].removeprefix("[").removesuffix("]"), int(match["port"]))


def _address_or_off(text: str) -> Address | None:
    return _address(text) if text else None


def _url(text: str) -> str:
    if re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*(?<!/)", text):
        return _text(text)
    raise ValueError("must be an http or https URL without query, fragment or trailing slash (RFC 8414 §2)")


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def key_location(text: str) -> KeyLocation:
    """Return where the signing keys are kept: a file, or `ssm:NAME` or `secretsmanager:NAME`.

    Raises:
        ValueError: NAME is not a name of that service.
    """
    service, colon, name = text.partition(":")
    if not colon or service not in _AWS_KEY_NAMES:
        return Path(text)
    if not _AWS_KEY_NAMES[service].fullmatch(name):
        raise ValueError(f"must have a name without a version after {service}:, for instance {service}:authsvc/keys")
    return AwsKeys(service, name)


def parse_duration(text: str) -> timedelta:
    """Return a duration, for instance of `15m`.

    Raises:
        ValueError: The text is not a number and a unit, or the duration is too long.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("must be a number and a unit (s, m, h or d), for instance 15m")
    duration = timedelta(seconds=int(match[1]) * _UNIT_SECONDS[match[2]])
    if duration.days > MAX_DURATION_DAYS:
        raise ValueError(f"must be at most {MAX_DURATION_DAYS}d")
    return duration


def _access_token_ttl(text: str) -> timedelta:
    lifetime = parse_duration(text)
    if not timedelta() < lifetime <= ACCESS_TOKEN_MAX_LIFETIME:
        raise ValueError("must be from 1s to 24h")
    return lifetime


def _refresh_grace(text: str) -> timedelta:
    grace = parse_duration(text)
    if grace > MAX_REFRESH_GRACE:
        raise ValueError("must be from 0s to 10m")
    return grace


def _flag(text: str) -> bool:
    if text in ("true", "false"):
        return text == "true"
    raise ValueError("must be true or false")


def _number(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if _NUMBER.fullmatch(text) and minimum <= int(text) <= maximum:
            return int(text)
        raise ValueError(f"must be a whole number from {minimum} to {maximum}")

    return parse


def _budget(max_failures: int) -> Callable[[str], Budget]:
    def parse(text: str) -> Budget:
        match = _BUDGET.fullmatch(text)
        if match is None or not 1 <= int(match[1]) <= max_failures:
            raise ValueError(f"must be FAILURES/WINDOW, with 1 to {max_failures} failures, for instance 10/15m")
        window = parse_duration(match[2])
        if not window:
            raise ValueError("must have a window of at least 1s")
        return Budget(int(match[1]), window)

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    *others, last = filter(None, choices)

    def parse(text: str) -> str:
        if text in choices:
            return text
        raise ValueError(f"must be {', '.join(others)} or {last}")

    return parse


def _setting(parse: Callable[[str], Any], help_text: str, default: str | None = "") -> Any:  # noqa: ANN401 - a dataclass field of any type
    """Declare a setting; it is required where the default is None."""
    return field(metadata={"parse": parse, "help": help_text, "default": default})


def _secret(help_text: str) -> Any:  # noqa: ANN401 - as above
    return field(repr=False, metadata={"parse": _text, "help": help_text, "default": ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Settings of commands that work on the store itself; the variable of each is AUTHSVC_ and its name in capitals."""

    store: str = _setting(_store, "dynamodb, or sqlite:PATH", None)
    table_prefix: str = _setting(_table_prefix, "prefix of the DynamoDB table names", "auth-")
    bcrypt_cost: int = _setting(_number(10, 16), "bcrypt cost of new password hashes, 10 to 16", "12")
    password_min_length: int = _setting(
        _number(8, 256), "minimum length of new passwords in characters, 8 to 256", "15"
    )
    log_format: str = _setting(
        _one_of("", "console", "json"), "console or json; unset: console on a terminal, else json"
    )

    @property
    def sqlite_path(self) -> Path | None:
        """The file of the SQLite store; None where the store is DynamoDB."""
        return None if self.store == DYNAMODB else Path(self.store.removeprefix(SQLITE_SCHEME))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings(StoreSettings):
    """Every setting: those of the store, and those of the running service."""

    listen: Address = _setting(_address, "HOST:PORT of the gRPC port; port 0: any free port", "127.0.0.1:50051")
    http_listen: Address | None = _setting(
        _address_or_off, "HOST:PORT of the HTTP side port; an empty value turns it off", DEFAULT_HTTP_LISTEN
    )
    workers: int = _setting(_number(1, 256), "worker processes that share the gRPC port, 1 to 256", "1")
    issuer: str = _setting(_url, "URL of this deployment, the iss claim of its tokens", None)
    audience: str = _setting(_text, "aud claim of the tokens", None)
    signing_keys: KeyLocation = _setting(
        key_location, "key file, ssm:NAME or secretsmanager:NAME; see authsvc keys", None
    )
    access_token_ttl: timedelta = _setting(_access_token_ttl, "lifetime of an access token, 1s to 24h", "15m")
    session_idle_ttl: timedelta = _setting(parse_duration, "lifetime of an unused refresh token", "7d")
    session_max_ttl: timedelta = _setting(
        parse_duration, "maximum lifetime of a session, however often it is refreshed", "30d"
    )
    refresh_grace: timedelta = _setting(
        _refresh_grace, "how long a replaced refresh token still returns the current one, 0s to 10m", "60s"
    )
    max_staleness: timedelta = _setting(parse_duration, "upper limit of ValidateToken's max_staleness", "60s")
    max_stale_if_error: timedelta = _setting(parse_duration, "upper limit of ValidateToken's stale_if_error", "15m")
    failures_per_pair: Budget = _setting(
        _budget(MAX_FAILURES), "limit of failed logins to one account from one source, and its window", "10/15m"
    )
    failures_per_account: Budget = _setting(
        _budget(MAX_ACCOUNT_FAILURES), "the same to one account from all unknown sources", "100/24h"
    )
    failures_per_source: Budget = _setting(_budget(MAX_FAILURES), "the same from one source to all accounts", "300/15m")
    callers: Path | None = _setting(_path, "callers file (TOML); unset: every client may call")
    tls_cert: Path | None = _setting(_path, "file of the server's certificate chain (PEM)")
    tls_key: Path | None = _setting(_path, "file of the server's private key (PEM)")
    tls_client_ca: Path | None = _setting(
        _path, "file of the CA of client certificates (PEM); set: every client must present one"
    )
    allow_plaintext: bool = _setting(_flag, "true: listen beyond loopback without TLS", "false")
    allow_open: bool = _setting(_flag, "true: listen beyond loopback for every client", "false")
    reflection: bool = _setting(_flag, "serve gRPC reflection, which grpcurl needs", "true")
    log_level: str = _setting(_one_of("debug", "info", "warning", "error"), "lowest level that is logged", "info")
    log_digest_key: str = _secret("secret key of the digests that replace emails in logs; unset: random")


S = TypeVar("S", bound=StoreSettings)


def load(environ: Mapping[str, str], defaults: Mapping[str, str] | None = None) -> ServeSettings:
    """Read all settings.

    Args:
        environ: The environment. An empty value counts as unset, except where it turns something off.
        defaults: Values of unset settings, by environment variable.

    Raises:
        ConfigError: Lists every problem.
    """
    return _load(ServeSettings, environ, defaults or {})


def load_store(environ: Mapping[str, str]) -> StoreSettings:
    """Read the settings of commands that work on the store itself.

    Raises:
        ConfigError: Lists every problem.
    """
    return _load(StoreSettings, environ, {})


def load_setting(environ: Mapping[str, str], name: str) -> Any:  # noqa: ANN401 - each setting has its own type
    """Read one setting of ServeSettings that has a default.

    Raises:
        ConfigError: Its value is malformed.
    """
    return load_settings(environ, {}, name)[name]


def load_settings(environ: Mapping[str, str], defaults: Mapping[str, str], *names: str) -> Mapping[str, Any]:
    """Read some settings of ServeSettings.

    Args:
        environ: The environment.
        defaults: Values of unset settings, by environment variable.
        names: Of the settings.

    Raises:
        ConfigError: Lists each that is missing or malformed.
    """
    values, problems = _parse([each for each in fields(ServeSettings) if each.name in names], environ, defaults)
    if problems:
        raise ConfigError(problems)
    return values


def check_aws_variables(environ: Mapping[str, str]) -> None:
    """Check the variables of AWS's libraries, for commands that need no other settings.

    Raises:
        ConfigError: Lists the malformed ones.
    """
    problems = _library_problems(environ)
    if problems:
        raise ConfigError(problems)


def _load(settings_class: type[S], environ: Mapping[str, str], defaults: Mapping[str, str]) -> S:
    values, problems = _parse(fields(settings_class), environ, defaults)
    problems += _combination_problems(values)
    if values.get("store") == DYNAMODB or isinstance(values.get("signing_keys"), AwsKeys):
        problems += _library_problems(environ)
    if settings_class is ServeSettings:
        problems += otel_variables.problems(environ)
    if problems:
        raise ConfigError(problems)
    return settings_class(**values)


def _library_problems(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each malformed variable of AWS's libraries, which report it as a lasting network error."""
    problems = []
    for name in filter(_LIBRARY_VARIABLE.fullmatch, sorted(environ)):
        try:
            _require_visible(environ[name])
            if name in _CREDENTIALS and not re.fullmatch("[!-~]*", environ[name]):
                raise ValueError("must be ASCII without blanks")  # noqa: TRY301 - reported like the others
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return problems


def _parse(
    declared_settings: Iterable[Field[Any]], environ: Mapping[str, str], defaults: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of well-formed settings, and a line for each missing or malformed one."""
    given = effective_environ(environ)
    values: dict[str, Any] = {}
    problems = []
    for declared in declared_settings:
        name = _variable(declared.name)
        text = given.get(name, defaults.get(name) or declared.metadata["default"])
        if text is None:
            problems.append(f"{name}: must be set: {declared.metadata['help']}")
            continue
        try:
            _require_visible(text)
            values[declared.name] = declared.metadata["parse"](text)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return values, problems


def effective_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that count: an empty one counts only where it turns something off."""
    can_be_off = {_variable(declared.name) for declared in fields(ServeSettings) if _can_be_off(declared)}
    return {name: value for name, value in environ.items() if value or name in can_be_off}


def _can_be_off(declared: Field[Any]) -> bool:
    return declared.metadata["parse"] is _address_or_off


def unknown_settings(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each variable that looks like a setting but is not one, with the closest setting."""
    known = [_variable(declared.name) for declared in fields(ServeSettings)]
    lines = []
    for name in sorted(environ):
        is_foreign = _SERVICE_LINK.fullmatch(name) or name.startswith(_NOT_SETTINGS)
        if name.startswith(PREFIX) and name not in known and not is_foreign:
            close = difflib.get_close_matches(name, known, n=1)
            lines.append(f"{name} is not a setting" + (f"; {close[0]}?" if close else ""))
    return lines


def describe() -> str:
    """Return a line for each setting: its variable, help and default."""
    lines = []
    for declared in fields(ServeSettings):
        default = declared.metadata["default"]
        suffix = "required" if default is None else f"default {default}" if default else "optional"
        lines.append(f"{_variable(declared.name):28} {declared.metadata['help']} ({suffix})")
    return "\n".join(lines)


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _combination_problems(values: Mapping[str, Any]) -> list[str]:
    """Return the problems of settings that are well-formed but contradict each other."""
    checks = (_lifetime_problems, _tls_problems, _exposure_problems, _port_problems)
    problems = []
    for check in checks:
        try:
            problems += check(values)
        except KeyError:  # one of its settings is missing or malformed, which is reported already
            continue
    return problems


def _lifetime_problems(values: Mapping[str, Any]) -> list[str]:
    access, idle, maximum = (values[name] for name in ("access_token_ttl", "session_idle_ttl", "session_max_ttl"))
    problems = []
    if access > idle:
        problems.append("AUTHSVC_SESSION_IDLE_TTL: must be at least AUTHSVC_ACCESS_TOKEN_TTL")
    if idle > maximum:
        problems.append("AUTHSVC_SESSION_MAX_TTL: must be at least AUTHSVC_SESSION_IDLE_TTL")
    return problems


def _tls_problems(values: Mapping[str, Any]) -> list[str]:
    problems = []
    if (values["tls_cert"] is None) != (values["tls_key"] is None):
        problems.append("AUTHSVC_TLS_CERT, AUTHSVC_TLS_KEY: must be set together")
    if values["tls_client_ca"] is not None and values["tls_cert"] is None:
        problems.append("AUTHSVC_TLS_CLIENT_CA: needs AUTHSVC_TLS_CERT and AUTHSVC_TLS_KEY")
    for name in ("tls_cert", "tls_key", "tls_client_ca"):
        path = values[name]
        if path is not None and not os.access(path, os.R_OK):
            problems.append(f"{_variable(name)}: {path} cannot be read")
    return problems


def _exposure_problems(values: Mapping[str, Any]) -> list[str]:
    address = values["listen"]
    if address.is_loopback:
        return []
    problems = []
    is_open = values["callers"] is None and values["tls_client_ca"] is None
    if is_open and not values["allow_open"]:
        problems.append(
            f"AUTHSVC_LISTEN: {address} would be open to every client that can connect: set AUTHSVC_CALLERS or"
            " AUTHSVC_TLS_CLIENT_CA, or AUTHSVC_ALLOW_OPEN=true where the network lets only your backends in"
        )
    if values["tls_cert"] is None and not values["allow_plaintext"]:
        problems.append(
            f"AUTHSVC_LISTEN: {address} would send passwords in plain text: set AUTHSVC_TLS_CERT and"
            " AUTHSVC_TLS_KEY, or AUTHSVC_ALLOW_PLAINTEXT=true where a proxy or the network encrypts"
        )
    return problems


def _port_problems(values: Mapping[str, Any]) -> list[str]:
    listen, http_listen = values["listen"], values["http_listen"]
    if http_listen is None or listen.port != http_listen.port or listen.port == 0:
        return []
    if listen.host != http_listen.host and _WILDCARDS.isdisjoint({listen.host, http_listen.host}):
        return []
    addresses = f"{listen} and {http_listen}"
    remedy = "set another AUTHSVC_HTTP_LISTEN, or an empty value, which turns the side port off"
    return [f"AUTHSVC_LISTEN, AUTHSVC_HTTP_LISTEN: {addresses} are the same port: {remedy}"]
