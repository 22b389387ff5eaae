"""What a client has in each event loop: channels and a validator. gRPC's objects belong to the loop that made them."""

import asyncio
from collections.abc import Sequence

import grpc

from authsvc.client import forks
from authsvc.client.clock import Clock
from authsvc.client.stats import Counts
from authsvc.client.transport.channels import Channels, Endpoint, Metadata
from authsvc.client.transport.methods import AUTH_METHODS
from authsvc.client.transport.statuses import to_error
from authsvc.client.transport.traces import current_traceparent
from authsvc.client.validation.answers import to_answer, to_answers, to_request
from authsvc.client.validation.batches import Question
from authsvc.client.validation.cache import Answer, Cache
from authsvc.client.validation.validator import Validator
from authsvc.v1 import auth_service_pb2 as auth_pb2

_VALIDATE_TOKEN = AUTH_METHODS["ValidateToken"]
_BATCH_VALIDATE_TOKENS = AUTH_METHODS["BatchValidateTokens"]


class LoopSession:
    """Validates and calls in the running loop.

    Args:
        endpoint: The service.
        credentials: Metadata of each call: the API key. Secret.
        cache: Shared by the sessions of a client.
        clock: Likewise.
        counts: Likewise.

    Raises:
        ValueError: A TLS file cannot be used.
    """

    def __init__(self, endpoint: Endpoint, credentials: Metadata, cache: Cache, clock: Clock, counts: Counts) -> None:
        self.channels = Channels(endpoint, clock)
        self.validator = Validator(self._send, cache, clock, counts)
        self._credentials = credentials

    async def close(self) -> None:
        """Finish what is in flight, and close the channels."""
        await self.validator.close()
        await self.channels.close()

    async def _send(self, questions: Sequence[Question], timeout: float) -> Sequence[Answer]:
        """Ask the service: one question by ValidateToken, several by BatchValidateTokens."""
        try:
            if len(questions) == 1:
                return [await self._send_one(questions[0], timeout)]
            request = auth_pb2.BatchValidateTokensRequest(requests=map(to_request, questions))
            response = await self.channels.call(_BATCH_VALIDATE_TOKENS, request, timeout, self._credentials)
        except grpc.aio.AioRpcError as error:
            raise to_error(error) from None
        return to_answers(response, len(questions))

    async def _send_one(self, question: Question, timeout: float) -> Answer:
        traceparent = question.context.run(current_traceparent)
        trace = (("traceparent", traceparent),) if traceparent else ()
        request = to_request(question)
        return to_answer(await self.channels.call(_VALIDATE_TOKEN, request, timeout, self._credentials + trace))


class LoopSessions:
    """The sessions of a client, opened at first use.

    Args:
        endpoint: As for LoopSession.
        credentials: Likewise.
        cache: Likewise.
        clock: Likewise.
        counts: Likewise.
    """

    def __init__(self, endpoint: Endpoint, credentials: Metadata, cache: Cache, clock: Clock, counts: Counts) -> None:
        self._arguments = (endpoint, credentials, cache, clock, counts)
        self._cache = cache
        self._by_loop: dict[asyncio.AbstractEventLoop, LoopSession] = {}
        self._unusable = ""

    def current(self) -> LoopSession:
        """Return the session of the running loop.

        Raises:
            RuntimeError: The client is closed, or was in use at a fork.
        """
        loop = asyncio.get_running_loop()
        return self._by_loop.get(loop) or self._open(loop)

    async def close(self) -> None:
        """Finish what is in flight, and close every channel for good."""
        self._unusable = self._unusable or "the client is closed"
        self._cache.clear()
        await self.disconnect()

    async def disconnect(self) -> None:
        """Finish what is in flight, and close every channel; the next call opens new ones."""
        sessions, self._by_loop = self._by_loop, {}
        own = sessions.pop(asyncio.get_running_loop(), None)
        for loop, session in sessions.items():
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(session.close(), loop)
        if own is not None:
            await own.close()
        forks.unwatch(self)

    def abandon(self, reason: str) -> None:
        """Leave the channels alone, which are another process's, and refuse every call from now on.

        Args:
            reason: Text of the RuntimeError.
        """
        self._unusable = reason
        self._cache.abandon()
        forks.keep_for_ever(self._by_loop)
        self._by_loop = {}

    def require_usable(self) -> None:
        """Raise what `current` raises.

        Raises:
            RuntimeError: The client is closed, or was in use at a fork.
        """
        if self._unusable:
            raise RuntimeError(self._unusable)

    def _open(self, loop: asyncio.AbstractEventLoop) -> LoopSession:
        self.require_usable()
        for closed in [other for other in self._by_loop if other.is_closed()]:
            del self._by_loop[closed]
        session = self._by_loop[loop] = LoopSession(*self._arguments)
        forks.watch(self)
        return session
