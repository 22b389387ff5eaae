import ipaddress
import unicodedata
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from authsvc import fields
from authsvc.errors import InvalidFieldError

ANY_TEXT = st.text(st.characters(codec=None))
TEXTS = st.text()
LOCAL_PARTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1)
ADDRESSES = st.builds("{}@{}".format, LOCAL_PARTS, LOCAL_PARTS)
PROBLEMS = {
    "email": {
        "must not be empty",
        "must have at most 254 bytes",
        "must have no white space or control characters",
        "must have exactly one @, with text on both sides",
        *(
            QUOTED_LOCAL_PART := "must have no quoted text before the @",
            PERIODS := "must have no period at the start or end of the part before the @, nor two in a row",
            IP_ADDRESS := "must have a domain name after the @, not an IP address",
            HOST_NAME := "must have a domain name with a period after the @, not a host name alone",
            NO_MAIL := "must not be in .arpa (other than home.arpa), .invalid or .onion, where no mail is delivered",
            LOCAL_PART := "must have only letters, digits and the characters of RFC 5322's atoms before the @",
            DOMAIN := "must have a valid domain name after the @",
        ),
    },
    "user_id": {"must not be empty", "must have at most 256 bytes"},
    "role": {"must match [a-z][a-z0-9_-]{0,62}"},
    "password": {"must not be empty", "must have at most 1024 bytes"},
    "request_id": {"must have at most 64 printable ASCII characters"},
    "client_address": {"must be an IPv4 or IPv6 address", "must have no zone"},
    "client_label": {"must have at most 128 characters"},
    "token": {"must not be empty"},
}


def problem(check: Callable[[], object]) -> tuple[str, str]:
    """The field and the problem of a refusal; two empty texts where there is none."""
    try:
        check()
    except InvalidFieldError as error:
        return error.field, error.problem
    return "", ""


@pytest.mark.parametrize(
    ("check", "name"),
    [
        (fields.normalize_email, "email"),
        (fields.parse_new_email, "email"),
        (fields.user_id, "user_id"),
        (fields.role, "role"),
        (fields.password, "password"),
        (fields.request_id, "request_id"),
        (fields.client_address, "client_address"),
        (fields.client_label, "client_label"),
        (fields.token, "token"),
    ],
)
@given(text=TEXTS | ADDRESSES | st.emails() | st.sampled_from(["", "x" * 2000, "@", "fe80::1%x\n", "a@b" * 90]))
def test_a_refusal_names_the_field_and_says_a_fixed_text(check: Callable[[str], object], name: str, text: str) -> None:
    """No text that a client sends comes back, or gets into a log, through a refusal."""
    field, text_of_problem = problem(lambda: check(text))
    assert (field, text_of_problem) == ("", "") or (field == name and text_of_problem in PROBLEMS[name])


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("alice@example.com", "alice@example.com"),
        ("Alice@EXAMPLE.com", "alice@example.com"),
        ("e\u0301@x", "\u00e9@x"),
        ("E\u0301@X", "\u00e9@x"),
        ("\u212aelvin@x", "kelvin@x"),
        ("\u212bngstr\u00f6m@x", "\u00e5ngstr\u00f6m@x"),
        ("\u0130@x", "i\u0307@x"),
        ("\u03a3\u03a3@x", "\u03c3\u03c2@x"),
        ("Stra\u1e9ee@x", "stra\u00dfe@x"),
        ("\uff41@x", "\uff41@x"),  # NFC, not NFKC: before the @ a full-width letter is another letter
        ("a+tag@x", "a+tag@x"),
        ("a.b.c@x", "a.b.c@x"),
        ("-@-", "-@-"),
        ("\U0001f600@x", "\U0001f600@x"),
    ],
)
def test_the_normal_form_of_an_address(text: str, normal: str) -> None:
    assert fields.normalize_email(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("josef@exämple.de", "josef@exämple.de"),
        ("josef@xn--exmple-cua.de", "josef@exämple.de"),
        ("Josef@XN--EXMPLE-CUA.DE", "josef@exämple.de"),
        ("josef@EXA\u0308MPLE.de", "josef@exämple.de"),
        ("eve@\uff45xample.com", "eve@example.com"),
        ("eve@\uff25XAMPLE\uff0ecom", "eve@example.com"),
        ("eve@example\u3002com", "eve@example.com"),
        ("eve@example\uff61com", "eve@example.com"),
        ("eve@ex\u00adample.com", "eve@example.com"),
        ("eve@\u212c.de", "eve@b.de"),
        ("eve@straße.de", "eve@straße.de"),
        ("eve@STRA\u1e9eE.de", "eve@straße.de"),
        ("eve@xn--strae-oqa.de", "eve@straße.de"),
        ("eve@strasse.de", "eve@strasse.de"),
        ("eve@\u03a3\u0391\u03a3-1.gr", "eve@\u03c3\u03b1\u03c3-1.gr"),  # str.lower() would end with a final sigma
        ("eve@\u03c3\u03b1\u03c2-1.gr", "eve@\u03c3\u03b1\u03c2-1.gr"),
        ("eve@ex\u0430mple.com", "eve@ex\u0430mple.com"),  # a confusable is another domain
        # What IDNA refuses is NFC and lower case.
        ("eve@\U0001f4a9.LA", "eve@\U0001f4a9.la"),
        ("eve@Ex_ample.com", "eve@ex_ample.com"),
        ("eve@XN--A.de", "eve@xn--a.de"),
        ("eve@[IPv6:::1]", "eve@[ipv6:::1]"),
        ("eve@a\uff20b", "eve@a\uff20b"),
    ],
)
def test_the_domain_of_an_address_is_mapped_as_browsers_do(text: str, normal: str) -> None:
    assert fields.normalize_email(text) == normal


