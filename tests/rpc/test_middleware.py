import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import pytest

from authsvc import errors, request_context
from authsvc.errors import AuthsvcError, OperatorError
from authsvc.models import User, utc_now
from authsvc.rpc.authorization import Authorization
from authsvc.rpc.callers import Callers
from authsvc.rpc.middleware import Middleware
from authsvc.rpc.statuses import STATUS_BY_ERROR, status_for
from authsvc.telemetry import logs
from authsvc.tokens.verification import AccessToken, InactiveReason
from authsvc.usecases.validation import ActiveToken, Check, Validation
from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from authsvc.v1 import errors_pb2
from authsvc.v1 import user_service_pb2 as user_pb2
from authsvc.v1 import user_service_pb2_grpc as user_grpc
from authsvc.watched_file import WatchedFile
from tests.support import PATIENT_LIMITS, failure

Code = grpc.StatusCode
INTERNAL_TEXT = "the text of an exception"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = ("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01")
VALIDATE = "/authsvc.v1.AuthService/ValidateToken"

# Every error that a client can get, with its code and reason in the API.
ON_THE_WIRE: list[tuple[AuthsvcError, grpc.StatusCode, str]] = [
    (errors.InvalidFieldError("email", "is wrong"), Code.INVALID_ARGUMENT, "INVALID_FIELD"),
    (errors.MalformedRequestError(), Code.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
    (errors.PasswordRejectedError("password", "is wrong"), Code.INVALID_ARGUMENT, "PASSWORD_REJECTED"),
    (errors.InvalidCredentialsError(INTERNAL_TEXT), Code.UNAUTHENTICATED, "INVALID_CREDENTIALS"),
    (errors.PasswordChangeRequiredError(INTERNAL_TEXT), Code.FAILED_PRECONDITION, "PASSWORD_CHANGE_REQUIRED"),
    (errors.InvalidRefreshTokenError(INTERNAL_TEXT), Code.UNAUTHENTICATED, "INVALID_REFRESH_TOKEN"),
    (errors.OverloadedError(timedelta(seconds=3)), Code.RESOURCE_EXHAUSTED, "OVERLOADED"),
    (errors.TooManyAttemptsError(INTERNAL_TEXT, timedelta(seconds=3)), Code.RESOURCE_EXHAUSTED, "TOO_MANY_ATTEMPTS"),
    (errors.CallerUnauthenticatedError(INTERNAL_TEXT), Code.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED"),
    (errors.CallerNotPermittedError(INTERNAL_TEXT), Code.PERMISSION_DENIED, "CALLER_NOT_PERMITTED"),
    (errors.EmailAlreadyExistsError(INTERNAL_TEXT), Code.ALREADY_EXISTS, "EMAIL_ALREADY_EXISTS"),
    (errors.UserNotFoundError(INTERNAL_TEXT), Code.NOT_FOUND, "USER_NOT_FOUND"),
    (errors.StoreUnavailableError(INTERNAL_TEXT), Code.UNAVAILABLE, "STORE_UNAVAILABLE"),
    (errors.CorruptItemError(INTERNAL_TEXT, "role"), Code.INTERNAL, "INTERNAL"),
]
ON_PURPOSE_INTERNAL = {errors.CorruptItemError, BaseException}
NEVER_SENT = {
    AuthsvcError,
    errors.CallerRefusedError,
    errors.LoginRefusedError,
    errors.RetryableStoreError,
    errors.RetryLaterError,
    errors.UserChangedError,
}
"""Base classes, and errors that use cases handle themselves."""


def family(root: type[AuthsvcError]) -> set[type[AuthsvcError]]:
    """Return an error class and its subclasses, direct and indirect, of authsvc.errors."""
    children = (child for child in root.__subclasses__() if child.__module__ == errors.__name__)
    return {root}.union(*map(family, children))


def test_every_error_of_a_request_has_a_row_of_its_own() -> None:
    own_rows = family(AuthsvcError) - family(OperatorError) - NEVER_SENT - {errors.RefreshTokenReusedError}
    assert own_rows == STATUS_BY_ERROR.keys() - {BaseException}


def test_a_client_cannot_tell_reuse_from_any_other_refusal() -> None:
    assert status_for(errors.RefreshTokenReusedError()) == STATUS_BY_ERROR[errors.InvalidRefreshTokenError]


def test_only_these_are_internal() -> None:
    internal = {error for error, status in STATUS_BY_ERROR.items() if status.code is Code.INTERNAL}
    assert internal == ON_PURPOSE_INTERNAL
    assert {STATUS_BY_ERROR[error].text for error in internal} == {"internal error"}


def test_every_error_of_a_request_is_tried_on_the_wire() -> None:
    assert {type(error) for error, _, _ in ON_THE_WIRE} == STATUS_BY_ERROR.keys() - {BaseException}


def test_every_reason_is_declared_and_every_declared_one_has_a_row() -> None:
    declared = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118 - no dict
    assert {status.reason for status in STATUS_BY_ERROR.values()} == declared - {"UNSPECIFIED"}


def test_no_two_rows_have_the_same_reason_or_text() -> None:
    rows = [status for error, status in STATUS_BY_ERROR.items() if error not in ON_PURPOSE_INTERNAL]
    assert len({status.reason for status in rows}) == len({status.text for status in rows}) == len(rows)


Handler = Callable[[Any, Any], Awaitable[Any]]


@dataclass
class Servicer:
    """Serves every method by one handler, and records the requests."""

    handler: Handler
    requests: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Handler:
        if not name[0].isupper():
            raise AttributeError(name)

        async def handle(request: Any, context: Any) -> Any:
            self.requests.append(request)
            return await self.handler(request, context)

        return handle


@dataclass
class FakeValidations:
    """Has the same outcome for every token."""

    outcome: ActiveToken | InactiveReason = InactiveReason.MALFORMED
    tokens: list[str] = field(default_factory=list)

    async def validate(self, check: Check) -> Validation:
        self.tokens.append(check.token)
        return Validation(utc_now(), self.outcome)


@dataclass
class Served:
    address: str
    channel: grpc.aio.Channel
    servicer: Servicer
    validations: FakeValidations
    log: io.StringIO

    async def validate(self, **options: Any) -> Any:
        stub: Any = auth_grpc.AuthServiceStub(self.channel)
        return await stub.ValidateToken(auth_pb2.ValidateTokenRequest(token="x"), **options)

    async def get_user(self, *metadata: tuple[str, str]) -> Any:
        stub: Any = user_grpc.UserServiceStub(self.channel)
        return await stub.GetUser(user_pb2.GetUserRequest(user_id="x"), metadata=metadata)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@asynccontextmanager
async def served(
    handler: Handler,
    outcome: ActiveToken | InactiveReason = InactiveReason.MALFORMED,
    callers: WatchedFile[Callers] | None = None,
) -> AsyncIterator[Served]:
    """Serve both services behind the middleware on a real socket, with one handler for every method."""
    log = io.StringIO()
    logs.configure("json", "debug", stream=log)
    validations, servicer = FakeValidations(outcome), Servicer(handler)
    middleware = Middleware(Authorization(validations, callers), PATIENT_LIMITS.request_seconds)  # type: ignore[arg-type]
    server = grpc.aio.server()
    services = (
        auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
        user_pb2.DESCRIPTOR.services_by_name["UserService"],
    )
    server.add_generic_rpc_handlers(tuple(middleware.wrap_service(descriptor, servicer) for descriptor in services))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Served(address, channel, servicer, validations, log)
    finally:
        await server.stop(None)


def raising(error: BaseException) -> Handler:
    async def handler(_request: Any, _context: Any) -> Any:
        raise error

    return handler


def answering(response: object) -> Handler:
    async def handler(_request: Any, _context: Any) -> Any:
        return response

    return handler


@pytest.mark.parametrize(("error", "code", "reason"), ON_THE_WIRE, ids=[type(row[0]).__name__ for row in ON_THE_WIRE])
async def test_what_a_client_gets_for_an_error(error: AuthsvcError, code: grpc.StatusCode, reason: str) -> None:
    async with served(raising(error)) as service:
        refusal = await failure(service.validate())
        row = next(STATUS_BY_ERROR[c] for c in type(error).__mro__ if c in STATUS_BY_ERROR)
        assert (refusal.code, refusal.reason, refusal.text) == (code, reason, row.text)
        assert len(refusal.trace_id) == 32
        is_field_error = isinstance(error, errors.InvalidFieldError)
        assert bool(refusal.field) is is_field_error
        assert (refusal.field, refusal.problem) in {("", ""), ("email", "is wrong"), ("password", "is wrong")}
        delay = error.retry_delay if isinstance(error, errors.RetryLaterError) else None
        assert refusal.retry_seconds == (delay and delay.total_seconds())


class SurpriseError(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [
        SurpriseError(INTERNAL_TEXT),
        ValueError(INTERNAL_TEXT),
        RecursionError(INTERNAL_TEXT),
        MemoryError(INTERNAL_TEXT),
        TimeoutError(INTERNAL_TEXT),
        StopAsyncIteration(INTERNAL_TEXT),
        asyncio.CancelledError(INTERNAL_TEXT),
        ExceptionGroup(INTERNAL_TEXT, [ValueError(INTERNAL_TEXT)]),
        errors.OperatorError(INTERNAL_TEXT),
        errors.ConfigError([INTERNAL_TEXT]),
        errors.RetryLaterError(),
        AuthsvcError(INTERNAL_TEXT),
        grpc.RpcError(INTERNAL_TEXT),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_else_happens_is_internal_and_its_text_goes_nowhere(error: BaseException) -> None:
    async with served(raising(error)) as service:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.validate()
        assert (caught.value.code(), caught.value.details()) == (Code.INTERNAL, "internal error")
        on_the_wire = repr(tuple(caught.value.trailing_metadata() or ()))
        assert INTERNAL_TEXT not in on_the_wire
        assert type(error).__name__ not in on_the_wire
        assert INTERNAL_TEXT not in service.log.getvalue()


async def test_the_log_names_the_error_and_its_place() -> None:
    async with served(raising(SurpriseError(INTERNAL_TEXT))) as service:
        refusal = await failure(service.validate())
        (event,) = service.events()
        assert event["event"] == "internal_error"
        assert event["level"] == "error"
        assert event["error"] == "SurpriseError"
        assert event["method"] == "authsvc.v1.AuthService.ValidateToken"
        assert event["trace_id"] == refusal.trace_id
        assert "test_middleware.py" in event["place"][-1]


async def test_the_cause_of_an_outage_is_logged_and_not_sent() -> None:
    async with served(raising(errors.StoreUnavailableError(INTERNAL_TEXT))) as service:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.validate()
        assert INTERNAL_TEXT not in repr(tuple(caught.value.trailing_metadata() or ()))
        (event,) = service.events()
        assert (event["event"], event["cause"], event["level"]) == ("store_unavailable", INTERNAL_TEXT, "warning")


async def test_a_broken_row_is_logged_where_it_is_found_and_not_again_as_a_fault() -> None:
    async with served(raising(errors.CorruptItemError(INTERNAL_TEXT, "role"))) as service:
        await failure(service.validate())
        assert [event["level"] for event in service.events()] == ["debug"]


async def test_a_refusal_is_no_noise_in_the_log() -> None:
    async with served(raising(errors.UserNotFoundError())) as service:
        await failure(service.validate())
        (event,) = service.events()
        assert (event["event"], event["reason"], event["level"]) == ("refused", "USER_NOT_FOUND", "debug")


async def test_every_request_has_a_trace_id_and_a_span_id_of_its_own() -> None:
    async with served(raising(errors.UserNotFoundError())) as service:
        refusals = await asyncio.gather(*(failure(service.validate()) for _ in range(20)))
        assert len({refusal.trace_id for refusal in refusals}) == 20
        assert {event["trace_id"] for event in service.events()} == {refusal.trace_id for refusal in refusals}
        assert len({event["span_id"] for event in service.events()}) == 20


async def test_the_trace_id_of_the_caller_is_in_the_error_and_in_every_line() -> None:
    async with served(raising(errors.UserNotFoundError())) as service:
        refusals = [await failure(service.validate(metadata=(TRACEPARENT,))) for _ in range(2)]
        refusals.append(await failure(service.get_user(TRACEPARENT)))
        assert [refusal.trace_id for refusal in refusals] == [TRACE_ID] * 3
        events = service.events()
        assert [(event["event"], event["trace_id"]) for event in events] == [
            ("refused", TRACE_ID),
            ("refused", TRACE_ID),
            ("caller_refused", TRACE_ID),
        ]
        assert len({event["span_id"] for event in events}) == 3


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("traceparent", ""),),
        (("traceparent", "its own"),),
        (("traceparent", "00-" + "0" * 32 + "-00f067aa0ba902b7-01"),),
        (TRACEPARENT, ("traceparent", "its own")),  # gRPC itself drops all but the last
    ],
    ids=["absent", "empty", "malformed", "all zero", "two"],
)
async def test_without_a_single_valid_traceparent_the_trace_id_is_our_own(headers: tuple[tuple[str, str], ...]) -> None:
    async with served(raising(errors.UserNotFoundError())) as service:
        refusal = await failure(service.validate(metadata=headers))
        assert refusal.trace_id not in {TRACE_ID, "0" * 32}
        assert len(refusal.trace_id) == 32
        assert [event["trace_id"] for event in service.events()] == [refusal.trace_id]


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff", b"\x0a\x01\xff", b"\x0b", b"\x00", b"\x0a\x05abc"])
async def test_bytes_that_do_not_decode_are_a_malformed_request(data: bytes) -> None:
    async with served(answering(None)) as service:
        call: Any = service.channel.unary_unary(VALIDATE)
        refusal = await failure(call(data))
        assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "MALFORMED_REQUEST")
        assert service.servicer.requests == []


