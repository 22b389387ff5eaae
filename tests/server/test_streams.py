"""The streams of health and reflection: what they say, and that the end of the service does not wait for them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from authsvc.config import ServeSettings
from authsvc.server import app
from tests.support import PATIENT_LIMITS, FakeClock

NAMES = ("", "authsvc.v1.AuthService", "authsvc.v1.UserService")
STATUS = health_pb2.HealthCheckResponse
LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="")
NEVER_SECONDS = 3600.0
"""A grace that no test outlives: the end must not wait for streams."""


@dataclass
class Service:
    """A service that has a store, and the means to stop it."""

    app: app.App
    channel: grpc.aio.Channel
    stop: Callable[[], Any]

    def watch(self, name: str = "") -> Any:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        return stub.Watch(health_pb2.HealthCheckRequest(service=name))

    async def check(self, name: str = "") -> int:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        status: int = (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status
        return status

    def reflect(self, version: str) -> Any:
        method: Any = self.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        return method()


@pytest.fixture
async def service(settings: ServeSettings, clock: FakeClock) -> AsyncIterator[Service]:
    """A service without tables: it never begins to serve by itself."""
    limits = replace(PATIENT_LIMITS, stop_grace_seconds=NEVER_SECONDS)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(app.run_app(settings, clock, limits=limits))
        async with grpc.aio.insecure_channel(running.address) as channel:
            yield Service(running, channel, stack.aclose)


async def statuses(watch: Any) -> list[int]:
    """Read a watch to its end."""
    found = []
    while (response := await watch.read()) is not grpc.aio.EOF:
        found.append(response.status)
    return found


async def test_watchers_get_every_change_and_end_with_the_service(service: Service) -> None:
    watches = [service.watch(name) for name in NAMES]
    assert [(await watch.read()).status for watch in watches] == [STATUS.NOT_SERVING] * 3
    service.app.health.set_serving()
    assert [(await watch.read()).status for watch in watches] == [STATUS.SERVING] * 3
    await service.stop()
    assert [await statuses(watch) for watch in watches] == [[STATUS.NOT_SERVING]] * 3
    assert [await watch.code() for watch in watches] == [grpc.StatusCode.OK] * 3


async def test_a_watcher_that_leaves_takes_no_other_along(service: Service) -> None:
    leaving, staying = service.watch(), service.watch()
    for watch in (leaving, staying):
        await watch.read()
    leaving.cancel()
    service.app.health.set_serving()
    assert (await staying.read()).status == STATUS.SERVING
    await service.stop()
    assert await statuses(staying) == [STATUS.NOT_SERVING]


async def test_streams_stay_open_while_balancers_notice(service: Service) -> None:
    """A client whose watch ends begins another at once, until the port is closed."""
    service.app.health.set_serving()
    watch = service.watch()
    await watch.read()
    service.app.health.stop()
    assert (await watch.read()).status == STATUS.NOT_SERVING
    late = service.watch()
    assert (await late.read()).status == STATUS.NOT_SERVING
    service.app.health.set_serving()
    assert [await service.check(name) for name in NAMES] == [STATUS.NOT_SERVING] * 3
    assert not watch.done()
    await service.stop()
    assert await statuses(watch) == await statuses(late) == []


async def test_an_unknown_service_is_said(service: Service) -> None:
    watch = service.watch("nobody.v1.Service")
    assert (await watch.read()).status == STATUS.SERVICE_UNKNOWN
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.check("nobody.v1.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    service.app.health.set_serving()
    await service.stop()
    assert await statuses(watch) == []


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_ends_with_the_service(service: Service, version: str) -> None:
    silent, talking = service.reflect(version), service.reflect(version)
    await talking.write(LIST_SERVICES)
    answer = await talking.read()
    assert NAMES[1] in {found.name for found in answer.list_services_response.service}
    await service.stop()
    for stream in (silent, talking):
        assert await stream.read() == grpc.aio.EOF


async def test_a_client_of_reflection_may_end_or_leave(service: Service) -> None:
    ending, leaving = service.reflect("v1"), service.reflect("v1")
    for stream in (ending, leaving):
        await stream.write(LIST_SERVICES)
        assert (await stream.read()).list_services_response.service
    leaving.cancel()
    await ending.done_writing()
    assert await ending.read() == grpc.aio.EOF
    assert await ending.code() is grpc.StatusCode.OK
