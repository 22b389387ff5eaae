"""Signing keys in AWS, with real processes: operators at once, and workers that follow the keys through an outage."""

import json
import signal
import subprocess
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.e2e.process import AUTHSVC, GIVE_UP_SECONDS, environment, invoke, poll
from tests.engines import Engine
from tests.support import WITNESS

OPERATORS = 3


@pytest.fixture
def environ(ministack: Engine) -> dict[str, str]:
    urls = dict.fromkeys(("AWS_ENDPOINT_URL_SSM", "AWS_ENDPOINT_URL_SECRETS_MANAGER"), ministack.endpoint_url)
    return {**ministack.environ(), **urls}


def listed(environ: dict[str, str], *arguments: str) -> dict[str, str]:
    """Return the status of each key that a command prints, by its id."""
    done = invoke("keys", *arguments, **environ)
    assert done.exit_code == 0, done.stderr
    return parsed(done.stdout)


def parsed(output: str) -> dict[str, str]:
    return {kid: status for kid, _, status, *_ in (line.split("\t") for line in output.splitlines())}


@pytest.mark.parametrize("service", ["ssm", "secretsmanager"])
def test_operators_at_once_lose_no_key(service: str, environ: dict[str, str]) -> None:
    """Several rotate while one removes the key that signs."""
    location = f"{service}:keys-{uuid.uuid4().hex}"
    leaked, following = listed(environ, "generate", location)
    commands = [("rotate", location)] * OPERATORS + [("remove", location, leaked)]
    processes = [
        subprocess.Popen(
            [AUTHSVC, "keys", *command],
            env=environment(**environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    results = [process.communicate(timeout=GIVE_UP_SECONDS) for process in processes]
    for process, (_, errors) in zip(processes, results, strict=True):
        WITNESS.add_messages(errors)
        assert process.returncode == 0, errors
    printed = set().union(*(parsed(output) for output, _ in results))
    kept = listed(environ, "list", location)
    assert kept.keys() == printed - {leaked}
    assert following in kept
    assert list(kept.values()).count("signing") == 1


def test_workers_follow_the_keys_through_an_outage(
    ministack: Engine, environ: dict[str, str], start: Start, tmp_path: Path
) -> None:
    location = f"ssm:/keys/{uuid.uuid4().hex}"
    settings = {
        **environ,
        "AUTHSVC_STORE": f"sqlite:{tmp_path / 'authsvc.db'}",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": location,
        "AUTHSVC_WORKERS": "2",
        "AUTHSVC_HTTP_LISTEN": "127.0.0.1:0",
        "AUTHSVC_LOG_FORMAT": "json",
    }
    assert invoke("tables", "create", **settings).exit_code == 0
    refused = start("serve", **settings)
    assert refused.wait() == 1
    assert refused.log.splitlines()[-1] == (
        f"error: {location}: no such parameter in us-east-1; create it: authsvc keys generate {location};"
        " or correct AWS_REGION"
    )
    before = listed(environ, "generate", location)
    serve = start("serve", **settings)

    def lines(event: str) -> list[dict[str, Any]]:
        found = (json.loads(line) for line in serve.log.splitlines() if line.startswith("{"))
        return [line for line in found if line["event"] == event]

    serve.wait_for(lambda: len(lines("serving")) == 2, "served with both workers")
    (listening,) = (line for line in lines("listening") if line.get("http_address"))

    def published() -> list[str]:
        url = f"http://{listening['http_address']}/.well-known/jwks.json"
        with urllib.request.urlopen(url, timeout=GIVE_UP_SECONDS) as response:
            return [key["kid"] for key in json.load(response)["keys"]]

    def logged_by_all(event: str) -> Callable[[], bool]:
        """By the parent and both workers."""
        seen = len(lines(event))
        return lambda: len(lines(event)) >= seen + 3

    assert published() == list(before)
    after = listed(environ, "rotate", location)
    reloaded = logged_by_all("keys_reloaded")
    serve.send(signal.SIGHUP)
    serve.wait_for(reloaded, "read the rotated keys at once")
    assert poll(lambda: published() == list(after), "published the rotated keys")
    ministack.stop()
    try:
        failed = logged_by_all("keys_not_reloaded")
        serve.send(signal.SIGHUP)
        serve.wait_for(failed, "said that it cannot read the keys")
        assert published() == list(after)
    finally:
        ministack.start()
    reloaded = logged_by_all("keys_reloaded")
    serve.send(signal.SIGHUP)
    serve.wait_for(reloaded, "read the keys again")
    assert serve.end() == 0
