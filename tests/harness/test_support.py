"""The check that the whole suite rests on: a secret in any log line makes it fail (ASVS-16.2.5)."""

import logging

import pytest
import structlog

from authsvc.passwords.hashes import hash_password
from authsvc.rpc.callers import api_key_digest, new_api_key
from authsvc.telemetry import logs
from authsvc.tokens.refresh_tokens import new_refresh_token
from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.support import PASSWORD, TEST_COST, LogWitness

EMAIL = "dolores.haze@example.org"
SHAPES = {
    "an address": EMAIL,
    "an address in another script": "\u03b4@\u03c0\u03b1\u03c1\u03ac\u03b4\u03b5\u03b9\u03b3\u03bc\u03b1.gr",
    "an API key": new_api_key(),
    "its digest": api_key_digest(new_api_key()),
    "a refresh token": new_refresh_token("user-1").text,
    "an access token": "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJhdXRoIn0.c2lnbmF0dXJl",
    "a hash": hash_password(PASSWORD, TEST_COST),
    "a hash of a long password": hash_password(PASSWORD * 4, TEST_COST),
}


@pytest.fixture(params=["json", "console"])
def witness(request: pytest.FixtureRequest) -> LogWitness:
    witness = LogWitness()
    logs.configure(request.param, "debug", stream=witness.lines)
    return witness


def log_events(planted: str) -> None:
    own = structlog.get_logger("authsvc.test")
    own.info("login", user_id="7ksUtmaUWh99WgUCMync3A", source="192.0.2.7", email_digest="855f58238fb571b7")
    own.info("login", reason=f"because of {planted}!")


@pytest.mark.parametrize("planted", SHAPES.values(), ids=SHAPES)
def test_what_looks_like_a_secret_fails_though_nobody_declared_it(witness: LogWitness, planted: str) -> None:
    log_events("nothing")
    witness.check()
    log_events(planted)
    with pytest.raises(AssertionError, match="1 log lines hold a secret"):
        witness.check()


@pytest.mark.parametrize("secret", [PASSWORD, "pässwörter mit \u2028 und 🔑"], ids=ascii)
def test_a_declared_secret_fails(witness: LogWitness, secret: str) -> None:
    witness.hide_fields(auth_pb2.AuthenticateRequest(email=EMAIL, password=secret))
    log_events("nothing")
    witness.check()
    log_events(secret)
    with pytest.raises(AssertionError, match="1 log lines hold a secret"):
        witness.check()


def test_lines_of_libraries_and_of_other_processes_are_searched(witness: LogWitness) -> None:
    logging.getLogger("botocore").warning("row of %s", EMAIL)
    witness.add_log(f"authsvc: {EMAIL}")
    assert len(witness.leaks()) == 2


def test_a_command_may_print_an_address_but_no_declared_secret(witness: LogWitness) -> None:
    witness.hide(PASSWORD)
    witness.add_messages(f"error: a user has the address {EMAIL} already")
    witness.check()
    witness.add_messages(f"error: the password {PASSWORD} is wrong")
    assert len(witness.leaks()) == 1