@pytest.mark.parametrize(
    ("text", "claimed", "others"),
    [
        ("a@example.com", ["a@example.com"], []),
        ("A@example.com", ["a@example.com"], ["A@example.com"]),
        ("a@exämple.de", ["a@exämple.de", "a@xn--exmple-cua.de"], []),
        ("a@xn--exmple-cua.de", ["a@exämple.de", "a@xn--exmple-cua.de"], []),
        ("a@\uff45xample.com", ["a@example.com", "a@\uff45xample.com"], []),
        (
            "A@\uff25xämple.de",
            ["a@exämple.de", "a@xn--exmple-cua.de", "a@\uff45xämple.de"],
            ["A@\uff25xämple.de"],
        ),
        ("a@\U0001f4a9.la", ["a@\U0001f4a9.la"], []),
        # The lower-case text has a final sigma, which is another domain.
        (
            "a@\u03a3\u0391\u03a3-1.gr",
            ["a@\u03c3\u03b1\u03c3-1.gr", "a@xn---1-b9b5eb.gr"],
            ["a@\u03a3\u0391\u03a3-1.gr"],
        ),
    ],
)
def test_the_spellings_under_which_an_address_may_be_stored(text: str, claimed: list[str], others: list[str]) -> None:
    """Other programs' rows may have it as typed; this service's, also of earlier versions, in a normal form."""
    email = fields.parse_email(text)
    assert list(email.claimed_spellings) == claimed
    assert sorted(email.spellings) == sorted(claimed + others)
    assert email.spellings[0] == email.normal


@pytest.mark.parametrize(
    "space", [" ", "\t", "\n", "\r", "\0", "\x1f", "\x7f", "\x85", "\xa0", "\u2003", "\u2028", "\u3000"]
)
@pytest.mark.parametrize(
    "form", ["{}alice@example.com", "alice@example.com{}", "al{}ice@example.com", "alice@{}example.com"]
)
def test_white_space_and_controls_are_refused_and_never_trimmed(form: str, space: str) -> None:
    expected = ("email", "must have no white space or control characters")
    assert problem(lambda: fields.normalize_email(form.format(space))) == expected


