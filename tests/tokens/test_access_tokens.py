import base64
import functools
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from authsvc.models import utc_now
from authsvc.tokens import keys as keys_module
from authsvc.tokens.access_tokens import AccessTokens
from authsvc.tokens.key_file import generate_key_file, read_keys
from authsvc.tokens.keys import Key, KeyRing
from authsvc.tokens.verification import LEEWAY_SECONDS, AccessToken, InactiveReason, InactiveTokenError, TokenCheck
from tests.security.forgeries import Forge, encode
from tests.support import FakeClock

ISSUER, AUDIENCE = "https://auth.example.com", "backends"
NOW = FakeClock().now
SECOND = int(NOW.timestamp())


@pytest.fixture(scope="module")
def keys(signing_keys: Path) -> list[Key]:
    return read_keys(signing_keys)


@pytest.fixture
def tokens(keys: list[Key]) -> AccessTokens:
    return AccessTokens(KeyRing(keys), ISSUER, AUDIENCE, timedelta(minutes=15))


@pytest.fixture
def forge(keys: list[Key]) -> Forge:
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "user-1",
        "client_id": "authsvc",
        "iat": SECOND,
        "exp": SECOND + 900,
        "jti": "token-1",
        "sid": "session-1",
        "gen": 3,
    }
    return Forge(keys, claims)


def issue(tokens: AccessTokens, **changes: Any) -> str:
    fields = {
        "user_id": "user-1",
        "session_id": "session-1",
        "token_generation": 3,
        "client_id": "authsvc",
        "now": NOW,
        "not_after": NOW + timedelta(days=30),
    }
    return tokens.issue(**{**fields, **changes}).text


