"""Errors are Trailers-Only, and say when to retry: what retry policies of gRPC's clients and of proxies rest on."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest

from authsvc import errors
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.http2 import END_HEADERS, END_STREAM, Frame, Kind, RawConnection, frame, message, raw, request_headers
from tests.rpc.test_middleware import ON_THE_WIRE, VALIDATE, SurpriseError, answering, raising, served
from tests.support import failure

GET_USER = "/authsvc.v1.UserService/GetUser"
ANSWER = auth_pb2.ValidateTokenResponse()
UNDECODABLE = b"\xff"
RETRY_PUSHBACK = "grpc-retry-pushback-ms"
MAX_GARBAGE = 8
"""Objects in reference cycles that one refusal may leave behind; gRPC itself leaves five."""


async def answer_to(connection: RawConnection, path: str, request: bytes, stream: int = 1) -> list[Frame]:
    """Make a call, and return the frames of its answer."""
    await connection.send(
        frame(Kind.HEADERS, END_HEADERS, stream, request_headers(path)),
        frame(Kind.DATA, END_STREAM, stream, message(request)),
    )
    answer = [await connection.until(Kind.HEADERS, Kind.DATA, Kind.RST_STREAM)]
    while not answer[-1].flags & END_STREAM:
        answer.append(await connection.until(Kind.HEADERS, Kind.DATA, Kind.RST_STREAM))
    return answer


def is_trailers_only(answer: list[Frame]) -> bool:
    return [(each.kind, bool(each.flags & END_STREAM)) for each in answer] == [(Kind.HEADERS, True)]


@pytest.mark.parametrize(
    "error",
    [*(error for error, _, _ in ON_THE_WIRE), SurpriseError(), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_of_a_handler_is_trailers_only(error: BaseException) -> None:
    async with served(raising(error)) as service, raw(service.address) as connection:
        await connection.hello()
        assert is_trailers_only(await answer_to(connection, VALIDATE, b""))


@pytest.mark.parametrize(
    ("path", "request_bytes"),
    [(VALIDATE, UNDECODABLE), (GET_USER, b""), ("/authsvc.v1.AuthService/NoMethod", b""), ("/no.Service/Method", b"")],
    ids=["undecodable", "refused caller", "unknown method", "unknown service"],
)
async def test_an_error_before_a_handler_is_trailers_only(path: str, request_bytes: bytes) -> None:
    async with served(answering(ANSWER)) as service, raw(service.address) as connection:
        await connection.hello()
        assert is_trailers_only(await answer_to(connection, path, request_bytes))
        assert service.servicer.requests == []


async def test_an_answer_that_cannot_be_encoded_is_trailers_only() -> None:
    async with served(answering(None)) as service, raw(service.address) as connection:
        await connection.hello()
        assert is_trailers_only(await answer_to(connection, VALIDATE, b""))


async def test_an_answer_has_a_message_before_its_trailers() -> None:
    async with served(answering(ANSWER)) as service, raw(service.address) as connection:
        await connection.hello()
        answer = await answer_to(connection, VALIDATE, b"")
        assert [each.kind for each in answer] == [Kind.HEADERS, Kind.DATA, Kind.HEADERS]


async def pushbacks(error: BaseException, calls: int = 1) -> list[str]:
    """Return the pushback of each of some calls that end with the error."""
    received = []
    async with served(raising(error)) as service:
        for _ in range(calls):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.validate()
            trailers = caught.value.trailing_metadata() or ()
            received += [str(value) for key, value in trailers if key == RETRY_PUSHBACK]
    return received


RETRYABLE = [errors.StoreUnavailableError("down"), errors.OverloadedError(timedelta(seconds=4))]


@pytest.mark.parametrize("error", RETRYABLE, ids=lambda error: type(error).__name__)
async def test_a_retry_that_can_help_has_a_spread_delay_around_that_of_retry_info(
    error: errors.RetryLaterError,
) -> None:
    delays = [timedelta(milliseconds=int(each)) / error.retry_delay for each in await pushbacks(error, calls=50)]
    assert len(delays) == 50
    assert 0.5 <= min(delays) < 0.8
    assert 1.2 < max(delays) <= 1.5


async def test_too_many_attempts_are_not_to_be_retried() -> None:
    assert await pushbacks(errors.TooManyAttemptsError("pair", timedelta(seconds=900))) == ["-1"]


@pytest.mark.parametrize(
    "error",
    [error for error, _, reason in ON_THE_WIRE if not isinstance(error, errors.RetryLaterError)],
    ids=lambda error: type(error).__name__,
)
async def test_other_errors_say_nothing_about_retries(error: errors.AuthsvcError) -> None:
    assert await pushbacks(error) == []


async def test_a_request_that_does_not_decode_says_nothing_about_retries() -> None:
    async with served(answering(ANSWER)) as service:
        unary: Any = service.channel.unary_unary(VALIDATE)
        call = unary(UNDECODABLE)
        assert (await failure(call)).reason == "MALFORMED_REQUEST"
        assert RETRY_PUSHBACK not in dict(await call.trailing_metadata())


@contextmanager
def garbage_kept() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("path", [VALIDATE, GET_USER], ids=["handler", "refused caller"])
async def test_a_refusal_leaves_no_frames_in_cycles(path: str) -> None:
    """Otherwise a flood of refusals keeps the garbage collector busy."""
    calls = 50
    async with served(raising(errors.UserNotFoundError())) as service, raw(service.address) as connection:
        await connection.hello()
        await answer_to(connection, path, b"")
        with garbage_kept():
            for call in range(1, calls + 1):
                await answer_to(connection, path, b"", stream=2 * call + 1)
            assert gc.collect() / calls <= MAX_GARBAGE
