"""The DynamoDB units that each RPC consumes, as the engine reports them, and what a month costs."""

import json
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import boto3
import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from authsvc.v1 import resources_pb2
from authsvc.v1 import user_service_pb2 as user_pb2
from authsvc.v1 import user_service_pb2_grpc as user_grpc
from bench.load import Load
from bench.measure import Loader
from bench.servers import AUTHSVC, USERS, Server, Servers, table_prefix
from tests.faults import Exchange, Reply, proxy_in_thread

# Inputs: check them against AWS's price list before planning with the results.
PRICES = "us-east-1, on demand, as of November 2024"
DOLLARS_PER_MILLION_READS = 0.125
DOLLARS_PER_MILLION_WRITES = 0.625
DOLLARS_PER_GB_MONTH = 0.25 + 0.20
"""Storage, and point-in-time recovery."""

# The model: one user in one month. 40 hours of use, a request a minute, an access token every 15 minutes.
CALLS_A_MONTH = {
    "ValidateToken": 2_400.0,
    "RefreshTokens": 160.0,
    "Authenticate": 4.0,
    "RevokeToken": 2.0,
    "ChangePassword": 0.1,
    "CreateUser": 0.05,
    "DeleteUser": 0.05,
    "UpdateUser is_active": 0.02,
}
SESSIONS_PER_USER = 3
POPULATIONS = (100, 10_000, 10_000_000)
BYTES_PER_ITEM = 100
"""What DynamoDB adds to an item, and to its copy in an index, when it bills storage."""
METERED_CALLS = 1_000

_READS = frozenset({"GetItem", "BatchGetItem", "Query", "Scan", "TransactGetItems"})


@dataclass
class Metering:
    """Asks the engine to report the units of each request, and adds them up."""

    reads: float = 0.0
    writes: float = 0.0

    async def answer(self, exchange: Exchange, /) -> Reply:
        """Forward the request with `ReturnConsumedCapacity`, and add up what the response reports."""
        attempt = exchange.attempt
        attempt.body = json.dumps({**attempt.payload, "ReturnConsumedCapacity": "TOTAL"}).encode()
        reply = await exchange.forward()
        consumed = json.loads(reply.body).get("ConsumedCapacity", ())
        units = sum(each["CapacityUnits"] for each in (consumed if isinstance(consumed, list) else [consumed]) if each)
        if attempt.operation in _READS:
            self.reads += units
        else:
            self.writes += units
        return reply

    def take(self) -> tuple[float, float]:
        """Return read and write units since the last call."""
        taken = self.reads, self.writes
        self.reads = self.writes = 0.0
        return taken


@contextmanager
def metered(servers: Servers) -> Iterator[tuple[dict[str, str], Metering]]:
    """Yield the environment of a service on the usual tables, and its metering."""
    metering = Metering()
    with proxy_in_thread(servers.engine.endpoint_url) as proxy, proxy.fault(metering):
        environ = {**servers.on_dynamodb(proxy.endpoint_url), "AUTHSVC_BCRYPT_COST": "10"}
        yield environ, metering


def units_of_rpcs(servers: Servers) -> dict[str, tuple[float, float]]:
    """Call every RPC once, and return the read and write units of each."""
    with metered(servers) as (environ, metering):
        admin = _create_admin(environ)
        server = servers.serve(environ)
        with grpc.insecure_channel(server.address) as channel:
            calls = _Calls(channel, *admin)
            return {name: _units(call, metering) for name, call in calls.in_order()}


def units_of_validations(servers: Servers, loader: Loader) -> dict[str, float]:
    """Return the read units of one fresh validation, by concurrency."""
    kinds = {
        "one at a time": Load(in_flight=1),
        "64 at once, 10,000 users": Load(in_flight=64),
        "64 at once, one user": Load(in_flight=64, hot=1),
    }
    with metered(servers) as (environ, metering):
        server = servers.serve(environ)
        tokens = str(servers.tokens(USERS))
        loads = {name: replace(kind, address=server.address, tokens=tokens) for name, kind in kinds.items()}
        return {name: _units_of_a_call(load, loader, server, metering) for name, load in loads.items()}


def _units_of_a_call(load: Load, loader: Loader, server: Server, metering: Metering) -> float:
    metering.take()
    sample, *_ = loader.run(replace(load, warm_up=0.0, calls=METERED_CALLS), server.pid)
    return metering.take()[0] / sample.all_calls


def _units(call: Callable[[], object], metering: Metering) -> tuple[float, float]:
    metering.take()
    call()
    return metering.take()


def _create_admin(environ: Mapping[str, str]) -> tuple[str, str]:
    email, password = "admin@example.com", secrets.token_urlsafe()
    command = [AUTHSVC, "users", "create", "--email", email, "--role", "admin"]
    subprocess.run(command, env=environ, input=password, text=True, check=True, stdout=subprocess.DEVNULL)
    return email, password


