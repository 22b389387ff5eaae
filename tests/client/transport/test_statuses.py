"""gRPC errors to exceptions: with the service's details, with a proxy's, and with none."""

from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from authsvc.client import AuthsvcError, CallerRefusedError, InternalError, UnavailableError
from authsvc.client.transport.statuses import to_error


def failed(code: grpc.StatusCode, details: str = "", *metadata: tuple[str, Any]) -> AuthsvcError:
    return to_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details))


def details(domain: str, reason: str, *more: Message) -> tuple[str, bytes]:
    status = status_pb2.Status(code=13)
    for each in (error_details_pb2.ErrorInfo(domain=domain, reason=reason, metadata={"trace_id": "5f" * 16}), *more):
        status.details.add().Pack(each)
    return "grpc-status-details-bin", status.SerializeToString()


def retry_info(seconds: int) -> Message:
    return error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds))


def test_the_services_own_error() -> None:
    error = failed(grpc.StatusCode.INTERNAL, "internal error", details("authsvc", "INTERNAL"))
    assert type(error) is InternalError
    assert error.trace_id == "5f" * 16
    error = failed(grpc.StatusCode.UNAVAILABLE, "", details("authsvc", "STORE_UNAVAILABLE", retry_info(7)))
    assert str(error) == "the service answered STORE_UNAVAILABLE; try again in 7 s"


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_proxy_that_refuses_refuses_this_backend(code: grpc.StatusCode) -> None:
    error = failed(code)
    assert type(error) is CallerRefusedError
    assert error.reason == code.name


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (details("another.example", "INTERNAL"),),
        (("grpc-status-details-bin", b"\xff"),),
        (("x", "y"),),
        (details("authsvc", "OVERLOADED", retry_info(2**62)),),
        (details("authsvc", "OVERLOADED", retry_info(10**14)),),
    ],
)
def test_whatever_is_not_the_services_is_an_outage(metadata: tuple[tuple[str, Any], ...]) -> None:
    for code in set(grpc.StatusCode) - {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        error = failed(code, "text", *metadata)
        assert type(error) is UnavailableError
        assert code.name in str(error)
    assert "connection refused" in str(failed(grpc.StatusCode.UNAVAILABLE, "connection refused"))
    assert len(str(failed(grpc.StatusCode.UNAVAILABLE, "x" * 10_000))) < 400
