import gzip
import unicodedata
from importlib import resources

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.errors import PasswordRejectedError
from authsvc.passwords import hashes, policy
from authsvc.passwords.hashes import (
    BCRYPT_MAX_BYTES,
    MAX_STORED_COST,
    UnreadableHashError,
    hash_password,
    parse_stored_hash,
    verify_password,
)
from authsvc.passwords.policy import MAX_LENGTH, check_policy
from tests.support import TEST_COST

EMAIL = "alice.smith@example.com"
COST = 8


def verified(password: str, stored: str | None, cost: int) -> bool:
    return verify_password(password, parse_stored_hash(stored), cost)


def cost_of(stored: str) -> int | None:
    parsed = parse_stored_hash(stored)
    return None if parsed is None else parsed.cost


def problem(password: str, email: str = EMAIL, min_length: int = 15) -> str:
    """Return why a password is refused; empty where it is accepted."""
    try:
        check_policy(password, email, min_length)
    except PasswordRejectedError as error:
        return error.problem
    return ""


def listed_passwords() -> list[str]:
    data = resources.files("authsvc.passwords").joinpath("common_passwords.txt.gz").read_bytes()
    return gzip.decompress(data).decode().splitlines()


def test_a_refusal_names_the_field_that_held_the_password() -> None:
    for field in ("password", "new_password"):
        with pytest.raises(PasswordRejectedError) as refused:
            check_policy("short", EMAIL, 15, field)
        assert refused.value.field == field


@pytest.mark.parametrize("min_length", [8, 15, 256])
def test_the_length_counts_code_points(min_length: int) -> None:
    """NIST-3.1.1.2-a, NIST-3.1.1.2-b, ASVS-6.2.1."""
    alphabet = [chr(0x1F300 + number) for number in range(256)]
    assert problem("".join(alphabet[: min_length - 1]), min_length=min_length) == (
        f"must have at least {min_length} characters"
    )
    assert problem("".join(alphabet[:min_length]), min_length=min_length) == ""


def test_the_longest_password_has_256_code_points() -> None:
    assert problem("kx7 " * 64) == ""
    assert problem("kx7 " * 64 + "k") == f"must have at most {MAX_LENGTH} characters"


@pytest.mark.parametrize(
    "password",
    [
        "a b c d e f g h",
        "827364918273640",
        "qqqqqqqqqqqqqqz",
        "correct horse battery staple",
        "\U0001f600\U0001f601\U0001f602\U0001f603\U0001f604" * 3,
        "               x",
        "\t\n\r\x0b\x0c\x1b\x7f\x00 \u200b\u2028\u00a0\ufeff xyz",
        "пароль из многих слов",
        "zwölf Boxkämpfer",
    ],
)
def test_there_are_no_rules_of_composition(password: str) -> None:
    """ASVS-6.2.5."""
    assert problem(password) == ""


def test_the_list_is_long() -> None:
    """ASVS-6.2.4 asks for 3,000."""
    assert len(set(listed_passwords())) > 19_000


@pytest.mark.parametrize("min_length", [8, 15])
def test_every_listed_password_that_is_long_enough_is_refused(min_length: int) -> None:
    """ASVS-6.2.4, NIST-3.1.1.2-d: and the client learns the reason."""
    listed = [word for word in listed_passwords() if len(word) >= min_length]
    assert listed
    assert {problem(word, min_length=min_length) for word in listed} == {"is a commonly used password"}
    assert {problem(word.upper(), min_length=min_length) for word in listed} == {"is a commonly used password"}


@pytest.mark.parametrize(
    "password", ["password" * 2, "PassWord" * 3, "123456" * 3, "aaaaaaaaaaaaaaaa", "qwertyuiop" * 8]
)
def test_a_listed_word_repeated_is_refused(password: str) -> None:
    assert problem(password) == "is a commonly used password"


def test_a_listed_word_among_others_is_allowed() -> None:
    assert problem("password is a word") == ""
    assert problem("passwordpassworx") == ""


def test_lists_and_passwords_are_compared_without_case_and_in_one_normal_form(monkeypatch: pytest.MonkeyPatch) -> None:
    words = frozenset({policy._fold("Straße der Größe")})  # noqa: SLF001 - the list has no such word
    monkeypatch.setattr(policy, "_common_passwords", lambda: words)
    for spelling in ("STRASSE DER GRÖSSE", "straße der größe", "strasse der gro\u0308sse", "Straẞe der Größe"):
        assert problem(spelling) == "is a commonly used password"


