"""Password rules, verified through the RPCs."""

import base64
import unicodedata
from typing import Literal

import grpc
import pytest

from tests.support import PASSWORD, Client, failure, failure_of

EMAIL = "alice@example.com"


async def can_log_in(client: Client, password: str, email: str = EMAIL) -> bool:
    try:
        await client.log_in(email, password)
    except grpc.aio.AioRpcError as error:
        if failure_of(error).reason == "INVALID_CREDENTIALS":
            return False
        raise
    return True


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        ("1234567", "must have at least 15 characters"),
        ("é" * 14, "must have at least 15 characters"),
        ("kx7 " * 64 + "k", "must have at most 256 characters"),
        ("passwordpassword", "is a commonly used password"),
        ("PASSWORDPASSWORD", "is a commonly used password"),
        ("alice-1234567890", "is made of the email address"),
    ],
)
async def test_a_password_against_the_policy_is_refused_with_the_reason(
    client: Client, password: str, problem: str
) -> None:
    """ASVS-6.2.1, ASVS-6.2.4, NIST-3.1.1.2-a, NIST-3.1.1.2-d."""
    refused = await failure(client.create_user(EMAIL, password))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.reason, refused.field, refused.problem) == ("PASSWORD_REJECTED", "password", problem)


@pytest.mark.parametrize(
    "password",
    [
        "a b c d e f g h i",
        "827364918273640",
        "\U0001f600\U0001f601" * 32,
        "                 x",
        "kx7 " * 64,
        "a\0b of many words",
        "\u200b\u2028\ufeff controls \x1b\x7f",
    ],
    ids=["spaces", "digits", "64 emoji", "blanks", "256 characters", "NUL", "controls"],
)
async def test_any_long_password_can_be_used(client: Client, password: str) -> None:
    """ASVS-6.2.5, ASVS-6.2.9."""
    await client.create_user(EMAIL, password)
    assert await can_log_in(client, password)
    assert not await can_log_in(client, password + "x")


@pytest.mark.parametrize(
    ("password", "others"),
    [
        ("x7" * 36 + "a", ["x7" * 36 + "b", "x7" * 36]),
        ("x7" * 99 + "ya", ["x7" * 99 + "yb"]),
        ("a password with end ", ["a password with end", "a password with end  "]),
        ("A Password With Case", ["a password with case"]),
        ("words before\0after it", ["words before", "words before\0", "words before\0behind"]),
    ],
    ids=["72 bytes", "200 bytes", "space", "case", "NUL"],
)
async def test_a_password_is_verified_exactly_as_received(client: Client, password: str, others: list[str]) -> None:
    """ASVS-6.2.8."""
    await client.create_user(EMAIL, password)
    assert [await can_log_in(client, other) for other in others] == [False] * len(others)
    assert await can_log_in(client, password)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
async def test_both_spellings_of_a_letter_log_in(client: Client, form: Literal["NFC", "NFD"]) -> None:
    """NIST-3.1.1.2-c."""
    password = "zwölf Boxkämpfer jagen Åse"
    await client.create_user(EMAIL, unicodedata.normalize(form, password))
    assert await can_log_in(client, unicodedata.normalize("NFC", password))
    assert await can_log_in(client, unicodedata.normalize("NFD", password))


async def test_a_password_that_is_too_long_to_look_at_is_a_field_error(client: Client) -> None:
    refused = await failure(client.log_in(EMAIL, "x" * 1025))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "password")
    assert not await can_log_in(client, "x" * 1024)


async def test_a_token_is_no_password(client: Client) -> None:
    await client.create_user()
    token = await client.access_token()
    claims = base64.urlsafe_b64decode(token.split(".")[1] + "==").decode()
    assert PASSWORD not in claims
    assert not await can_log_in(client, token[:1000])
