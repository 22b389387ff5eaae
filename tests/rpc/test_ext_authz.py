"""ext_authz v3: what a gateway is answered, over a real socket."""

import asyncio
import io
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from authsvc.config import ServeSettings
from authsvc.rpc import ext_authz_pb2
from authsvc.rpc.callers import new_api_key
from authsvc.rpc.ext_authz_pb2 import (
    AttributeContext,
    CheckRequest,
    CheckResponse,
    HeaderMap,
    HeaderValue,
    HeaderValueOption,
)
from authsvc.server import app
from authsvc.telemetry import logs
from tests.faults import Delay, Hang
from tests.rpc.conftest import Proxied
from tests.rpc.test_metrics import Since
from tests.support import PATIENT_LIMITS, WITNESS, Client, FakeClock, connected, failure

METHOD = "envoy.service.auth.v3.Authorization.Check"
PATH = "/envoy.service.auth.v3.Authorization/Check"
IDENTITY_HEADERS = ("x-auth-user-id", "x-auth-email", "x-auth-role", "x-auth-session-id")
OVERWRITE = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
ONE_ATTEMPT = replace(PATIENT_LIMITS, dynamodb=replace(PATIENT_LIMITS.dynamodb, max_attempts=1))
CAP_IF_ERROR = timedelta(minutes=15)
"""As in make_settings."""
NO_TOKEN = (401, 'Bearer realm="authsvc"', "a bearer token is required")
BAD_TOKEN = (401, 'Bearer realm="authsvc", error="invalid_token"', "the token is invalid")
NO_ROLE = (403, 'Bearer realm="authsvc", error="insufficient_scope"', "the role is missing")
INTERNAL_ERROR = (500, "", "internal error")

Headers = Iterable[tuple[str, str]]
Event = Callable[[Client, str, str], Awaitable[None]]


def joined(headers: Headers) -> AttributeContext.HttpRequest:
    """Headers as Envoy sends them: names in lower case, equal ones joined with a comma, no bytes but UTF-8."""
    by_name: dict[str, str] = {}
    for name, value in headers:
        text = value.encode("latin-1").decode("ascii", "replace").replace("\ufffd", "!")
        by_name[name.lower()] = f"{by_name[name.lower()]},{text}" if name.lower() in by_name else text
    return AttributeContext.HttpRequest(headers=by_name)


def listed(headers: Headers) -> AttributeContext.HttpRequest:
    """Headers as Envoy sends them with `encode_raw_headers`."""
    values = [HeaderValue(key=name.lower(), raw_value=value.encode("latin-1")) for name, value in headers]
    return AttributeContext.HttpRequest(header_map=HeaderMap(headers=values))


def request_of(http: AttributeContext.HttpRequest | None, **context_extensions: str) -> CheckRequest:
    request = AttributeContext.Request(http=http)
    return CheckRequest(attributes=AttributeContext(request=request, context_extensions=context_extensions))


def with_token(token: str) -> AttributeContext.HttpRequest:
    return joined([("Authorization", f"Bearer {token}")])


async def send(client: Client, request: CheckRequest | bytes) -> CheckResponse:
    method: Any = client.channel.unary_unary(PATH, response_deserializer=CheckResponse.FromString)
    response: CheckResponse = await method(request if isinstance(request, bytes) else request.SerializeToString())
    return response


async def check(client: Client, http: AttributeContext.HttpRequest | None, **context_extensions: str) -> CheckResponse:
    return await send(client, request_of(http, **context_extensions))


def values_of(options: Iterable[HeaderValueOption]) -> dict[str, str]:
    """Return headers that are set, each of them by overwriting."""
    found = [(option.header.key, option.header.value) for option in options]
    assert {option.append_action for option in options} <= {OVERWRITE}
    assert len(dict(found)) == len(found)
    return dict(found)


