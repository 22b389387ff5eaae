"""The AWS session of a process: TLS that checks certificates, and credentials refreshed in the background.

aiobotocore 2.25, which aioboto3 15.5 requires, does not check the name in a certificate, and behind a proxy it checks
nothing. aiobotocore 3.9 does; the classes below go when aioboto3 allows it. They override methods that the stubs leave
out, or declare without `async`.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from ssl import SSLContext
from typing import Any

import aioboto3
import structlog
from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioContainerProvider,
    AioCredentialResolver,
    AioCredentials,
    AioInstanceMetadataProvider,
)
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from aiobotocore.utils import AioContainerMetadataFetcher
from botocore.credentials import EnvProvider, ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import create_urllib3_context
from botocore.utils import get_environ_proxies

from authsvc.errors import WRONG_CLOCK, ConfigError, StoreUnavailableError
from authsvc.models import utc_now

CREDENTIALS_POLL_SECONDS = 5.0
"""botocore fetches new credentials when it is asked less than 15 minutes before the old ones expire."""
CREDENTIALS_RETRY_SECONDS = 0.5
CREDENTIALS_TIMEOUT_SECONDS = 30.0
"""One refresh as a whole: far more than STS, a container or an instance needs."""
CREDENTIALS_CONNECT_SECONDS = 5.0
CREDENTIALS_READ_SECONDS = 10.0
CLOCK_TOLERANCE = timedelta(minutes=1)
"""AWS refuses a signature that is five minutes old."""

_log = structlog.get_logger(__name__)


class CheckingHttpSession(AIOHTTPSession):
    """An HTTP session that checks the chain and the name of every certificate, straight and through a proxy."""

    def _get_ssl_context(self) -> SSLContext:
        context: SSLContext = create_urllib3_context()
        context.check_hostname = True
        return context

    def _setup_proxy_ssl_context(self, proxy_url: str) -> SSLContext:
        # aiobotocore turns TLS checks off where this is None.
        context: SSLContext | None = super()._setup_proxy_ssl_context(proxy_url)  # type: ignore[misc]
        return context or self._get_ssl_context()


class MetadataHttp:
    """What aiobotocore's fetchers of instance and container credentials need of an HTTP session.

    Args:
        timeout_seconds: Of each request.
        proxies: By URL scheme.
    """

    def __init__(self, timeout_seconds: float, proxies: dict[str, str] | None = None) -> None:
        self._timeout_seconds = timeout_seconds
        self._proxies = proxies

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[CheckingHttpSession]:
        """Open a session: credentials are fetched every few hours, so connections are not kept."""
        async with CheckingHttpSession(timeout=self._timeout_seconds, proxies=self._proxies) as session:
            yield session


class RefreshedCredentials(AioCredentials):
    """The process's AWS credentials, as botocore asks for them: one background task loads and refreshes them.

    A request never starts a refresh and never cancels one. While the old credentials are valid, a slow source disturbs
    no request. A source that has none yet is asked again.

    Args:
        resolver: Finds the first source that has credentials.
        poll_seconds: Between two checks whether a refresh is due.
    """

    def __init__(self, resolver: AioCredentialResolver, poll_seconds: float = CREDENTIALS_POLL_SECONDS) -> None:
        self._poll_seconds = poll_seconds
        super().__init__("", "")  # botocore signs with get_frozen_credentials alone
        self._resolver = resolver
        self._source: Any = None
        self._frozen: ReadOnlyCredentials | None = None
        self._cause = "no answer from the credential source"
        self._has_tried = asyncio.Event()

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:  # type: ignore[override]
        """Return the current credentials; wait only for the first attempt to load them.

        Raises:
            StoreUnavailableError: There are none yet.
        """
        if self._frozen is None:
            await self._has_tried.wait()
        if self._frozen is None:
            raise StoreUnavailableError(self._cause)
        return self._frozen

    async def refresh(self) -> None:
        """Load the credentials, then keep them fresh, until cancelled."""
        retry_seconds = CREDENTIALS_RETRY_SECONDS
        while True:
            is_fresh = await self._refresh_once()
            self._has_tried.set()
            await asyncio.sleep(self._poll_seconds if is_fresh else retry_seconds)
            retry_seconds = CREDENTIALS_RETRY_SECONDS if is_fresh else min(2 * retry_seconds, self._poll_seconds)

    async def _refresh_once(self) -> bool:
        try:
            async with asyncio.timeout(CREDENTIALS_TIMEOUT_SECONDS):
                if self._source is None:
                    await self._load()
                if self._source is not None:
                    self._frozen = await self._source.get_frozen_credentials()
                    return True
            cause = "no AWS credentials are configured"
        except Exception as error:  # noqa: BLE001 - a source may raise anything; none of it may end the task
            cause = f"AWS credentials: {_describe(error)}"
        if cause != self._cause:
            _log.warning("credentials_not_refreshed", cause=cause)
        self._cause = cause
        return False

    async def _load(self) -> None:
        self._source = await self._resolver.load_credentials()
        # Valid although they may be due for a refresh, which can take its time.
        self._frozen = getattr(self._source, "_frozen_credentials", None)
        if self._frozen is not None:
            self._has_tried.set()


def _describe(error: Exception) -> str:
    """Return an error's kind: its text may hold a token."""
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "unknown error")
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return f"{error.operation_name}: {describe_refusal(code, headers)}"
    return type(error).__name__


