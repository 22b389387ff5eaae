"""Authorization: every RPC by every kind of caller against one table, and the traces of authenticated callers."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import jwt
import pytest
from cryptography import x509

from authsvc.config import ServeSettings
from authsvc.rpc import ext_authz_pb2
from authsvc.rpc.authorization import PERMISSIONS, Authorization
from authsvc.rpc.callers import Permission, api_key_digest, new_api_key
from authsvc.rpc.middleware import Middleware
from authsvc.server import app
from authsvc.stores.opening import open_store
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from authsvc.v1 import user_service_pb2 as user_pb2
from tests.e2e.certificates import Authority, Pair
from tests.support import PASSWORD, PATIENT_LIMITS, WITNESS, FakeClock, failure_of

# `+`: may call. `?`: CALLER_UNAUTHENTICATED. `-`: CALLER_NOT_PERMITTED.
#
# With a callers file: no credentials, an unknown key, keys with one permission each, and access tokens of a user, an
# admin and a disabled admin. Over mutual TLS: a certificate of no caller; then the certificate of a caller with the
# permissions `validate` and `sessions`: alone, with an unknown key, with the key of a caller that has the permission
# `login`, and with an admin's token. Without a callers file: no credentials, a key, and the tokens.
TABLE = """
                      | with a callers file                                               | mutual TLS                         | without a callers file
