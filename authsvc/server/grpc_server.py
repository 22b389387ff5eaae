"""The gRPC server: its limits, TLS, port, health and reflection."""

import contextlib
import os
import resource
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from authsvc.config import ServeSettings
from authsvc.errors import ConfigError
from authsvc.rpc.auth_service import AuthService
from authsvc.rpc.middleware import Middleware
from authsvc.rpc.user_service import UserService
from authsvc.server.tls_check import TlsFiles, find_tls_problem, read_tls_files
from authsvc.v1 import auth_service_pb2, user_service_pb2

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
"""Per call. A user's token, the largest part of it, has at most half of that."""

_SERVICES: tuple[ServiceDescriptor, ...] = (
    auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
    user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
)
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one client may take of the server.

    Args:
        max_connections: Open at once.
        max_concurrent_calls: On one connection; further calls wait in the client.
        handshake_seconds: From a connection's begin to the end of TLS and of HTTP/2's first frames.
        min_ping_seconds: Between keepalive pings of a client; three earlier ones close its connection.
    """

    max_connections: int = 1000
    max_concurrent_calls: int = 1000
    handshake_seconds: int = 10
    min_ping_seconds: int = 10


async def build_server(
    middleware: Middleware,
    servicers: tuple[AuthService, UserService],
    settings: ServeSettings,
    limits: ConnectionLimits,
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """Return a server that does not listen yet, and its health service, which says NOT_SERVING.

    Args:
        middleware: Wraps every handler.
        servicers: The handlers.
        settings: Whether reflection is on and the port is shared by workers.
        limits: Per connection.
    """
    server = grpc.aio.server(options=_options(settings, limits))
    server.add_generic_rpc_handlers(
        tuple(middleware.wrap_service(d, s) for d, s in zip(_SERVICES, servicers, strict=True))
    )
    health_servicer = health.aio.HealthServicer()
    await set_health(health_servicer, health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if settings.reflection:
        _add_reflection(server)
    return server, health_servicer


async def set_health(servicer: health.aio.HealthServicer, status: Any) -> None:  # noqa: ANN401 - its stub has no name
    """Set the health of the server as a whole and of each service."""
    for name in ("", *(d.full_name for d in _SERVICES)):
        await servicer.set(name, status)


async def start(server: grpc.aio.Server, settings: ServeSettings, limits: ConnectionLimits) -> int:
    """Bind the server to its address, and let it listen.

    Args:
        server: As build_server returns it.
        settings: The address, the TLS files, and the number of workers.
        limits: As for build_server.

    Returns:
        The port: the one in the settings, or the one that the kernel chose where that is 0.

    Raises:
        ConfigError: The address is taken, or a TLS file cannot be used.
    """
    occupied = min(limits.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    with _occupy_low_descriptors(occupied) if settings.workers > 1 else contextlib.nullcontext():
        port = _bind(server, settings)
        await server.start()
    return port


@contextmanager
def _occupy_low_descriptors(count: int) -> Iterator[None]:
    """Give files that the body opens higher descriptors than those of later connections.

    Linux closes the files of a killed process from the highest descriptor down. The port closes first, so clients that
    lose their connection and reconnect reach another worker, never the accept queue of the killed one.
    """
    occupied = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    try:
        yield
    finally:
        for descriptor in occupied:
            os.close(descriptor)


def _bind(server: grpc.aio.Server, settings: ServeSettings) -> int:
    address = str(settings.listen)
    files = None
    try:
        if settings.tls_cert is None or settings.tls_key is None:
            return server.add_insecure_port(address)
        files = read_tls_files(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        credentials = grpc.ssl_server_credentials(
            [(files.key, files.certificate)], files.client_ca, require_client_auth=files.client_ca is not None
        )
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise ConfigError([_bind_failure(settings, files)]) from None


def _options(settings: ServeSettings, limits: ConnectionLimits) -> Sequence[tuple[str, int]]:
    return (
        # Workers share the port; two programs that do not know of each other must not.
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # Between a soft and a hard limit gRPC refuses calls at random, so both are equal.
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_concurrent_streams", limits.max_concurrent_calls),
        ("grpc.server_handshake_timeout_ms", limits.handshake_seconds * 1000),
        # Connections have a maximum age, so that balancers spread them again, and idle ones are closed.
        ("grpc.max_connection_age_ms", 30 * 60 * 1000),
        ("grpc.max_connection_age_grace_ms", 30 * 1000),
        ("grpc.max_connection_idle_ms", 5 * 60 * 1000),
        # Detects clients that vanished without closing their connection.
        ("grpc.keepalive_time_ms", 60 * 1000),
        ("grpc.keepalive_timeout_ms", 20 * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", limits.min_ping_seconds * 1000),
        ("grpc.http2.max_ping_strikes", 2),
    )


def _add_reflection(server: grpc.aio.Server) -> None:
    names = [d.full_name for d in _SERVICES]
    names += [health.SERVICE_NAME, reflection.SERVICE_NAME, _REFLECTION_V1]
    reflection.enable_server_reflection(names, server)
    # v1 differs from v1alpha in its name alone; grpcio-reflection serves only v1alpha.
    servicer = reflection.aio.ReflectionServicer(names)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handler,))


def _bind_failure(settings: ServeSettings, files: TlsFiles | None) -> str:
    """Return why gRPC could not bind, which it does not say: the address, or else the TLS files."""
    address = settings.listen
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, settings.workers > 1)
            probe.bind((address.host, address.port))
    except OSError as error:
        return f"AUTHSVC_LISTEN: cannot listen on {address}: {error.strerror}"
    problem = files and find_tls_problem(files)
    if not problem:
        return f"AUTHSVC_LISTEN: gRPC cannot listen on {address}"
    path = getattr(settings, problem.setting)
    return f"AUTHSVC_{problem.setting.upper()}: {path} {problem.problem}: {problem.remedy}"