@pytest.mark.parametrize(
    ("password", "email"),
    [
        ("alice.smithalice.smith", EMAIL),
        ("alice.smith12345", EMAIL),
        ("ALICE.SMITH!!!!!", EMAIL),
        ("2024 alice.smith 2025", EMAIL),
        ("alice.smith@example.com", EMAIL),
        ("alice.smith@example.com1alice.smith", EMAIL),
        ("bob@example.com", "bob@example.com"),
        ("strasse-12345-strasse", "straße@example.com"),
        ("al@example.com!", "al@example.com"),
        ("A@EXAMPLE.COM 12", "a@example.com"),
    ],
)
def test_a_password_made_of_the_address_is_refused(password: str, email: str) -> None:
    assert problem(password, email) == "is made of the email address"


@pytest.mark.parametrize(
    ("password", "email"),
    [
        ("alice.smith has a password", EMAIL),
        ("123456789012345678", EMAIL),
        ("al 123456 al 654321", "al@example.com"),
        ("example.com is no secret", EMAIL),
    ],
)
def test_a_password_with_more_than_the_address_is_allowed(password: str, email: str) -> None:
    assert problem(password, email) == ""


@given(password=st.text(max_size=300), email=st.emails())
def test_a_refusal_never_quotes_the_password(password: str, email: str) -> None:
    texts = {"must have at least 8 characters", "must have at most 256 characters"}
    texts |= {"is a commonly used password", "is made of the email address", ""}
    assert problem(unicodedata.normalize("NFC", password), email, 8) in texts


@pytest.mark.parametrize("length", [1, BCRYPT_MAX_BYTES - 1, BCRYPT_MAX_BYTES])
def test_up_to_72_bytes_are_plain_bcrypt(length: int) -> None:
    """ASVS-11.4.2."""
    stored = hash_password("x" * length, TEST_COST)
    assert stored.startswith("$2b$04$")
    assert bcrypt.checkpw(b"x" * length, stored.encode())


@pytest.mark.parametrize("password", ["x" * 73, "é" * 37, "x" * 1024, "a\0", "\0", "a\0b"])
def test_more_bytes_and_nuls_are_bcrypt_sha256(password: str) -> None:
    """ASVS-6.2.8, ASVS-11.4.2."""
    stored = hash_password(password, TEST_COST)
    assert stored.startswith("$bcrypt-sha256$v=2,t=2b,r=4$")
    assert verified(password, stored, TEST_COST)


