"""Requests that try to pass as somebody else: their headers as they are on the wire (RFC 9110, RFC 9112)."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SIZE = 200
IDENTITY = (b"user-id", b"email", b"role", b"session-id")


@dataclass(frozen=True)
class Attack:
    """A set of headers.

    Args:
        name: For the message of a failure.
        headers: Lines without their ends.
        has_token: Whether its one credential is the attacker's good token, so that the request may pass as the
            attacker; otherwise it may pass without identity alone.
    """

    name: str
    headers: Sequence[bytes]
    has_token: bool = False


def attacks(token: bytes, other: bytes, victim: Sequence[bytes], seed: int = 0) -> list[Attack]:
    """Return SIZE attacks.

    Args:
        token: Good, of the attacker.
        other: Good as well, of another user.
        victim: Values of the identity that the attacker wants, as IDENTITY.
        seed: Of the combinations.
    """
    source = random.Random(seed)  # noqa: S311 - repeatable, not secret
    with_token = b"authorization: Bearer " + token
    single = [*_credentials(token, other), *_spoofs(victim, with_token)]
    found = list(single)
    credentials, spoofs = list(_credentials(token, other)), list(_spoofs(victim, with_token))
    while len(found) < SIZE:
        credential, spoof = source.choice(credentials), source.choice(spoofs)
        headers = [*credential.headers, *(line for line in spoof.headers if line != with_token)]
        source.shuffle(headers)
        if not any(line[:1] in b" \t" for line in headers):  # a folded line belongs to the one before it
            found.append(Attack(f"{credential.name}, {spoof.name}", headers, credential.has_token))
    return found


def _credentials(token: bytes, other: bytes) -> Iterator[Attack]:
    """What is wrong with Authorization."""
    name = b"authorization: "
    good, second, basic = b"Bearer " + token, b"Bearer " + other, b"Basic cm9vdDpyb290"
    yield Attack("one token", [name + good], has_token=True)
    yield Attack("another case", [b"AUTHORIZATION: BEARER " + token], has_token=True)
    yield Attack("blanks around", [b"Authorization: \t " + good + b" \t"], has_token=True)
    yield Attack("two tokens", [name + good, name + second])
    yield Attack("the same twice", [name + good, name + good])
    yield Attack("twice in two cases", [name + good, b"AUTHORIZATION: " + second])
    yield Attack("a token and another scheme", [name + good, name + basic])
    yield Attack("another scheme and a token", [name + basic, name + good])
    yield Attack("a token and nothing", [name + good, b"authorization:"], has_token=True)
    yield Attack("nothing and a token", [b"authorization:", name + good], has_token=True)
    yield Attack("two in one", [name + good + b", " + second])
    yield Attack("two in one without a comma", [name + good + b" " + second])
    yield Attack("a comma at the end", [name + good + b","])
    yield Attack("a parameter", [name + good + b';user="root"'])
    yield Attack("folded", [b"authorization: Bearer", b" " + token], has_token=True)
    yield Attack("folded with a second", [name + good, b"\t" + second])
    yield Attack("no header", [])
    for scheme in (
        b"Basic",
        b"Digest",
        b"Negotiate",
        b"Bearer2",
        b"Token",
        b"",
        b"Bearer\xa0",
        b"Bear er",
        b"\xffBearer",
    ):
        yield Attack(f"scheme {scheme!r}", [name + scheme + b" " + token])
    for junk in (
        b"\xff\xfe",
        b"\xc3\x28",
        "\u00e4".encode(),
        "\u202e".encode(),
        b"\0",
        b"\x7f",
        b"%00",
        b"A",
        b"=",
        b".",
    ):
        yield Attack(f"{junk!r} at the end", [name + good + junk])
        yield Attack(f"{junk!r} before", [name + b"Bearer " + junk + token])
    for size in (1 << 10, 9 << 10, 40 << 10, 70 << 10):
        yield Attack(f"{size} bytes more", [name + good + b"A" * size])
        yield Attack(f"{size} bytes of blanks", [b"authorization: Bearer" + b" " * size + b"x"])
    yield Attack("underscore", [b"author_ization: " + good])
    yield Attack("blank before the colon", [b"authorization : " + good])
    yield Attack("other headers", [b"proxy-authorization: " + good, b"x-authorization: " + good, b"cookie: t=" + token])
    yield Attack("a refresh token's prefix", [name + b"Bearer rt_" + token])


def _spoofs(victim: Sequence[bytes], with_token: bytes) -> Iterator[Attack]:
    """What names somebody else, beside a good token."""
    pairs = list(zip(IDENTITY, victim, strict=True))

    def spoof(name: str, *headers: bytes) -> Attack:
        return Attack(name, [with_token, *headers], has_token=True)

    for style in (bytes.lower, bytes.upper, bytes.title, bytes.swapcase):
        yield spoof(f"{style.__name__} case", *(style(b"x-auth-" + key) + b": " + value for key, value in pairs))
    yield spoof("underscores", *(b"x_auth_" + key.replace(b"-", b"_") + b": " + value for key, value in pairs))
    yield spoof("one underscore", *(b"x-auth_" + key + b": " + value for key, value in pairs))
    yield spoof("upper underscores", *(b"X_AUTH_" + key.upper() + b": " + value for key, value in pairs))
    for key, value in pairs:
        header = b"x-auth-" + key
        yield spoof(f"{key!r} twice", header + b": " + value, header + b": " + value)
        yield spoof(f"{key!r} with a blank before the colon", header + b" : " + value)
        yield spoof(f"{key!r} with a tab before the colon", header + b"\t: " + value)
        yield spoof(f"{key!r} empty", header + b":")
        yield spoof(f"{key!r} folded", header + b":", b" " + value)
        yield spoof(f"{key!r} folded into another", b"accept: text/html", b" " + header + b": " + value)
        yield spoof(f"{key!r} after a bare CR", b"accept: */*\r" + header + b": " + value)
        yield spoof(f"{key!r} after a bare LF", b"accept: */*\n" + header + b": " + value)
        yield spoof(f"{key!r} not UTF-8", header + b": \xff" + value)
        yield spoof(f"{key!r} with NUL", header + b"\0: " + value)
        yield spoof(f"{key!r} huge", header + b": " + value * 1000)
        yield spoof(f"{key!r} named by Connection", b"connection: " + header, header + b": " + value)
    yield spoof("Connection names authorization", b"connection: authorization")
    yield spoof("Connection names every header", b"connection: " + b", ".join(b"x-auth-" + key for key in IDENTITY))
    yield spoof("many headers", *(b"x-%d: 1" % number for number in range(80)), b"x-auth-role: " + victim[2])
    yield spoof("too many headers", *(b"x-auth-%d: 1" % number for number in range(150)))
    yield spoof(
        "Envoy's own", b"x-envoy-original-path: /healthz", b"x-envoy-internal: true", b"x-forwarded-for: 127.0.0.1"
    )
    yield spoof(
        "another path", b"x-original-url: /healthz", b"x-rewrite-url: /healthz", b"x-http-method-override: OPTIONS"
    )
    yield spoof("another host", b"host: auth.internal")
    yield spoof("an upgrade", b"connection: upgrade", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")
    yield spoof("two lengths", b"content-length: 0", b"content-length: 5")
    yield spoof("length and chunks", b"content-length: 5", b"transfer-encoding: chunked")
    yield spoof("trailers", b"trailer: x-auth-role", b"te: trailers")