async def test_an_answer_arrives_as_it_was_given() -> None:
    answer = auth_pb2.ValidateTokenResponse(state=auth_pb2.TOKEN_STATE_ACTIVE, user_id="user-1")
    async with served(answering(answer)) as service:
        assert await service.validate() == answer
        assert service.servicer.requests == [auth_pb2.ValidateTokenRequest(token="x")]
        assert service.log.getvalue() == ""


async def test_an_answer_that_cannot_be_sent_is_internal() -> None:
    async with served(answering(None)) as service:
        assert (await failure(service.validate())).reason == "INTERNAL"


async def test_a_handler_has_until_shortly_before_its_client_gives_up() -> None:
    async def handler(_request: Any, _context: Any) -> Any:
        return auth_pb2.ValidateTokenResponse(user_id=str(request_context.remaining_seconds()))

    async with served(handler) as service:
        # gRPC rounds the remaining time up by less than a twentieth.
        assert 0 < float((await service.validate(timeout=20.0)).user_id) < 19
        assert 19 < float((await service.validate(timeout=60.0)).user_id) <= request_context.DEFAULT_DEADLINE_SECONDS


async def test_a_client_that_leaves_is_no_fault() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(_request: Any, _context: Any) -> Any:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with served(handler) as service:
        call = asyncio.create_task(service.validate())
        await started.wait()
        call.cancel()
        await cancelled.wait()
        assert service.log.getvalue() == ""


