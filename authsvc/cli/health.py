"""`authsvc health`: asks the running service on this machine whether it serves.

Over plain text it calls gRPC's health service. With TLS it only connects, for it has no client certificate.
"""

import socket
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from authsvc.config import Address

TIMEOUT_SECONDS = 3.0
_LOOPBACK_BY_WILDCARD = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - replaced, not bound


def is_serving(listen: Address, *, has_tls: bool) -> bool:
    """Return whether the service at an address serves.

    Args:
        listen: The address that the service listens on; a wildcard means this machine.
        has_tls: Whether the port speaks TLS.
    """
    address = Address(_LOOPBACK_BY_WILDCARD.get(listen.host, listen.host), listen.port)
    try:
        if has_tls:
            socket.create_connection((address.host, address.port), TIMEOUT_SECONDS).close()
            return True
        # A proxy for AWS, which the environment may name, does not lead back to this machine.
        with grpc.insecure_channel(str(address), (("grpc.enable_http_proxy", 0),)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
    except (OSError, grpc.RpcError):
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
