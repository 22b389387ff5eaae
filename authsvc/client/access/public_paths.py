"""Which paths need no token: those that are listed, in their plain form, and no others."""

import re
from collections.abc import Collection, Iterable
from urllib.parse import unquote

_WILDCARD = "/*"
_PATTERN_SYNTAX = frozenset("*?#{}<>")
"""Characters of other pattern languages, which would never match."""
_NEEDLESS_ENCODING = re.compile(r"%(?:2[5def]|3[0-9]|4[1-9a-f]|5[0-9acf]|6[1-9a-f]|7[0-9ae])", re.IGNORECASE)
"""Encodings of `/`, `\\`, `%` and of what RFC 3986 section 2.3 leaves as it is, `.` among it.

Servers, proxies and routers disagree about the path that these stand for.
"""


class PublicPaths:
    """The paths that need no token.

    Args:
        patterns: Each an exact path, or one that ends in `/*` for all paths below it.

    Raises:
        ValueError: A pattern is anything else.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        if isinstance(patterns, str):
            raise ValueError(f"public: a list of paths is needed, not the text {patterns!r}")  # noqa: TRY004 - promised
        checked = [_checked(pattern) for pattern in patterns]
        self._exact = frozenset(pattern for pattern in checked if not pattern.endswith(_WILDCARD))
        self._prefixes = tuple(pattern.removesuffix("*") for pattern in checked if pattern.endswith(_WILDCARD))

    def includes(self, path: str, raw_path: bytes = b"", mount: str = "") -> bool:
        """Return whether a path needs no token.

        Args:
            path: As the application's router sees it: decoded, below where the application is mounted.
            raw_path: The path as the client sent it; empty where the server does not say.
            mount: Where the application is mounted.
        """
        is_listed = path in self._exact or path.startswith(self._prefixes)
        return is_listed and _is_plain(path) and (not raw_path or _is_sent_as(raw_path, {path, mount + path}))


def _checked(pattern: str) -> str:
    example = f"{pattern[:-1]}x" if pattern.endswith(_WILDCARD) else pattern
    if not _is_plain(example) or _PATTERN_SYNTAX.intersection(example):
        raise ValueError(f"public: {pattern!r} is neither a plain path that begins with / nor one that ends in /*")
    return pattern


def _is_plain(path: str) -> bool:
    """Return whether every router reads the path alike."""
    root, *segments = path.split("/")
    if root or not path.isprintable() or "\\" in path or "%" in path:
        return False
    return path == "/" or (bool(segments) and not {"", ".", ".."}.intersection(segments))


def _is_sent_as(raw_path: bytes, paths: Collection[str]) -> bool:
    """Return whether the client has sent one of the paths itself, and not what a server or router has made it of."""
    sent, _, _ = raw_path.decode("latin-1").partition("?")
    return not _NEEDLESS_ENCODING.search(sent) and unquote(sent) in paths
