import base64
import copy
import hashlib
import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from authsvc.errors import KeyFileError
from authsvc.models import utc_now
from authsvc.tokens import keys as keys_module
from authsvc.tokens.key_file import generate_key_file, read_key_ring, read_keys
from authsvc.tokens.keys import Key, KeyRing, KeyStatus, new_jwk
from tests.security.forgeries import sign

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = int(NOW.timestamp())
PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
Jwk = dict[str, Any]


@pytest.fixture(scope="module", params=["ES256", "RS256"])
def generated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    generate_key_file(path, request.param, NOW)
    return path


@pytest.fixture(scope="module")
def es256(tmp_path_factory: pytest.TempPathFactory) -> list[Jwk]:
    """The JWKs of a generated file."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    generate_key_file(path, "ES256", NOW)
    jwks: list[Jwk] = json.loads(path.read_text())["keys"]
    return jwks


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*jwks: object) -> Path:
        path = tmp_path / "written.json"
        path.write_text(json.dumps({"keys": jwks}))
        return path

    return write


def problem_of(path: Path) -> str:
    """Return the error text of a file, without the path that every text begins with."""
    with pytest.raises(KeyFileError) as refused:
        read_keys(path)
    text = str(refused.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def int_of(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=="))


def thumbprint(jwk: Jwk) -> str:
    """RFC 7638 §3.2, §3.3, written out."""
    texts = {
        "EC": '{"crv":"%(crv)s","kty":"EC","x":"%(x)s","y":"%(y)s"}',
        "RSA": '{"e":"%(e)s","kty":"RSA","n":"%(n)s"}',
    }
    digest = hashlib.sha256((texts[jwk["kty"]] % jwk).encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def test_the_thumbprint_is_that_of_the_rfc() -> None:
    """RFC 7638 §3.1 gives this key and its thumbprint."""
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknj"
        "hMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQ"
        "vRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzK"
        "nqDKgw"
    )
    expected = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    assert thumbprint({"kty": "RSA", "n": n, "e": "AQAB"}) == expected
    assert keys_module._thumbprint({"kty": "RSA", "n": n, "e": "AQAB"}) == expected  # noqa: SLF001


def test_a_new_file_has_a_signing_key_and_the_next_one(generated: Path) -> None:
    """ASVS-11.1.1."""
    signing, following = read_keys(generated)
    assert (signing.status, following.status) == (KeyStatus.SIGNING, KeyStatus.NEXT)
    assert signing.create_time == following.create_time == SECOND
    assert signing.retire_time is following.retire_time is None
    assert signing.kid != following.kid


def test_a_kid_is_the_keys_thumbprint(generated: Path) -> None:
    for jwk in json.loads(generated.read_text())["keys"]:
        assert jwk["kid"] == thumbprint(jwk)


def test_new_keys_are_strong(generated: Path) -> None:
    """ASVS-11.2.3."""
    for key in read_keys(generated):
        if key.alg == "ES256":
            assert isinstance(key.public_key.curve, ec.SECP256R1)
        else:
            assert key.public_key.key_size == 3072
            assert key.public_key.public_numbers().e == 65537


def test_what_a_key_signs_it_verifies_and_nothing_else(generated: Path) -> None:
    signing, following = read_keys(generated)
    signature = sign(signing, b"message")
    assert signing.verify(b"message", signature)
    assert not signing.verify(b"massage", signature)
    assert not following.verify(b"message", signature)
    assert not signing.verify(b"message", b"")
    assert len(signature) == (64 if signing.alg == "ES256" else 384)


def test_a_key_file_is_its_owners_alone(generated: Path) -> None:
    assert stat.S_IMODE(generated.stat().st_mode) == 0o600


def test_a_key_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"

    def fail(_: int) -> None:
        assert not path.exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyFileError, match=r"keys\.json: cannot be written: No space left on device$"):
        generate_key_file(path, "ES256", NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    generate_key_file(path, "ES256", NOW)
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match=r"keys\.json: exists; keys are never overwritten$"):
        generate_key_file(path, "ES256", NOW)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be written: No such file or directory"):
        generate_key_file(tmp_path / "nowhere" / "keys.json", "ES256", NOW)


def test_a_missing_file_is_reported_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    assert problem_of(path) == f"no such file; create it: authsvc keys generate {path}"


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    assert problem_of(tmp_path) == "cannot be read: Is a directory"
    path = tmp_path / "keys.json"
    path.write_bytes(b'{"keys": ["\xff"]}')
    assert problem_of(path) == "cannot be read: not UTF-8"


NOT_A_SET = 'not a JWK Set: {"keys": […]}'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", NOT_A_SET),
        ("{", NOT_A_SET),
        ("[]", NOT_A_SET),
        ("null", NOT_A_SET),
        ("1", NOT_A_SET),
        ('"keys"', NOT_A_SET),
        ("{}", NOT_A_SET),
        ("[" * 100_000, NOT_A_SET),
        ('{"keys": null}', '"keys" must be a list of keys'),
        ('{"keys": {}}', '"keys" must be a list of keys'),
        ('{"keys": [1]}', '"keys" must be a list of keys'),
        ('{"keys": []}', 'exactly one key must have the status "signing"'),
    ],
    ids=range(12),
)
def test_files_that_are_no_key_set(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    assert problem_of(path) == problem


def test_a_half_written_file_is_refused(generated: Path, tmp_path: Path) -> None:
    text = generated.read_text().rstrip()
    path = tmp_path / "keys.json"
    for length in range(0, len(text), 97):
        path.write_text(text[:length])
        assert problem_of(path) == NOT_A_SET


def without(jwk: Jwk, *members: str) -> Jwk:
    return {member: value for member, value in jwk.items() if member not in members}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no kid", {"kid": None}, "key 1: kid is missing"),
    ("empty kid", {"kid": ""}, "key 1: kid is missing"),
    ("kid a number", {"kid": 1}, "key 1: kid is missing"),
    ("symmetric", {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}, "key KID: symmetric keys are refused"),
    ("no alg", {"alg": None}, "key KID: alg must be ES256 or RS256"),
    ("alg none", {"alg": "none"}, "key KID: alg must be ES256 or RS256"),
    ("HMAC", {"alg": "HS256"}, "key KID: alg must be ES256 or RS256"),
    ("alg a list", {"alg": ["ES256"]}, "key KID: alg must be ES256 or RS256"),
    ("other alg", {"alg": "RS256"}, "key KID: is not a key for RS256"),
    ("for encryption", {"use": "enc"}, "key KID: use must be sig"),
    ("use null", {"use": None}, "key KID: use must be sig"),
    ("status missing", {"status": None}, "key KID: status must be signing, next, retired"),
    ("status unknown", {"status": "active"}, "key KID: status must be signing, next, retired"),
    ("status a list", {"status": ["signing"]}, "key KID: status must be signing, next, retired"),
    ("time a text", {"create_time": "2030"}, "key KID: create_time must be Unix seconds, a whole number"),
    ("time a float", {"create_time": 1.0}, "key KID: create_time must be Unix seconds, a whole number"),
    ("time a bool", {"create_time": True}, "key KID: create_time must be Unix seconds, a whole number"),
    ("retire time a text", {"retire_time": "never"}, "key KID: retire_time must be Unix seconds, a whole number"),
    ("time negative", {"create_time": -1}, "key KID: create_time must be Unix seconds, a whole number"),
    (
        "time after the year 9999",
        {"status": "retired", "retire_time": keys_module.MAX_SECOND + 1},
        "key KID: retire_time must be Unix seconds, a whole number",
    ),
    (
        "retire time of a key that is not retired",
        {"retire_time": SECOND},
        "key KID: retired keys have a retire_time, others have none",
    ),
    (
        "retired without a retire time",
        {"status": "retired"},
        "key KID: retired keys have a retire_time, others have none",
    ),
    ("kty missing", {"kty": None}, "key KID: is not a key for ES256"),
    ("kty unknown", {"kty": "OKP"}, "key KID: is not a key for ES256"),
    ("curve unknown", {"crv": "P-999"}, "key KID: is not a key for ES256"),
    ("wrong curve", {"crv": "secp256k1"}, "key KID: is not a key for ES256"),
    ("x not base64", {"x": "!"}, "key KID: is not a key for ES256"),
    ("x a number", {"x": 1}, "key KID: is not a key for ES256"),
    ("x null", {"x": None}, "key KID: is not a key for ES256"),
    ("not on the curve", {"x": "A" * 43}, "key KID: is not a key for ES256"),
    ("x too short", {"x": "AA"}, "key KID: is not a key for ES256"),
    ("d too short", {"d": "AA"}, "key KID: is not a key for ES256"),
    ("d zero", {"d": "A" * 43}, "key KID: is not a key for ES256"),
    ("d of another key", {"d": "A" * 42 + "E"}, "key KID: is not a key for ES256"),
    ("d null", {"d": None}, "key KID: is not a key for ES256"),
    ("d a list", {"d": []}, "key KID: is not a key for ES256"),
]


@pytest.mark.parametrize(("changes", "problem"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_keys_that_are_refused(
    write: Callable[..., Path], es256: list[Jwk], changes: dict[str, Any], problem: str
) -> None:
    """ASVS-11.2.3: each error text states what is wrong."""
    signing, following = es256
    text = problem_of(write({**signing, **changes}, following))
    assert text == problem.replace("KID", signing["kid"])


def test_a_key_that_signs_has_its_private_part(write: Callable[..., Path], es256: list[Jwk]) -> None:
    for number, jwk in enumerate(es256):
        jwks = copy.deepcopy(es256)
        del jwks[number]["d"]
        assert problem_of(write(*jwks)) == f"key {jwk['kid']}: has no private part, so it cannot sign"


def test_a_kid_twice_is_refused(write: Callable[..., Path], es256: list[Jwk]) -> None:
    signing, following = es256
    assert problem_of(write(signing, {**following, "kid": signing["kid"]})) == "two keys have the same kid"


def test_exactly_one_key_signs(write: Callable[..., Path], es256: list[Jwk]) -> None:
    signing, following = es256
    problem = 'exactly one key must have the status "signing"'
    assert problem_of(write(signing, {**following, "status": "signing"})) == problem
    assert problem_of(write(following)) == problem


def test_other_curves_are_refused(write: Callable[..., Path], es256: list[Jwk]) -> None:
    """ASVS-11.2.3: a valid key of another curve, not only a wrong curve name."""
    for curve in (ec.SECP256K1(), ec.SECP384R1(), ec.SECP521R1()):
        jwk = ECAlgorithm.to_jwk(ec.generate_private_key(curve), as_dict=True)
        members = {"kid": "other", "alg": "ES256", "use": "sig", "status": "next"}
        assert problem_of(write(es256[0], {**jwk, **members})) == "key other: is not a key for ES256"


@pytest.mark.parametrize("bits", [1024, 2048, 3070])
def test_weak_rsa_is_refused(write: Callable[..., Path], bits: int) -> None:
    """ASVS-11.2.3."""
    jwk = RSAAlgorithm.to_jwk(rsa.generate_private_key(public_exponent=65537, key_size=bits), as_dict=True)
    path = write({**jwk, "kid": "weak", "alg": "RS256", "use": "sig", "status": "signing"})
    assert problem_of(path) == f"key weak: has {bits} bits; RSA needs 3072"


def test_a_weak_public_key_is_refused_even_where_it_is_retired(write: Callable[..., Path], es256: list[Jwk]) -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    members = {"kid": "weak", "alg": "RS256", "use": "sig", "status": "retired", "retire_time": SECOND}
    path = write(es256[0], {**RSAAlgorithm.to_jwk(weak, as_dict=True), **members})
    assert problem_of(path) == "key weak: has 2048 bits; RSA needs 3072"


def retired(jwk: Jwk, retire_time: int) -> Jwk:
    return {**jwk, "status": "retired", "retire_time": retire_time}


def test_a_retired_key_may_be_public_alone_and_use_may_be_left_out(
    write: Callable[..., Path], es256: list[Jwk]
) -> None:
    signing, other = es256
    _, key = read_keys(write(signing, retired(without(other, "d", "use", "create_time"), SECOND + 1)))
    assert key.private_key is None
    assert (key.create_time, key.retire_time) == (0, SECOND + 1)


def test_a_retired_key_verifies_until_its_time(write: Callable[..., Path], es256: list[Jwk]) -> None:
    """ASVS-11.1.1: afterwards it is not published either."""
    signing, other = es256
    path = write(signing, retired(other, SECOND + 60))
    before = read_key_ring(path, NOW + timedelta(seconds=59))
    after = read_key_ring(path, NOW + timedelta(seconds=60))
    assert other["kid"] in before.jwks(SECOND + 59.9)
    assert other["kid"] not in before.jwks(SECOND + 60)
    assert before.get(other["kid"], SECOND + 59) is not None
    assert before.get(other["kid"], SECOND + 60) is None
    assert other["kid"] not in after.jwks(0)
    assert after.get(other["kid"], 0) is None
    assert after.get(signing["kid"], SECOND + 10**9) is after.signing_key


def test_a_ring_knows_its_keys_by_kid(generated: Path) -> None:
    signing, following = keys = read_keys(generated)
    ring = KeyRing(keys)
    assert ring.signing_key is signing
    assert ring.get(signing.kid, SECOND) is signing
    assert ring.get(following.kid, SECOND) is following
    assert ring.get("unknown", SECOND) is None


def test_published_keys_are_public_and_complete(generated: Path) -> None:
    jwks = json.loads(read_key_ring(generated, NOW).jwks(SECOND))
    private = json.loads(generated.read_text())["keys"]
    assert list(jwks) == ["keys"]
    for jwk, source in zip(jwks["keys"], private, strict=True):
        members = ("crv", "x", "y") if source["kty"] == "EC" else ("n", "e")
        assert jwk == {name: source[name] for name in ("kty", "kid", "use", "alg", *members)}
        assert not PRIVATE_MEMBERS & jwk.keys()


def test_nothing_private_is_in_any_repr(generated: Path) -> None:
    private = json.loads(generated.read_text())["keys"]
    secrets = [jwk[member] for jwk in private for member in PRIVATE_MEMBERS & jwk.keys()]
    assert secrets
    secrets += [str(int_of(secret)) for secret in secrets]
    keys = read_keys(generated)
    for text in (repr(keys), str(keys[0]), repr(KeyRing(keys)), KeyRing(keys).jwks(0), repr(vars(KeyRing(keys)))):
        assert not any(secret in text for secret in secrets)
        assert "object at" not in text or "KeyRing" in text


def test_members_of_a_jwk_that_are_not_needed_are_not_published(write: Callable[..., Path], es256: list[Jwk]) -> None:
    signing, following = es256
    path = write({**signing, "secret": "x", "k": "y", "key_ops": ["sign"]}, following)
    published = read_key_ring(path, NOW).jwks(SECOND)
    assert published == KeyRing(read_keys(write(signing, following))).jwks(SECOND)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
MEMBERS = ["kid", "kty", "crv", "x", "y", "d", "alg", "use", "status", "create_time", "retire_time", "n", "e"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(number=st.integers(0, 1), member=st.sampled_from(MEMBERS), value=JSON)
def test_no_value_makes_reading_fail_otherwise(
    write: Callable[..., Path], es256: list[Jwk], number: int, member: str, value: object
) -> None:
    jwks = copy.deepcopy(es256)
    jwks[number][member] = value
    try:
        keys = read_keys(write(*jwks))
    except KeyFileError:
        return
    assert all(isinstance(key, Key) for key in keys)
    read_key_ring(write(*jwks), NOW)


@pytest.fixture(scope="module")
def rs256(tmp_path_factory: pytest.TempPathFactory) -> Jwk:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    generate_key_file(path, "RS256", NOW)
    jwk: Jwk = json.loads(path.read_text())["keys"][0]
    return jwk


@pytest.mark.parametrize("member", ["n", "e", "d", "p", "q", "dp", "dq", "qi"])
@pytest.mark.parametrize("value", [None, 1, [], "", "AA", "AQ", "!"], ids=repr)
def test_no_member_makes_reading_an_rsa_key_fail_otherwise(
    write: Callable[..., Path], rs256: Jwk, member: str, value: object
) -> None:
    assert problem_of(write({**rs256, member: value})) == f"key {rs256['kid']}: is not a key for RS256"


def test_rsa_with_more_than_two_primes_is_refused(write: Callable[..., Path], rs256: Jwk) -> None:
    assert problem_of(write({**rs256, "oth": []})) == f"key {rs256['kid']}: is not a key for RS256"


def test_no_new_key_has_an_id_that_begins_with_a_dash() -> None:
    """One thumbprint in 64 does, and the command line would take it for an option."""
    kids = [new_jwk("ES256", KeyStatus.NEXT, utc_now())["kid"] for _ in range(1000)]
    assert not [kid for kid in kids if kid.startswith("-")]
    assert len(set(kids)) == len(kids)
