"""`authsvc serve` as a process: TLS, health, reflection, and an orderly end."""

import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from authsvc.v1 import auth_service_pb2 as auth_pb2
from authsvc.v1 import auth_service_pb2_grpc as auth_grpc
from tests.e2e.certificates import Authority, Pair
from tests.e2e.conftest import Start
from tests.e2e.process import AUTHSVC, GIVE_UP_SECONDS, Process, environment, invoke, patiently, poll, started
from tests.engines import Engine, require_or_skip
from tests.faults import Hang, proxy_in_thread
from tests.support import PASSWORD, WITNESS, failure_of

# Building grpcurl takes minutes, once.
pytestmark = pytest.mark.timeout(60, func_only=True)

SERVICES = ("authsvc.v1.AuthService", "authsvc.v1.UserService", "envoy.service.auth.v3.Authorization")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
EMAIL = "alice@example.com"


@pytest.fixture
def settings(tmp_path: Path, signing_keys: Path) -> dict[str, str]:
    """A complete set, on SQLite."""
    return {
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
    }


@pytest.fixture
def store(settings: dict[str, str]) -> dict[str, str]:
    """The settings, of a store that is ready."""
    create_store(settings)
    return settings


def create_store(settings: dict[str, str]) -> None:
    assert invoke("tables", "create", **settings).exit_code == 0
    created = invoke("users", "create", "--email", EMAIL, stdin=PASSWORD, **settings)
    assert created.exit_code == 0, created.stderr


def on_engine(settings: dict[str, str], engine: Engine, endpoint_url: str = "") -> dict[str, str]:
    return {
        **settings,
        **engine.environ(),
        "AUTHSVC_STORE": "dynamodb",
        "AWS_ENDPOINT_URL_DYNAMODB": endpoint_url or engine.endpoint_url,
    }


def address_of(serve: Process) -> str:
    """Wait until it listens, and return where."""
    match = serve.wait_for(lambda: re.search(r'"address": "([^"]+)"', serve.log), "listened")
    assert match
    return match[1]