@pytest.mark.parametrize("text", ["alice", "@", "alice@", "@example.com", "a@@b", "a@b@c", "@a@b"])
def test_an_address_has_one_at_sign_with_text_on_both_sides(text: str) -> None:
    assert problem(lambda: fields.normalize_email(text)) == (
        "email",
        "must have exactly one @, with text on both sides",
    )


def test_an_empty_address_is_refused() -> None:
    assert problem(lambda: fields.normalize_email("")) == ("email", "must not be empty")


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("a" * 252 + "@b", True),
        ("a" * 253 + "@b", False),
        ("\u00e9" * 126 + "@b", True),
        ("\u00e9" * 126 + "a@b", False),
        ("e\u0301" * 126 + "@b", True),
        ("\u212a" * 252 + "@b", True),
        ("\u0130" * 84 + "@b", True),
        ("\u0130" * 85 + "@b", False),
        ("u\u0308\u0304" * 126 + "@b", True),  # no letter has more code points to a byte
        ("a@" + "\uff41" * 60 + ("." + "\uff41" * 47) * 4, True),
        ("a" * 234 + "@xn--exmple-cua.com", True),
        ("a" * 243 + "@xn--exmple-cua.com", False),
        pytest.param("a" * 4_000_000, False, id="long"),
    ],
)
def test_the_254_bytes_are_those_of_the_normal_form(text: str, fits: bool) -> None:  # noqa: FBT001
    expected = ("", "") if fits else ("email", "must have at most 254 bytes")
    assert problem(lambda: fields.normalize_email(text)) == expected