# Each pair would be one password to a bcrypt that cuts at 72 bytes, ends at a NUL, or repeats what ends in one.
PAIRS = [
    ("x" * 199 + "a", "x" * 199 + "b"),
    ("x" * 72, "x" * 73),
    ("x" * 72 + "a", "x" * 72 + "b"),
    ("\U0001f600" * 63 + "a", "\U0001f600" * 63 + "b"),
    ("a", "a\0a"),
    ("a", "a\0"),
    ("a\0b", "a\0c"),
    ("ab", "ab\0ab"),
    ("x" * 71 + "\0", "x" * 71),
    ("a password of words", "a password of words "),
    ("a password of words", " a password of words"),
    ("a password of words", "A password of words"),
    ("a password of words", "a password of words\n"),
    ("a  b", "a b"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=range(len(PAIRS)))
def test_passwords_that_differ_anywhere_are_two(one: str, other: str) -> None:
    """ASVS-6.2.8."""
    for right, wrong in ((one, other), (other, one)):
        stored = hash_password(right, TEST_COST)
        assert verified(right, stored, TEST_COST)
        assert not verified(wrong, stored, TEST_COST)


def test_64_code_points_of_four_bytes_are_a_password() -> None:
    """ASVS-6.2.9."""
    password = "\U0001f600\U0001f601" * 32
    assert problem(password) == ""
    assert verified(password, hash_password(password, TEST_COST), TEST_COST)


@given(password=st.text(min_size=1, max_size=300))
def test_every_text_verifies_against_its_own_hash(password: str) -> None:
    stored = hash_password(password, TEST_COST)
    assert verified(password, stored, TEST_COST)
    assert cost_of(stored) == TEST_COST


def test_a_password_hashed_twice_has_two_hashes() -> None:
    """NIST-3.1.1.2-e."""
    assert hash_password("x", TEST_COST) != hash_password("x", TEST_COST)
    assert hash_password("x" * 100, TEST_COST) != hash_password("x" * 100, TEST_COST)


UNICODE = "t\u00e1\u0411\u2113\u0259"
LONG = ("abc123" * 12)[:72]
BSD = "0123456789" * 7 + "01"
VECTORS = [
    # passlib 1.7.4, tests/test_handlers_bcrypt.py: bcrypt
    ("U*U*U*U*", "$2a$05$c92SVSfjeiCD6F2nAD6y0uBpJDjdRkt0EgeC4/31Rf2LUZbDRDE.O"),
    ("U*U***U", "$2a$05$WY62Xk2TXZ7EvVDQ5fmjNu7b0GEzSzUXUh2cllxJwhtOeMtWV3Ujq"),
    ("U*U***U*", "$2a$05$Fa0iKV3E2SYVUlMknirWU.CFYGvJ67UwVKI1E2FP6XeLiZGcH3MJi"),
    ("*U*U*U*U", "$2a$05$.WRrXibc1zPgIdRXYfv.4uu6TD1KWf0VnHzq/0imhUhuxSxCyeBs2"),
    ("", "$2a$05$Otz9agnajgrAe0.kFVF9V.tzaStZ2s1s4ZWi/LY4sw2k/MTVFj/IO"),
    ("U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
    ("U*U*U", "$2a$05$XXXXXXXXXXXXXXXXXXXXXOAcXxm9kjPGEMsLznoKqmqw7tc8WCx4a"),
    ("\u0451", "$2y$05$6bNw2HLQYeqHYyBfLMsv/OUcZd0LKP39b87nBw3.S2tVZSqiQX6eu"),
    (BSD, "$2a$04$R1lJ2gkNaoPGdafE.H.16.1MKHPvmKwryeulRe225LKProWYwt9Oi"),
    ("", "$2a$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s."),
    (UNICODE, "$2a$05$Z17AXnnlpzddNUvnC6cZNOSwMA/8oNiKnHTHTwLlBijfucQQlHjaG"),
    (UNICODE, "$2b$05$Z17AXnnlpzddNUvnC6cZNOSwMA/8oNiKnHTHTwLlBijfucQQlHjaG"),
    (UNICODE, "$2a$04$uM6csdM8R9SXTex/gbTayezuvzFEufYGd2uB6of7qScLjQ4GwcD4G"),
    # the same: bcrypt_sha256, version 2
    ("", "$bcrypt-sha256$v=2,t=2b,r=5$E/e/2AOhqM5W/KJTFQzLce$WFPIZKtDDTriqWwlmRFfHiOTeheAZWe"),
    ("password", "$bcrypt-sha256$v=2,t=2b,r=5$5Hg1DKFqPE8C2aflZ5vVoe$wOK1VFFtS8IGTrGa7.h5fs0u84qyPbS"),
    (UNICODE, "$bcrypt-sha256$v=2,t=2b,r=5$.US1fQ4TQS.ZTz/uJ5Kyn.$pzzgp40k8reM1CuQb03PvE0IDPQSdV6"),
    (LONG, "$bcrypt-sha256$v=2,t=2b,r=5$X1g1nh3g0v4h6970O68cxe$zu1cloESVFIOsUIo7fCEgkdHaI9SSue"),
    (LONG + "qwr", "$bcrypt-sha256$v=2,t=2b,r=5$X1g1nh3g0v4h6970O68cxe$CBF9csfEdW68xv3DwE6xSULXMtqEFP."),
    (LONG + "xyz", "$bcrypt-sha256$v=2,t=2b,r=5$X1g1nh3g0v4h6970O68cxe$zC/1UDUG2ofEXB6Onr2vvyFzfhEOS3S"),
]


@pytest.mark.parametrize(("password", "stored"), VECTORS, ids=range(len(VECTORS)))
def test_hashes_of_other_programs_verify(password: str, stored: str) -> None:
    """ASVS-11.4.2."""
    assert verified(password, stored, TEST_COST)
    assert not verified(password + "x" if len(password) < 72 else password[:-1] + "!", stored, TEST_COST)
    assert cost_of(stored) in {4, 5, 6}


WORDS = "U*U"
BCRYPT = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
SHA256 = "$bcrypt-sha256$v=2,t=2b,r=5$5Hg1DKFqPE8C2aflZ5vVoe$wOK1VFFtS8IGTrGa7.h5fs0u84qyPbS"
SPELLINGS = [
    (WORDS, BCRYPT + "    ", BCRYPT),
    (WORDS, BCRYPT + "\r\n", BCRYPT),
    (WORDS, " \t" + BCRYPT, BCRYPT),
    (WORDS, "{bcrypt}" + BCRYPT, BCRYPT),
    (WORDS, "{CRYPT}" + BCRYPT, BCRYPT),
    (WORDS, "{crypt}" + BCRYPT + " ", BCRYPT),
    (WORDS, "{BLF-CRYPT}" + BCRYPT, BCRYPT),
    (WORDS, "bcrypt$" + BCRYPT, BCRYPT),
    # The last characters of salt and checksum, with padding bits: `.` and `W` mean the same as these.
    *((WORDS, BCRYPT.replace(".E5", f"{digit}E5"), BCRYPT) for digit in "/ABCM"),
    *((WORDS, BCRYPT[:-1] + digit, BCRYPT) for digit in "XYZ"),
    ("password", SHA256 + " ", SHA256),
    ("password", SHA256.replace("Voe$", "Vof$"), SHA256),
    ("password", SHA256.replace("Voe$", "Vot$"), SHA256),
    ("password", SHA256[:-1] + "T", SHA256),
]


@pytest.mark.parametrize(("password", "stored", "canonical"), SPELLINGS, ids=range(len(SPELLINGS)))
def test_a_hash_that_other_programs_spell_otherwise_verifies(password: str, stored: str, canonical: str) -> None:
    assert hashes.parse_hash(stored).text == canonical
    assert verified(password, stored, TEST_COST)
    assert not verified(password + "x", stored, TEST_COST)


@pytest.mark.parametrize("stored", [BCRYPT, BCRYPT.replace("$2a$", "$2y$"), BCRYPT.replace("$2a$", "$2b$"), SHA256])
def test_a_canonical_hash_stays_as_it_is(stored: str) -> None:
    assert hashes.parse_hash(stored).text == stored
    assert hashes.hash_problem(stored) is None


FORMAT = "must be bcrypt or bcrypt-sha256 of cost 4 to 16"
CUT_OFF = "is a malformed or cut off bcrypt hash"
CUT_OFF_SHA256 = "is a malformed or cut off bcrypt-sha256 hash"
OTHER_VERSION = "is bcrypt-sha256 of another version than 2"
UNKNOWN = "is in no known format"
UNREADABLE = [
    ("", "is empty"),
    ("  ", "is empty"),
    ("x", UNKNOWN),
    ("plain text", UNKNOWN),
    ("$2b$31$" + "." * 53, "is of cost above 16"),  # would run for days
    ("$2b$17$" + "." * 53, "is of cost above 16"),
    ("$2b$03$" + "." * 53, "is of cost below 4"),
    ("$2b$00$" + "." * 53, "is of cost below 4"),
    ("$2b$4$" + "." * 53, CUT_OFF),
    ("$2b$004$" + "." * 53, CUT_OFF),
    ("$2b$-4$" + "." * 53, CUT_OFF),
    ("$2x$05$" + "." * 53, "is of bcrypt's variant 2x, which hashed some passwords wrongly"),
    ("{bcrypt}$2x$05$" + "." * 53, "is of bcrypt's variant 2x, which hashed some passwords wrongly"),
    ("$2c$05$" + "." * 53, UNKNOWN),
    ("$2$05$" + "." * 53, "is of bcrypt's first variant, 2, which hashed other bytes"),
    ("$2b$05$" + "." * 52, CUT_OFF),
    ("$2b$05$" + "." * 54, CUT_OFF),
    ("$2b$05$" + "." * 52 + "\0", CUT_OFF),
    ("$2b$05$" + "." * 53 + "\0", CUT_OFF),
    ("$2b$05$" + "." * 52 + "é", CUT_OFF),
    ("$2b$05$" + "." * 52 + "!", CUT_OFF),
    ("$2b$05$" + "." * 22 + "$" + "." * 31, CUT_OFF),
    ("$2b$\u0660\u0665$" + "." * 53, CUT_OFF),
    ("{SSHA}$2b$05$" + "." * 53, CUT_OFF),
    ("{bcrypt} $2b$05$" + "." * 53, CUT_OFF),
    ("{bcrypt}{bcrypt}$2b$05$" + "." * 53, CUT_OFF),
    # passlib's list of malformed hashes
    ("$bcrypt-sha256$2b,5$5Hg1DKFqPE8C2aflZ5vVoe$12BjNE0p7axMg55.Y/mHsYiVuFBDQyu", OTHER_VERSION),
    ("$bcrypt-sha256$v=2,t=2b,r=5$5Hg1DKF!PE8C2aflZ5vVoe$12BjNE0p7axMg55.Y/mHsYiVuFBDQyu", CUT_OFF_SHA256),
    ("$bcrypt-sha256$v=1,t=2b,r=5$5Hg1DKFqPE8C2aflZ5vVoe$12BjNE0p7axMg55.Y/mHsYiVuFBDQyu", OTHER_VERSION),
    ("$bcrypt-sha256$v=3,t=2b,r=5$5Hg1DKFqPE8C2aflZ5vVoe$12BjNE0p7axMg55.Y/mHsYiVuFBDQyu", OTHER_VERSION),
    ("$bcrypt-sha256$v=2,t=2a,r=5$5Hg1DKFqPE8C2aflZ5vVoe$12BjNE0p7axMg55.Y/mHsYiVuFBDQyu", CUT_OFF_SHA256),
    ("$bcrypt-sha256$v=2,t=2x,r=5$5Hg1DKFqPE8C2aflZ5vVoe$12BjNE0p7axMg55.Y/mHsYiVuFBDQyu", CUT_OFF_SHA256),
    ("$bcrypt-sha256$v=2,t=2b,r=05$5Hg1DKFqPE8C2aflZ5vVoe$12BjNE0p7axMg55.Y/mHsYiVuFBDQyu", CUT_OFF_SHA256),
    ("$bcrypt-sha256$v=2,t=2b,r=31$5Hg1DKFqPE8C2aflZ5vVoe$12BjNE0p7axMg55.Y/mHsYiVuFBDQyu", "is of cost above 16"),
    ("$bcrypt-sha256$v=2,t=2b,r=5$5Hg1DKFqPE8C2aflZ5vVoe$", CUT_OFF_SHA256),
    ("$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA", "is argon2"),
    ("argon2$argon2i$v=19$m=512,t=2,p=2$c2FsdA$aGFzaA", "is argon2"),
    ("{ARGON2}$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA", "is argon2"),
    ("$scrypt$ln=16,r=8,p=1$c2FsdA$aGFzaA", "is scrypt"),
    ("scrypt:32768:8:1$c2FsdA$aGFzaA", "is scrypt"),
    ("$7$C6..../....SodiumChloride$aGFzaA", "is scrypt"),
    ("pbkdf2_sha256$1000000$c2FsdA$aGFzaA", "is PBKDF2"),
    ("$pbkdf2-sha512$25000$c2FsdA$aGFzaA", "is PBKDF2"),
    ("{PBKDF2-SHA256}10000$c2FsdA$aGFzaA", "is PBKDF2"),
    ("$wp$2y$10$" + "." * 53, "is WordPress's, which hashes the password with SHA-384 before bcrypt"),
    ("bcrypt_sha256$$2b$12$" + "." * 53, "is Django's bcrypt_sha256, which is not passlib's"),
    ("!", "is the mark of a locked account or unusable password"),
    ("!" + "$2b$05$" + "." * 53, "is the mark of a locked account or unusable password"),
    ("*0", "is the mark of a locked account or unusable password"),
    ("$6$salt$hash", "is a hash of another program"),
    ("{noop}password", "is a hash of another program"),
    ("5f4dcc3b5aa765d61d8327deb882cf99", UNKNOWN),
]


class Work:
    """Replaces bcrypt; records the cost of every hash."""

    def __init__(self) -> None:
        self.costs: list[int] = []

    gensalt = staticmethod(bcrypt.gensalt)

    def hashpw(self, password: bytes, salt: bytes) -> bytes:
        hashed = bcrypt.hashpw(password, salt)
        self.costs.append(int(salt.split(b"$")[2]))
        return hashed

    def checkpw(self, password: bytes, hashed: bytes) -> bool:
        is_right = bcrypt.checkpw(password, hashed)
        self.costs.append(int(hashed.split(b"$")[2]))
        return is_right

    @property
    def rounds(self) -> int:
        return sum(2**cost for cost in self.costs)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work = Work()
    monkeypatch.setattr(hashes, "bcrypt", work)
    return work


def hashed(password: str, cost: int) -> str:
    stored = hash_password(password, cost)
    assert cost_of(stored) == cost
    return stored


@pytest.mark.parametrize(("stored", "problem"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_an_unreadable_hash_is_named(stored: str, problem: str) -> None:
    with pytest.raises(UnreadableHashError) as refused:
        hashes.parse_hash(stored)
    assert str(refused.value) == hashes.hash_problem(stored) == f"{problem}: {FORMAT}"


@pytest.mark.parametrize("stored", [stored for stored, _ in UNREADABLE], ids=range(len(UNREADABLE)))
def test_an_unreadable_hash_lets_nobody_in_at_the_full_cost(work: Work, stored: str) -> None:
    assert cost_of(stored) is None
    assert not verified("x", stored, COST)
    assert work.costs == [COST]


def test_an_unknown_user_costs_a_hash(work: Work) -> None:
    assert not verified("x", None, COST)
    assert work.costs == [COST]


@pytest.mark.parametrize("stored_at", range(4, COST + 1))
@pytest.mark.parametrize("right", ["short", "x" * 100, "a\0b"], ids=["bcrypt", "long", "NUL"])
@pytest.mark.parametrize("wrong", ["wrong", "y" * 100, "y\0z"], ids=["short", "long", "NUL"])
def test_a_wrong_password_costs_a_hash_whatever_is_stored(work: Work, right: str, wrong: str, stored_at: int) -> None:
    stored = hashed(right, stored_at)
    work.costs.clear()
    assert not verified(wrong, stored, COST)
    assert work.rounds == 2**COST


@pytest.mark.parametrize("stored_at", [5, COST, None])
def test_each_spelling_of_a_wrong_password_costs_a_hash(work: Work, stored_at: int | None) -> None:
    stored = None if stored_at is None else hashes.parse_hash(hashed("right", stored_at))
    work.costs.clear()
    assert hashes.find_password(["wrong", "wrong as typed"], stored, COST) is None
    assert work.rounds == 2 * 2**COST


def test_the_spelling_that_is_right_is_the_last_that_costs_a_hash(work: Work) -> None:
    stored = hashes.parse_hash(hashed("right", COST))
    for spellings, computed in ((["right", "wrong"], 1), (["wrong", "right"], 2)):
        work.costs.clear()
        assert hashes.find_password(spellings, stored, COST) == "right"
        assert work.rounds == computed * 2**COST


def test_dummies_follow_a_lower_cost_and_never_exceed_the_configured_one(work: Work) -> None:
    stored = hashed("right", 5)
    work.costs.clear()
    verified("wrong", stored, COST)
    assert work.costs == [5, 5, 6, 7]


def test_a_right_password_costs_its_own_hash_alone(work: Work) -> None:
    stored = hashed("right", 5)
    work.costs.clear()
    assert verified("right", stored, COST)
    assert work.costs == [5]


def test_a_higher_cost_than_the_configured_one_is_computed_as_it_is(work: Work) -> None:
    stored = hashed("right", COST)
    work.costs.clear()
    assert not verified("wrong", stored, 5)
    assert work.costs == [COST]


@pytest.mark.parametrize(
    ("cost", "expected"), [(3, None), (4, 4), (10, 10), (16, MAX_STORED_COST), (17, None), (31, None)]
)
def test_costs_that_are_read(cost: int, expected: int | None) -> None:
    assert cost_of(f"$2b${cost:02}$" + "." * 53) == expected
    assert cost_of(f"$bcrypt-sha256$v=2,t=2b,r={cost}$" + "." * 22 + "$" + "." * 31) == expected
