"""What a client has in one event loop: channels and a validator. gRPC's objects belong to the loop that made them."""

from collections.abc import Sequence

import grpc

from authsvc.client.clock import Clock
from authsvc.client.stats import Counts
from authsvc.client.transport.channels import Channels, Endpoint, Metadata
from authsvc.client.transport.methods import AUTH_METHODS
from authsvc.client.transport.statuses import to_error
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
        await self.channels.close()
        await self.validator.close()

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
        trace = (("traceparent", question.traceparent),) if question.traceparent else ()
        request = to_request(question)
        return to_answer(await self.channels.call(_VALIDATE_TOKEN, request, timeout, self._credentials + trace))
