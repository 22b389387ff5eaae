"""The callers file: its form, look-ups by credential, and reloads while the service runs."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.errors import CallersFileError
from authsvc.rpc.callers import (
    Caller,
    Callers,
    Permission,
    api_key_digest,
    new_api_key,
    read_callers,
    watch_callers_file,
)
from tests.support import WITNESS
from tests.unreadable_files import UNREADABLE

KEY = "ask_" + "Ab1_-" * 8 + "Ab1"
OTHER_KEY = "ask_" + "Cd2_-" * 8 + "Cd2"
GOOD = f"""
[callers.checkout]
api_key_sha256 = ["{api_key_digest(KEY)}"]
permissions = ["validate", "login"]

[callers."admin.tool"]
tls_identities = ["spiffe://example.com/ns/Admin", "admin.example.com"]
permissions = ["users"]
"""
CHECKOUT = Caller("checkout", frozenset({Permission.VALIDATE, Permission.LOGIN}), frozenset({api_key_digest(KEY)}))
ADMIN_TOOL = Caller(
    "admin.tool",
    frozenset({Permission.USERS}),
    tls_identities=frozenset({"spiffe://example.com/ns/Admin", "admin.example.com"}),
)
DIGEST = "0" * 63 + "1"


@pytest.fixture(autouse=True)
def _keys_are_secrets() -> None:
    WITNESS.hide(KEY, OTHER_KEY)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "callers.toml"
    path.write_text(GOOD)
    return path


def problems_of(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(CallersFileError) as refused:
        read_callers(path)
    assert str(refused.value).splitlines() == [f"{path}: {problem}" for problem in refused.value.problems]
    return refused.value.problems


# Credentials


def test_a_caller_is_found_by_its_key(path: Path) -> None:
    callers = read_callers(path)
    assert callers.names == ["checkout", "admin.tool"]
    assert callers.find_by_api_key(KEY) == CHECKOUT
    for key in (OTHER_KEY, KEY[:-1], KEY + "x", KEY.upper(), api_key_digest(KEY), "ask_", "", "ask_\udcff"):
        assert callers.find_by_api_key(key) is None


def test_a_byte_order_mark_is_no_part_of_the_file(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_callers(path).names == ["checkout", "admin.tool"]


def test_a_caller_has_two_keys_while_one_is_replaced(path: Path) -> None:
    path.write_text(GOOD.replace(f'"{api_key_digest(KEY)}"', f'"{api_key_digest(KEY)}", "{api_key_digest(OTHER_KEY)}"'))
    callers = read_callers(path)
    assert callers.find_by_api_key(KEY) == callers.find_by_api_key(OTHER_KEY) is not None


def test_a_caller_is_found_by_its_certificate(path: Path) -> None:
    callers = read_callers(path)
    for identities in (["admin.example.com"], ["a", "spiffe://example.com/ns/Admin"], list(ADMIN_TOOL.tls_identities)):
        assert callers.find_by_tls_identities(identities) == ADMIN_TOOL
    for identities in ([], ["example.com"], ["x.admin.example.com"], ["spiffe://example.com/ns/admin"]):
        assert callers.find_by_tls_identities(identities) is None


def test_a_certificate_of_two_callers_matches_none() -> None:
    callers = Callers([Caller(name, frozenset(), tls_identities=frozenset({name})) for name in ("a", "b")])
    assert callers.find_by_tls_identities(["a", "b"]) is None


def test_a_new_key_has_256_bits_and_is_kept_as_its_digest() -> None:
    """ASVS-13.2.3: keys are unique, and the file does not reveal them."""
    keys = {new_api_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith("ask_")
        assert len(base64.urlsafe_b64decode(key.removeprefix("ask_") + "=")) == 32
        assert api_key_digest(key) == hashlib.sha256(key.encode()).hexdigest()


# Form

NO_CALLER = "has no caller; add a table [callers.NAME]"
OTHER_ENTRIES = "has entries outside [callers.NAME]; remove them"
WHOLE: list[tuple[str, list[str]]] = [
    ("", [NO_CALLER]),
    ("[callers]", [NO_CALLER]),
    ("callers = 1", [NO_CALLER]),
    ("[caller.a]", [OTHER_ENTRIES, NO_CALLER]),
    (f"x = 1\n{GOOD}", [OTHER_ENTRIES]),
    ("[callers.a", ["is not valid TOML (at end of document)"]),
    (f"[callers.a]\nkey = {KEY}", ["is not valid TOML (at line 2, column 7)"]),
    (f"[callers.a]\n{KEY} = 1\n{KEY} = 2", ["is not valid TOML (at end of document)"]),
    ("x = " + "[" * 100_000, ["is not valid TOML"]),
]


@pytest.mark.parametrize(("text", "problems"), WHOLE, ids=range(len(WHOLE)))
def test_a_file_that_names_nobody_is_refused(path: Path, text: str, problems: list[str]) -> None:
    assert problems_of(path, text) == problems


def test_a_file_that_is_no_text_is_refused(path: Path) -> None:
    path.write_bytes(b"\xff")
    with pytest.raises(CallersFileError, match=r"callers\.toml: is not valid TOML$"):
        read_callers(path)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda _: None, "No such file or directory"),
        (Path.mkdir, "Is a directory"),
        (os.mkfifo, "not a regular file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, make: Callable[[Path], object], why: str) -> None:
    path = tmp_path / "none.toml"
    make(path)
    with pytest.raises(CallersFileError, match=rf"none\.toml: cannot be read: {why}$"):
        read_callers(path)


FORM_OF_NAMES = "the name must match [A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
FORM_OF_DIGESTS = "must be 64 lower-case hexadecimal digits, as authsvc callers new-key prints them"
FORM_OF_IDENTITIES = "must be a URI, or a lower-case DNS name without wildcards"
FORM_OF_PERMISSIONS = "must be one of validate, login, sessions, users"
NO_CREDENTIAL = "has no credential; set api_key_sha256 or tls_identities"
NO_PERMISSION = "has no permission; set permissions to a list of validate, login, sessions, users"
BAD: list[tuple[str, str, list[str]]] = [
    (name, f'api_key_sha256 = ["{DIGEST}"]\npermissions = ["login"]', [FORM_OF_NAMES])
    for name in ("", "a b", "-a", ".a", "a:b", "ä", "a" * 65, "a\x7f", "a/b")
] + [
    ("a", "", [NO_CREDENTIAL, NO_PERMISSION]),
    (
        "a",
        "api_key_sha256 = []\ntls_identities = []\npermissions = []",
        [NO_CREDENTIAL, NO_PERMISSION],
    ),
    ("a", 'permissions = ["login"]', [NO_CREDENTIAL]),
    ("a", f'api_key_sha256 = ["{DIGEST}"]', [NO_PERMISSION]),
    (
        "a",
        f'api_key_sha256 = ["{DIGEST}"]\npermissions = ["login", "root", 1]',
        [f"permissions, entry 2: {FORM_OF_PERMISSIONS}", f"permissions, entry 3: {FORM_OF_PERMISSIONS}"],
    ),
    (
        "a",
        f'api_key_sha256 = "{DIGEST}"\ntls_identities = {{}}\npermissions = "login"',
        ["api_key_sha256 must be a list", "tls_identities must be a list", "permissions must be a list"],
    ),
    (
        "a",
        f'api_key_sha256 = ["{DIGEST}"]\napi_keys = ["{KEY}"]\npermissions = ["login"]',
        ["has fields other than api_key_sha256, tls_identities, permissions; remove them"],
    ),
]
MALFORMED: dict[str, list[str]] = {
    "api_key_sha256": [KEY, "", "0" * 63, "0" * 65, "A" * 64, "g" * 64, DIGEST + r"\n", "\u0660" * 64],
    "tls_identities": [
        "",
        "*.example.com",
        "A.example.com",
        "a..b",
        "a b",
        "spiffe://",
        "://a",
        "spiffe://a b",
        r"a\n",
    ],
}


@pytest.mark.parametrize(("name", "members", "problems"), BAD, ids=range(len(BAD)))
def test_every_problem_of_a_caller_is_reported(path: Path, name: str, members: str, problems: list[str]) -> None:
    found = problems_of(path, f"[callers.{json.dumps(name)}]\n{members}")
    assert [problem.partition(": ")[2] for problem in found] == problems
    assert all(problem.startswith("caller ") for problem in found)


@pytest.mark.parametrize(("member", "value"), [(member, v) for member, values in MALFORMED.items() for v in values])
def test_a_malformed_credential_is_named_by_its_position_alone(path: Path, member: str, value: str) -> None:
    """The error omits the value: it may be an API key in the wrong place."""
    form = FORM_OF_DIGESTS if member == "api_key_sha256" else FORM_OF_IDENTITIES
    good = DIGEST if member == "api_key_sha256" else "a.example.com"
    found = problems_of(path, f'[callers.a]\n{member} = ["{good}", "{value}"]\npermissions = ["login"]')
    assert found == [f"caller 'a': {member}, entry 2: {form}"]


def test_a_credential_is_of_one_caller(path: Path) -> None:
    again = f"""
    [callers.other]
    api_key_sha256 = ["{DIGEST}", "{api_key_digest(KEY)}"]
    tls_identities = ["admin.example.com"]
    permissions = ["login"]
    """
    assert problems_of(path, GOOD + again) == [
        "caller 'other': api_key_sha256, entry 2: caller 'checkout' has it too; remove it from one of them",
        "caller 'other': tls_identities, entry 1: caller 'admin.tool' has it too; remove it from one of them",
    ]


def test_problems_of_all_callers_are_reported_at_once(path: Path) -> None:
    found = problems_of(path, "[callers]\na = 1\nb = {}\n")
    assert found == [
        "caller 'a': must be a table [callers.NAME]",
        f"caller 'b': {NO_CREDENTIAL}",
        f"caller 'b': {NO_PERMISSION}",
    ]


@given(text=st.text(st.sampled_from("[]{}=\"'.,\n #callersapi_key_sha256permissions0123")))
def test_whatever_the_text_the_only_error_is_that_of_the_file(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text)
    with pytest.raises(CallersFileError):
        read_callers(path)


# Reloads


class Followed:
    """A watched callers file, and the log events of its reloads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = watch_callers_file(path)
        self._position = len(WITNESS.lines.getvalue())

    def allows(self, key: str) -> bool:
        """Reload the file if it changed, and return whether a caller has the key."""
        return self.file.reload_if_changed().find_by_api_key(key) is not None

    def events(self) -> list[dict[str, object]]:
        """Return the log events since the last call."""
        text = WITNESS.lines.getvalue()[self._position :]
        self._position += len(text)
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def followed(path: Path) -> Followed:
    return Followed(path)


