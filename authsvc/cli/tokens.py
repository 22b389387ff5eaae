"""`authsvc token`: explains an access token by the service's own checks, and never prints it."""

import functools
import json
import os
import re
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import click

from authsvc import config
from authsvc.cli.command import command, echo, read_secret, require_existing_file
from authsvc.config import StoreSettings
from authsvc.errors import AuthsvcError, ConfigError, CorruptItemError, StoreUnavailableError
from authsvc.models import ACCESS_TOKEN_MAX_LIFETIME, Finding, UserState, utc_now

if TYPE_CHECKING:
    from authsvc.tokens.access_tokens import AccessTokens
    from authsvc.tokens.verification import AccessToken, InactiveReason, TokenCheck
    from authsvc.usecases.validation import ActiveToken

INACTIVE_CODE = 1
UNDECIDED_CODE = 3
TOKEN_LINE_MAX_BYTES = 64 * 1024
"""Read from standard input: more than an access token may have."""
SHOWN_LENGTH = 200
"""Characters of a claim that are shown."""

_SECRET = re.compile(
    r"[\w-]{80,}"  # as long as the shortest signature
    r"|eyJ[\w-]+\.[\w-]+"  # the beginning of a JWT
    r"|rt_[\w-]+\.[\w-]",  # the same of a refresh token
    re.ASCII,
)
"""What may be a token or a part of one: a claim may hold anything."""
_COPY = "send the token alone, whole and unchanged"
_OWN = "send a token that this service issued; it accepts no others"
_CLOCK = "authsvc doctor checks this host's clock"


class _Group(click.Group):
    """A group whose errors repeat no argument: one that is no command may be a token."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click."""
        if args[0] not in self.commands:
            raise click.UsageError("there is no such command, and tokens do not belong on the command line", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Group)
def token() -> None:
    """Examine access tokens."""


@token.command(name="explain", context_settings={"allow_extra_args": True})
@click.option("--data-dir", type=click.Path(path_type=Path), help="Explain a token of `authsvc dev` with this folder.")
@functools.partial(command, failure_code=UNDECIDED_CODE)
def explain_token(data_dir: Path | None) -> Coroutine[Any, Any, None]:
    """Say what ValidateToken answers to a token, and why.

    A terminal prompts for the token; otherwise it is the first line of standard input. Neither
    the token nor its signature is printed: the output cannot be used as a token.

    Every check is listed in the order of decision: ok, WRONG with the remedy, or - where an
    earlier check decides. AUTHSVC_ISSUER, AUTHSVC_AUDIENCE and AUTHSVC_SIGNING_KEYS are read as
    the service has them, and AUTHSVC_STORE for the user and the session.

    The exit code is 0 (active), 1 (inactive), 2 (wrong usage) or 3 (undecided: a setting is
    missing, or the store cannot answer).
    """
    if click.get_current_context().args:  # click would print them
        raise click.UsageError("the token is read from a prompt or standard input: others can see a command line")
    settings, store_settings = _load_settings(data_dir)
    # Before the event loop runs, whose signal handling would keep Ctrl-C from the prompt.
    text = read_secret("Token", TOKEN_LINE_MAX_BYTES)
    if not text:
        raise click.UsageError("the token is empty, which ValidateToken refuses: INVALID_ARGUMENT, INVALID_FIELD")
    return _explain(text, settings, store_settings)


def _load_settings(data_dir: Path | None) -> tuple[Mapping[str, Any], StoreSettings | None]:
    """Return what decides about tokens, and the settings of the store; None where none is named."""
    from authsvc.telemetry import logs

    environ: Mapping[str, str] = os.environ
    defaults: Mapping[str, str] = {}
    if data_dir is not None:
        from authsvc.cli import dev

        environ, defaults = dev.environment(data_dir, os.environ), dev.DEFAULTS
    settings = config.load_settings(environ, defaults, "issuer", "audience", "signing_keys", "log_format")
    has_store = "AUTHSVC_STORE" in config.effective_environ(environ)
    store_settings = config.load_store(environ) if has_store else None
    # What the store logs is reported as the answer.
    logs.configure(settings["log_format"], "critical")
    return settings, store_settings


async def _explain(text: str, settings: Mapping[str, Any], store_settings: StoreSettings | None) -> None:
    from authsvc.tokens.access_tokens import AccessTokens
    from authsvc.tokens.opening import watch_keys
    from authsvc.tokens.verification import InactiveTokenError, TokenCheck

    now = utc_now()
    async with watch_keys(settings["signing_keys"], lambda: now) as keys:
        ring = keys.content
    tokens = AccessTokens(ring, settings["issuer"], settings["audience"], ACCESS_TOKEN_MAX_LIFETIME)
    examined = _Examined.read(text, settings, tokens, now)
    examined.print_contents()
    try:
        claims = tokens.check(text, now)
        outcome, user = await _validate(text, claims, tokens, store_settings, now)
    except InactiveTokenError as error:
        _print_checks(error.check, *_PROBLEMS[error.check.name](examined, error.problem))
        _print_inactive(error.check.reason)
    except AuthsvcError as error:
        _print_checks(TokenCheck.USER)
        _print_undecided(error)
        raise
    if user is not None:
        echo("user", user.user_id, user.email, user.role, "active" if user.is_active else "disabled")
    failed = next((check for check in TokenCheck if check.reason is outcome), None)
    if failed is None:
        _print_checks(None)
        echo("ValidateToken answers ACTIVE")
    else:
        _print_checks(failed, *_describe_user(failed, claims, user))
        _print_inactive(failed.reason)


