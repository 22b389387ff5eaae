"""Stubs whose calls have credentials, a deadline and retries, and raise the client's errors."""

from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any

import grpc

from authsvc.client.errors import AuthsvcError
from authsvc.client.transport.methods import Method
from authsvc.client.transport.statuses import to_error
from authsvc.client.validation.answers import not_the_service


class Call:
    """A call that raises the client's errors when it is awaited; all else is the grpc.aio call's.

    Args:
        call: A grpc.aio.UnaryUnaryCall.
        on_error: Called with an error before it is raised.
    """

    def __init__(self, call: Any, on_error: Callable[[AuthsvcError], None]) -> None:
        self._call = call
        self._on_error = on_error

    def __await__(self) -> Generator[Any, None, Any]:
        """Return the response.

        Raises:
            AuthsvcError: The call failed.
        """
        try:
            response = yield from self._call.__await__()
        except grpc.aio.AioRpcError as failure:
            error: AuthsvcError = to_error(failure)
        else:
            if response is not None:
                return response
            error = not_the_service()
        self._on_error(error)
        raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


class Stub:
    """A method for each RPC of a service, as in the generated stub.

    Args:
        methods: By name.
        call: Called with the method and what its caller gives.
    """

    def __init__(self, methods: Mapping[str, Method], call: Callable[..., Any]) -> None:
        for name, method in methods.items():
            setattr(self, name, partial(call, method))