def without(key: str, text: str = GOOD) -> str:
    """Replace the digest of a key by one that no key has."""
    return text.replace(api_key_digest(key), DIGEST)


def test_a_key_that_is_taken_away_counts_no_longer(followed: Followed) -> None:
    assert followed.allows(KEY)
    followed.path.write_text(without(KEY))
    assert not followed.allows(KEY)
    (event,) = followed.events()
    assert (event["event"], event["callers"]) == ("callers_reloaded", ["checkout", "admin.tool"])
    assert not followed.allows(KEY)
    assert followed.events() == []


def dangling_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


BROKEN: dict[str, Callable[[Path], object]] = {
    **UNREADABLE,
    "a dangling symlink": dangling_symlink,
    "an unknown permission": lambda path: path.write_text(GOOD.replace("login", "root")),
    "one caller broken": lambda path: path.write_text(without(KEY) + "\n[callers.other]\n"),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_keeps_the_last_good_callers(followed: Followed, damage: Callable[[Path], object]) -> None:
    """F16: a broken file changes no caller and logs one error for each change; a repaired file is loaded."""
    damage(followed.path)
    for _ in range(3):
        assert followed.allows(KEY)
        assert not followed.allows(OTHER_KEY)
    (event,) = followed.events()
    assert (event["event"], event["level"]) == ("callers_not_reloaded", "error")
    assert str(followed.path) in str(event["reason"])
    if followed.path.is_dir():
        followed.path.rmdir()
    followed.path.unlink(missing_ok=True)
    followed.file.reload_if_changed()
    followed.path.write_text(without(KEY))
    assert not followed.allows(KEY)
    assert [event["event"] for event in followed.events()][-1] == "callers_reloaded"


def test_a_file_that_is_swapped_by_a_symlink_is_seen(tmp_path: Path) -> None:
    """Kubernetes swaps mounted files so. A swap to a broken file changes nothing; a swap to a good one is loaded."""
    for name, text in (("1", GOOD), ("2", "[callers"), ("3", without(KEY))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "callers.toml").write_text(text)
    (tmp_path / "data").symlink_to("1")
    mounted = tmp_path / "callers.toml"
    mounted.symlink_to("data/callers.toml")
    followed = Followed(mounted)
    for name, allowed in (("2", True), ("3", False), ("1", True)):
        (tmp_path / "new").symlink_to(name)
        (tmp_path / "new").replace(tmp_path / "data")
        for _ in range(2):
            assert followed.allows(KEY) is allowed
    assert [event["event"] for event in followed.events()] == [
        "callers_not_reloaded",
        "callers_reloaded",
        "callers_reloaded",
    ]


def test_at_its_start_it_refuses_a_broken_file(path: Path) -> None:
    path.write_text("[callers")
    with pytest.raises(CallersFileError, match="is not valid TOML"):
        watch_callers_file(path)


def test_no_key_is_in_what_the_callers_show_of_themselves(path: Path) -> None:
    assert not re.search(KEY, repr(read_callers(path)))