async def _validate(
    text: str, claims: "AccessToken", tokens: "AccessTokens", settings: StoreSettings | None, now: datetime
) -> "tuple[ActiveToken | InactiveReason, UserState | None]":
    """Ask the service's own use case; return its outcome, and the state of the user that decided."""
    from authsvc import request_context
    from authsvc.stores.opening import open_store
    from authsvc.usecases.user_state_cache import StalenessLimits, UserStateCache
    from authsvc.usecases.validation import Check, Validations

    if settings is None:
        raise ConfigError(["AUTHSVC_STORE: is not set, so nothing is known of the user and the session"])
    require_existing_file(settings)
    cache = UserStateCache()
    limits = StalenessLimits(timedelta(), timedelta())
    async with open_store(settings) as store:
        with request_context.time_limit(request_context.COMMAND_DEADLINE_SECONDS):
            validation = await Validations(store, tokens, cache, lambda: now, limits).validate(Check(text))
    read = cache.get(claims.user_id, timedelta.max)
    return validation.outcome, None if read is None else read.user_state


# What is printed


def _print_checks(first_open: "TokenCheck | None", problem: str = "", remedy: str = "") -> None:
    """Print each check with its verdict.

    Args:
        first_open: The first check that is not passed; None where all are.
        problem: Why it failed; empty where it was not made.
        remedy: How to repair it.
    """
    from authsvc.tokens.verification import TokenCheck

    is_open = False
    for check in TokenCheck:
        if check is first_open:
            is_open = True
            if problem:
                echo(Finding(check.requirement, problem, remedy))
                continue
        echo(f"-     {check.requirement}" if is_open else Finding(check.requirement))


def _print_inactive(reason: "InactiveReason") -> NoReturn:
    echo(f"ValidateToken answers INACTIVE: {reason.name}")
    sys.exit(INACTIVE_CODE)


def _print_undecided(error: AuthsvcError) -> None:
    if isinstance(error, StoreUnavailableError):
        echo("ValidateToken answers UNAVAILABLE, STORE_UNAVAILABLE: an outage, which says nothing about the token")
    elif isinstance(error, CorruptItemError):
        echo("ValidateToken answers INTERNAL: the user's row cannot be read, which says nothing about the token")
    else:
        echo("What ValidateToken answers depends on the store")


@dataclass(frozen=True, slots=True)
class _Examined:
    """A token and what it is checked against. Header and claims are as anyone may have written them.

    Args:
        text: Secret.
        named_key: The key of this service that the header names, whatever its algorithm; None where there is none.
    """

    text: str
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    named_key: Any
    issuer: str
    audience: str
    now_seconds: int

    @classmethod
    def read(cls, text: str, settings: Mapping[str, Any], tokens: "AccessTokens", now: datetime) -> "_Examined":
        """Read a token without a check."""
        from authsvc.tokens.verification import MAX_TOKEN_LENGTH, read_unverified

        header, claims = read_unverified(text) if len(text) <= MAX_TOKEN_LENGTH else ({}, {})
        kid, now_seconds = header.get("kid"), int(now.timestamp())
        key = tokens.ring.get(kid, now_seconds) if isinstance(kid, str) else None
        return cls(text, header, claims, key, settings["issuer"], settings["audience"], now_seconds)

    def print_contents(self) -> None:
        """Print header, claims, the key and the time, a line each."""
        for name, value in self.header.items():
            echo("header", _shown_text(name), _shown(value))
        for name, value in self.claims.items():
            echo("claim", _shown_text(name), _shown(value), *self._shown_time(name, value))
        if self.named_key is not None:
            echo("key", self.named_key.kid, self.named_key.alg, self.named_key.status)
        echo("now", self.now_seconds, _format_time(self.now_seconds))

    def _shown_time(self, name: str, value: object) -> tuple[str, ...]:
        from authsvc.tokens.keys import MAX_SECOND

        if name not in {"iat", "nbf", "exp"} or type(value) is not int or not 0 <= value <= MAX_SECOND:
            return ()
        return _format_time(value), _format_distance(value - self.now_seconds)


def _format_time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _format_distance(seconds: int) -> str:
    span = _format_span(abs(seconds))
    return f"in {span}" if seconds > 0 else f"{span} ago"


def _format_span(seconds: int) -> str:
    longest = timedelta(days=365_000)
    return str(timedelta(seconds=min(seconds, int(longest.total_seconds()))))


def _shown(value: object) -> str:
    """Return a value of a token as JSON; anything nested is left out."""
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, list | dict) for each in values):
        return "(nested, not shown)"
    return _shown_text(json.dumps(value, ensure_ascii=False))


