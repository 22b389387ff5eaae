"""The client for asyncio."""

import logging
import uuid
from contextvars import Context, copy_context
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import grpc
from google.protobuf.message import Message

from authsvc.client.clock import Clock, to_seconds
from authsvc.client.errors import AuthsvcError, CallerRefusedError, InvalidFieldError, InvalidTokenError
from authsvc.client.identity import Identity
from authsvc.client.invalidation import DROP_AFTER
from authsvc.client.loop_session import LoopSessions
from authsvc.client.stats import Counts, Stats
from authsvc.client.transport.channels import Endpoint, Metadata
from authsvc.client.transport.methods import AUTH_METHODS, DEFAULT_TIMEOUT_SECONDS, USER_METHODS, Method
from authsvc.client.transport.stubs import Call, Stub
from authsvc.client.transport.target import is_loopback
from authsvc.client.transport.tls_files import TlsFiles
from authsvc.client.transport.traces import current_traceparent
from authsvc.client.validation.batches import Question
from authsvc.client.validation.cache import Cache
from authsvc.v1 import user_service_pb2 as user_pb2

if TYPE_CHECKING:
    from authsvc.v1.auth_service_pb2_grpc import AuthServiceAsyncStub
    from authsvc.v1.user_service_pb2_grpc import UserServiceAsyncStub

MAX_TOKEN_LENGTH = 8 * 1024
"""A longer text is not a token of the service, and a hundred of them would not fit into one message."""
REFUSAL_LOG_SECONDS = 10.0
"""Between two log lines that the service refuses this backend."""

_log = logging.getLogger("authsvc.client")


class AsyncClient:
    """Validates tokens and calls the service, in any event loop.

    Args:
        target: The service as gRPC names it, for instance auth.internal:50051. Names are resolved again while it runs.
        api_key: API key of this backend, as `authsvc callers` makes it; None: the service needs none, or knows this
            backend by its certificate. Secret.
        max_staleness: How old an answer of `validate` may be, in seconds where it is a number. Zero: each answer rests
            on a read that begins after the call.
        stale_if_error: How old an answer may be that stands in while the service cannot answer. Zero: none does.
        cache_size: The most identities that are kept.
        connections: To each address of the service.
        ca: PEM file of the authorities that the service's certificate is checked by; None: those that gRPC brings.
        cert: PEM file of this backend's certificate; None: it shows none.
        key: PEM file of the certificate's private key.
        insecure: Allow plain text to hosts beyond loopback. Without it they are called with TLS.
        clock: Returns the time; for tests.

    Raises:
        ValueError: An argument is out of range, or arguments do not fit together.
    """

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        max_staleness: timedelta | float = 0.0,
        stale_if_error: timedelta | float = 0.0,
        cache_size: int = 10_000,
        connections: int = 2,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        insecure: bool = False,
        clock: Clock | None = None,
    ) -> None:
        if cache_size < 1 or connections < 1:
            raise ValueError("cache_size and connections must be 1 or more")
        self._credentials = _credentials(api_key)
        self._max_staleness = to_seconds("max_staleness", max_staleness)
        self._stale_if_error = to_seconds("stale_if_error", stale_if_error)
        self._clock = clock or Clock()
        self._cache = Cache(cache_size, self._clock)
        self._counts = Counts()
        endpoint = Endpoint(target, _tls_files(target, ca, cert, key, insecure=insecure), connections)
        self._sessions = LoopSessions(endpoint, self._credentials, self._cache, self._clock, self._counts)
        self._next_refusal_log = 0.0
        self.auth: AuthServiceAsyncStub = cast("AuthServiceAsyncStub", Stub(AUTH_METHODS, self._call))
        self.users: UserServiceAsyncStub = cast("UserServiceAsyncStub", Stub(USER_METHODS, self._call))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def validate(
        self,
        token: str,
        *,
        max_staleness: timedelta | float | None = None,
        stale_if_error: timedelta | float | None = None,
        timeout: timedelta | float | None = None,
    ) -> Identity:
        """Validate an access token.

        Args:
            token: Its text. Secret.
            max_staleness: As for the client; None: the client's.
            stale_if_error: Likewise.
            timeout: How long to wait, in seconds where it is a number; None: 2.5 s.

        Returns:
            Whose token it is.

        Raises:
            InvalidTokenError: The token is invalid: answer 401.
            UnavailableError: The service cannot answer now: answer 503.
            CallerRefusedError: The service refuses this backend itself: answer 500.
            InternalError: The service failed: answer 503.
            InvalidFieldError: The token is empty.
            TypeError: The token is no str.
            ValueError: A budget or the timeout is negative or not a number.
        """
        budget = self._max_staleness if max_staleness is None else to_seconds("max_staleness", max_staleness)
        stale = self._stale_if_error if stale_if_error is None else to_seconds("stale_if_error", stale_if_error)
        seconds = DEFAULT_TIMEOUT_SECONDS if timeout is None else to_seconds("timeout", timeout)
        try:
            digest = token_digest(token)
            identity = self._from_cache(token, digest, budget, stale)
            if identity is None:
                identity = await self._ask(token, digest, budget, stale, seconds)
        except AuthsvcError as error:
            self._note(error)
            raise
        return identity

    async def create_user(
        self,
        email: str,
        *,
        role: str = "",
        password: str | None = None,
        password_hash: str | None = None,
        request_id: str = "",
        timeout: timedelta | float | None = None,
    ) -> user_pb2.CreateUserResponse:
        """Create a user. It is safe to retry with the same request_id.

        Args:
            email: Email address of the user.
            role: Empty: `user`.
            password: Secret; None, and no password_hash: the service makes a temporary one.
            password_hash: An existing hash, to import. Secret.
            request_id: Makes a retry safe for 24 hours; empty: the client makes one.
            timeout: How long to wait, in seconds where it is a number; None: 10 s.

        Returns:
            The user, and the temporary password where the service made one.

        Raises:
            AuthsvcError: The service refused, or its answer was lost.
        """
        request = user_pb2.CreateUserRequest(email=email, role=role, request_id=request_id)
        if password is not None:
            request.password = password
        if password_hash is not None:
            request.password_hash = password_hash
        return await self.users.CreateUser(request, timeout=None if timeout is None else to_seconds("timeout", timeout))

    def forget(self, token: str) -> None:
        """Drop what is stored of a token, for instance after a logout elsewhere."""
        try:
            self._cache.drop_token(token_digest(token))
        except AuthsvcError:  # nothing is stored of a text that cannot be a token
            return

    def stats(self) -> Stats:
        """Return what the client has counted."""
        return self._counts.snapshot()

    async def close(self) -> None:
        """Finish what is in flight, and close the channels of every event loop; then the client cannot be used."""
        await self._sessions.close()

    def _from_cache(self, token: str, digest: bytes, budget: float, stale: float) -> Identity | None:
        """Return the identity that the cache has within a budget; callable in every thread.

        Raises:
            InvalidTokenError: The cache has a refusal.
        """
        try:
            entry = self._cache.get(digest, budget)
        except InvalidTokenError:
            self._counts.hits += 1
            raise
        if entry is None:
            return None
        self._counts.hits += 1
        if entry.is_due:
            entry.is_due, entry.is_renewing = False, True
            self._renew(Question(token, digest, stale, Context()), budget)
        return entry.identity

    def _renew(self, question: Question, budget: float) -> None:
        self._sessions.current().validator.renew(question, budget)

    async def _ask(self, token: str, digest: bytes, budget: float, stale: float, timeout: float) -> Identity:
        self._counts.misses += 1
        question = Question(token, digest, stale, copy_context())
        return await self._sessions.current().validator.validate(question, budget, timeout)

    def _call(
        self,
        method: Method,
        request: Message,
        *,
        timeout: float | None = None,
        metadata: "grpc.aio.Metadata | Metadata | None" = None,
        **options: Any,
    ) -> Call:
        """Call an RPC: the method of the stubs."""
        if isinstance(request, user_pb2.CreateUserRequest) and not request.request_id:
            copied = user_pb2.CreateUserRequest()
            copied.CopyFrom(request)
            copied.request_id = uuid.uuid4().hex
            request = copied
        seconds = method.timeout_seconds if timeout is None else timeout
        call = self._sessions.current().channels.call(method, request, seconds, self._metadata(metadata), **options)
        drop = DROP_AFTER.get(method.name)
        if drop is not None:
            call.add_done_callback(lambda _: drop(self._cache, request))
        return Call(call, self._note)

    def _metadata(self, given: "grpc.aio.Metadata | Metadata | None") -> Metadata:
        """Return the metadata of a call. Credentials that its caller gives, for instance an admin's, take our place."""
        metadata: Metadata = tuple(given or ())
        names = {name for name, _ in metadata}
        if "authorization" not in names:
            metadata = self._credentials + metadata
        if "traceparent" not in names and (traceparent := current_traceparent()):
            metadata += (("traceparent", traceparent),)
        return metadata

    def _note(self, error: AuthsvcError) -> None:
        """Count an error; log it where the operator of this backend must act, without filling the log."""
        self._counts.errors[type(error).__name__] += 1
        now = self._clock.monotonic()
        if isinstance(error, CallerRefusedError) and now >= self._next_refusal_log:
            self._next_refusal_log = now + REFUSAL_LOG_SECONDS
            _log.error("%s (trace id %s)", error, error.trace_id or "unknown")