def active_token(role: str) -> ActiveToken:
    token = AccessToken(
        issuer="i",
        audience="a",
        user_id="user-1",
        client_id="c",
        session_id="s",
        token_id="t",
        token_generation=0,
        issued_at=0,
        expires_at=0,
        not_before=0,
    )
    return ActiveToken(token, User(user_id="user-1", email="a@b", role=role))


ADMIN = active_token("admin")
USER = user_pb2.GetUserResponse()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_an_admin_may_call_the_user_service(scheme: str) -> None:
    async with served(answering(USER), ADMIN) as service:
        assert await service.get_user(("authorization", f"{scheme} a.b.c"), ("other", "x")) == USER
        assert service.validations.tokens == ["a.b.c"]


@pytest.mark.parametrize(
    "credentials",
    [
        [],
        [""],
        ["a.b.c"],
        ["Bearer"],
        ["Bearer "],
        ["Basic YTpi"],
        ["Bearera.b.c"],
        ["Bearer a.b.c", "Bearer a.b.c"],
        ["Bearer a.b.c", ""],
    ],
    ids=str,
)
async def test_without_exactly_one_token_a_caller_is_unauthenticated(credentials: list[str]) -> None:
    async with served(answering(USER), ADMIN) as service:
        refusal = await failure(service.get_user(*(("authorization", value) for value in credentials)))
        assert (refusal.code, refusal.reason) == (Code.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED")
        assert service.validations.tokens == []
        assert service.servicer.requests == []


@pytest.mark.parametrize("reason", InactiveReason)
async def test_a_caller_with_an_inactive_token_is_unauthenticated(reason: InactiveReason) -> None:
    async with served(answering(USER), reason) as service:
        refusal = await failure(service.get_user(("authorization", "Bearer a.b.c")))
        assert (refusal.code, refusal.reason) == (Code.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED")
        assert service.servicer.requests == []


@pytest.mark.parametrize("role", ["user", "Admin", "administrator", "admin ", ""])
async def test_whoever_is_no_admin_is_not_permitted_and_that_is_logged(role: str) -> None:
    async with served(answering(USER), active_token(role)) as service:
        refusal = await failure(service.get_user(("authorization", "Bearer a.b.c")))
        assert (refusal.code, refusal.reason) == (Code.PERMISSION_DENIED, "CALLER_NOT_PERMITTED")
        assert service.servicer.requests == []
        assert service.events()[0]["event"] == "caller_refused"
        assert service.events()[0]["caller"] == "user:user-1"


async def test_who_may_not_call_learns_nothing_about_a_request() -> None:
    """It does not learn whether the request decodes."""
    async with served(answering(USER)) as service:
        call: Any = service.channel.unary_unary("/authsvc.v1.UserService/GetUser")
        assert (await failure(call(b"\xff"))).reason == "CALLER_UNAUTHENTICATED"


@dataclass
class CallDetails:
    method: str


@dataclass
class FakeContext:
    """The context of a call from another machine, which a test cannot make over a socket."""

    address: str

    def time_remaining(self) -> float | None:
        return None

    def peer(self) -> str:
        return self.address

    def invocation_metadata(self) -> None:
        return None


@pytest.mark.parametrize("method", ["Authenticate", "RefreshTokens", "ChangePassword"])
@pytest.mark.parametrize(
    ("peer", "believed"),
    [
        ("ipv4:127.0.0.1:4711", "192.0.2.1"),
        ("ipv4:127.8.9.10:4711", "192.0.2.1"),
        ("ipv6:%5B::1%5D:4711", "192.0.2.1"),
        ("ipv6:[::1]:4711", "192.0.2.1"),
        ("ipv4:192.0.2.9:4711", ""),
        ("ipv4:128.0.0.1:4711", ""),
        ("ipv6:%5B2001:db8::1%5D:4711", ""),
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", ""),
        ("unknown", ""),
        ("", ""),
    ],
)
async def test_an_unauthenticated_client_cannot_set_client_address(method: str, peer: str, believed: str) -> None:
    """A client without credentials must not spread its guesses over sources of its choice."""
    servicer = Servicer(answering(auth_pb2.AuthenticateResponse()))
    middleware = Middleware(Authorization(FakeValidations(), None))  # type: ignore[arg-type]
    methods: Any = middleware.wrap_service(auth_pb2.DESCRIPTOR.services_by_name["AuthService"], servicer)
    handler = methods.service(CallDetails(f"/authsvc.v1.AuthService/{method}"))
    request = getattr(auth_pb2, f"{method}Request")(client_address="192.0.2.1")
    await handler.unary_unary(request.SerializeToString(), FakeContext(peer))
    assert [request.client_address for request in servicer.requests] == [believed]