RPC                   | nobody wrong validate login sessions users user admin disabled    | unknown known wrong login admin    | nobody key user admin disabled
Authenticate          | ?      ?     -        +     -        -     ?    ?     ?           | ?       -     ?     +     -        | +      +   +    +     +
ValidateToken         | ?      ?     +        -     -        -     ?    ?     ?           | ?       +     ?     -     +        | +      +   +    +     +
BatchValidateTokens   | ?      ?     +        -     -        -     ?    ?     ?           | ?       +     ?     -     +        | +      +   +    +     +
RefreshTokens         | ?      ?     -        +     -        -     ?    ?     ?           | ?       -     ?     +     -        | +      +   +    +     +
RevokeToken           | ?      ?     -        +     -        -     ?    ?     ?           | ?       -     ?     +     -        | +      +   +    +     +
ChangePassword        | ?      ?     -        +     -        -     ?    ?     ?           | ?       -     ?     +     -        | +      +   +    +     +
Check                 | ?      ?     +        -     -        -     ?    ?     ?           | ?       +     ?     -     +        | +      +   +    +     +
GetJwks               | +      +     +        +     +        +     +    +     +           | +       +     +     +     +        | +      +   +    +     +
CreateUser            | ?      ?     -        -     -        +     -    +     ?           | ?       -     ?     -     +        | ?      ?   -    +     ?
GetUser               | ?      ?     -        -     -        +     -    +     ?           | ?       -     ?     -     +        | ?      ?   -    +     ?
ListUsers             | ?      ?     -        -     -        +     -    +     ?           | ?       -     ?     -     +        | ?      ?   -    +     ?
UpdateUser            | ?      ?     -        -     -        +     -    +     ?           | ?       -     ?     -     +        | ?      ?   -    +     ?
DeleteUser            | ?      ?     -        -     -        +     -    +     ?           | ?       -     ?     -     +        | ?      ?   -    +     ?
ResetPassword         | ?      ?     -        -     -        +     -    +     ?           | ?       -     ?     -     +        | ?      ?   -    +     ?
ListUserSessions      | ?      ?     -        -     +        +     -    +     ?           | ?       +     ?     -     +        | ?      ?   -    +     ?
RevokeUserSessions    | ?      ?     -        -     +        +     -    +     ?           | ?       +     ?     -     +        | ?      ?   -    +     ?
"""  # noqa: E501 - a table
SERVICES = (
    auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
    user_pb2.DESCRIPTOR.services_by_name["UserService"],
    ext_authz_pb2.DESCRIPTOR.services_by_name["Authorization"],
)
METHODS = {method.name: f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods}
OUTCOMES = {"MALFORMED_REQUEST": "+", "CALLER_UNAUTHENTICATED": "?", "CALLER_NOT_PERMITTED": "-"}
NOT_A_REQUEST = b"\xff"
"""A refused call is refused before its request is decoded; a permitted one fails to decode and changes nothing."""
GATEWAY = "spiffe://example.com/gateway"

Metadata = tuple[tuple[str, str], ...]


def rows(group: int) -> tuple[list[str], dict[str, list[str]]]:
    """Return one group of columns of TABLE: its callers, and their outcomes by RPC."""
    lines = [[cell.split() for cell in line.split("|")] for line in TABLE.strip("\n").splitlines()[1:]]
    return lines[0][group], {line[0][0]: line[group] for line in lines[1:]}


def bearer(credential: str) -> Metadata:
    return (("authorization", f"Bearer {credential}"),)


@dataclass(frozen=True)
class Keys:
    """A callers file with one caller and key for each permission, and a gateway with a certificate."""

    path: Path
    by_name: Mapping[str, str] = field(default_factory=lambda: {permission: new_api_key() for permission in Permission})

    def write(self, **permissions: str) -> None:
        """Write the file; each caller has the permission of its name, or the given one."""
        tables = [
            f'[callers.{name}]\napi_key_sha256 = ["{api_key_digest(key)}"]\n'
            f'permissions = ["{permissions.get(name, name)}"]'
            for name, key in self.by_name.items()
        ]
        gateway = f'[callers.gateway]\ntls_identities = ["{GATEWAY}", "gateway.example.com"]'
        self.path.write_text("\n".join([*tables, gateway, 'permissions = ["validate", "sessions"]']))

    def __getitem__(self, name: str) -> str:
        return self.by_name[name]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    keys = Keys(tmp_path / "callers.toml")
    WITNESS.hide(*keys.by_name.values())
    keys.write()
    return keys


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@dataclass(frozen=True)
class Served:
    """A running service, and access tokens of its users by name."""

    service: app.App
    tokens: Mapping[str, str]

    @asynccontextmanager
    async def connected(self, credentials: grpc.ChannelCredentials | None = None) -> AsyncIterator[grpc.aio.Channel]:
        address = self.service.address
        async with (
            grpc.aio.insecure_channel(address)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials) as channel
        ):
            yield channel


@asynccontextmanager
async def served(settings: ServeSettings, clock: FakeClock) -> AsyncIterator[Served]:
    async with open_store(settings) as store:
        await store.create_tables()
    async with app.run_app(settings, clock, limits=PATIENT_LIMITS) as service:
        tokens = {}
        for name, role in (("user", "user"), ("admin", "admin"), ("disabled", "admin")):
            email = f"{name}@example.com"
            user = await service.users.create_user(email=email, role=role, password=PASSWORD)
            issued, _ = await service.logins.authenticate(
                email=email, password=PASSWORD, client_address="", client_label=""
            )
            tokens[name] = issued.access_token.text
            if name == "disabled":
                await service.users.update_user(user.user_id, is_active=False)
        WITNESS.hide(*tokens.values())
        yield Served(service, tokens)


def with_tls(settings: ServeSettings, pair: Pair, client_ca: Path) -> ServeSettings:
    return replace(settings, tls_cert=pair.certificate, tls_key=pair.key, tls_client_ca=client_ca)


def credentials(authority: Authority, name: str, *names: x509.GeneralName) -> grpc.ChannelCredentials:
    client = authority.issue(name, names=names)
    return grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(), client.key.read_bytes(), client.certificate.read_bytes()
    )


async def outcome(channel: grpc.aio.Channel, method: str, metadata: Metadata = ()) -> str:
    call: Any = channel.unary_unary(method)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(NOT_A_REQUEST, metadata=metadata)
    return OUTCOMES[failure_of(refused.value).reason]


async def compare(group: int, callers: Mapping[str, tuple[grpc.aio.Channel, Metadata]]) -> None:
    names, expected = rows(group)
    assert list(callers) == names
    assert {
        name: [await outcome(channel, method, metadata) for channel, metadata in callers.values()]
        for name, method in METHODS.items()
    } == expected


# The table


def test_every_rpc_has_a_row_here_and_in_the_guard() -> None:
    """ASVS-8.2.1, B10: a new RPC needs a row in both."""
    assert rows(1)[1].keys() == METHODS.keys()
    assert PERMISSIONS.keys() == {path[1:].replace("/", ".") for path in METHODS.values()}


def test_a_method_that_no_row_speaks_of_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PERMISSIONS, "authsvc.v1.AuthService.GetJwks")
    sessions: Any = None
    servicer = SimpleNamespace(**dict.fromkeys(METHODS))
    with pytest.raises(KeyError, match="GetJwks"):
        Middleware(Authorization(sessions, None)).wrap_service(SERVICES[0], servicer)


async def test_who_may_call_with_a_callers_file(settings: ServeSettings, clock: FakeClock, keys: Keys) -> None:
    """ASVS-8.2.1, ASVS-8.2.2, ASVS-13.2.1, B10."""
    async with served(replace(settings, callers=keys.path), clock) as serving, serving.connected() as channel:
        shown = {
            "nobody": (),
            "wrong": bearer(new_api_key()),
            **{name: bearer(key) for name, key in keys.by_name.items()},
            **{name: bearer(token) for name, token in serving.tokens.items()},
        }
        await compare(1, {name: (channel, metadata) for name, metadata in shown.items()})


async def test_who_may_call_over_mutual_tls(
    settings: ServeSettings, clock: FakeClock, keys: Keys, authority: Authority
) -> None:
    """ASVS-13.2.1, ASVS-12.3.1, B10: an API key decides alone, before the certificate."""
    secured = with_tls(replace(settings, callers=keys.path), authority.issue("server"), authority.certificate)
    async with served(secured, clock) as serving, AsyncExitStack() as stack:
        unknown, known = [
            await stack.enter_async_context(serving.connected(credentials(authority, name, *names)))
            for name, names in (("unknown", []), ("known", [x509.UniformResourceIdentifier(GATEWAY)]))
        ]
        await compare(
            2,
            {
                "unknown": (unknown, ()),
                "known": (known, ()),
                "wrong": (known, bearer(new_api_key())),
                "login": (known, bearer(keys["login"])),
                "admin": (known, bearer(serving.tokens["admin"])),
            },
        )


async def test_who_may_call_without_a_callers_file(settings: ServeSettings, clock: FakeClock) -> None:
    async with served(settings, clock) as serving, serving.connected() as channel:
        shown = {
            "nobody": (),
            "key": bearer(new_api_key()),
            **{name: bearer(token) for name, token in serving.tokens.items()},
        }
        await compare(3, {name: (channel, metadata) for name, metadata in shown.items()})


# Credentials

VALIDATE = METHODS["ValidateToken"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([x509.DNSName("gateway.example.com")], "+"),
        ([x509.DNSName("GATEWAY.Example.Com")], "+"),
        ([x509.DNSName("other.example.com"), x509.UniformResourceIdentifier(GATEWAY)], "+"),
        ([x509.DNSName("*.example.com")], "?"),
        ([x509.DNSName(GATEWAY)], "?"),
        ([x509.UniformResourceIdentifier(GATEWAY + "/x")], "?"),
        ([x509.UniformResourceIdentifier("gateway.example.com")], "?"),
        ([x509.RFC822Name("gateway.example.com")], "?"),
        ([], "?"),
    ],
    ids=str,
)
async def test_what_a_certificate_proves(
    names: list[x509.GeneralName],
    expected: str,
    settings: ServeSettings,
    clock: FakeClock,
    keys: Keys,
    authority: Authority,
) -> None:
    """Only URIs and DNS names count, each as its own kind. The common name is the caller's name in every case."""
    secured = with_tls(replace(settings, callers=keys.path), authority.issue("server"), authority.certificate)
    async with (
        served(secured, clock) as serving,
        serving.connected(credentials(authority, "gateway.example.com", *names)) as channel,
    ):
        assert await outcome(channel, VALIDATE) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["Bearer {validate}"], "+"),
        (["bearer {validate}"], "+"),
        (["{validate}"], "?"),
        (["Basic {validate}"], "?"),
        (["BEARER  {validate} "], "+"),
        (["Bearer {validate}x"], "?"),
        (["Bearer {validate}", "Bearer {validate}"], "?"),
        (["Bearer {validate}", "Bearer {login}"], "?"),
        (["Bearer {login}", "Bearer {validate}"], "?"),
        (["Bearer {validate}", ""], "?"),
        (["Bearer ask_"], "?"),
        (["Bearer "], "?"),
        ([""], "?"),
    ],
    ids=str,
)
async def test_how_a_key_is_shown(
    headers: list[str], expected: str, settings: ServeSettings, clock: FakeClock, keys: Keys
) -> None:
    """B6: two credentials are refused, whatever they are."""
    metadata = tuple(("authorization", header.format(**keys.by_name)) for header in headers)
    async with served(replace(settings, callers=keys.path), clock) as serving, serving.connected() as channel:
        assert await outcome(channel, VALIDATE, metadata) == expected