def passed(answer: CheckResponse) -> tuple[dict[str, str], list[str]]:
    """Expect the request to pass; return the headers that are set, and those that are removed."""
    assert (answer.status.code, answer.WhichOneof("http_response")) == (0, "ok_response")
    return values_of(answer.ok_response.headers), list(answer.ok_response.headers_to_remove)


def refusal(answer: CheckResponse) -> tuple[int, str, str]:
    """Expect a refusal; return its status, its challenge and its error."""
    assert answer.status.code != 0
    assert answer.WhichOneof("http_response") == "denied_response"
    headers = values_of(answer.denied_response.headers)
    assert headers.pop("content-type") == "application/json"
    challenge = headers.pop("www-authenticate", "")
    status = answer.denied_response.status.code
    assert headers == ({"retry-after": "1"} if status == 503 else {})
    body = json.loads(answer.denied_response.body)
    assert list(body) == ["error"]
    return status, challenge, body["error"]


async def alice_of(client: Client) -> tuple[str, dict[str, str]]:
    """Return a user's access token, and the headers that it stands for."""
    user = await client.create_user()
    tokens = (await client.log_in()).tokens
    identity = (user.user_id, user.email, "user", tokens.session_id)
    return tokens.access_token, dict(zip(IDENTITY_HEADERS, identity, strict=True))


# Who passes


async def test_a_good_token_passes_with_its_identity(client: Client) -> None:
    token, identity = await alice_of(client)
    for http in (with_token(token), listed([("authorization", f"bearer {token}")])):
        assert passed(await check(client, http)) == (identity, [])


async def test_what_is_no_good_token_is_refused(client: Client, clock: FakeClock) -> None:
    await client.create_user()
    tokens = (await client.log_in()).tokens
    token = tokens.access_token
    head, _, signature = token.rpartition(".")
    forged = f"{head}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"
    for value in (
        "Bearer garbage",
        f"Bearer {forged}",
        f"Bearer {token}x",
        f"Bearer {token} x",
        f"Bearer {token},",
        f"Bearer {token},Bearer {token}",
        f"Basic YTpi,Bearer {token}",
        f"Bearer {tokens.refresh_token}",
        f"Bearer {new_api_key()}",
        "Bearer \xff\xe9",
        "Bearer " + "a" * 1_000_000,
    ):
        for form in (joined, listed):
            for rules in ({}, {"optional": "true"}):
                assert refusal(await check(client, form([("authorization", value)]), **rules)) == BAD_TOKEN
    two = listed([("authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")])
    assert refusal(await check(client, two, optional="true")) == BAD_TOKEN
    clock.advance(minutes=16)
    assert refusal(await check(client, with_token(token), optional="true")) == BAD_TOKEN


async def test_without_a_token_there_is_a_challenge_without_error(client: Client) -> None:
    """RFC 6750 section 3.1."""
    token, _ = await alice_of(client)
    for headers in ([], [("authorization", "")], [("authorization", "Basic YTpi")], [("authorization", token)]):
        for form in (joined, listed):
            assert refusal(await check(client, form(headers))) == NO_TOKEN


async def test_an_optional_token_may_be_absent_and_then_there_is_no_identity(client: Client) -> None:
    token, identity = await alice_of(client)
    for headers in ([], [("authorization", "")], [("x-auth-role", "admin")]):
        for form in (joined, listed):
            assert passed(await check(client, form(headers), optional="true")) == ({}, list(IDENTITY_HEADERS))
    assert passed(await check(client, with_token(token), optional="true")) == (identity, [])
    other = joined([("authorization", "Basic YTpi")])
    assert refusal(await check(client, other, optional="true")) == NO_TOKEN


@pytest.mark.parametrize("body", [b"", CheckRequest(attributes=AttributeContext()).SerializeToString()], ids=len)
async def test_what_is_no_http_request_is_refused(client: Client, body: bytes) -> None:
    assert refusal(await send(client, body)) == NO_TOKEN
    assert refusal(await check(client, None, optional="true")) == NO_TOKEN


