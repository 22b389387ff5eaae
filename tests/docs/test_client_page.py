"""Every example of docs/client.md runs, against a running service."""

import asyncio
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import grpc
import pytest
from django.conf import settings as django_settings
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path as django_path
from fastapi import FastAPI

from authsvc.client import current_identity
from tests.client.web import send, serve_asgi, serve_wsgi
from tests.e2e.process import environment
from tests.engines.process import free_port
from tests.support import WITNESS, Client

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "client.md").read_text()
README = (ROOT / "README.md").read_text()


def examples() -> Iterator[tuple[str, str]]:
    """Each example, with the heading that it is below."""
    for section in PAGE.split("\n## ")[1:]:
        for code in re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            yield section.partition("\n")[0], code


EXAMPLES = list(examples())


def example(heading: str, word: str = "") -> str:
    """Return the one example below a heading that has a word in it."""
    [code] = [code for above, code in EXAMPLES if above.startswith(heading) and word in code]
    return code


class Page:
    """The page, for a service.

    Args:
        service: A client of it.
    """

    def __init__(self, service: Client) -> None:
        self._service = service

    def run(self, *codes: str) -> dict[str, Any]:
        """Run examples as one module, and return its names."""
        names: dict[str, Any] = {"__name__": "example"}
        for code in codes:
            compiled = compile(code.replace("auth.internal:50051", self._service.address), "docs/client.md", "exec")
            exec(compiled, names)  # noqa: S102 - the page is the project's own
        return names

    async def bearer(self, role: str) -> str:
        email = f"{role}@example.com"
        await self._service.create_user(email, role=role)
        return f"Authorization: Bearer {await self._service.access_token(email)}"


@pytest.fixture
def page(client: Client, monkeypatch: pytest.MonkeyPatch) -> Page:
    key = f"ask_{secrets.token_urlsafe(32)}"
    WITNESS.hide(key)
    monkeypatch.setenv("AUTHSVC_API_KEY", key)
    return Page(client)


async def test_the_readmes_example(page: Page, client: Client) -> None:
    [code] = re.findall(r"^## A backend\n.*?^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    user = await client.create_user()
    names = page.run(code.replace("127.0.0.1:50051", client.address))
    async with names["client"]:
        assert (await names["who"](await client.access_token())).user_id == user.user_id


def test_each_example_has_a_test_here() -> None:
    assert len(EXAMPLES) == 12


async def test_validate(page: Page, client: Client) -> None:
    describe = page.run(example("Validate", "async def"))["describe"]
    user = await client.create_user()
    token = await client.access_token()
    assert await describe(token) == f"200 {user.user_id} user"
    assert await describe("garbage") == "401 MALFORMED"


async def test_validate_from_threads(page: Page, client: Client) -> None:
    names = page.run(example("Validate", "client = Client("))
    user = await client.create_user()
    token = await client.access_token()
    assert await asyncio.to_thread(names["user_id_of"], token) == user.user_id
    await asyncio.to_thread(names["client"].close)


async def test_an_outage_is_a_503(page: Page, client: Client) -> None:
    describe = page.run(example("Validate", "async def").replace("auth.internal:50051", "127.0.0.1:1"))["describe"]
    assert (await describe("token")).startswith("503")


async def test_middleware(page: Page) -> None:
    app = page.run(example("Starlette", "FastAPI()"), example("Starlette", "CORSMiddleware"))["app"]
    with serve_asgi(app) as address:
        assert (await send(address, "/me")).status == 401
        assert len((await send(address, "/me", await page.bearer("user"))).body) > 10
        assert (await send(address, "/openapi.json")).status == 200
        origin = "Origin: https://web.example.com"
        refused = await send(address, "/me", origin)
        assert (refused.status, "access-control-allow-origin" in refused.headers) == (401, True)


async def test_dependencies(page: Page) -> None:
    app: FastAPI = page.run(example("FastAPI, route by route"))["app"]
    user, admin = await page.bearer("user"), await page.bearer("admin")
    with serve_asgi(app) as address:
        assert (await send(address, "/me")).status == 401
        assert (await send(address, "/me", user)).status == 200
        assert (await send(address, "/things/a", user, method="DELETE")).status == 403
        assert "deleted a" in (await send(address, "/things/a", admin, method="DELETE")).body


async def test_flask(page: Page) -> None:
    names = page.run(example("Flask"))
    user = await page.bearer("user")
    with serve_wsgi(names["app"]) as address:
        assert (await send(address, "/me")).status == 401
        assert (await send(address, "/me", user)).status == 200
        assert (await send(address, "/healthz")).status == 404
    await asyncio.to_thread(names["client"].close)


async def test_django(page: Page) -> None:
    def me(request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.META["authsvc.identity"].role)

    if not django_settings.configured:
        django_settings.configure()
        django.setup(set_prefix=False)
    user = await page.bearer("user")
    with override_settings(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=(django_path("me", me),)):
        names = page.run(example("Django"))
        with serve_wsgi(names["application"]) as address:
            assert (await send(address, "/me")).status == 401
            assert (await send(address, "/me", user)).body == "user"
            assert (await send(address, "/healthz")).status == 404
    await asyncio.to_thread(names["client"].close)


def handlers(behaviour: Callable[[bytes, Any], Any]) -> Any:
    methods: dict[str, Any] = {"Me": grpc.unary_unary_rpc_method_handler(behaviour)}
    return grpc.method_handlers_generic_handler("example.Notes", methods)


async def call_me(server: Any, port: int, header: str) -> list[object]:
    """Call without and with a token, and return code and response."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        rpc: Any = channel.unary_unary("/example.Notes/Me")
        with pytest.raises(grpc.RpcError) as refused:
            await asyncio.to_thread(rpc, b"")
        metadata = (("authorization", header.removeprefix("Authorization: ")),)
        refusal: Any = refused.value
        return [refusal.code(), await asyncio.to_thread(rpc, b"", metadata=metadata)]


async def test_grpc_aio(page: Page, port: int) -> None:
    audit = page.run(example("In all of them"))["audit"]

    async def me(request: bytes, context: object) -> bytes:
        return str(audit("read")).encode()

    server: grpc.aio.Server = page.run(example("gRPC servers", "grpc.aio"))["make_server"](port)
    server.add_generic_rpc_handlers([handlers(me)])
    await server.start()
    code, response = await call_me(server, port, await page.bearer("user"))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert isinstance(response, bytes)
    assert response.endswith(b": read")
    assert response != b"nobody: read"
    assert audit("read") == "nobody: read"
    await server.stop(None)


async def test_grpc_with_threads(page: Page, port: int) -> None:
    def me(request: bytes, context: object) -> bytes:
        identity = current_identity.get()
        return identity.role.encode() if identity else b""

    server: grpc.Server = page.run(example("gRPC servers", "ThreadPoolExecutor"))["make_server"](port)
    server.add_generic_rpc_handlers([handlers(me)])
    server.start()
    assert await call_me(server, port, await page.bearer("user")) == [grpc.StatusCode.UNAUTHENTICATED, b"user"]
    await asyncio.to_thread(server.stop(None).wait)


@pytest.fixture
def port() -> int:
    return free_port()


def test_tests_of_a_backend(tmp_path: Path) -> None:
    """As another project runs them: the fixture comes from the installed package, and runs `authsvc dev`."""
    fake, real = example("Tests", "FakeClient"), example("Tests", "authsvc_dev")
    (tmp_path / "test_fake.py").write_text(fake)
    (tmp_path / "test_real.py").write_text(real)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment(AUTHSVC_ISSUER="not the fixture's"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    WITNESS.add_log(done.stdout + done.stderr)
