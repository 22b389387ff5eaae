"""The gRPC server: its limits, TLS, port, health and reflection."""

import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from authsvc.config import ServeSettings
from authsvc.errors import ConfigError
from authsvc.rpc import ext_authz_pb2
from authsvc.rpc.auth_service import AuthService
from authsvc.rpc.ext_authz.check_service import CheckService
from authsvc.rpc.middleware import Middleware
from authsvc.rpc.user_service import UserService
from authsvc.server import listening
from authsvc.server.certificates import Certificates, server_credentials
from authsvc.server.streams import Health, Reflection
from authsvc.v1 import auth_service_pb2, user_service_pb2
from authsvc.watched_file import WatchedFile

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
"""Per call. A user's token, the largest part of it, has at most half of that."""

_SERVICES: tuple[ServiceDescriptor, ...] = (
    auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
    user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
    ext_authz_pb2.DESCRIPTOR.services_by_name["Authorization"],
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


def build_server(
    middleware: Middleware,
    servicers: tuple[AuthService, UserService, CheckService],
    settings: ServeSettings,
    limits: ConnectionLimits,
) -> tuple[grpc.aio.Server, Health]:
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
    health_servicer = Health(d.full_name for d in _SERVICES)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if settings.reflection:
        _add_reflection(server, health_servicer.streams_end)
    return server, health_servicer


async def start(
    server: grpc.aio.Server,
    settings: ServeSettings,
    limits: ConnectionLimits,
    certificates: WatchedFile[Certificates] | None,
) -> int:
    """Bind the server to its address, and let it listen.

    Args:
        server: As build_server returns it.
        settings: The address, and the number of workers.
        limits: As for build_server.
        certificates: Of TLS; None: the port speaks plain text.

    Returns:
        The port: the one in the settings, or the one that the kernel chose where that is 0.

    Raises:
        ConfigError: The server cannot listen on the address.
    """
    occupied = min(limits.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    with _occupy_low_descriptors(occupied) if settings.workers > 1 else contextlib.nullcontext():
        port = _bind(server, settings, certificates)
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


def _bind(server: grpc.aio.Server, settings: ServeSettings, certificates: WatchedFile[Certificates] | None) -> int:
    shared = settings.workers > 1
    # gRPC says neither why it cannot listen nor that it listens on a part of the addresses alone.
    for probe in listening.bind(settings.listen, "AUTHSVC_LISTEN", shared=shared):
        probe.close()
    address = str(settings.listen)
    try:
        if certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(certificates))
    except RuntimeError:
        raise ConfigError([f"AUTHSVC_LISTEN: gRPC cannot listen on {address}"]) from None


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


def _add_reflection(server: grpc.aio.Server, streams_end: asyncio.Event) -> None:
    names = [d.full_name for d in _SERVICES]
    # The errors' details are in no file of a service.
    files: list[Any] = [
        *(d.file for d in _SERVICES),
        health_pb2.DESCRIPTOR,
        reflection_pb2.DESCRIPTOR,
        error_details_pb2.DESCRIPTOR,
    ]
    names += [health.SERVICE_NAME, reflection.SERVICE_NAME, _REFLECTION_V1]
    method = grpc.stream_stream_rpc_method_handler(
        Reflection(names, files, streams_end).answer,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    # v1 differs from v1alpha in its name alone; grpcio-reflection serves only v1alpha.
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": method})
            for service in (reflection.SERVICE_NAME, _REFLECTION_V1)
        )
    )