def test_an_address_that_takes_hours_to_normalise_is_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorting combining marks takes quadratic time, and a message holds a million of them."""

    def normalize(_: str, text: str) -> str:
        assert len(text) <= 2 * fields.EMAIL_MAX_BYTES
        return text

    monkeypatch.setattr(unicodedata, "normalize", normalize)
    assert problem(lambda: fields.normalize_email("\u0301\u0323" * 1_000_000)) == (
        "email",
        "must have at most 254 bytes",
    )
    fields.normalize_email("alice@example.com")


def test_a_lone_surrogate_is_refused() -> None:
    """The command line can hold one; no UTF-8 can."""
    assert problem(lambda: fields.normalize_email("a\udcff@b")) == (
        "email",
        "must have no white space or control characters",
    )


@given(text=ADDRESSES | ANY_TEXT)
def test_the_normal_form_is_its_own_normal_form(text: str) -> None:
    assume(problem(lambda: fields.normalize_email(text)) == ("", ""))
    normal = fields.normalize_email(text)
    assert fields.normalize_email(normal) == normal
    assert unicodedata.is_normalized("NFC", normal)
    assert normal.partition("@")[0] == normal.partition("@")[0].lower()  # UTS #46 maps Cherokee to capital letters
    assert len(normal.encode()) <= 254
    assert normal.count("@") == 1


@given(text=ADDRESSES)
def test_both_unicode_spellings_of_an_address_are_one(text: str) -> None:
    spellings = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    assume(all(problem(lambda t=t: fields.normalize_email(t)) == ("", "") for t in spellings))  # type: ignore[misc]
    assert fields.normalize_email(spellings[0]) == fields.normalize_email(spellings[1])


@pytest.mark.parametrize(
    "text",
    [
        *(
            "alice@example.com",
            "Alice+tag@Example.co.uk",
            "jörg@exämple.de",
            "o'hara@example.com",
            "\u03b1@\u03b2\u03b3.gr",
        ),
        *("ops@corp.local", "ci@build.test", "root@db.localhost", "nas@home.arpa", "nas@cellar.home.arpa"),
        *("a@corp.internal", "a@router.lan", "a@host.example", "a@sub.example.org", "a@mylocal.com", "A@Corp.LOCAL"),
    ],
)
def test_a_valid_address_can_be_given_to_a_user(text: str) -> None:
    email = fields.parse_new_email(text)
    assert (email.normal, email.typed) == (text.lower(), text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a@b", HOST_NAME),
        ("root@localhost", HOST_NAME),
        ("a@local", HOST_NAME),
        ("a@[127.0.0.1]", IP_ADDRESS),
        ("a@[IPv6:::1]", IP_ADDRESS),
        ("a@127.0.0.1", IP_ADDRESS),
        ('"a"@example.com', QUOTED_LOCAL_PART),
        (".a@example.com", PERIODS),
        ("a.@example.com", PERIODS),
        ("a..b@example.com", PERIODS),
        ("a@host.invalid", NO_MAIL),
        ("a@home.invalid", NO_MAIL),
        ("a@1.0.0.127.in-addr.arpa", NO_MAIL),
        ("a@notmyhome.arpa", NO_MAIL),
        ("a@expyuzz4wqqyqhjn.onion", NO_MAIL),
        ("a(b)@example.com", LOCAL_PART),
        ("a<b@example.com", LOCAL_PART),
        ("\u202ea@example.com", LOCAL_PART),
        ("a\u200b@example.com", LOCAL_PART),
        ("a@b..com", DOMAIN),
        ("a@-example.com", DOMAIN),
        ("a@exa_mple.com", DOMAIN),
        ("a@example.com.", DOMAIN),
        ("a@.example.com", DOMAIN),
        ("a@example.123", DOMAIN),
        ("a@" + "x" * 64 + ".com", DOMAIN),
        ("a@\U0001f4a9.la", DOMAIN),
        ("a<@exa_mple.com", DOMAIN),
    ],
)
def test_an_address_that_no_user_can_be_given_is_refused_with_the_reason(text: str, expected: str) -> None:
    assert problem(lambda: fields.parse_new_email(text)) == ("email", expected)


def test_new_addresses_are_in_normal_form_first() -> None:
    assert (
        problem(lambda: fields.parse_new_email(" a@example.com"))[1] == "must have no white space or control characters"
    )


@pytest.mark.parametrize(("text", "fits"), [("u", True), ("u" * 256, True), ("u" * 257, False), ("é" * 129, False)])
def test_a_user_id_has_256_bytes(text: str, fits: bool) -> None:  # noqa: FBT001
    assert problem(lambda: fields.user_id(text)) == (("", "") if fits else ("user_id", "must have at most 256 bytes"))
    assert problem(lambda: fields.user_id("")) == ("user_id", "must not be empty")
    assert problem(lambda: fields.user_id("u\udcff")) == ("user_id", "must be UTF-8")


@pytest.mark.parametrize("text", ["a", "admin", "a0_-", "a" * 63])
def test_roles(text: str) -> None:
    assert fields.role(text) == text


@pytest.mark.parametrize("text", ["A", "0a", "_a", "-a", "a" * 64, "a b", "a\n", "é", "a.b", " a", "a\0", "\u0430dmin"])
def test_texts_that_are_no_role(text: str) -> None:
    assert problem(lambda: fields.role(text)) == ("role", "must match [a-z][a-z0-9_-]{0,62}")


def test_no_role_is_the_default_one() -> None:
    assert fields.role("") == "user"


def test_a_password_is_taken_in_nfc_and_never_trimmed() -> None:
    """NIST-3.1.1.2-c, ASVS-6.2.8."""
    assert fields.password(" e\u0301\t\0 ") == " \u00e9\t\0 "
    assert fields.password("x" * 1024) == "x" * 1024
    assert fields.password("\U0001f600" * 64) == "\U0001f600" * 64


def test_a_password_to_be_verified_is_in_nfc_and_as_typed() -> None:
    """Another program may have hashed the bytes as typed."""
    assert fields.password_spellings("a password") == ("a password",)
    assert fields.password_spellings("\u00e9") == ("\u00e9",)
    assert fields.password_spellings("e\u0301") == ("\u00e9", "e\u0301")
    assert problem(lambda: fields.password_spellings("", "current_password")) == (
        "current_password",
        "must not be empty",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must not be empty"),
        ("x" * 1025, "must have at most 1024 bytes"),
        ("é" * 513, "must have at most 1024 bytes"),
    ],
)
def test_a_password_that_cannot_be_evaluated(text: str, expected: str) -> None:
    assert problem(lambda: fields.password(text)) == ("password", expected)
    assert problem(lambda: fields.password(text, "new_password")) == ("new_password", expected)


def test_request_ids() -> None:
    assert fields.request_id("") is None
    for text in ("a", " ", "~", "a" * 64, "6f3e-1 {x}"):
        assert fields.request_id(text) == text
    for text in ("a" * 65, "\n", "a\n", "\0", "\x7f", "é"):
        assert problem(lambda text=text: fields.request_id(text))[0] == "request_id"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("::", "::"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:c000:207", "192.0.2.7"),
        ("::192.0.2.7", "::c000:207"),
    ],
)
def test_a_client_address_has_one_spelling(text: str, canonical: str) -> None:
    assert fields.client_address(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        *("x", "localhost", "192.0.2", "192.0.2.256", "192.0.2.07", "0xc0000207", "3221225991", " 192.0.2.7"),
        *("192.0.2.7\n", "192.0.2.7:80", "[::1]", "192.0.2.0/24", "1::2::3", "\u0661.1.1.1", "1.1.1.1, 2.2.2.2"),
        pytest.param("1" * 1_000_000, id="long"),
    ],
)
def test_texts_that_are_no_client_address(text: str) -> None:
    expected = ("client_address", "must be an IPv4 or IPv6 address")
    assert problem(lambda: fields.client_address(text)) == expected


@pytest.mark.parametrize("zone", ["eth0", "1", "\n", "x" * 10_000])
def test_a_client_address_has_no_zone(zone: str) -> None:
    """A zone may be any text of any length."""
    assert problem(lambda: fields.client_address(f"fe80::1%{zone}")) == ("client_address", "must have no zone")


@given(address=st.ip_addresses())
def test_every_ip_address_is_a_client_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    canonical = fields.client_address(address.exploded)
    assert fields.client_address(canonical) == canonical
    assert len(canonical) <= 45


def test_client_labels() -> None:
    assert fields.client_label("") == ""
    assert fields.client_label("é" * 128) == "é" * 128
    assert problem(lambda: fields.client_label("a" * 129)) == ("client_label", "must have at most 128 characters")


def test_tokens_are_anything_but_empty() -> None:
    for text in (" ", "\0", "x" * 1_000_000):
        assert fields.token(text) == text
    assert problem(lambda: fields.token("")) == ("token", "must not be empty")


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [
        (0, 0, timedelta()),
        (0, 1_000, timedelta(microseconds=1)),
        (1, 999_999_999, timedelta(seconds=1, microseconds=999_999)),
        (fields.DURATION_MAX_SECONDS, 999_999_999, timedelta(days=3_652_500, microseconds=999_999)),
    ],
)
def test_spans(seconds: int, nanos: int, expected: timedelta) -> None:
    assert fields.duration(seconds, nanos, "max_staleness") == expected


@given(seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1))
def test_a_span_that_is_negative_or_malformed_is_refused(seconds: int, nanos: int) -> None:
    is_good = 0 <= seconds <= fields.DURATION_MAX_SECONDS and 0 <= nanos <= fields.DURATION_MAX_NANOS
    expected = ("", "") if is_good else ("max_staleness", "must be a well-formed duration of zero or more")
    assert problem(lambda: fields.duration(seconds, nanos, "max_staleness")) == expected


@pytest.mark.parametrize(("seconds", "nanos"), [(-1, 0), (0, -1), (1, -1), (0, 10**9), (315_576_000_001, 0)])
def test_spans_just_beyond_the_limits(seconds: int, nanos: int) -> None:
    assert problem(lambda: fields.duration(seconds, nanos, "stale_if_error"))[0] == "stale_if_error"