async def test_the_token_is_removed_where_the_route_says_so(client: Client) -> None:
    token, identity = await alice_of(client)
    assert passed(await check(client, with_token(token), remove_token="true")) == (identity, ["authorization"])
    assert passed(await check(client, with_token(token), remove_token="false")) == (identity, [])
    absent = await check(client, joined([]), remove_token="true", optional="true")
    assert passed(absent) == ({}, [*IDENTITY_HEADERS, "authorization"])


async def test_a_route_may_ask_for_a_role(client: Client) -> None:
    token, identity = await alice_of(client)
    admin = client.admin[0][1].removeprefix("Bearer ")
    assert refusal(await check(client, with_token(token), role="admin")) == NO_ROLE
    assert passed(await check(client, with_token(token), role="user")) == (identity, [])
    assert passed(await check(client, with_token(admin), role="admin"))[0]["x-auth-role"] == "admin"
    # No role stands for another one.
    assert refusal(await check(client, with_token(admin), role="user")) == NO_ROLE
    assert refusal(await check(client, joined([]), role="admin")) == NO_TOKEN


async def test_values_are_percent_encoded(client: Client) -> None:
    await client.create_user("käthe@exämple.de")
    token = await client.access_token("käthe@exämple.de")
    headers, _ = passed(await check(client, with_token(token)))
    assert headers["x-auth-email"] == "k%C3%A4the@ex%C3%A4mple.de"


async def test_a_row_of_another_program_injects_no_header(proxied: Proxied, clock: FakeClock) -> None:
    user_id = "a\r\nx-auth-role: admin%"
    proxied.tables.put_user(user_id, "carol@example.com", role={"S": "user"})
    token = proxied.client.service.validations.tokens.issue(
        user_id=user_id,
        session_id="s 1",
        token_generation=0,
        client_id="x",
        now=clock.now,
        not_after=clock.now + timedelta(hours=1),
    ).text
    WITNESS.hide(token)
    headers, removed = passed(await check(proxied.client, with_token(token)))
    assert headers["x-auth-user-id"] == "a%0D%0Ax-auth-role:%20admin%25"
    assert (headers["x-auth-role"], headers["x-auth-session-id"], removed) == ("user", "s%201", [])


# Freshness and outages


async def revoke(client: Client, _: str, token: str) -> None:
    await client.revoke(token)


async def revoke_all(client: Client, user_id: str, _: str) -> None:
    await client.revoke_sessions(user_id)


async def disable(client: Client, user_id: str, _: str) -> None:
    await client.update_user(user_id, is_active=False)


async def reset_password(client: Client, user_id: str, _: str) -> None:
    WITNESS.hide_fields(await client.reset_password(user_id))


async def delete(client: Client, user_id: str, _: str) -> None:
    await client.delete_user(user_id)


@pytest.mark.parametrize(
    "event", [revoke, revoke_all, disable, reset_password, delete], ids=lambda event: event.__name__
)
async def test_a_token_is_refused_by_the_very_next_check(client: Client, event: Event) -> None:
    """However old an answer may be: a worker knows what it has written itself."""
    token, identity = await alice_of(client)
    for rules in ({}, {"optional": "true"}, {"max_staleness": "60s"}):
        passed(await check(client, with_token(token), **rules))
    await event(client, identity["x-auth-user-id"], token)
    for rules in ({}, {"optional": "true"}, {"max_staleness": "60s"}):
        assert refusal(await check(client, with_token(token), **rules)) == BAD_TOKEN


async def test_the_role_is_the_stored_one(client: Client) -> None:
    token, identity = await alice_of(client)
    assert refusal(await check(client, with_token(token), role="editor")) == NO_ROLE
    await client.update_user(identity["x-auth-user-id"], role="editor")
    headers, _ = passed(await check(client, with_token(token), role="editor"))
    assert headers == {**identity, "x-auth-role": "editor"}
    assert refusal(await check(client, with_token(token), role="user")) == NO_ROLE


