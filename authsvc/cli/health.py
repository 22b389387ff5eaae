"""`python -m authsvc.health`: a container's health check, which exits with 0 while the service serves.

Over plain text it asks gRPC's health service. With TLS it only connects, for it has no certificate of a client.
"""

import os
import socket
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from authsvc import config

TIMEOUT_SECONDS = 3.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - to be replaced, not bound


def is_serving(settings: config.Settings) -> bool:
    """Tell whether the service with these settings serves."""
    listen = settings.listen
    address = config.Address(_EVERYWHERE.get(listen.host, listen.host), listen.port)
    try:
        if settings.tls_cert is not None:
            socket.create_connection((address.host, address.port), TIMEOUT_SECONDS).close()
            return True
        with grpc.insecure_channel(str(address)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
    except (OSError, grpc.RpcError):
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    # `dev` is given none of the settings that `serve` must be given.
    sys.exit(not is_serving(config.load_store({"AUTHSVC_STORE": "sqlite:-", **os.environ})))
