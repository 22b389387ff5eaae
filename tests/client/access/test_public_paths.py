"""Which paths need no token: the listed ones, however a path is disguised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.client.access.public_paths import PublicPaths

PATHS = PublicPaths(["/healthz", "/docs", "/docs/*", "/grpc.health.v1.Health/*"])


@pytest.mark.parametrize(
    "path", ["/healthz", "/docs", "/docs/a", "/docs/a/b", "/docs/a b", "/docs/ä", "/docs/.well-known", "/docs/..."]
)
def test_listed_paths_are_public(path: str) -> None:
    assert PATHS.includes(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "healthz",
        "/HEALTHZ",
        "/Docs/a",
        "/healthz/",
        "/healthz/a",
        "/healthzz",
        "/healthz ",
        "/docsx",
        "/docsx/a",
        "/docs/",
        "//healthz",
        "//docs/a",
        "/docs//a",
        "/docs/a/",
        "/docs/a//",
        "/./healthz",
        "/docs/.",
        "/docs/./a",
        "/docs/..",
        "/docs/../admin",
        "/docs/a/../../admin",
        "/healthz/../admin",
        "/x/../healthz",
        "\\healthz",
        "/docs\\a",
        "/docs/..\\admin",
        "/docs/a\\b",
        "/docs/\x00",
        "/docs/a\x1f",
        "/docs/a\n",
        "/docs/\x7f",
        "/docs/\x85",
        "/docs/\u2028",
        "/docs/\udc80",
        "/docs/%2e%2e/admin",
        "/docs/%252e",
        "/docs/100%",
        "http://host/healthz",
        "*",
    ],
)
def test_every_other_path_needs_a_token(path: str) -> None:
    assert not PATHS.includes(path)


@pytest.mark.parametrize(
    "raw_path", [b"", b"/docs/a", b"/docs/a%20b", b"/docs/%C3%A4", b"/docs/a?next=//%2f%2e", b"/docs/a/"]
)
def test_a_plain_raw_path_changes_nothing(raw_path: bytes) -> None:
    assert PATHS.includes("/docs/a", raw_path)


@pytest.mark.parametrize(
    "raw_path",
    [
        b"/docs%2fa",
        b"/docs%2Fa",
        b"/docs/a%5cb",
        b"/docs/a%5Cb",
        b"/docs/%2e%2e/a",
        b"/docs/%2E/a",
        b"/docs/.%2e/a",
        b"/docs/%25",
        b"/docs/%252fa",
        b"/%64ocs/a",
        b"/%44ocs/a",
        b"/docs/%7E",
        b"/docs/%30",
        b"//docs/a",
        b"/docs//a",
        b"/x/../docs/a",
        b"/docs/./a",
        b"/docs\\a",
        b"/docs/a\x00",
        b"/docs/a//",
        b"http://host/docs/a",
    ],
)
def test_a_raw_path_with_needless_encodings_needs_a_token(raw_path: bytes) -> None:
    assert not PATHS.includes("/docs/a", raw_path)


@given(st.text(alphabet="/.\\%2eEfFadmin?#;:\x00 \x85é", max_size=12))
def test_a_public_path_below_a_wildcard_cannot_leave_it(rest: str) -> None:
    path = f"/docs/{rest}"
    segments = rest.split("/")
    assert PATHS.includes(path) == (
        "" not in segments
        and not {".", ".."}.intersection(segments)
        and not any(character in rest for character in "\\%\x00\x85")
    )


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*",
        "docs",
        "docs/*",
        "/docs/",
        "/docs*",
        "/docs/**",
        "/docs/*/x",
        "/*/x",
        "/docs/*.html",
        "//docs",
        "//*",
        "/docs//*",
        "/docs/../*",
        "/./*",
        "/do\\cs",
        "/docs\n",
        "/docs?x=1",
        "/docs#x",
        "/d%6fcs",
        "/items/{id}",
        "/items/<id>",
        "http://host/docs",
    ],
)
def test_another_pattern_is_an_error_that_names_it(pattern: str) -> None:
    with pytest.raises(ValueError, match="public: ") as caught:
        PublicPaths(["/healthz", pattern])
    assert repr(pattern) in str(caught.value)


def test_one_text_instead_of_a_list_is_an_error() -> None:
    with pytest.raises(ValueError, match="a list of paths is needed"):
        PublicPaths("/docs")


def test_patterns_may_come_from_a_generator() -> None:
    paths = PublicPaths(pattern for pattern in ["/a", "/b/*"])
    assert paths.includes("/a")
    assert paths.includes("/b/c")


def test_the_root_and_everything_below_it() -> None:
    assert PublicPaths(["/"]).includes("/")
    assert PublicPaths(["/"]).includes("/", b"/")
    assert PublicPaths(["/"]).includes("/", b"/mounted/")
    assert not PublicPaths(["/"]).includes("/", b"//")
    assert not PublicPaths(["/"]).includes("/a")
    assert PublicPaths(["/*"]).includes("/a/b")
    assert not PublicPaths(["/*"]).includes("/a/../b")


def test_nothing_is_public_by_default() -> None:
    assert not PublicPaths([]).includes("/")
    assert not PublicPaths([]).includes("")
