"""The example backend under uvicorn, as its docstring starts it, with `authsvc dev`."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from authsvc.client.testing import run_dev_service
from tests.client.web import Address, send
from tests.e2e.process import environment, poll
from tests.support import WITNESS

ROOT = Path(__file__).parents[2]


@contextmanager
def backend(folder: Path, address: str) -> Iterator[Address]:
    """Run the example."""
    log = folder / "backend.log"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "examples"), "fastapi_backend:app"]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, "--port", "0"],
            cwd=folder,
            env=environment(AUTHSVC_ADDRESS=address),
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            found = poll(lambda: re.search(r"running on http://([\d.]+):(\d+)", log.read_text()), "listened")
            yield Address(found[1], int(found[2]))  # type: ignore[index] # poll returns no None
        finally:
            process.terminate()
    WITNESS.add_log(log.read_text())


async def test_the_example_backend(tmp_path: Path) -> None:
    with run_dev_service() as service:
        user, admin = service.create_user(), service.create_user(role="admin")
        WITNESS.hide(user.access_token, user.refresh_token, user.password, admin.access_token)
        with backend(tmp_path, service.address) as address:
            as_user, as_admin = (f"Authorization: Bearer {one.access_token}" for one in (user, admin))
            assert (await send(address, "/healthz")).body == '"ok"'
            assert (await send(address, "/notes")).status == 401
            assert (await send(address, "/notes", "Authorization: Bearer garbage")).status == 401
            assert (await send(address, "/notes?text=hello", as_user, method="POST")).status == 201
            assert (await send(address, "/notes", as_user)).body == '["hello"]'
            assert (await send(address, "/notes", as_admin)).body == "[]"
            assert (await send(address, "/stats", as_user)).status == 403
            stats = json.loads((await send(address, "/stats", as_admin)).body)
            assert stats["hits"] >= 2
        assert user.access_token not in repr(user)
        assert service.admin_password not in repr(service)
