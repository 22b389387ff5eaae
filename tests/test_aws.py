"""The peers that the service connects to: certificates are checked, and credentials never hold a request up."""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.credentials import AioCredentialResolver
from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import web
from botocore.awsrequest import AWSPreparedRequest
from botocore.compat import HTTPHeaders
from cryptography import x509

from authsvc import aws
from authsvc.config import AwsKeys
from authsvc.errors import KeyFileError, StoreUnavailableError
from authsvc.request_context import time_limit
from authsvc.server.app import App, run_app
from authsvc.stores.dynamodb.batch_get import BatchGet
from authsvc.stores.dynamodb.client import open_client
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.tokens import aws_keys
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.e2e.certificates import Authority, Pair
from tests.e2e.process import invoke
from tests.support import PATIENT_LIMITS, WITNESS, FakeClock, connected, failure, make_settings
from tests.tcp import TcpServer
from tests.virtual_clock import jumping, now

TIMEOUTS = DynamoDBTimeouts(connect_seconds=5.0, read_seconds=5.0, max_attempts=1)
EXPIRED = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "ca"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture(autouse=True)
def _environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Any], pair: Pair | None = None) -> AsyncIterator[str]:
    """An HTTP server, with TLS where there is a certificate; its URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    context = None
    if pair is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pair.certificate, pair.key)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"{'http' if pair is None else 'https'}://localhost:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def proxying() -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy that tunnels (CONNECT), and the targets that it was asked for."""
    targets: list[str] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        assert method == "CONNECT"
        targets.append(target)
        host, _, port = target.rpartition(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(pipe(reader, up_writer), pipe(up_reader, writer))
        finally:
            up_writer.transport.abort()

    async with TcpServer(serve) as server:
        yield f"http://127.0.0.1:{server.port}", targets


async def dynamodb(request: web.Request) -> web.Response:
    """A DynamoDB without tables, in which every key that is read is missing."""
    asked = await request.json()
    if "BatchGetItem" in request.headers["X-Amz-Target"]:
        return web.json_response({"Responses": {name: [] for name in asked["RequestItems"]}, "UnprocessedKeys": {}})
    if "Describe" in request.headers["X-Amz-Target"]:
        return web.json_response({"__type": "ResourceNotFoundException"}, status=400)
    return web.json_response({"Items": []} if "Scan" in request.headers["X-Amz-Target"] else {})


LOCALHOST = x509.DNSName("localhost")


def pair_of(case: str, authority: Authority, other: Authority) -> Pair:
    match case:
        case "right":
            return authority.issue("right", names=[LOCALHOST])
        case "another name":
            return authority.issue("other", names=[x509.DNSName("somebody-else.example")])
        case "unknown CA":
            return other.issue("unknown", names=[LOCALHOST])
        case _:
            return authority.issue("expired", days=-0.5, names=[LOCALHOST])


@asynccontextmanager
async def peer(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_proxied: bool
) -> AsyncIterator[list[str]]:
    """DynamoDB's endpoint with the certificate of a case; yields the targets that the proxy was asked for."""
    for name in ("ca", "other"):
        (tmp_path / name).mkdir()
    authority = Authority(tmp_path / "ca")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
    pair = pair_of(case, authority, Authority(tmp_path / "other"))
    async with serving(dynamodb, pair) as url, proxying() as (proxy_url, targets):
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
        if is_proxied:
            monkeypatch.setenv("HTTPS_PROXY", proxy_url)
        yield targets


def aws_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "HTTPS_"))}


CASES = pytest.mark.parametrize("case", ["right", "another name", "unknown CA", "expired"])
WAYS = pytest.mark.parametrize("is_proxied", [False, True], ids=["straight", "through a proxy"])