async def test_max_staleness_is_a_bound(proxied: Proxied, clock: FakeClock) -> None:
    client = proxied.client
    token, identity = await alice_of(client)
    await check(client, with_token(token))
    # Another program's write: the service does not know of it.
    proxied.tables.update_user(identity["x-auth-user-id"], "SET is_active = :v", v={"BOOL": False})
    proxied.proxy.forget()
    clock.advance(seconds=5)
    assert passed(await check(client, with_token(token), max_staleness="5s")) == (identity, [])
    assert proxied.proxy.requests == {}
    clock.advance(seconds=1)
    assert refusal(await check(client, with_token(token), max_staleness="5s")) == BAD_TOKEN
    assert proxied.proxy.requests == {"BatchGetItem": 1}


async def test_the_setting_caps_max_staleness(proxied: Proxied, clock: FakeClock) -> None:
    token, _ = await alice_of(proxied.client)
    await check(proxied.client, with_token(token))
    proxied.proxy.forget()
    clock.advance(seconds=61)
    passed(await check(proxied.client, with_token(token), max_staleness="1h"))
    assert proxied.proxy.requests == {"BatchGetItem": 1}


@pytest.mark.limits(ONE_ATTEMPT)
async def test_an_outage_is_503_and_nothing_else(proxied: Proxied) -> None:
    client = proxied.client
    token, identity = await alice_of(client)
    admin = client.admin[0][1].removeprefix("Bearer ")
    passed(await check(client, with_token(token)))
    outages = Since("authsvc_rpc_total", method=METHOD, code="UNAVAILABLE", reason="STORE_UNAVAILABLE")
    log = io.StringIO()
    with proxied.proxy.down():
        logs.configure("json", "warning", stream=log)
        some = [{"optional": "true"}, {"role": "admin"}, {"max_staleness": "0s"}, {"stale_if_error": "0s"}]
        checks = [check(client, with_token(each), **rules) for rules in ({}, *some) for each in (token, admin)]
        answers = await asyncio.gather(*checks)
        assert {refusal(answer) for answer in answers} == {(503, "", "the token cannot be validated now")}
        # What needs no store is decided without it.
        assert refusal(await check(client, with_token("garbage"))) == BAD_TOKEN
        assert refusal(await check(client, joined([]))) == NO_TOKEN
        assert passed(await check(client, joined([]), optional="true"))[0] == {}
    assert outages.growth == 10
    (line, *others) = [json.loads(line) for line in log.getvalue().splitlines()]
    assert (line["event"], line["method"], len(others)) == ("store_unavailable", METHOD, 9)
    assert passed(await check(client, with_token(token))) == (identity, [])


@pytest.mark.limits(ONE_ATTEMPT)
async def test_stale_if_error_bridges_an_outage_within_its_bound(proxied: Proxied, clock: FakeClock) -> None:
    client = proxied.client
    token, identity = await alice_of(client)
    await check(client, with_token(token))
    with proxied.proxy.down():
        clock.advance(seconds=300)
        assert passed(await check(client, with_token(token), stale_if_error="300s")) == (identity, [])
        assert refusal(await check(client, with_token(token), stale_if_error="300s", role="admin")) == NO_ROLE
        clock.advance(seconds=1)
        assert refusal(await check(client, with_token(token), stale_if_error="300s"))[0] == 503
        # On the monotonic clock alone: by the wall clock the token would expire.
        clock.seconds = CAP_IF_ERROR.total_seconds()
        passed(await check(client, with_token(token), stale_if_error="1d"))
        clock.seconds += 1
        assert refusal(await check(client, with_token(token), stale_if_error="1d"))[0] == 503


async def test_a_revocation_is_not_bridged(proxied: Proxied) -> None:
    client = proxied.client
    token, _ = await alice_of(client)
    await client.revoke(token)
    assert refusal(await check(client, with_token(token))) == BAD_TOKEN
    with proxied.proxy.down():
        assert refusal(await check(client, with_token(token), stale_if_error="300s")) == BAD_TOKEN


