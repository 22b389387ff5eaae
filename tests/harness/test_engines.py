import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import aioboto3
import pytest

from tests import engines
from tests.engines import Capability, Engine, EngineUnavailableError, require_or_skip
from tests.engines.external import VARIABLE
from tests.engines.installs import installed, run_installer
from tests.engines.process import ServerProcess, free_port

SESSION = aioboto3.Session()


def test_an_engine_is_installed_once(tmp_path: Path) -> None:
    both_install = threading.Barrier(2)
    installs: list[Path] = []

    def install(home: Path) -> None:
        installs.append(home)
        with suppress(threading.BrokenBarrierError):
            both_install.wait(0.2)

    with ThreadPoolExecutor() as threads:
        homes = list(threads.map(lambda _: installed("engine-1", install, tmp_path), range(2)))
    assert len(installs) == 1
    assert homes == [tmp_path / "engine-1"] * 2


def test_a_failed_install_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(home: Path) -> None:
        (home / "half").touch()
        raise EngineUnavailableError("no network")

    with pytest.raises(EngineUnavailableError):
        installed("engine-1", fail, tmp_path)
    assert not list(tmp_path.glob("*engine-1*/"))
    assert installed("engine-1", lambda home: (home / "all").touch(), tmp_path).name == "engine-1"
    assert (tmp_path / "engine-1" / "all").exists()


def test_the_installed_engine_is_not_committed(tmp_path: Path) -> None:
    installed("engine-1", lambda _: None, tmp_path)
    assert (tmp_path / ".gitignore").read_text() == "*\n"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["no-such-tool"], "no-such-tool is not installed"),
        ([sys.executable, "-c", "raise SystemExit('no network')"], "failed: no network"),
    ],
)
def test_a_failing_installer_makes_the_engine_unavailable(tmp_path: Path, command: list[str], reason: str) -> None:
    with pytest.raises(EngineUnavailableError, match=reason):
        run_installer(command, tmp_path)


@pytest.mark.parametrize(
    ("ci", "name", "outcome"),
    [
        ("true", "dynoxide", pytest.fail.Exception),
        ("true", "ministack", pytest.fail.Exception),
        ("true", "external", pytest.skip.Exception),
        ("", "dynoxide", pytest.skip.Exception),
    ],
)
def test_an_absent_engine_fails_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch, ci: str, name: str, outcome: type[BaseException]
) -> None:
    def unavailable(_: str) -> None:
        raise EngineUnavailableError("no network")

    monkeypatch.setattr(engines, "launch", unavailable)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=f"{name}: no network"), require_or_skip(name):
        pass


def test_without_an_external_endpoint_its_tests_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match=VARIABLE), require_or_skip("external"):
        pass


def test_an_external_engine_is_reached_with_the_given_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "http://dynamodb.test:8000")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with require_or_skip("external") as engine:
        assert engine.client_options() == {
            "endpoint_url": "http://dynamodb.test:8000",
            "region_name": "eu-west-1",
            "aws_access_key_id": "somebody",
            "aws_secret_access_key": "test",
        }
        with pytest.raises(RuntimeError, match="do not own"):
            engine.stop()


def test_what_an_engine_lacks_is_skipped_with_the_reason() -> None:
    engine = Engine("small", "http://x", {Capability.PITR: "has no backups"})
    engine.skip_unless(Capability.CONCURRENT)
    with pytest.raises(pytest.skip.Exception, match="small: has no backups"):
        engine.skip_unless(Capability.PITR)


def test_a_server_that_ends_at_once_shows_what_it_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('bad flag')"]
    server = ServerProcess(command, port=free_port(), cwd=tmp_path, env={})
    with pytest.raises(RuntimeError, match="status 1:\nbad flag"):
        server.start()
    assert server.pid is None


@pytest.mark.parametrize("name", ["dynoxide", "ministack"])
async def test_a_stopped_engine_comes_back_on_its_port_with_its_data(name: str) -> None:
    with require_or_skip(name) as engine:
        await create(engine)
        engine.stop()
        assert not accepts(engine)
        engine.start()
        assert await tables(engine) == ["auth-unique"]
    assert not accepts(engine)


@pytest.mark.parametrize("name", ["moto", "dynoxide", "ministack"])
async def test_an_engine_starts_empty(name: str) -> None:
    for _ in range(2):
        with require_or_skip(name) as engine:
            assert await tables(engine) == []
            await create(engine)


def test_moto_is_gone_after_its_context() -> None:
    with require_or_skip("moto") as engine:
        assert accepts(engine)
    assert not accepts(engine)


async def create(engine: Engine) -> None:
    async with SESSION.client("dynamodb", **engine.client_options()) as dynamodb:
        await dynamodb.create_table(
            TableName="auth-unique",
            KeySchema=[{"AttributeName": "unique_key", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "unique_key", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )


async def tables(engine: Engine) -> list[str]:
    async with SESSION.client("dynamodb", **engine.client_options()) as dynamodb:
        return (await dynamodb.list_tables())["TableNames"]


def accepts(engine: Engine) -> bool:
    with socket.socket() as probe:
        port = int(engine.endpoint_url.rpartition(":")[2])
        return probe.connect_ex(("127.0.0.1", port)) == 0