@WAYS
@CASES
async def test_the_certificate_of_dynamodb_is_checked(
    case: str,
    is_proxied: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the typed client and by the session of the hot read."""
    async with peer(case, tmp_path, monkeypatch, is_proxied=is_proxied) as targets, open_client(TIMEOUTS) as client:
        hot_read = BatchGet(client.direct, TIMEOUTS, "users", "user_id")
        (row,) = [values["alice"] async for values in hot_read(["alice"]) if values]
        if case == "right":
            assert row is None
            assert await client.get("users", user_id="alice") is None
        else:
            assert isinstance(row, StoreUnavailableError)
            assert row.cause == "BatchGetItem: SSLError"
            with pytest.raises(StoreUnavailableError, match="GetItem: SSLError"):
                await client.get("users", user_id="alice")
        assert bool(targets) is is_proxied


@WAYS
@CASES
async def test_commands_say_what_is_wrong_with_the_certificate(
    case: str,
    is_proxied: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    signing_keys: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with peer(case, tmp_path, monkeypatch, is_proxied=is_proxied) as targets:
        settings = {
            **aws_environ(),
            "AUTHSVC_STORE": "dynamodb",
            "AUTHSVC_ISSUER": "https://auth.example.com",
            "AUTHSVC_AUDIENCE": "backends",
            "AUTHSVC_SIGNING_KEYS": str(signing_keys),
        }
        for command in (("tables", "check"), ("doctor",)):
            result = await asyncio.to_thread(invoke, *command, **settings)
            assert result.exit_code == 1, command
            assert ("auth-users" in result.output) is (case == "right"), command
            assert ("SSLError" in result.output) is (case != "right"), command
            assert ("the certificate of the endpoint" in result.output) is (case != "right"), command
            assert ("AWS_CA_BUNDLE" in result.output) is (case != "right"), command
        assert bool(targets) is is_proxied


@WAYS
@CASES
async def test_signing_keys_are_read_from_no_other_server(
    case: str,
    is_proxied: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aws_keys, "MAX_ATTEMPTS", 1)
    async with peer(case, tmp_path, monkeypatch, is_proxied=is_proxied) as targets:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSM", os.environ["AWS_ENDPOINT_URL_DYNAMODB"])
        reported = "an unreadable response" if case == "right" else "cannot be reached: SSLError"
        async with aws_keys.open_aws_keys(AwsKeys("ssm", "keys")) as store:
            with pytest.raises(KeyFileError, match=reported):
                await store.read()
        assert bool(targets) is is_proxied


def token_of_alice(service: App, clock: FakeClock) -> str:
    token = service.validations.tokens.issue(
        user_id="alice",
        session_id="session",
        token_generation=0,
        client_id="authsvc",
        now=clock.now,
        not_after=clock.now + timedelta(days=1),
    )
    WITNESS.hide(token.text)
    return token.text


@WAYS
@CASES
async def test_serve_trusts_no_other_dynamodb(
    case: str,
    is_proxied: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    signing_keys: Path,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_settings(signing_keys, "dynamodb")
    limits = replace(PATIENT_LIMITS, dynamodb=TIMEOUTS)
    async with (
        peer(case, tmp_path, monkeypatch, is_proxied=is_proxied),
        run_app(settings, clock, clock.monotonic, limits) as service,
        connected(service) as client,
    ):
        token = token_of_alice(service, clock)
        if case == "right":
            assert (await client.validate(token)).reason == auth_pb2.INACTIVE_REASON_USER_NOT_FOUND
        else:
            assert (await failure(client.validate(token))).reason == "STORE_UNAVAILABLE"


# Credentials


@dataclass
class Source:
    """A source of container credentials.

    Args:
        seconds_left: Of the credentials that it gives.
        delays: Seconds that each answer takes, the last one for all further answers.
        statuses: The same for its status.
    """

    seconds_left: float = 3600.0
    delays: list[float] = field(default_factory=lambda: [0.0])
    statuses: list[int] = field(default_factory=lambda: [200])
    begun: int = 0
    answered: int = 0

    async def answer(self, _: web.Request) -> web.Response:
        number = self.begun
        self.begun += 1
        await asyncio.sleep(self.delays[min(number, len(self.delays) - 1)])
        status = self.statuses[min(number, len(self.statuses) - 1)]
        self.answered += 1
        return web.json_response(
            {
                "AccessKeyId": f"key-{number}",
                "SecretAccessKey": "secret",
                "Token": "token",
                "Expiration": expiration(self.seconds_left),
            },
            status=status,
        )


@pytest.fixture
def from_container(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let credentials come from a container's source alone."""

    def use(url: str) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.replace("localhost", "127.0.0.1") + "/creds")

    return use


async def frozen(session: Any) -> Any:
    return await (await session.get_credentials()).get_frozen_credentials()


async def until_key(session: Any, access_key: str) -> None:
    """Wait until the session has these credentials."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                if (await frozen(session)).access_key == access_key:
                    return
            await asyncio.sleep(0.02)


def expiration(seconds: float = 3600.0) -> str:
    """Return a time so long from now, as AWS writes it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


async def test_a_slow_source_disturbs_nobody_while_the_credentials_are_valid(
    from_container: Callable[[str], None],
) -> None:
    """500 s left: botocore alone would let every request fetch new ones, and cancel it at the request's deadline."""
    source = Source(seconds_left=500.0, delays=[0.0, 1.5])
    async with serving(source.answer) as url:
        from_container(url)
        async with aws.open_session(poll_seconds=0.05) as session:
            for _ in range(20):
                with time_limit(0.2):
                    async with asyncio.timeout(0.2):
                        assert (await frozen(session)).access_key == "key-0"
            async with asyncio.timeout(10):
                while source.answered < 2:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.02)
            await until_key(session, "key-1")
            assert source.begun <= 3  # one refresh at a time