def describe_refusal(code: str, headers: Mapping[str, str]) -> str:
    """Return the code with which AWS refuses a request, and this host's clock where that is wrong.

    A signature of another time is refused, with one of many codes that all read as if the credentials were wrong.

    Args:
        code: AWS's.
        headers: Of the response, with names in lower case.
    """
    time = parse_date(headers)
    if time is None:
        return code
    difference = utc_now() - time
    if abs(difference) < CLOCK_TOLERANCE:
        return code
    minutes = round(abs(difference) / timedelta(minutes=1))
    way = "fast" if difference > timedelta() else "slow"
    return f"{code}: {WRONG_CLOCK}, {timedelta(minutes=minutes)} {way} by the server's"


def parse_date(headers: Mapping[str, str]) -> datetime | None:
    """Return the time of a response's Date header; None where it has none that can be read."""
    try:
        time = parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


class CheckingSession(AioSession):
    """A botocore session all of whose HTTP sessions check certificates, with credentials of the background task."""

    def __init__(self, poll_seconds: float) -> None:
        super().__init__()
        self.credentials = RefreshedCredentials(self._create_credential_resolver(), poll_seconds)

    async def get_credentials(self) -> RefreshedCredentials:  # type: ignore[override]
        """Return the credentials of the background task."""
        return self.credentials

    def _create_credential_resolver(self) -> AioCredentialResolver:
        resolver: AioCredentialResolver = super()._create_credential_resolver()  # type: ignore[misc]
        for provider in resolver.providers:
            _use_checking_http(provider)
        return resolver

    # Names and types are aiobotocore's; its stubs leave the method out.
    async def _create_client(self, service_name: str, *, config: Any = None, **arguments: Any) -> Any:
        """Create a client; those that fetch credentials (STS, SSO) get longer time-outs than DynamoDB's."""
        options = {} if config is None else dict(config._user_provided_options)
        connector_args = getattr(config, "connector_args", None)
        if "connect_timeout" not in options:
            options |= {"connect_timeout": CREDENTIALS_CONNECT_SECONDS, "read_timeout": CREDENTIALS_READ_SECONDS}
        checking = AioConfig(connector_args, CheckingHttpSession, **options)
        return await super()._create_client(service_name, config=checking, **arguments)  # type: ignore[misc]


def _use_checking_http(provider: Any) -> None:
    if isinstance(provider, AioContainerProvider):
        session: Any = MetadataHttp(AioContainerMetadataFetcher.TIMEOUT_SECONDS)
        provider._fetcher = AioContainerMetadataFetcher(session)  # type: ignore[attr-defined]
    elif isinstance(provider, AioInstanceMetadataProvider):
        fetcher: Any = provider._role_fetcher  # type: ignore[attr-defined]
        fetcher._session = MetadataHttp(fetcher._timeout, get_environ_proxies(fetcher.get_base_url()))


@asynccontextmanager
async def open_session(poll_seconds: float = CREDENTIALS_POLL_SECONDS) -> AsyncIterator[aioboto3.Session]:
    """Open the process's AWS session, configured by AWS's own variables and files.

    Args:
        poll_seconds: Between two checks whether the credentials are due for a refresh.

    Raises:
        ConfigError: AWS's settings are malformed.
    """
    # It logs a failed refresh with the text of the error, which may hold a token; the cause is logged here.
    logging.getLogger("aiobotocore.credentials").setLevel(logging.CRITICAL)
    try:
        EnvProvider().load()  # fails for half a pair of keys, which no waiting repairs
        checking = CheckingSession(poll_seconds)
        session = aioboto3.Session(botocore_session=checking)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError([f"AWS's settings: {error}"]) from None
    refresh = asyncio.create_task(checking.credentials.refresh())
    try:
        yield session
    finally:
        refresh.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await refresh


@asynccontextmanager
async def open_client(session: aioboto3.Session, service: str, config: AioConfig) -> AsyncIterator[Any]:
    """Open a session's client of a service.

    Raises:
        ConfigError: No region is configured, or AWS's settings are malformed.
    """
    # One name for all services; the stubs have a type for each.
    create: Any = session.client
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(create(service, region_name=region(), config=config))
        except (BotoCoreError, ValueError) as error:
            raise ConfigError([f"AWS's settings: {error}"]) from None
        yield client


def http_session(
    endpoint_url: str, connect_seconds: float, read_seconds: float, max_connections: int
) -> CheckingHttpSession:
    """Return an HTTP session of its own to a client's endpoint, with the proxy and the CA that the client has.

    Args:
        endpoint_url: The client's.
        connect_seconds: Until a connection is open.
        read_seconds: Between two packets of a response.
        max_connections: In its pool.
    """
    ca_bundle = _find_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    # Typed too narrowly by the stubs.
    options: dict[str, Any] = {"timeout": (connect_seconds, read_seconds), "verify": ca_bundle or True}
    return CheckingHttpSession(
        proxies=get_environ_proxies(endpoint_url), max_pool_connections=max_connections, **options
    )


def region() -> str:
    """Return the region: AWS_REGION, which botocore does not read, else as botocore finds it.

    Raises:
        ConfigError: No region is configured.
    """
    name = os.environ.get("AWS_REGION") or _find_variable("region")
    if not name:
        raise ConfigError(["AWS_REGION: must be set for what is kept in AWS: the DynamoDB store, signing keys"])
    return str(name)


def _find_variable(name: str) -> Any:
    """Return a setting as botocore finds it, in the environment and in AWS's files."""
    # The handlers are for clients, and take most of a session's time.
    return AioSession(include_builtin_handlers=False).get_config_variable(name)
