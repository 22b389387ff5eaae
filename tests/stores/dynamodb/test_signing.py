"""Signatures, compared with botocore's: local engines do not check them."""

from datetime import UTC, datetime, timedelta

import botocore.auth
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authsvc.stores.dynamodb.signing import Signer

TARGET = "DynamoDB_20120810.BatchGetItem"
ENDPOINTS = [
    "https://dynamodb.eu-west-1.amazonaws.com",
    "https://dynamodb.eu-west-1.amazonaws.com:443/",
    "http://127.0.0.1:8000",
    "http://localhost:80",
    "https://localhost:80",
    "https://vpce-1.dynamodb.us-east-1.vpce.amazonaws.com/proxied",
]
TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)


def signed_by_botocore(
    url: str, region: str, body: bytes, credentials: ReadOnlyCredentials, monkeypatch: pytest.MonkeyPatch, now: datetime
) -> dict[str, str]:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now.replace(tzinfo=None))
    headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": TARGET}
    request = AWSRequest("POST", url, headers, body)
    SigV4Auth(credentials, "dynamodb", region).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    url=st.sampled_from(ENDPOINTS),
    region=st.sampled_from(["eu-west-1", "us-east-1"]),
    body=st.binary(max_size=200),
    access_key=TEXT,
    secret_key=TEXT,
    token=st.none() | TEXT,
    age=st.timedeltas(timedelta(), timedelta(days=400)),
)
def test_a_request_is_signed_as_botocore_signs_it(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    region: str,
    body: bytes,
    access_key: str,
    secret_key: str,
    token: str | None,
    age: timedelta,
) -> None:
    credentials = ReadOnlyCredentials(access_key, secret_key, token)
    now = datetime(2030, 1, 1, tzinfo=UTC) + age
    expected = signed_by_botocore(url, region, body, credentials, monkeypatch, now)
    headers = dict(Signer(url, region).headers(TARGET, body, credentials, now))
    del headers["host"]  # botocore signs it, but leaves it to the HTTP client to send
    assert headers == expected