async def test_a_source_that_is_away_is_asked_again(
    from_container: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobotocore.utils.AioContainerMetadataFetcher.SLEEP_TIME", 0.0)
    source = Source(statuses=[404] * 6 + [200])
    async with serving(source.answer) as url:
        from_container(url)
        async with aws.open_session(poll_seconds=0.05) as session:
            with pytest.raises(StoreUnavailableError, match="CredentialRetrievalError"):
                await frozen(session)
            await until_key(session, "key-6")


@jumping
async def test_a_source_that_stays_away_is_asked_ever_less_often() -> None:
    asked: list[float] = []

    class Away(AioCredentialResolver):
        async def load_credentials(self) -> None:  # type: ignore[override]  # declared without `async`
            asked.append(now())

    refresh = asyncio.create_task(aws.RefreshedCredentials(Away([]), poll_seconds=5.0).refresh())
    await asyncio.sleep(30)
    refresh.cancel()
    assert [later - earlier for earlier, later in pairwise(asked)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0]


async def test_without_any_source_there_is_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with aws.open_session() as session:
        with pytest.raises(StoreUnavailableError, match="no AWS credentials are configured"):
            await frozen(session)


STS_ERROR = """<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>InvalidIdentityToken</Code><Message>No such provider: eyJsecret</Message></Error></ErrorResponse>"""
STS_ANSWER = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>key-of-role</AccessKeyId>
<SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken>
<Expiration>{expiration}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


@pytest.fixture
def web_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a web identity")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/auth")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))


@pytest.mark.usefixtures("web_identity")
async def test_a_refusal_of_sts_is_an_outage_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    is_good = False

    async def sts(_: web.Request) -> web.Response:
        if is_good:
            return web.Response(text=STS_ANSWER.format(expiration=expiration()), content_type="text/xml")
        return web.Response(status=400, text=STS_ERROR, content_type="text/xml")

    async with serving(sts) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        async with aws.open_session(poll_seconds=0.05) as session:
            with pytest.raises(
                StoreUnavailableError, match="AssumeRoleWithWebIdentity: InvalidIdentityToken"
            ) as reported:
                await frozen(session)
            assert "eyJ" not in reported.value.cause
            is_good = True
            await until_key(session, "key-of-role")


@pytest.mark.parametrize(
    ("hours", "reported"),
    [
        (3, ": this host's clock is wrong, 3:00:00 slow by the server's"),
        (-49.5, ": this host's clock is wrong, 2 days, 1:30:00 fast by the server's"),
        (0.01, ""),
        (-0.01, ""),
    ],
)
def test_a_wrong_clock_is_named_where_a_signature_is_refused(hours: float, reported: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)
    code = "InvalidSignatureException"
    assert aws.describe_refusal(code, {"date": date}) == code + reported


@pytest.mark.parametrize(
    "headers", [{}, {"date": ""}, {"date": "yesterday"}, {"date": "Fri, 99 Nov 2026 01:00:00 GMT"}]
)
def test_a_date_that_cannot_be_read_says_nothing_of_the_clock(headers: dict[str, str]) -> None:
    assert aws.describe_refusal("SignatureDoesNotMatch", headers) == "SignatureDoesNotMatch"
    assert aws.parse_date(headers) is None


def test_a_date_without_a_zone_is_in_utc() -> None:
    date = {"date": "Fri, 27 Nov 2026 01:00:00 -0000"}
    assert aws.parse_date(date) == datetime(2026, 11, 27, 1, tzinfo=UTC)


@pytest.mark.usefixtures("web_identity")
async def test_a_wrong_clock_is_named_where_sts_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sts(_: web.Request) -> web.Response:
        date = format_datetime(datetime.now(UTC) + timedelta(hours=3), usegmt=True)
        text = STS_ERROR.replace("InvalidIdentityToken", "SignatureDoesNotMatch")
        return web.Response(status=403, text=text, content_type="text/xml", headers={"Date": date})

    async with serving(sts) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        async with aws.open_session() as session:
            with pytest.raises(
                StoreUnavailableError, match="SignatureDoesNotMatch: this host's clock is wrong, 3:00:00"
            ):
                await frozen(session)


