"""Real servers for the frameworks, and a client that sends requests byte by byte."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
import waitress

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://{self.host}:{self.port}{path}"


@dataclass(frozen=True)
class Response:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: str


@contextmanager
def serve_asgi(app: Any, **options: Any) -> Iterator[Address]:
    """Serve an application by uvicorn, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, **options))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            # The socket listens already: connections wait until the server accepts them.
            yield Address(*listener.getsockname())
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def serve_wsgi(app: "WSGIApplication") -> Iterator[Address]:
    """Serve an application by waitress."""
    server = waitress.create_server(app, host="127.0.0.1", port=0, threads=2)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Address("127.0.0.1", server.effective_port)
    finally:
        server.trigger.pull_trigger(server.close)
        thread.join()


async def send(address: Address, target: str, *headers: str, method: str = "GET") -> Response:
    """Send a request as it is written, without chunks and keep-alive, and return the response."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    lines = [f"{method} {target} HTTP/1.0", f"Host: {address.host}", *headers, "", ""]
    writer.write("\r\n".join(lines).encode("latin-1"))
    answer = (await reader.read()).decode("latin-1")
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    status, *rest = head.split("\r\n")
    fields = (line.partition(":") for line in rest)
    return Response(int(status.split(" ")[1]), {name.lower(): value.strip() for name, _, value in fields}, body)