@pytest.mark.parametrize("header", ["Bearer {}", "Bearer  {}", "bearer   {} "])
async def test_a_wrong_key_decides_however_it_is_spaced(
    settings: ServeSettings, clock: FakeClock, keys: Keys, authority: Authority, header: str
) -> None:
    """The certificate would be accepted without it."""
    secured = with_tls(replace(settings, callers=keys.path), authority.issue("server"), authority.certificate)
    gateway = credentials(authority, "known", x509.UniformResourceIdentifier(GATEWAY))
    async with served(secured, clock) as serving, serving.connected(gateway) as channel:
        assert await outcome(channel, VALIDATE) == "+"
        assert await outcome(channel, VALIDATE, (("authorization", header.format(new_api_key())),)) == "?"


# Traces of callers in tokens and log


def logged(position: int) -> list[dict[str, Any]]:
    """Return the log events since a position of the log."""
    return [json.loads(line) for line in WITNESS.lines.getvalue()[position:].splitlines()]


async def test_tokens_and_log_name_the_caller(settings: ServeSettings, clock: FakeClock, keys: Keys) -> None:
    keys.write(validate="login")
    async with served(replace(settings, callers=keys.path), clock) as serving, serving.connected() as channel:
        position = len(WITNESS.lines.getvalue())
        stub: Any = auth_grpc.AuthServiceStub(channel)
        request = auth_pb2.AuthenticateRequest(
            email="user@example.com", password=PASSWORD, client_address="2001:db8::1", client_label="phone"
        )
        login = await stub.Authenticate(request, metadata=bearer(keys["login"]))
        again = auth_pb2.RefreshTokensRequest(refresh_token=login.tokens.refresh_token)
        refreshed = await stub.RefreshTokens(again, metadata=bearer(keys["validate"]))
        WITNESS.hide_fields(login)
        WITNESS.hide_fields(refreshed)
    client_ids = [
        jwt.decode(response.tokens.access_token, options={"verify_signature": False})["client_id"]
        for response in (login, refreshed)
    ]
    assert client_ids == ["login", "validate"]
    recorded = [event for event in logged(position) if event["logger"] == "authsvc.audit"]
    assert [(event["event"], event["caller"], event["source"]) for event in recorded][-2:] == [
        ("login", "login", "2001:db8::1"),
        ("refresh", "validate", ""),
    ]