def parts_of(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, payload, _ = token.split(".")
    return json.loads(base64.urlsafe_b64decode(header + "==")), json.loads(base64.urlsafe_b64decode(payload + "=="))


def faulty(forge: Forge, faults: "set[TokenCheck]") -> str:
    """A token that fails these checks."""
    header, claims = dict(forge.header), dict(forge.claims)
    changes: dict[TokenCheck, tuple[dict[str, Any], dict[str, Any]]] = {
        TokenCheck.HEADER: (header, {"x": "y"}),
        TokenCheck.TYPE: (header, {"typ": "JWT"}),
        TokenCheck.KEY: (header, {"kid": "x"}),
        TokenCheck.CLAIMS: (claims, {"jti": 1}),
        TokenCheck.ISSUER: (claims, {"iss": "x"}),
        TokenCheck.AUDIENCE: (claims, {"aud": "x"}),
        TokenCheck.EXPIRY: (claims, {"iat": SECOND - 900, "exp": SECOND - 60}),
        TokenCheck.START: (claims, {"nbf": SECOND + 60}),
    }
    for check in faults & changes.keys():
        members, changed = changes[check]
        members.update(changed)
    text = forge.signed(header, claims)
    if TokenCheck.SIGNATURE in faults:
        text = f"{text.rpartition('.')[0]}.{encode(bytes(64))}"
    text += ".x" * (TokenCheck.SEGMENTS in faults) + "é" * (TokenCheck.LENGTH in faults)
    return "rt_" * (TokenCheck.KIND in faults) + text


def test_the_first_check_of_the_list_decides(tokens: AccessTokens, forge: Forge) -> None:
    without_store = list(TokenCheck)[:12]
    for number, first in enumerate(without_store):
        for second in without_store[number:]:
            with pytest.raises(InactiveTokenError) as failed:
                tokens.check(faulty(forge, {first, second}), NOW)
            assert failed.value.check is first


def test_the_list_of_checks_has_the_order_of_reasons_but_for_malformed() -> None:
    reasons = list(dict.fromkeys(check.reason for check in TokenCheck))
    assert sorted(reasons, key=lambda reason: reason.value) == list(InactiveReason)
    assert reasons[2:] == list(InactiveReason)[2:]


def test_an_issued_token_has_exactly_these_members(tokens: AccessTokens, keys: list[Key]) -> None:
    """ASVS-9.2.4: one audience, as a string."""
    header, claims = parts_of(issue(tokens))
    assert header == {"alg": "ES256", "kid": keys[0].kid, "typ": "at+jwt"}
    assert len(claims.pop("jti")) >= 22
    assert claims == {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "user-1",
        "client_id": "authsvc",
        "iat": SECOND,
        "exp": SECOND + 900,
        "sid": "session-1",
        "gen": 3,
    }


def test_an_issued_token_verifies_as_what_it_was_issued_for(tokens: AccessTokens) -> None:
    token = tokens.verify(issue(tokens), NOW)
    assert isinstance(token, AccessToken)
    assert (token.user_id, token.session_id, token.token_generation) == ("user-1", "session-1", 3)
    assert (token.issued_at, token.expires_at, token.not_before) == (SECOND, SECOND + 900, SECOND)


def test_every_token_has_an_id_of_its_own(tokens: AccessTokens) -> None:
    assert len({parts_of(issue(tokens))[1]["jti"] for _ in range(100)}) == 100


def test_a_token_does_not_outlive_its_session(tokens: AccessTokens) -> None:
    issued = tokens.issue(
        user_id="u",
        session_id="s",
        token_generation=0,
        client_id="c",
        now=NOW,
        not_after=NOW + timedelta(seconds=10),
    )
    assert issued.expire_time == NOW + timedelta(seconds=10)
    assert parts_of(issued.text)[1]["exp"] == SECOND + 10


def test_the_expire_time_is_the_one_in_the_token(tokens: AccessTokens) -> None:
    issued = tokens.issue(
        user_id="u",
        session_id="s",
        token_generation=0,
        client_id="c",
        now=NOW + timedelta(microseconds=999_999),
        not_after=NOW + timedelta(days=1),
    )
    assert issued.expire_time.timestamp() == parts_of(issued.text)[1]["exp"]


def test_an_issued_token_hides_itself_in_reprs(tokens: AccessTokens) -> None:
    issued = tokens.issue(user_id="u", session_id="s", token_generation=0, client_id="c", now=NOW, not_after=NOW)
    assert issued.text not in repr(issued)
    assert "expire_time" in repr(issued)


Change = Callable[[Forge], str]
# Each token also has the faults of the rows below it, as far as it can, so that the order of decision shows.
IN_ORDER: list[tuple[str, InactiveReason, Change]] = [
    ("a refresh token", InactiveReason.WRONG_TYPE, lambda forge: f"rt_{forge.good}.x"),
    ("four segments", InactiveReason.MALFORMED, lambda forge: forge.with_header(typ="JWT") + ".x"),
    ("a header too many", InactiveReason.MALFORMED, lambda forge: forge.with_header(typ="JWT", x="y")),
    ("another use", InactiveReason.WRONG_TYPE, lambda forge: forge.with_header(typ="JWT", kid="unknown")),
    (
        "unknown key",
        InactiveReason.BAD_SIGNATURE,
        lambda forge: forge.signed({**forge.header, "kid": "unknown"}, {**forge.claims, "iss": "x"}),
    ),
    (
        "another issuer",
        InactiveReason.WRONG_ISSUER,
        lambda forge: forge.with_claims(iss="x", aud="x", exp=SECOND - 99, iat=SECOND - 99, nbf=SECOND + 99),
    ),
    (
        "another audience",
        InactiveReason.WRONG_AUDIENCE,
        lambda forge: forge.with_claims(aud="x", exp=SECOND - 99, iat=SECOND - 99, nbf=SECOND + 99),
    ),
    (
        "expired",
        InactiveReason.EXPIRED,
        lambda forge: forge.with_claims(exp=SECOND - 99, iat=SECOND - 99, nbf=SECOND + 99),
    ),
    ("not yet valid", InactiveReason.NOT_YET_VALID, lambda forge: forge.with_claims(nbf=SECOND + 99)),
]


@pytest.mark.parametrize(("reason", "make"), [row[1:] for row in IN_ORDER], ids=[row[0] for row in IN_ORDER])
def test_of_several_faults_the_first_in_order_is_the_reason(
    tokens: AccessTokens, forge: Forge, reason: InactiveReason, make: Change
) -> None:
    assert tokens.verify(make(forge), NOW) is reason


def test_the_store_decides_the_last_three_reasons_and_this_module_all_others() -> None:
    decided = [reason for reason in InactiveReason if reason in {row[1] for row in IN_ORDER}]
    assert decided == list(InactiveReason)[:7]
    assert [reason.name for reason in InactiveReason][7:] == ["USER_NOT_FOUND", "USER_DISABLED", "SESSION_REVOKED"]


def test_the_leeway_is_at_most_a_minute() -> None:
    """ASVS-9.2.1."""
    assert 0 <= LEEWAY_SECONDS <= 60


@pytest.mark.parametrize(
    ("changes", "seconds", "expected"),
    [
        ({}, 900 + LEEWAY_SECONDS - 1, None),
        ({}, 900 + LEEWAY_SECONDS, InactiveReason.EXPIRED),
        ({}, -LEEWAY_SECONDS, None),
        ({}, -LEEWAY_SECONDS - 1, InactiveReason.NOT_YET_VALID),
        ({"nbf": SECOND + 100}, 100 - LEEWAY_SECONDS, None),
        ({"nbf": SECOND + 100}, 100 - LEEWAY_SECONDS - 1, InactiveReason.NOT_YET_VALID),
        # nbf does not lift the limit that iat sets.
        ({"nbf": SECOND - 500}, -LEEWAY_SECONDS - 1, InactiveReason.NOT_YET_VALID),
    ],
)
def test_times_are_checked_with_exactly_the_leeway(
    tokens: AccessTokens, forge: Forge, changes: dict[str, int], seconds: int, expected: InactiveReason | None
) -> None:
    """ASVS-9.2.1."""
    answer = tokens.verify(forge.with_claims(**changes), NOW + timedelta(seconds=seconds))
    assert (answer if isinstance(answer, InactiveReason) else None) is expected


@pytest.mark.parametrize(("lifetime", "is_good"), [(0, True), (86_400, True), (86_401, False), (-1, False)])
def test_a_token_lives_at_most_a_day(tokens: AccessTokens, forge: Forge, lifetime: int, is_good: bool) -> None:  # noqa: FBT001
    answer = tokens.verify(forge.with_claims(exp=SECOND + lifetime), NOW)
    assert answer is InactiveReason.MALFORMED or is_good
    assert isinstance(answer, AccessToken) is is_good


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kid of every signature check."""
    seen: list[str] = []
    verify = Key.verify

    def counting(key: Key, message: bytes, signature: bytes) -> bool:
        seen.append(key.kid)
        return verify(key, message, signature)

    monkeypatch.setattr(keys_module.Key, "verify", counting)
    return seen


def test_a_signature_is_checked_once(tokens: AccessTokens, forge: Forge, checks: list[str]) -> None:
    first = tokens.verify(forge.good, NOW)
    assert tokens.verify(forge.good, NOW) == first
    assert len(checks) == 1


def test_a_cached_token_expires(tokens: AccessTokens, forge: Forge, checks: list[str]) -> None:
    tokens.verify(forge.good, NOW)
    assert tokens.verify(forge.good, NOW + timedelta(hours=1)) is InactiveReason.EXPIRED
    assert tokens.verify(forge.good, NOW - timedelta(hours=1)) is InactiveReason.NOT_YET_VALID
    assert len(checks) == 1


def test_a_cached_token_is_checked_for_issuer_and_audience_again(tokens: AccessTokens, forge: Forge) -> None:
    other = forge.with_claims(aud="x")
    assert [tokens.verify(other, NOW) for _ in range(2)] == [InactiveReason.WRONG_AUDIENCE] * 2


def test_a_removed_key_evicts_its_cached_tokens(
    tokens: AccessTokens, keys: list[Key], forge: Forge, tmp_path: Path
) -> None:
    assert isinstance(tokens.verify(forge.good, NOW), AccessToken)
    path = tmp_path / "keys.json"
    generate_key_file(path, "ES256", utc_now())
    tokens.ring = KeyRing(read_keys(path))
    assert tokens.verify(forge.good, NOW) is InactiveReason.BAD_SIGNATURE
    tokens.ring = KeyRing(keys)
    assert isinstance(tokens.verify(forge.good, NOW), AccessToken)


def test_a_key_replaced_under_its_kid_evicts_its_cached_tokens(
    tokens: AccessTokens, keys: list[Key], forge: Forge
) -> None:
    assert isinstance(tokens.verify(forge.good, NOW), AccessToken)
    signing, following = keys
    tokens.ring = KeyRing([keys_module.Key(**{**members_of(following), "kid": signing.kid, "status": signing.status})])
    assert tokens.verify(forge.good, NOW) is InactiveReason.BAD_SIGNATURE


def test_a_key_that_was_read_anew_has_its_tokens_checked_anew(
    tokens: AccessTokens, forge: Forge, signing_keys: Path, checks: list[str]
) -> None:
    tokens.verify(forge.good, NOW)
    tokens.ring = KeyRing(read_keys(signing_keys))
    assert isinstance(tokens.verify(forge.good, NOW), AccessToken)
    assert len(checks) == 2


def members_of(key: Key) -> dict[str, Any]:
    return {name: getattr(key, name) for name in Key.__dataclass_fields__}


def test_a_retired_key_verifies_nothing_after_its_time(keys: list[Key], forge: Forge) -> None:
    """ASVS-11.1.1: neither new tokens nor cached ones."""
    signing, following = keys
    retired = {"status": keys_module.KeyStatus.RETIRED, "retire_time": SECOND + 60}
    ring = KeyRing(
        [
            Key(**{**members_of(signing), **retired}),
            Key(**{**members_of(following), "status": keys_module.KeyStatus.SIGNING}),
        ]
    )
    tokens = AccessTokens(ring, ISSUER, AUDIENCE, timedelta(minutes=15))
    assert isinstance(tokens.verify(forge.good, NOW), AccessToken)
    assert isinstance(tokens.verify(forge.good, NOW + timedelta(seconds=59)), AccessToken)
    for text in (forge.good, forge.with_claims(jti="new")):
        assert tokens.verify(text, NOW + timedelta(seconds=60)) is InactiveReason.BAD_SIGNATURE


def test_cached_tokens_are_bounded_and_the_oldest_is_evicted_first(
    keys: list[Key], forge: Forge, checks: list[str]
) -> None:
    tokens = AccessTokens(KeyRing(keys), ISSUER, AUDIENCE, timedelta(minutes=15), cache_capacity=2)
    first, second, third = (forge.with_claims(jti=str(number)) for number in range(3))
    for text in (first, second, third, second, third):
        tokens.verify(text, NOW)
    assert len(checks) == 3
    tokens.verify(first, NOW)
    assert len(checks) == 4


def test_forged_tokens_are_not_cached_and_evict_none(keys: list[Key], forge: Forge, checks: list[str]) -> None:
    tokens = AccessTokens(KeyRing(keys), ISSUER, AUDIENCE, timedelta(minutes=15), cache_capacity=1)
    tokens.verify(forge.good, NOW)
    forged = forge.with_signature(bytes(64))
    for _ in range(3):
        assert tokens.verify(forged, NOW) is InactiveReason.BAD_SIGNATURE
    assert len(checks) == 4
    tokens.verify(forge.good, NOW)
    assert len(checks) == 4


def test_signed_but_malformed_tokens_are_not_cached(tokens: AccessTokens, forge: Forge, checks: list[str]) -> None:
    wrong = forge.with_claims(exp="9_999")
    assert [tokens.verify(wrong, NOW) for _ in range(2)] == [InactiveReason.MALFORMED] * 2
    assert len(checks) == 2


def test_dear_steps_come_after_cheap_ones(tokens: AccessTokens, forge: Forge, checks: list[str]) -> None:
    for text in (forge.good + "=", forge.with_header(typ="JWT"), forge.with_header(kid="x"), "a" * 8193):
        assert isinstance(tokens.verify(text, NOW), InactiveReason)
    assert checks == []


TEXTS = st.text(st.characters(codec=None))
SEGMENTS = st.from_regex(r"[\w-]{1,40}\.[\w-]{1,40}\.[\w-]{1,40}", fullmatch=True)


@example(text="\ud800")
@example(text="a.\udfff.b")
@given(text=TEXTS | SEGMENTS | st.from_regex(r"rt_.*"))
def test_any_text_is_inactive_and_none_raises(signing_keys: Path, text: str) -> None:
    """Including lone surrogates, which an RPC cannot carry."""
    tokens = AccessTokens(ring_of(signing_keys), ISSUER, AUDIENCE, timedelta(minutes=15))
    assert tokens.verify(text, NOW) in {InactiveReason.MALFORMED, InactiveReason.WRONG_TYPE}


@given(data=st.data())
def test_one_changed_character_is_a_bad_token(signing_keys: Path, data: st.DataObject) -> None:
    tokens = AccessTokens(ring_of(signing_keys), ISSUER, AUDIENCE, timedelta(minutes=15))
    good = issue(tokens)
    position = data.draw(st.integers(0, len(good) - 1))
    other = data.draw(st.sampled_from("ABab01-_.=+/ \n\0é").filter(lambda c: c != good[position]))
    assert isinstance(tokens.verify(good[:position] + other + good[position + 1 :], NOW), InactiveReason)


@given(
    user_id=st.text(min_size=1, max_size=64),
    generation=st.integers(0, 2**63),
    lifetime=st.integers(0, 86_400),
)
def test_whatever_is_issued_verifies(signing_keys: Path, user_id: str, generation: int, lifetime: int) -> None:
    tokens = AccessTokens(ring_of(signing_keys), ISSUER, AUDIENCE, timedelta(seconds=lifetime))
    token = tokens.verify(issue(tokens, user_id=user_id, token_generation=generation), NOW)
    assert isinstance(token, AccessToken)
    assert (token.user_id, token.token_generation) == (user_id, generation)


@functools.cache
def ring_of(path: Path) -> KeyRing:
    return KeyRing(read_keys(path))
