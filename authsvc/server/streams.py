"""Health and reflection, the services of the gRPC port that have streams, which end before the server does."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from authsvc.telemetry import metrics

_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """The health service (grpc.health.v1) of services that share one status: NOT_SERVING at first.

    The servicer of grpcio-health-checking keeps watches open at the end, forgets the other watches of a service when
    one of them ends, and waits for a watcher that does not read.

    Args:
        services: Their full names; the empty name is added.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(("", *services))
        self._status = _Status.NOT_SERVING
        self._changed = asyncio.Event()
        self._is_stopping = False
        self.streams_end = asyncio.Event()

    def set_serving(self) -> None:
        """Report SERVING, unless the service stops."""
        if not self._is_stopping:
            self._set(_Status.SERVING)

    def stop(self) -> None:
        """Report NOT_SERVING from now on. Streams stay open, for clients whose watch ends begin another at once."""
        self._is_stopping = True
        self._set(_Status.NOT_SERVING)

    def end_streams(self) -> None:
        """End all streams, so that the server need not wait for them."""
        self.streams_end.set()
        self.stop()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 - as gRPC has it
        """See grpc.health.v1."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(self, request: Any, _: Any) -> AsyncIterator[Any]:  # noqa: ANN401, N802 - as gRPC has it
        """See grpc.health.v1."""
        last_status = None
        while True:
            changed = self._changed
            status = self._status if request.service in self._services else _Status.SERVICE_UNKNOWN
            if status != last_status:
                yield health_pb2.HealthCheckResponse(status=status)
            if self.streams_end.is_set():
                return
            last_status = status
            await changed.wait()

    def _set(self, status: Any) -> None:  # noqa: ANN401 - its stub has no name
        self._status = status
        metrics.SERVING.set(int(status == _Status.SERVING))
        self._changed.set()
        self._changed = asyncio.Event()


class Reflection:
    """The reflection service, whose clients may keep their streams open.

    Args:
        services: Full names of the services.
        files: What it describes, from several descriptor pools; their imports are added.
        streams_end: Ends the streams.
    """

    def __init__(self, services: Iterable[str], files: Iterable[FileDescriptor], streams_end: asyncio.Event) -> None:
        pool = DescriptorPool()
        _add_files(pool, files)
        self._servicer: Any = reflection.aio.ReflectionServicer(services, pool)
        self._streams_end = streams_end

    async def answer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: ANN401 - as gRPC has it
        """Answer the requests of a stream."""
        async for response in self._servicer.ServerReflectionInfo(self._until_end(requests), context):
            yield response

    async def _until_end(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        end: asyncio.Future[Any] = asyncio.ensure_future(self._streams_end.wait())
        request = end
        try:
            while True:
                request = asyncio.ensure_future(anext(requests, None))
                await asyncio.wait({request, end}, return_when=asyncio.FIRST_COMPLETED)
                if not request.done() or request.result() is None:
                    return
                yield request.result()
        finally:
            request.cancel()
            end.cancel()


def _add_files(pool: DescriptorPool, files: Iterable[FileDescriptor]) -> None:
    """Add files to a pool, each after its imports; one that is there already changes nothing."""
    for file in files:
        _add_files(pool, file.dependencies)
        pool.AddSerializedFile(file.serialized_pb)
