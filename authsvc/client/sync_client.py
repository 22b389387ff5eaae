"""The client for threads."""

import weakref
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack, cast

from google.protobuf.message import Message

from authsvc.client import forks
from authsvc.client.async_client import AsyncClient, token_digest
from authsvc.client.clock import Clock, to_seconds
from authsvc.client.errors import AuthsvcError
from authsvc.client.identity import Identity
from authsvc.client.loop_thread import LoopThread
from authsvc.client.stats import Stats
from authsvc.client.transport.methods import AUTH_METHODS, DEFAULT_TIMEOUT_SECONDS, USER_METHODS, Method
from authsvc.client.transport.stubs import Stub
from authsvc.client.validation.batches import Question
from authsvc.v1 import user_service_pb2 as user_pb2

if TYPE_CHECKING:
    from authsvc.v1.auth_service_pb2_grpc import AuthServiceStub
    from authsvc.v1.user_service_pb2_grpc import UserServiceStub


class ClientOptions(TypedDict, total=False):
    """The keyword arguments of AsyncClient."""

    api_key: str | None
    max_staleness: timedelta | float
    stale_if_error: timedelta | float
    cache_size: int
    connections: int
    ca: str | Path | None
    cert: str | Path | None
    key: str | Path | None
    insecure: bool
    clock: Clock | None


class ThreadedClient(AsyncClient):
    """An AsyncClient on a background thread, called from others: what the cache answers needs no change of thread."""

    def __init__(self, target: str, **options: Unpack[ClientOptions]) -> None:
        super().__init__(target, **options)
        self.thread = LoopThread(self._sessions.disconnect)

    def validate_from_thread(
        self,
        token: str,
        max_staleness: timedelta | float | None,
        stale_if_error: timedelta | float | None,
        timeout: timedelta | float | None,
    ) -> Identity:
        """Validate an access token, as `validate` does."""
        budget = self._max_staleness if max_staleness is None else to_seconds("max_staleness", max_staleness)
        stale = self._stale_if_error if stale_if_error is None else to_seconds("stale_if_error", stale_if_error)
        seconds = DEFAULT_TIMEOUT_SECONDS if timeout is None else to_seconds("timeout", timeout)
        try:
            digest = token_digest(token)
            identity = self._from_cache(token, digest, budget, stale)
            if identity is None:
                identity = self.thread.run(self._ask(token, digest, budget, stale, seconds))
        except AuthsvcError as error:
            self._note(error)
            raise
        return identity

    def call_from_thread(self, method: Method, request: Message, **options: Any) -> Message:
        """Call an RPC and return its response."""

        async def call() -> Message:
            response: Message = await self._call(method, request, **options)
            return response

        return self.thread.run(call())

    def close_from_thread(self) -> None:
        """Finish what is in flight, and end the thread."""
        self.thread.close()
        self._cache.clear()

    def _renew(self, question: Question, budget: float) -> None:
        self.thread.post(super()._renew, question, budget)


class Client:
    """The synchronous twin of AsyncClient, for threads: their calls coalesce, for one background thread sends them.

    A fork is safe at any time: it waits for the calls in flight, and both processes connect anew.

    Args:
        target: As for AsyncClient.
        options: As for AsyncClient.

    Raises:
        ValueError: An argument is out of range, or arguments do not fit together.
    """

    def __init__(self, target: str, **options: Unpack[ClientOptions]) -> None:
        self._use(ThreadedClient(target, **options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def validate(
        self,
        token: str,
        *,
        max_staleness: timedelta | float | None = None,
        stale_if_error: timedelta | float | None = None,
        timeout: timedelta | float | None = None,
    ) -> Identity:
        """Validate an access token, as AsyncClient.validate does."""
        return self._client.validate_from_thread(token, max_staleness, stale_if_error, timeout)

    def create_user(
        self,
        email: str,
        *,
        role: str = "",
        password: str | None = None,
        password_hash: str | None = None,
        request_id: str = "",
        timeout: timedelta | float | None = None,
    ) -> user_pb2.CreateUserResponse:
        """Create a user, as AsyncClient.create_user does."""
        return self._client.thread.run(
            self._client.create_user(
                email,
                role=role,
                password=password,
                password_hash=password_hash,
                request_id=request_id,
                timeout=timeout,
            )
        )

    def forget(self, token: str) -> None:
        """Drop what is stored of a token, for instance after a logout elsewhere."""
        self._client.forget(token)

    def stats(self) -> Stats:
        """Return what the client has counted."""
        return self._client.stats()

    def close(self) -> None:
        """Finish what is in flight, close the channels and end the thread; then the client cannot be used."""
        self._client.close_from_thread()

    def _use(self, client: ThreadedClient) -> None:
        self._client = client
        self.auth: AuthServiceStub = cast("AuthServiceStub", Stub(AUTH_METHODS, self._client.call_from_thread))
        self.users: UserServiceStub = cast("UserServiceStub", Stub(USER_METHODS, self._client.call_from_thread))
        forks.prepare(self._client.thread)
        # At the end of the interpreter too, while the thread still runs.
        weakref.finalize(self, self._client.thread.close)