def token_digest(token: object) -> bytes:
    """Return the key of a token.

    Raises:
        InvalidFieldError: It is empty.
        InvalidTokenError: It cannot be a token, or cannot be sent.
        TypeError: It is no str.
    """
    if not isinstance(token, str):
        raise TypeError(f"token: a str is needed, not {type(token).__name__}")
    if 0 < len(token) <= MAX_TOKEN_LENGTH:
        try:
            return sha256(token.encode()).digest()
        except UnicodeEncodeError:  # its text holds the token, so nothing is raised in here
            pass
    if not token:
        raise InvalidFieldError("token", "is empty")
    raise InvalidTokenError(garbage_reason(token))


def garbage_reason(token: str) -> str:
    """Return what the service says of a text that is no token of it."""
    return "WRONG_TYPE" if token.startswith("rt_") else "MALFORMED"


def _tls_files(
    target: str, ca: str | Path | None, cert: str | Path | None, key: str | Path | None, *, insecure: bool
) -> TlsFiles | None:
    """Return the TLS files; None for plain text, which goes beyond loopback only where `insecure` allows it."""
    if (cert is None) != (key is None):
        raise ValueError("cert and key belong together: give both or neither")
    files = TlsFiles(*(None if path is None else Path(path) for path in (ca, cert, key)))
    if files != TlsFiles(None, None, None):
        if insecure:
            raise ValueError("insecure means plain text: leave it out, or leave out ca, cert and key")
        return files
    return None if insecure or is_loopback(target) else files


def _credentials(api_key: str | None) -> Metadata:
    if api_key is None:
        return ()
    if not api_key or not all("!" <= character <= "~" for character in api_key):
        raise ValueError("api_key must be printable ASCII without spaces, and not empty")
    return (("authorization", f"Bearer {api_key}"),)