async def test_the_log_says_who_administers(settings: ServeSettings, clock: FakeClock, keys: Keys) -> None:
    async with served(replace(settings, callers=keys.path), clock) as serving, serving.connected() as channel:
        position = len(WITNESS.lines.getvalue())
        call: Any = channel.unary_unary(METHODS["CreateUser"])
        admin = jwt.decode(serving.tokens["admin"], options={"verify_signature": False})["sub"]
        for number, credential in enumerate((keys["users"], serving.tokens["admin"])):
            request = user_pb2.CreateUserRequest(email=f"new{number}@example.com")
            answer = user_pb2.CreateUserResponse.FromString(
                await call(request.SerializeToString(), metadata=bearer(credential))
            )
            WITNESS.hide_fields(answer)
    created = [event["caller"] for event in logged(position) if event["event"] == "user_created"]
    assert created == ["users", f"user:{admin}"]


async def test_every_refusal_is_logged_with_its_reason(settings: ServeSettings, clock: FakeClock, keys: Keys) -> None:
    async with served(replace(settings, callers=keys.path), clock) as serving, serving.connected() as channel:
        position = len(WITNESS.lines.getvalue())
        for method, metadata in (
            ("ValidateToken", ()),
            ("ValidateToken", bearer(new_api_key())),
            ("ValidateToken", bearer(keys["login"]) * 2),
            ("ValidateToken", bearer(keys["login"])),
            ("GetUser", bearer(serving.tokens["disabled"])),
            ("GetUser", bearer(serving.tokens["user"])),
        ):
            await outcome(channel, METHODS[method], metadata)
    refused = [event for event in logged(position) if event["event"] == "caller_refused"]
    assert {event["level"] for event in refused} == {"warning"}
    assert [
        (event["method"].rpartition(".")[2], event["reason"], event.get("caller", "")[:5]) for event in refused
    ] == [
        ("ValidateToken", "no_credentials", ""),
        ("ValidateToken", "unknown_key", ""),
        ("ValidateToken", "two_credentials", ""),
        ("ValidateToken", "lacks_permission", "login"),
        ("GetUser", "token_user_disabled", ""),
        ("GetUser", "no_admin", "user:"),
    ]
