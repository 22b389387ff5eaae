"""The channels of one event loop: several connections in turn, made anew when a TLS file changes."""

import asyncio
import itertools
import logging
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from authsvc.client.clock import Clock
from authsvc.client.transport.channel_options import CHANNEL_OPTIONS
from authsvc.client.transport.methods import HASHING_TIMEOUT_SECONDS, Method
from authsvc.client.transport.target import is_loopback
from authsvc.client.transport.tls_files import TlsFiles

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]
FILE_POLL_SECONDS = 1.0
DRAIN_SECONDS = HASHING_TIMEOUT_SECONDS
"""How long a channel that is closed may finish its calls."""

_log = logging.getLogger("authsvc.client")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The service and how to reach it.

    Args:
        target: As gRPC names it, for instance HOST:PORT.
        tls: The TLS files; None: plain text.
        connections: To each address of the target.
    """

    target: str
    tls: TlsFiles | None
    connections: int


class _Channel:
    """A gRPC channel with the callables of its methods."""

    def __init__(self, endpoint: Endpoint, credentials: grpc.ChannelCredentials | None) -> None:
        options = CHANNEL_OPTIONS
        if is_loopback(endpoint.target):
            # A proxy that the environment names does not lead back to this machine, and would read plain text.
            options += (("grpc.enable_http_proxy", 0),)
        self.grpc = (
            grpc.aio.insecure_channel(endpoint.target, options)
            if credentials is None
            else grpc.aio.secure_channel(endpoint.target, credentials, options)
        )
        self._callables: dict[str, grpc.aio.UnaryUnaryMultiCallable[Any, Any]] = {}

    def callable(self, method: Method) -> "grpc.aio.UnaryUnaryMultiCallable[Any, Any]":
        path = method.path
        if path not in self._callables:
            self._callables[path] = self.grpc.unary_unary(
                path, method.request_class.SerializeToString, method.response_class.FromString
            )
        return self._callables[path]


class Channels:
    """Connects at the first call.

    Args:
        endpoint: The service.
        clock: Its monotonic clock decides when the TLS files are checked again.

    Raises:
        ValueError: A TLS file cannot be used.
    """

    def __init__(self, endpoint: Endpoint, clock: Clock) -> None:
        self._endpoint = endpoint
        self._monotonic = clock.monotonic
        self._closing: set[asyncio.Task[None]] = set()
        self._version = () if endpoint.tls is None else endpoint.tls.version()
        self._next_poll = self._monotonic() + FILE_POLL_SECONDS
        self._open(None if endpoint.tls is None else endpoint.tls.load())

    def call(self, method: Method, request: Message, timeout: float, metadata: Metadata, **options: Any) -> Any:
        """Start a call on the next connection.

        Args:
            method: The RPC.
            request: Its request.
            timeout: Its deadline in seconds.
            metadata: Its own, credentials included.
            options: Further options of gRPC.

        Returns:
            A grpc.aio.UnaryUnaryCall.
        """
        if self._endpoint.tls is not None and self._monotonic() >= self._next_poll:
            self._follow(self._endpoint.tls)
        channel = next(self._turns)
        return channel.callable(method)(request, timeout=timeout, metadata=metadata, **options)

    async def close(self) -> None:
        """Finish the calls in flight and close."""
        self._close_later()
        await asyncio.gather(*self._closing)

    def _open(self, credentials: grpc.ChannelCredentials | None) -> None:
        self._channels = [_Channel(self._endpoint, credentials) for _ in range(self._endpoint.connections)]
        self._turns = itertools.cycle(self._channels)

    def _follow(self, tls: TlsFiles) -> None:
        """Open new channels if a file has changed; the old ones finish their calls."""
        self._next_poll = self._monotonic() + FILE_POLL_SECONDS
        version = tls.version()
        if version == self._version:
            return
        self._version = version  # taken before the read, so that a change during it is read next time
        try:
            credentials = tls.load()
        except (OSError, ValueError) as error:
            _log.warning("the TLS files have changed and cannot be used, the last good ones stay: %s", error)
            return
        self._close_later()
        self._open(credentials)
        _log.info("the TLS files have changed: new connections use them")

    def _close_later(self) -> None:
        for channel in self._channels:
            task = asyncio.get_running_loop().create_task(channel.grpc.close(DRAIN_SECONDS))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