async def test_a_gateway_that_gives_up_early_gets_its_503_before(proxied: Proxied) -> None:
    token, _ = await alice_of(proxied.client)
    method: Any = proxied.client.channel.unary_unary(PATH, response_deserializer=CheckResponse.FromString)
    with proxied.proxy.fault(Hang()):
        answer = await method(request_of(with_token(token)).SerializeToString(), timeout=0.5)
    assert refusal(answer)[0] == 503


async def test_a_corrupt_row_is_500(proxied: Proxied) -> None:
    token, identity = await alice_of(proxied.client)
    proxied.tables.update_user(identity["x-auth-user-id"], "SET is_active = :v", v={"S": "yes"})
    assert refusal(await check(proxied.client, with_token(token))) == INTERNAL_ERROR
    assert refusal(await check(proxied.client, with_token(token), optional="true")) == INTERNAL_ERROR


async def test_a_bug_is_500_without_its_text(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_check: object) -> None:
        raise ZeroDivisionError("the text of an exception")

    monkeypatch.setattr(client.service.validations, "validate", fail)
    internal = Since("authsvc_rpc_total", method=METHOD, code="INTERNAL", reason="INTERNAL")
    assert refusal(await check(client, with_token("a.b.c"))) == INTERNAL_ERROR
    assert internal.growth == 1


# Mistakes of operators


@pytest.mark.parametrize(
    ("rules", "field", "problem"),
    [
        ({"rol": "admin"}, "context_extensions", "must have no keys other than role, max_staleness, stale_if_error, "),
        ({"role": "Admin"}, "context_extensions.role", "must match [a-z][a-z0-9_-]{0,62}"),
        ({"max_staleness": "5"}, "context_extensions.max_staleness", "must be a number and a unit (s, m, h or d)"),
        ({"stale_if_error": "soon"}, "context_extensions.stale_if_error", "must be a number and a unit (s, m, h or d)"),
        ({"optional": "yes"}, "context_extensions.optional", "must be true or false"),
        ({"remove_token": ""}, "context_extensions.remove_token", "must be true or false"),
        ({"role": "admin", "optional": "true"}, "context_extensions", "must not have both role and optional"),
    ],
    ids=str,
)
async def test_a_typo_opens_no_route(client: Client, rules: dict[str, str], field: str, problem: str) -> None:
    admin = client.admin[0][1].removeprefix("Bearer ")
    log = io.StringIO()
    logs.configure("json", "warning", stream=log)
    count = Since("authsvc_rpc_total", method=METHOD, code="INVALID_ARGUMENT", reason="INVALID_FIELD")
    for http in (with_token(admin), joined([]), None):
        assert refusal(await check(client, http, **rules)) == INTERNAL_ERROR
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["event"], line["level"], line["field"]) for line in lines] == [
        ("route_misconfigured", "error", field)
    ] * 3
    assert all(line["problem"].startswith(problem) and len(line["trace_id"]) == 32 for line in lines)
    assert count.growth == 3


# The gateway as a caller


