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
    ("raw_path", "path"),
    [
        (b"", "/docs/a"),
        (b"/docs/a", "/docs/a"),
        (b"/docs/a?next=//%2f%2e", "/docs/a"),
        (b"/docs/a%20b", "/docs/a b"),
        (b"/docs/%C3%A4%3b", "/docs/ä;"),
        (b"/mounted/docs/a", "/docs/a"),
    ],
)
def test_a_path_that_was_sent_as_it_is_is_public(raw_path: bytes, path: str) -> None:
    assert PATHS.includes(path, raw_path, "/mounted")


@pytest.mark.parametrize(
    ("raw_path", "path"),
    [
        (b"/docs%2fa", "/docs/a"),
        (b"/docs%2Fa", "/docs/a"),
        (b"/docs/a%5cb", "/docs/a"),
        (b"/docs/%2e%2e/docs/a", "/docs/a"),
        (b"/docs/%2E", "/docs/a"),
        (b"/docs/.%2e/a", "/docs/a"),
        (b"/docs/%25", "/docs/a"),
        (b"/%64ocs/a", "/docs/a"),
        (b"/doc%73/a", "/docs/a"),
        (b"/docs/%41", "/docs/A"),
        (b"/docs/%7E", "/docs/~"),
        (b"/docs/%7a", "/docs/z"),
        (b"/docs/%30", "/docs/0"),
        (b"/docs/%2D", "/docs/-"),
        (b"/docs/%5f", "/docs/_"),
        (b"/docs/a%00", "/docs/a"),
    ],
)
def test_a_path_with_needless_encodings_needs_a_token(raw_path: bytes, path: str) -> None:
    assert not PATHS.includes(path, raw_path)


@pytest.mark.parametrize(
    "raw_path",
    [
        b"//docs/a",
        b"/docs//a",
        b"/x/../docs/a",
        b"/docs/./a",
        b"/docs/a/",
        b"/docs\\a",
        b"/docs/a\x00",
        b"/DOCS/a",
        b"http://host/docs/a",
        b"/admin/docs/a",
        b"/mounted/admin/docs/a",
        b"/mounteddocs/a",
        b"/docs/a#b",
    ],
)
def test_a_path_that_was_made_of_another_needs_a_token(raw_path: bytes) -> None:
    """Servers merge slashes; Litestar hands its middleware the path below where a request is routed to."""
    assert not PATHS.includes("/docs/a", raw_path, "/mounted")


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
    assert PublicPaths(["/"]).includes("/", b"/mounted/", "/mounted")
    assert not PublicPaths(["/"]).includes("/", b"//")
    assert not PublicPaths(["/"]).includes("/a")
    assert PublicPaths(["/*"]).includes("/a/b")
    assert not PublicPaths(["/*"]).includes("/a/../b")


def test_nothing_is_public_by_default() -> None:
    assert not PublicPaths([]).includes("/")
    assert not PublicPaths([]).includes("")