def _shown_text(text: str) -> str:
    """Return a text of a token, without what may be a token itself, and without its end if it is long."""
    if _SECRET.search(text):
        return f"({len(text)} characters like those of a token, not shown)"
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}… ({len(text)} characters)"


# Why a check of the token failed, and the remedy

_Problem: TypeAlias = tuple[str, str]


def _describe_kind(_: _Examined, __: str) -> _Problem:
    return "it is one", "send the access token; refresh tokens are for RefreshTokens"


def _describe_length(examined: _Examined, _: str) -> _Problem:
    if not examined.text.isascii():
        return "it has characters that are not ASCII", _COPY
    return "it has more", _OWN


def _describe_segments(examined: _Examined, _: str) -> _Problem:
    text = examined.text
    count = text.count(".") + 1
    problems = {
        "it begins with Bearer, which is not part of it": text[:7].lower() == "bearer ",
        "it has blanks in it": any(character.isspace() for character in text),
        "it is in quotes": text[0] in "\"'",
        "it has 1 segment": count == 1,
        f"it has {count} segments": count != 3,  # noqa: PLR2004 - as the check says
    }
    found = next((problem for problem, is_found in problems.items() if is_found), "")
    return found or "a segment is empty, or not base64url without padding", _COPY


def _describe_header(examined: _Examined, problem: str) -> _Problem:
    extra = examined.header.keys() - {"alg", "kid", "typ"}
    if extra:
        problem = f"it has more: {', '.join(_shown_text(name) for name in sorted(extra))}"
    return problem or "one of these is missing or not a string", _OWN


def _describe_type(examined: _Examined, _: str) -> _Problem:
    remedy = "send the access token of this service, not an ID token, nor another service's token"
    return f"it is {_shown(examined.header['typ'])}", remedy


def _describe_key(examined: _Examined, _: str) -> _Problem:
    key = examined.named_key
    problem = "no key has the kid: it was removed or has retired, or never was"
    if key is not None:
        problem = f"the key is for {key.alg}, and alg is {_shown(examined.header['alg'])}"
    if examined.claims.get("iss", examined.issuer) != examined.issuer:
        return problem, f"send the token to its issuer, {_shown(examined.claims['iss'])}; this one is {examined.issuer}"
    return problem, "give every instance the same AUTHSVC_SIGNING_KEYS; authsvc keys list prints the kids"


def _describe_signature(_: _Examined, __: str) -> _Problem:
    return "it is not: something of the token was changed or cut, or another key has had this kid", _COPY


def _describe_claims(_: _Examined, problem: str) -> _Problem:
    return problem, _OWN


def _describe_issuer(examined: _Examined, _: str) -> _Problem:
    problem = f"it is {_shown(examined.claims['iss'])}, and AUTHSVC_ISSUER is {examined.issuer}"
    return problem, "send the token to its issuer; if that is this one, every instance needs the same AUTHSVC_ISSUER"


def _describe_audience(examined: _Examined, _: str) -> _Problem:
    problem = f"it is {_shown(examined.claims['aud'])}, and AUTHSVC_AUDIENCE is {examined.audience}"
    return problem, "every instance needs the same AUTHSVC_AUDIENCE, and a new value of it new tokens"


def _describe_expiry(examined: _Examined, _: str) -> _Problem:
    span = _format_span(examined.now_seconds - examined.claims["exp"])
    return f"it was {span} ago", f"get a new token by RefreshTokens; if this is too early, {_CLOCK}"


def _describe_start(examined: _Examined, _: str) -> _Problem:
    begin = max(examined.claims["iat"], examined.claims.get("nbf", examined.claims["iat"]))
    span = _format_span(begin - examined.now_seconds)
    return f"they are {span} ahead", f"compare this host's clock with that of the issuing one; {_CLOCK}"


_PROBLEMS: Mapping[str, Callable[[_Examined, str], _Problem]] = {
    "KIND": _describe_kind,
    "LENGTH": _describe_length,
    "SEGMENTS": _describe_segments,
    "HEADER": _describe_header,
    "TYPE": _describe_type,
    "KEY": _describe_key,
    "SIGNATURE": _describe_signature,
    "CLAIMS": _describe_claims,
    "ISSUER": _describe_issuer,
    "AUDIENCE": _describe_audience,
    "EXPIRY": _describe_expiry,
    "START": _describe_start,
}


def _describe_user(failed: "TokenCheck", claims: "AccessToken", user: UserState | None) -> _Problem:
    """Return why a check of the user failed, and the remedy."""
    if user is None:
        problem = f"the store has no user {_shown(claims.user_id)}"
        return problem, "if the user was not deleted, check AUTHSVC_STORE and AUTHSVC_TABLE_PREFIX"
    if failed.name == "ENABLED":
        return "it is", "enable the user, authsvc users enable, and log in again"
    generations = f"the token is of generation {claims.token_generation}, the user of {user.token_generation}"
    if claims.token_generation > user.token_generation:
        return f"{generations}: the store was restored, or is another one", "log in again"
    if claims.token_generation < user.token_generation:
        return f"{generations}: all sessions were ended since", "log in again"
    return "it was ended on its own", "log in again"