def health_of(channel: grpc.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    stub: Any = health_pb2_grpc.HealthStub(channel)
    status: int = stub.Check(request, timeout=GIVE_UP_SECONDS).status
    return status


@contextmanager
def serving(serve: Process) -> Iterator[grpc.Channel]:
    """Wait until it serves, and return a channel."""
    with grpc.insecure_channel(address_of(serve)) as channel:
        poll(lambda: health_of(channel) == SERVING, "served")
        yield channel


def log_in(channel: grpc.Channel) -> auth_pb2.AuthenticateResponse:
    request = auth_pb2.AuthenticateRequest(email=EMAIL, password=PASSWORD)
    response = patiently(lambda: auth_grpc.AuthServiceStub(channel).Authenticate(request, wait_for_ready=True))
    WITNESS.hide_fields(response)
    return response


def is_refused(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=GIVE_UP_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # the port was closed at that very moment
        return False
    return False


def is_healthy(http_address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{http_address}/healthz", timeout=GIVE_UP_SECONDS):
            return True
    except OSError:
        return False


# Start


def test_standard_files_may_be_closed(store: dict[str, str], tmp_path: Path) -> None:
    """As some daemons leave them; libuv aborts a process that closes a connection with one of their numbers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environ = environment(**{**store, "AUTHSVC_HTTP_LISTEN": address})
    command = f"exec {AUTHSVC} serve <&- >&- 2>&-"
    with started("-c", command, program="/bin/bash", cwd=tmp_path, environ=environ) as serve:
        for _ in range(3):
            serve.wait_for(lambda: is_healthy(address), "served")
        assert serve.end() == 0


def test_names_every_problem_at_once_and_ends(start: Start) -> None:
    serve = start("serve", AUTHSVC_LISTEN="0.0.0.0:0")
    assert serve.wait() == 1
    lines = serve.log.splitlines()
    assert all(line.startswith("error: AUTHSVC_") for line in lines)
    named = [line.split(":")[1].strip() for line in lines]
    assert named == [
        "AUTHSVC_STORE",
        "AUTHSVC_ISSUER",
        "AUTHSVC_AUDIENCE",
        "AUTHSVC_SIGNING_KEYS",
        "AUTHSVC_LISTEN",
        "AUTHSVC_LISTEN",
    ]


# TLS


def with_tls(settings: dict[str, str], server: Pair, client_ca: Path | None = None) -> dict[str, str]:
    return {
        **settings,
        "AUTHSVC_TLS_CERT": str(server.certificate),
        "AUTHSVC_TLS_KEY": str(server.key),
        "AUTHSVC_TLS_CLIENT_CA": str(client_ca or ""),
    }


def credentials(authority: Authority, client: Pair | None = None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(),
        client.key.read_bytes() if client else None,
        client.certificate.read_bytes() if client else None,
    )


def handshake(address: str, authority: Authority, version: ssl.TLSVersion) -> str | None:
    """Return the version that was agreed on."""
    context = ssl.create_default_context(cafile=authority.certificate)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # or OpenSSL itself would refuse the old versions
    context.minimum_version = context.maximum_version = version
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=GIVE_UP_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        return secured.version()


def test_tls_keeps_plain_text_out(start: Start, store: dict[str, str], authority: Authority) -> None:
    address = address_of(start("serve", **with_tls(store, authority.issue("server"))))
    with grpc.secure_channel(address, credentials(authority)) as channel:
        assert log_in(channel).user.email == EMAIL
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
        auth_grpc.AuthServiceStub(channel).GetJwks(auth_pb2.GetJwksRequest(), timeout=GIVE_UP_SECONDS)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_tls_before_1_2_is_refused(start: Start, store: dict[str, str], authority: Authority) -> None:
    """ASVS-12.1.1, ASVS-12.3.1."""
    address = address_of(start("serve", **with_tls(store, authority.issue("server"))))
    assert handshake(address, authority, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert handshake(address, authority, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1):
        # The client has said its hello, and the server has hung up.
        with pytest.raises(ssl.SSLError, match=r"EOF|ALERT_PROTOCOL_VERSION"):
            handshake(address, authority, version)


def test_a_client_ca_lets_in_its_own_clients_alone(
    start: Start, store: dict[str, str], authority: Authority, tmp_path: Path
) -> None:
    unknown = Authority(tmp_path).issue("client")
    server = authority.issue("server")
    address = address_of(start("serve", **with_tls(store, server, authority.certificate)))
    with grpc.secure_channel(address, credentials(authority, authority.issue("client"))) as channel:
        assert log_in(channel).user.email == EMAIL
    for client in (None, unknown):
        with (
            grpc.secure_channel(address, credentials(authority, client)) as channel,
            pytest.raises(grpc.RpcError) as refused,
        ):
            auth_grpc.AuthServiceStub(channel).GetJwks(auth_pb2.GetJwksRequest(), timeout=GIVE_UP_SECONDS)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


# Health


def test_health_waits_for_the_stores_first_answer_and_outlives_its_last(start: Start, settings: dict[str, str]) -> None:
    with require_or_skip("dynoxide") as engine:
        on_it = on_engine(settings, engine)
        create_store(on_it)
        engine.stop()
        serve = start("serve", **on_it)
        with grpc.insecure_channel(address_of(serve)) as channel:
            serve.wait_for(lambda: "waiting_for_store" in serve.log, "missed the store")
            assert [health_of(channel, name) for name in ("", *SERVICES)] == [NOT_SERVING] * 4
            engine.start()
            poll(lambda: health_of(channel) == SERVING, "served")
            assert [health_of(channel, name) for name in ("", *SERVICES)] == [SERVING] * 4
            assert log_in(channel).user.email == EMAIL
            engine.stop()
            with pytest.raises(grpc.RpcError) as failed:
                log_in(channel)
            assert failure_of(failed.value).reason == "STORE_UNAVAILABLE"  # type: ignore[arg-type]
            assert [health_of(channel, name) for name in ("", *SERVICES)] == [SERVING] * 4
        assert serve.end() == 0


def test_health_waits_for_tables_too(start: Start, settings: dict[str, str]) -> None:
    serve = start("serve", **settings)
    with grpc.insecure_channel(address_of(serve)) as channel:
        serve.wait_for(lambda: "no such table" in serve.log, "missed the tables")
        assert health_of(channel) == NOT_SERVING
        create_store(settings)
        poll(lambda: health_of(channel) == SERVING, "served")


def test_a_table_that_is_not_what_it_must_be_is_waited_for(
    start: Start, settings: dict[str, str], dynoxide: Engine, table_prefix: str
) -> None:
    client: Any = boto3.client("dynamodb", **dynoxide.client_options())
    client.create_table(
        TableName=f"{table_prefix}users",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    settings["AUTHSVC_TABLE_PREFIX"] = table_prefix
    serve = start("serve", **on_engine(settings, dynoxide))
    with grpc.insecure_channel(address_of(serve)) as channel:
        serve.wait_for(lambda: "DynamoDB refuses a request" in serve.log, "missed its table")
        assert health_of(channel) == NOT_SERVING
        client.delete_table(TableName=f"{table_prefix}users")
        create_store(on_engine(settings, dynoxide))
        poll(lambda: health_of(channel) == SERVING, "served")
    assert serve.end() == 0


@contextmanager
def instance_metadata(is_there: threading.Event) -> Iterator[str]:
    """An instance's source of credentials, which answers 404 until it is there."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._answer("token-of-imds")

        def do_GET(self) -> None:
            keys = {"AccessKeyId": "test", "SecretAccessKey": "test", "Token": "token-of-role"}
            credentials = {"Code": "Success", **keys, "Expiration": "2099-01-01T00:00:00Z"}
            self._answer(json.dumps(credentials) if self.path.endswith("/auth-role") else "auth-role")

        def _answer(self, text: str) -> None:
            self.send_response(200 if is_there.is_set() else 404)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_it_serves_once_the_source_of_credentials_answers(
    start: Start, settings: dict[str, str], dynoxide: Engine, table_prefix: str
) -> None:
    settings["AUTHSVC_TABLE_PREFIX"] = table_prefix
    create_store(on_engine(settings, dynoxide))
    environ = on_engine(settings, dynoxide)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del environ[name]
    is_there = threading.Event()
    with instance_metadata(is_there) as url:
        serve = start("serve", **environ, AWS_EC2_METADATA_SERVICE_ENDPOINT=url)
        with grpc.insecure_channel(address_of(serve)) as channel:
            serve.wait_for(lambda: "no AWS credentials are configured" in serve.log, "found no credentials")
            assert health_of(channel) == NOT_SERVING
        is_there.set()
        with serving(serve) as channel:
            assert log_in(channel).user.email == EMAIL


# Reflection


def ask(grpcurl: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [grpcurl, "-plaintext", *arguments], capture_output=True, text=True, timeout=GIVE_UP_SECONDS, check=False
    )


def test_reflection_describes_the_services_for_grpcurl(start: Start, store: dict[str, str], grpcurl: Path) -> None:
    address = address_of(start("serve", **store))
    listed = ask(grpcurl, address, "list").stdout.split()
    described = [ask(grpcurl, address, "describe", service).stdout for service in SERVICES]
    assert set(listed) == {
        *SERVICES,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert "rpc ValidateToken ( .authsvc.v1.ValidateTokenRequest )" in described[0]
    assert "rpc Check ( .envoy.service.auth.v3.CheckRequest )" in described[2]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_is_served_in_both_versions(start: Start, store: dict[str, str], version: str) -> None:
    with serving(start("serve", **store)) as channel:
        reflect: Callable[..., Iterator[reflection_pb2.ServerReflectionResponse]] = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        (answer,) = reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=GIVE_UP_SECONDS)
    assert {service.name for service in answer.list_services_response.service} >= set(SERVICES)


def test_reflection_can_be_turned_off(start: Start, store: dict[str, str], grpcurl: Path) -> None:
    address = address_of(start("serve", **store, AUTHSVC_REFLECTION="false"))
    refused = ask(grpcurl, address, "list")
    assert refused.returncode != 0
    assert "does not support the reflection API" in refused.stderr


@pytest.mark.engines
def test_the_descriptor_set_stands_in_for_reflection(
    start: Start, store: dict[str, str], grpcurl: Path, tmp_path: Path
) -> None:
    address = address_of(start("serve", **store, AUTHSVC_REFLECTION="false"))
    file = tmp_path / "authsvc.binpb"
    file.write_bytes(invoke("descriptor").stdout_bytes)
    validate, log_in = "authsvc.v1.AuthService/ValidateToken", "authsvc.v1.AuthService/Authenticate"
    garbage, wrong = '{"token": "garbage"}', json.dumps({"email": EMAIL, "password": "wrong"})

    validated = ask(grpcurl, "-protoset", str(file), "-d", garbage, address, validate)
    assert json.loads(validated.stdout)["reason"] == "INACTIVE_REASON_MALFORMED"
    refused = ask(grpcurl, "-protoset", str(file), "-d", wrong, address, log_in)
    assert '"reason": "INVALID_CREDENTIALS"' in refused.stderr, "the types of error details are there"

    buf = [str(Path(sys.executable).with_name("buf")), "curl", "--schema", str(file), "--protocol", "grpc"]
    by_buf = subprocess.run(
        [*buf, "-d", garbage, f"http://{address}/{validate}"], capture_output=True, timeout=GIVE_UP_SECONDS, check=True
    )
    assert json.loads(by_buf.stdout)["reason"] == "INACTIVE_REASON_MALFORMED"


# End


@contextmanager
def held_login(
    start: Start, settings: dict[str, str], engine: Engine
) -> Iterator[tuple[Process, "Future[auth_pb2.AuthenticateResponse]", Callable[[], object]]]:
    """A service with a login under way that goes on when the last value is called."""
    with proxy_in_thread(engine.endpoint_url) as proxy, ThreadPoolExecutor(1) as pool:
        create_store(on_engine(settings, engine))
        serve = start("serve", **on_engine(settings, engine, proxy.endpoint_url))
        with serving(serve) as channel:
            log_in(channel)
            with ExitStack() as hold:
                held = hold.enter_context(proxy.fault(Hang(), operations={"PutItem"}))
                login = pool.submit(log_in, channel)
                poll(lambda: held.hits, "reached the store")
                yield serve, login, hold.close


def test_a_call_under_way_is_finished_before_the_end(
    start: Start, settings: dict[str, str], dynoxide: Engine, table_prefix: str
) -> None:
    settings["AUTHSVC_TABLE_PREFIX"] = table_prefix
    with held_login(start, settings, dynoxide) as (serve, login, let_go):
        serve.send(signal.SIGTERM)
        poll(lambda: is_refused(address_of(serve)), "closed its port")
        assert not login.done()
        let_go()
        assert login.result(GIVE_UP_SECONDS).user.email == EMAIL
        assert serve.wait() == 0
    assert json.loads(serve.log.splitlines()[-1])["event"] == "stopped"


def test_balancers_see_not_serving_before_the_end(start: Start, store: dict[str, str]) -> None:
    """Watchers get it at once; those that poll have Limits.drain_seconds for it, in which calls are still served."""
    everywhere = {"AUTHSVC_LISTEN": "0.0.0.0:0", "AUTHSVC_ALLOW_OPEN": "true", "AUTHSVC_ALLOW_PLAINTEXT": "true"}
    serve = start("serve", **{**store, **everywhere})
    with serving(serve) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        serve.send(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        assert [health_of(channel, name) for name in ("", *SERVICES)] == [NOT_SERVING] * 4
        assert auth_grpc.AuthServiceStub(channel).GetJwks(auth_pb2.GetJwksRequest()).jwks
        assert list(watch) == []
        assert serve.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_in_order_while_it_waits_for_the_store(
    start: Start, settings: dict[str, str], number: signal.Signals
) -> None:
    serve = start("serve", **settings)
    address_of(serve)
    assert serve.end(number) == 0
    assert "Traceback" not in serve.log