@pytest.mark.usefixtures("web_identity")
async def test_a_refusal_of_sts_makes_the_service_unavailable_and_is_logged(
    signing_keys: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sts(_: web.Request) -> web.Response:
        return web.Response(status=400, text=STS_ERROR, content_type="text/xml")

    position = len(WITNESS.lines.getvalue())
    settings = make_settings(signing_keys, "dynamodb")
    limits = replace(PATIENT_LIMITS, dynamodb=TIMEOUTS)
    async with serving(sts) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        async with run_app(settings, clock, clock.monotonic, limits) as service, connected(service) as client:
            refused = await failure(client.validate(token_of_alice(service, clock)))
    assert (refused.code.name, refused.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    logged = WITNESS.lines.getvalue()[position:]
    assert "AssumeRoleWithWebIdentity: InvalidIdentityToken" in logged
    assert "eyJsecret" not in logged


async def test_both_ways_to_dynamodb_sign_with_the_session_token(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[tuple[str, str | None]] = []

    async def noting(request: web.Request) -> web.Response:
        operation = request.headers["X-Amz-Target"].partition(".")[2]
        tokens.append((operation, request.headers.get("X-Amz-Security-Token")))
        return await dynamodb(request)

    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-session")
    async with serving(noting) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
        async with open_client(TIMEOUTS) as client:
            await client.get("users", user_id="alice")
            assert [rows async for rows in BatchGet(client.direct, TIMEOUTS, "users", "user_id")(["alice"])]
    assert tokens == [("GetItem", "token-of-session"), ("BatchGetItem", "token-of-session")]


async def test_both_ways_to_dynamodb_sign_with_the_refreshed_credentials(
    from_container: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(seconds_left=500.0)  # due for a refresh from the first
    signers: dict[str, str] = {}

    async def noting(request: web.Request) -> web.Response:
        operation = request.headers["X-Amz-Target"].partition(".")[2]
        signers[operation] = request.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
        return await dynamodb(request)

    async with serving(source.answer) as source_url, serving(noting) as url:
        from_container(source_url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
        async with open_client(TIMEOUTS) as client, asyncio.timeout(10):
            while set(signers.values()) != {"key-1"}:
                await client.get("users", user_id="alice")
                _ = [rows async for rows in BatchGet(client.direct, TIMEOUTS, "users", "user_id")(["alice"])]
    assert signers == {"GetItem": "key-1", "BatchGetItem": "key-1"}


@pytest.mark.usefixtures("web_identity")
@pytest.mark.parametrize("case", ["right", "another name"])
async def test_the_certificate_of_sts_is_checked(
    case: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sts(_: web.Request) -> web.Response:
        return web.Response(text=STS_ANSWER.format(expiration=expiration()), content_type="text/xml")

    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
    async with serving(sts, pair_of(case, authority, authority)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        async with aws.open_session() as session:
            if case == "right":
                assert (await frozen(session)).access_key == "key-of-role"
            else:
                with pytest.raises(StoreUnavailableError, match="SSLError"):
                    await frozen(session)


async def test_every_http_session_checks_certificates(
    from_container: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes one: DynamoDB's client, STS's, SSO's, a container's or an instance's source."""
    connecting: list[type] = []
    library: Any = AIOHTTPSession
    original = library._create_connector  # noqa: SLF001 - every connection is made by it

    def noting(self: AIOHTTPSession, proxy_url: str | None) -> Any:
        connecting.append(type(self))
        return original(self, proxy_url)

    monkeypatch.setattr(AIOHTTPSession, "_create_connector", noting)
    async with serving(Source().answer) as url:
        from_container(url)
        for service in ("DYNAMODB", "STS", "SSM", "SECRETS_MANAGER"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", url)
        async with aws.open_session() as session:
            async with session.client("dynamodb", region_name="eu-west-1") as client:
                await client.list_tables()
            async with session.client("sts", region_name="eu-west-1") as client:
                with contextlib.suppress(Exception):
                    await client.get_caller_identity()
            async with session.client("ssm", region_name="eu-west-1") as ssm:
                await ssm.get_parameter(Name="x")
            async with aws.http_session(url, 5.0, 5.0, 10) as http:
                await http.send(AWSPreparedRequest("GET", url, HTTPHeaders(), b"", stream_output=False))  # type: ignore[arg-type]  # the stubs name another class
            async with session.client("secretsmanager", region_name="eu-west-1") as secrets_manager:
                await secrets_manager.get_secret_value(SecretId="x")
    assert len(connecting) >= 6
    assert set(connecting) == {aws.CheckingHttpSession}


async def test_instance_credentials_that_come_late_are_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance whose metadata service answers 404 at first."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    is_there = False

    async def imds(request: web.Request) -> web.Response:
        if not is_there:
            return web.Response(status=404)
        if request.method == "PUT":
            return web.Response(text="token-of-imds")
        if request.path.endswith("/auth-role"):
            document = {
                "Code": "Success",
                "AccessKeyId": "key-of-instance",
                "SecretAccessKey": "secret",
                "Token": "token",
                "Expiration": expiration(),
            }
            return web.json_response(document)
        return web.Response(text="auth-role")

    async with serving(imds) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        async with aws.open_session(poll_seconds=0.05) as session:
            with pytest.raises(StoreUnavailableError, match="no AWS credentials are configured"):
                await frozen(session)
            is_there = True
            await until_key(session, "key-of-instance")
