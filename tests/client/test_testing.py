"""What a backend's tests use instead of a service."""

import inspect
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from authsvc.client import AsyncClient, Client, InvalidTokenError, UnavailableError
from authsvc.client.testing import FakeClient, SyncFakeClient, make_identity, run_dev_service

ALICE = make_identity("alice", role="admin")


async def test_a_fake_knows_its_tokens_and_no_others() -> None:
    async with FakeClient({"token": ALICE}) as fake:
        assert isinstance(fake, AsyncClient)
        assert await fake.validate("token") is ALICE
        with pytest.raises(InvalidTokenError):
            await fake.validate("other")
        del fake.identities["token"]
        with pytest.raises(InvalidTokenError):
            await fake.validate("token", max_staleness=5, timeout=1)


async def failure(validate: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    try:
        answer = validate(*arguments, **options)
        if inspect.isawaitable(answer):
            await answer
    except Exception as error:  # noqa: BLE001 - whatever it is
        return repr(error)
    return ""


@pytest.mark.parametrize(
    "token", ["other", "rt_other", "x" * 10_000, "rt_" + "x" * 10_000, "\ud800", "", b"token", None]
)
async def test_fakes_refuse_as_the_clients_do(backend: AsyncClient, token: Any) -> None:
    fake = FakeClient({"token": ALICE})
    refused = await failure(backend.validate, token)
    assert await failure(fake.validate, token) == refused != ""
    with SyncFakeClient({"token": ALICE}) as sync:
        assert await failure(sync.validate, token) == refused
        assert sync.stats().errors == fake.stats().errors == backend.stats().errors


@pytest.mark.parametrize("option", ["max_staleness", "stale_if_error", "timeout"])
async def test_fakes_check_their_arguments(option: str) -> None:
    with SyncFakeClient({"token": ALICE}) as sync:
        for fake in (FakeClient({"token": ALICE}), sync):
            assert f"{option} must be zero or more" in await failure(fake.validate, "token", **{option: -1})


async def test_a_fake_that_is_closed_cannot_be_used() -> None:
    fake, sync = FakeClient({"token": ALICE}), SyncFakeClient({"token": ALICE})
    await fake.close()
    sync.close()
    for each in (fake, sync):
        assert await failure(each.validate, "token") == repr(RuntimeError("the client is closed"))


async def test_an_outage_says_nothing_about_any_token() -> None:
    fake = FakeClient({"token": ALICE})
    with fake.outage(retry_delay=timedelta(seconds=7)):
        for token in ("token", "other"):
            with pytest.raises(UnavailableError) as caught:
                await fake.validate(token)
            assert caught.value.retry_delay == timedelta(seconds=7)
    assert await fake.validate("token") is ALICE


async def test_an_outage_within_the_budget_is_degraded() -> None:
    fake = FakeClient({"token": ALICE}, stale_if_error=timedelta(minutes=5))
    assert not (await fake.validate("token")).degraded
    with fake.outage():
        assert (await fake.validate("token")).degraded
        for token, budget in (("token", 0), ("other", 300)):
            with pytest.raises(UnavailableError):
                await fake.validate(token, stale_if_error=budget)


def test_the_synchronous_fake_does_the_same() -> None:
    with SyncFakeClient({"token": ALICE}, stale_if_error=60) as fake:
        assert isinstance(fake, Client)
        assert fake.validate("token") is ALICE
        with fake.outage():
            assert fake.validate("token").degraded
            with pytest.raises(UnavailableError):
                fake.validate("token", stale_if_error=0)
        with pytest.raises(InvalidTokenError):
            fake.validate("other")
        fake.identities["other"] = make_identity("bob")
        assert fake.validate("other").user_id == "bob"
        assert fake.stats().stale_answers == 1
        fake.forget("token")


def test_a_service_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho starting; echo 'error: pip install authsvc[server]' >&2; exit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", os.fspath(program))
    with pytest.raises(RuntimeError, match=r"did not start: error: pip install authsvc\[server\]"), run_dev_service():
        pass


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "AWS_ENDPOINT_URL", "AUTHSVC_STORE"])
def test_the_backends_environment_does_not_configure_the_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nenv >&2; exit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", os.fspath(program))
    monkeypatch.setenv(name, "of the backend")
    with pytest.raises(RuntimeError, match="AUTHSVC_LISTEN=") as caught, run_dev_service():
        pass
    assert "of the backend" not in str(caught.value)
