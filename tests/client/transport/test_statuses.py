"""gRPC errors to exceptions: with the service's details, with a proxy's, and with none."""

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from authsvc.client import AuthsvcError, CallerRefusedError, InternalError, UnavailableError
from authsvc.client.transport.statuses import to_error


def failed(code: grpc.StatusCode, details: str = "", *metadata: tuple[str, Any]) -> AuthsvcError:
    return to_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details))


def details(domain: str, reason: str) -> tuple[str, bytes]:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(domain=domain, reason=reason, metadata={"trace_id": "5f" * 16}))
    return "grpc-status-details-bin", status_pb2.Status(code=13, details=[packed]).SerializeToString()


def test_the_services_own_error() -> None:
    error = failed(grpc.StatusCode.INTERNAL, "internal error", details("authsvc", "INTERNAL"))
    assert type(error) is InternalError
    assert error.trace_id == "5f" * 16


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_proxy_that_refuses_refuses_this_backend(code: grpc.StatusCode) -> None:
    error = failed(code)
    assert type(error) is CallerRefusedError
    assert error.reason == code.name


@pytest.mark.parametrize(
    "metadata",
    [(), (details("another.example", "INTERNAL"),), (("grpc-status-details-bin", b"\xff"),), (("x", "y"),)],
)
def test_whatever_is_not_the_services_is_an_outage(metadata: tuple[tuple[str, Any], ...]) -> None:
    for code in set(grpc.StatusCode) - {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        error = failed(code, "text", *metadata)
        assert type(error) is UnavailableError
        assert code.name in str(error)
    assert "connection refused" in str(failed(grpc.StatusCode.UNAVAILABLE, "connection refused"))
    assert len(str(failed(grpc.StatusCode.UNAVAILABLE, "x" * 10_000))) < 400