class _Calls:
    """The calls of one user, from creation to deletion."""

    def __init__(self, channel: grpc.Channel, admin_email: str, admin_password: str) -> None:
        self._auth = auth_grpc.AuthServiceStub(channel)
        self._users = user_grpc.UserServiceStub(channel)
        self._email = "alice@example.com"
        self._password = secrets.token_urlsafe()
        self._user_id = ""
        self._tokens = resources_pb2.Tokens()
        admin = self._auth.Authenticate(auth_pb2.AuthenticateRequest(email=admin_email, password=admin_password))
        self._metadata = (("authorization", f"Bearer {admin.tokens.access_token}"),)

    def in_order(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield the calls with their names; each needs the calls before it."""
        yield "CreateUser", self._create
        yield "Authenticate", self._log_in
        yield "ValidateToken", lambda: self._auth.ValidateToken(self._validation())
        yield "BatchValidateTokens, 100 of one user", self._validate_batch
        yield "RefreshTokens", self._refresh
        yield "RevokeToken", self._revoke
        yield "ChangePassword", self._change_password
        yield "GetJwks", lambda: self._auth.GetJwks(auth_pb2.GetJwksRequest())
        yield "GetUser by id", lambda: self._get(user_id=self._user_id)
        yield "GetUser by email", lambda: self._get(email=self._email)
        yield "ListUsers, 100", lambda: self._admin("ListUsers", user_pb2.ListUsersRequest(page_size=100))
        yield "ListUserSessions", self._list_sessions
        yield "RevokeUserSessions, one", lambda: self._revoke_sessions(self._tokens.session_id)
        yield "RevokeUserSessions, all", self._revoke_sessions
        yield "UpdateUser is_active", lambda: self._update(is_active=False)
        yield "UpdateUser email", lambda: self._update(email="bob@example.com")
        yield (
            "ResetPassword",
            lambda: self._admin("ResetPassword", user_pb2.ResetPasswordRequest(user_id=self._user_id)),
        )
        yield "DeleteUser", lambda: self._admin("DeleteUser", user_pb2.DeleteUserRequest(user_id=self._user_id))

    def _admin(self, method: str, request: object) -> Any:  # noqa: ANN401 - each method has its own response
        return getattr(self._users, method)(request, metadata=self._metadata)

    def _create(self) -> None:
        request = user_pb2.CreateUserRequest(email=self._email, password=self._password)
        self._user_id = self._admin("CreateUser", request).user.user_id

    def _log_in(self) -> None:
        request = auth_pb2.AuthenticateRequest(email=self._email, password=self._password)
        self._tokens = self._auth.Authenticate(request).tokens

    def _validation(self) -> auth_pb2.ValidateTokenRequest:
        return auth_pb2.ValidateTokenRequest(token=self._tokens.access_token)

    def _validate_batch(self) -> None:
        self._auth.BatchValidateTokens(auth_pb2.BatchValidateTokensRequest(requests=[self._validation()] * 100))

    def _refresh(self) -> None:
        request = auth_pb2.RefreshTokensRequest(refresh_token=self._tokens.refresh_token)
        self._tokens = self._auth.RefreshTokens(request).tokens

    def _revoke(self) -> None:
        self._auth.RevokeToken(auth_pb2.RevokeTokenRequest(token=self._tokens.access_token))

    def _change_password(self) -> None:
        request = auth_pb2.ChangePasswordRequest(
            email=self._email, current_password=self._password, new_password=secrets.token_urlsafe()
        )
        self._tokens = self._auth.ChangePassword(request).tokens

    def _get(self, **key: str) -> None:
        self._admin("GetUser", user_pb2.GetUserRequest(**key))

    def _list_sessions(self) -> None:
        self._admin("ListUserSessions", user_pb2.ListUserSessionsRequest(user_id=self._user_id))

    def _revoke_sessions(self, *session_ids: str) -> None:
        request = user_pb2.RevokeUserSessionsRequest(user_id=self._user_id, session_ids=session_ids)
        self._admin("RevokeUserSessions", request)

    def _update(self, **values: Any) -> None:  # noqa: ANN401 - each field has its own type
        request = user_pb2.UpdateUserRequest(
            user_id=self._user_id, user=resources_pb2.User(**values), update_mask=FieldMask(paths=values)
        )
        self._admin("UpdateUser", request)


def bytes_per_user(servers: Servers) -> int:
    """Return what DynamoDB stores for a user: row and index, claim, sessions; each as the largest found."""
    dynamodb = boto3.client("dynamodb", **servers.engine.client_options())
    prefix = table_prefix(USERS)
    copies = {"users": 2, "unique": 1, "sessions": SESSIONS_PER_USER}
    return sum(
        number * max(map(_item_bytes, dynamodb.scan(TableName=prefix + table)["Items"]), default=0)
        for table, number in copies.items()
    )


def _item_bytes(item: Mapping[str, Mapping[str, Any]]) -> int:
    return BYTES_PER_ITEM + sum(len(name) + _value_bytes(value) for name, value in item.items())


def _value_bytes(attribute: Mapping[str, Any]) -> int:
    (value,) = attribute.values()
    if isinstance(value, list):
        return sum(len(each) for each in value)
    return len(value) if isinstance(value, str | bytes) else 1


def dollars_a_month(
    units: Mapping[str, tuple[float, float]], item_bytes: int, users: int
) -> tuple[float, float, float]:
    """Return what reads, writes and storage cost in a month by the model."""
    reads = sum(calls * units[name][0] for name, calls in CALLS_A_MONTH.items()) * users
    writes = sum(calls * units[name][1] for name, calls in CALLS_A_MONTH.items()) * users
    return (
        reads / 1e6 * DOLLARS_PER_MILLION_READS,
        writes / 1e6 * DOLLARS_PER_MILLION_WRITES,
        users * item_bytes / 1e9 * DOLLARS_PER_GB_MONTH,
    )