async def test_a_gateway_without_credentials_gets_an_error_of_grpc(
    settings: ServeSettings, clock: FakeClock, tmp_path: Path
) -> None:
    """The end user's token is in the request, and does not stand for the gateway."""
    callers = tmp_path / "callers.toml"
    callers.write_text(f'[callers.x]\napi_key_sha256 = ["{"0" * 64}"]\npermissions = ["validate"]\n')
    async with (
        app.run_app(replace(settings, callers=callers), clock, limits=PATIENT_LIMITS) as service,
        connected(service) as client,
    ):
        refused = await failure(check(client, joined([]), optional="true"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED")


# Load and metrics


async def test_checks_count_by_outcome_under_a_method_of_their_own(client: Client) -> None:
    token, _ = await alice_of(client)
    calls = Since("authsvc_rpc_total", method=METHOD, code="OK", reason="")
    timed = Since("authsvc_rpc_duration_seconds_count", method=METHOD)
    active, malformed = (
        Since("authsvc_token_validations_total", outcome=outcome) for outcome in ("ACTIVE", "MALFORMED")
    )
    for http in (with_token(token), with_token("x"), joined([])):
        await check(client, http)
    assert (calls.growth, timed.growth, active.growth, malformed.growth) == (3, 3, 1, 1)


async def test_concurrent_checks_share_reads_with_each_other_and_with_validations(proxied: Proxied) -> None:
    token, identity = await alice_of(proxied.client)
    proxied.proxy.forget()
    with proxied.proxy.fault(Delay(0.2)):
        answers = await asyncio.gather(
            *(check(proxied.client, with_token(token)) for _ in range(100)),
            *(proxied.client.validate(token) for _ in range(100)),
        )
    assert all(passed(answer) == (identity, []) for answer in answers if isinstance(answer, CheckResponse))
    assert proxied.proxy.requests["BatchGetItem"] < 50


# What gateways and attackers send

# Envoy 1.40: source, destination, request (time; http with id, method, headers, path, host, scheme, protocol), body,
# route metadata; with a token that is none.
FROM_ENVOY = (
    b"\n\xa2\x02\n\x13\n\x11\n\x0f\x12\t127.0.0.1\x18\xae\x9c\x02\x12\x13\n\x11\n\x0f\x12\t127.0.0.1\x18\xa2\x8d\x01"
    b'"\xf1\x01\n\x0b\x08\xca\xb3\xa5\xd8\x06\x10\xd0\xa4\xacl\x12\xe1\x01\n\x1413988044706323800727\x12\x03GET\x1a\x19'
    b"\n\x11x-forwarded-proto\x12\x04http\x1a\x0f\n\x07:scheme\x12\x04http\x1a\x0b\n\x05:path\x12\x02/a\x1a4\n\x0c"
    b"x-request-id\x12$fd31bcff-935d-41e6-81a2-bc0961272e65\x1a\x1d\n\rauthorization\x12\x0cBearer a.b.c\x1a\x0f\n\n"
    b':authority\x12\x01x\x1a\x0e\n\x07:method\x12\x03GET"\x02/a*\x01x2\x04httpR\x08HTTP/1.1Z\x00j\x00'
)


async def test_fields_of_envoy_that_are_not_used_are_ignored(client: Client) -> None:
    token, identity = await alice_of(client)
    assert refusal(await send(client, FROM_ENVOY)) == BAD_TOKEN
    # Of two messages one after another, the second one's fields are merged into the first one's.
    answer = await send(client, FROM_ENVOY + request_of(with_token(token)).SerializeToString())
    assert passed(answer) == (identity, [])


async def test_a_value_that_is_not_utf_8_is_refused_whatever_the_token_is(client: Client) -> None:
    """Envoy replaces such bytes, or sends them in `header_map`."""
    token, _ = await alice_of(client)
    body = request_of(joined([("authorization", f"Bearer {token}"), ("x-name", "#?#")])).SerializeToString()
    refused = await failure(send(client, body.replace(b"#?#", b"#\xff#")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


@pytest.mark.parametrize("size", [100_000, 3_900_000])
async def test_other_headers_may_be_as_large_as_the_message(client: Client, size: int) -> None:
    token, identity = await alice_of(client)
    for form in (joined, listed):
        http = form([("authorization", f"Bearer {token}"), ("cookie", "x" * size), *[("x-a", "b")] * 1000])
        assert passed(await check(client, http)) == (identity, [])


async def test_a_larger_message_passes_nothing(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(client, joined([("cookie", "x" * 5_000_000)]), optional="true")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def as_backend_sees(headers: Headers, answer: CheckResponse) -> dict[str, list[str]]:
    """Apply an answer to a request's headers as Envoy does: set, then remove, by names without case."""
    seen: dict[str, list[str]] = {}
    for name, value in headers:
        seen.setdefault(name.lower(), []).append(value)
    changes, removed = passed(answer)
    seen |= {name: [value] for name, value in changes.items()}
    return {name: values for name, values in seen.items() if name not in removed}


def hostile_headers(source: random.Random, tokens: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return headers of an attacker who has the token `own`, and knows ids and dead tokens of others."""
    bearers = [scheme + token for token in tokens.values() for scheme in ("Bearer ", "bearer ", "BEARER  ", "Bearer\t")]
    values = [
        *bearers,
        *(f"{a},{b}" for a, b in zip(bearers, reversed(bearers), strict=True)),
        *(f"{each} admin" for each in bearers),
        f"Bearer {tokens['own']}\xff",
        f"Bearer {tokens['own']}, Basic YTpi",
        "Basic YTpi",
        "Negotiate " + "A" * 30_000,
        "Bearer " + "e" * 60_000,
        "",
        ",",
    ]
    spoofed = [
        (spell(name), value)
        for name in (*IDENTITY_HEADERS, "x-auth-user-id ", "x_auth_user_id", "x-auth-user", "x-auth")
        for spell in (str.lower, str.upper, str.title, str.swapcase)
        for value in ("root-id", "root@example.com", "admin", "root-session", "", "\xff\xfe", "a" * 5000, "admin,user")
    ]
    names = ["authorization", "Authorization", "AUTHORIZATION", "proxy-authorization", "x-authorization", "cookie"]
    credentials = [(source.choice(names), source.choice(values)) for _ in range(source.choice([0, 1, 1, 1, 2, 3]))]
    chosen = [*credentials, *source.sample(spoofed, source.randint(0, 6))]
    source.shuffle(chosen)
    return chosen


async def test_hostile_headers_never_pass_an_identity_that_is_not_the_tokens(client: Client) -> None:
    own, identity = await alice_of(client)
    await client.create_user("bob@example.com")
    dead = await client.access_token("bob@example.com")
    await client.revoke(dead)
    forged = f"{client.admin[0][1].removeprefix('Bearer ').rpartition('.')[0]}.{own.rpartition('.')[2]}"
    WITNESS.hide(dead, forged)
    tokens = {"own": own, "dead": dead, "forged": forged}
    source = random.Random(17)  # noqa: S311 - the same headers in every run
    seen = {"own": 0, "nobody": 0, "refused": 0}
    for number in range(200):
        headers = hostile_headers(source, tokens)
        form = (joined, listed)[number % 2]
        rules: dict[str, str] = source.choice([{}, {"optional": "true"}, {"role": "user"}, {"remove_token": "true"}])
        answer = await check(client, form(headers), **rules)
        if answer.WhichOneof("http_response") != "ok_response":
            assert refusal(answer) in (NO_TOKEN, BAD_TOKEN)
            seen["refused"] += 1
            continue
        backend = as_backend_sees(headers, answer)
        found = {name: backend[name] for name in IDENTITY_HEADERS if name in backend}
        credentials = [value for name, value in headers if name.lower() == "authorization"]
        if found:
            (credential,) = credentials
            assert credential.split() in (["Bearer", own], ["bearer", own], ["BEARER", own])
            assert found == {name: [value] for name, value in identity.items()}
            seen["own"] += 1
        else:
            assert rules == {"optional": "true"}
            assert not any(credentials)
            seen["nobody"] += 1
    assert min(seen.values()) >= 10, seen


# The stubs


def test_envoys_own_protos_may_be_loaded_too() -> None:
    """The stubs have a descriptor pool of their own: two of the same names in one are an error at the import."""
    service = ext_authz_pb2.DESCRIPTOR.services_by_name["Authorization"]
    theirs = descriptor_pb2.FileDescriptorProto()
    ext_authz_pb2.DESCRIPTOR.CopyToProto(theirs)
    theirs.name = "envoy/service/auth/v3/external_auth.proto"
    descriptor_pool.Default().AddSerializedFile(theirs.SerializeToString())
    assert descriptor_pool.Default().FindServiceByName(service.full_name) is not service
