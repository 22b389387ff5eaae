"""Bad tokens by the hundred: what an attacker, a broken library or a careless issuer could send (B1).

Each case says for which reason it must be refused. All but the forgeries of signatures are signed with the ring's own
key, so that nothing but the rule in question stands between them and an active answer.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from authsvc.tokens.keys import Key
from authsvc.tokens.verification import InactiveReason

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
MALFORMED = InactiveReason.MALFORMED
WRONG_TYPE = InactiveReason.WRONG_TYPE
BAD_SIGNATURE = InactiveReason.BAD_SIGNATURE
WRONG_ISSUER = InactiveReason.WRONG_ISSUER
WRONG_AUDIENCE = InactiveReason.WRONG_AUDIENCE
EXPIRED = InactiveReason.EXPIRED
NOT_YET_VALID = InactiveReason.NOT_YET_VALID


def sign(key: Key, message: bytes) -> bytes:
    """The JWS signature (RFC 7518 §3) of a message."""
    algorithm = jwt.algorithms.get_default_algorithms()[key.alg]
    return algorithm.sign(message, key.private_key)


class Case(NamedTuple):
    name: str
    token: str
    reason: InactiveReason


Cases = Iterator[Case]


class Forge:
    """Makes tokens, good and bad.

    Args:
        keys: Those of the ring: the one that signs and another one of its kind.
        claims: Those of a token that is good.
        url: Of a socket that must never be connected to.
    """

    def __init__(self, keys: Sequence[Key], claims: Mapping[str, Any], url: str = "http://127.0.0.1:9") -> None:
        self.key, self.other_key = keys
        self.claims = claims
        self.header = {"alg": self.key.alg, "kid": self.key.kid, "typ": "at+jwt"}
        self.url = url
        self.good = self.signed()

    def signed(self, header: Any = None, payload: Any = None) -> str:
        """A token of any header and payload, bytes or JSON values, signed with the ring's key."""
        message = self.message(header, payload)
        return f"{message}.{encode(sign(self.key, message.encode()))}"

    def message(self, header: Any = None, payload: Any = None) -> str:
        return f"{encode(to_bytes(header or self.header))}.{encode(to_bytes(payload or self.claims))}"

    def with_header(self, **changes: object) -> str:
        return self.signed(header={**self.header, **changes})

    def with_claims(self, **changes: object) -> str:
        return self.signed(payload={**self.claims, **changes})

    def with_signature(self, signature: bytes) -> str:
        return f"{self.good.rpartition('.')[0]}.{encode(signature)}"


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def to_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


def other_spelling(token: str) -> str:
    """The other signature (r, n - s) that ECDSA takes for the same token."""
    message, _, signature = token.rpartition(".")
    data = decode(signature)
    s = P256_ORDER - int.from_bytes(data[32:])
    return f"{message}.{encode(data[:32] + s.to_bytes(32))}"


@cache
def attacker_ec() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def attacker_rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def attacker_signatures(message: bytes) -> Iterator[tuple[str, bytes]]:
    """Signatures of keys that the ring does not know."""
    der = attacker_ec().sign(message, ec.ECDSA(hashes.SHA256()))
    yield "ES256", raw_signature(der)
    yield "ES256 as DER", der
    yield "RS256", attacker_rsa().sign(message, padding.PKCS1v15(), hashes.SHA256())
    yield "PS256", attacker_rsa().sign(message, pss(), hashes.SHA256())
    yield "EdDSA", ed25519.Ed25519PrivateKey.generate().sign(message)


def pss() -> padding.PSS:
    return padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)


def raw_signature(der: bytes) -> bytes:
    """Return r and s as a JWS has them (RFC 7518 §3.4): DER has each with its length before it."""
    r_length = der[3]
    r, s = der[4 : 4 + r_length], der[6 + r_length :]
    return int.from_bytes(r).to_bytes(32) + int.from_bytes(s).to_bytes(32)


ALGORITHM_NAMES = (
    *("none", "None", "NONE", "nOnE", "none ", " none", "null", ""),
    *("HS256", "HS384", "HS512", "hs256", "Hs256", "HS1"),
    *("RS256", "RS384", "RS512", "rs256", "RS1", "RS256 "),
    *("PS256", "PS384", "PS512", "ps256"),
    *("ES256", "ES384", "ES512", "ES256K", "es256", "ES256\0", "ES256,none", "ES256\n"),
    *("EdDSA", "Ed25519", "Ed448", "eddsa", "RSA-OAEP", "dir", "A128KW", "ECDH-ES", "SHA256", "../../ES256"),
)
JUNK_VALUES: tuple[object, ...] = (None, True, False, 0, 1, 1.5, [], ["x"], {}, {"x": "y"})


def algorithms(forge: Forge) -> Cases:
    """ASVS-9.1.2."""
    kept = forge.good.rpartition(".")[2]
    for alg in ALGORITHM_NAMES:
        if alg == forge.key.alg:
            continue
        header = {**forge.header, "alg": alg}
        message = forge.message(header)
        yield Case(f"alg {alg!r}, our signature", forge.signed(header), BAD_SIGNATURE)
        yield Case(f"alg {alg!r}, signature kept", f"{message}.{kept}", BAD_SIGNATURE)
        yield Case(f"alg {alg!r}, no signature", f"{message}.", MALFORMED)
        yield Case(f"alg {alg!r}, one byte for a signature", f"{message}.AA", BAD_SIGNATURE)
    for junk in JUNK_VALUES:
        yield Case(f"alg is {junk!r}", forge.with_header(alg=junk), MALFORMED)


def public_key_spellings(key: Key) -> Iterator[tuple[str, bytes]]:
    """What a forger could take for an HMAC secret."""
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = key.public_key.public_bytes(serialization.Encoding.PEM, spki)
    yield "PEM", pem
    yield "PEM without its last newline", pem.rstrip()
    yield "PEM with CRLF", pem.replace(b"\n", b"\r\n")
    yield "DER", key.public_key.public_bytes(serialization.Encoding.DER, spki)
    yield "JWK", to_bytes(dict(key.public_jwk))
    yield "JWK with spaces", json.dumps(dict(key.public_jwk)).encode()
    for member, value in key.public_jwk.items():
        yield f"member {member}", value.encode()
        yield f"bytes of member {member}", base64.urlsafe_b64decode(value + "==") if member in "xyn" else b"\0"
    yield "empty", b""


def hmacs_of_public_keys(forge: Forge) -> Cases:
    """ASVS-9.1.2: a public key is no HMAC secret (CVE-2015-9235, CVE-2022-29217)."""
    for spelling, secret in public_key_spellings(forge.key):
        for alg, digest in (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512"), (forge.key.alg, "sha256")):
            message = forge.message({**forge.header, "alg": alg})
            mac = hmac.digest(secret, message.encode(), digest)
            yield Case(f"{alg} by {spelling}", f"{message}.{encode(mac)}", BAD_SIGNATURE)


def foreign_keys(forge: Forge) -> Cases:
    """ASVS-9.1.1: signed by whom we do not know, or by another key than named."""
    for alg in ("ES256", "RS256", "PS256", "EdDSA"):
        message = forge.message({**forge.header, "alg": alg})
        for name, signature in attacker_signatures(message.encode()):
            yield Case(f"{alg} in the header, {name} of an attacker", f"{message}.{encode(signature)}", BAD_SIGNATURE)
    by_other = sign(forge.other_key, forge.message().encode())
    yield Case("signed by another key of the ring", forge.with_signature(by_other), BAD_SIGNATURE)
    yield Case("names another key of the ring", forge.with_header(kid=forge.other_key.kid), BAD_SIGNATURE)


def kids(forge: Forge) -> Cases:
    good = forge.key.kid
    odd = {
        "unknown": "unknown",
        "empty": "",
        "one character short": good[:-1],
        "one character more": good + "A",
        "upper case": good.upper() + "!",
        "space before": " " + good,
        "newline after": good + "\n",
        "NUL after": good + "\0",
        "both keys": f"{good},{forge.other_key.kid}",
        "path": "../../../../dev/null",
        "path of a file": "/etc/passwd",
        "URL": f"{forge.url}/key",
        "file URL": "file:///dev/null",
        "SQL": "' OR '1'='1",
        "SQL union": "x' UNION SELECT 'a'--",
        "shell": "$(id)|id;`id`",
        "format": "%s%n{0}{kid}",
        "template": "{{7*7}}${7*7}",
        "LDAP": "*)(uid=*",
        "wildcard": "*",
        "dunder": "__class__",
        "index": "0",
        "emoji": "\U0001f511" * 10,
        "not NFC": "e\u0301",
        "very long": "k" * 4000,
    }
    for name, kid in odd.items():
        yield Case(f"kid: {name}", forge.with_header(kid=kid), BAD_SIGNATURE)
    for junk in JUNK_VALUES:
        yield Case(f"kid is {junk!r}", forge.with_header(kid=junk), MALFORMED)
    yield Case("kid in a list", forge.with_header(kid=[good]), MALFORMED)
    yield Case("no kid", forge.signed(without(forge.header, "kid")), MALFORMED)


def without(members: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {member: value for member, value in members.items() if member != name}


def types(forge: Forge) -> Cases:
    """ASVS-9.2.2: a token of another use is no access token."""
    odd = ("JWT", "jwt", "AT+JWT", "at+JWT", "application/at+jwt", "at+jwt ", "at jwt", "id+jwt", "rt+jwt", "dpop+jwt")
    for typ in (*odd, "logout+jwt", "secevent+jwt", "", "at+jwt\0", "at+jwt;x=y", "at+\u200bjwt"):
        yield Case(f"typ {typ!r}", forge.with_header(typ=typ), WRONG_TYPE)
    for junk in JUNK_VALUES:
        yield Case(f"typ is {junk!r}", forge.with_header(typ=junk), MALFORMED)
    yield Case("no typ", forge.signed(without(forge.header, "typ")), MALFORMED)
    yield Case("no alg", forge.signed(without(forge.header, "alg")), MALFORMED)
    yield Case("alg in other case", forge.signed({**without(forge.header, "alg"), "ALG": "ES256"}), MALFORMED)
    for name, token in (("prefix alone", "rt_"), ("good token after it", "rt_" + forge.good), ("junk", "rt_\0.é")):
        yield Case(f"refresh token: {name}", token, WRONG_TYPE)
    yield Case("refresh token: long", "rt_" + "a" * 10_000, WRONG_TYPE)


def header_extras(forge: Forge) -> Cases:
    """ASVS-9.1.3: nothing in a token names a key or a place to fetch one from."""
    public = attacker_ec().public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "x": encode(public.x.to_bytes(32)), "y": encode(public.y.to_bytes(32))}
    extras: dict[str, tuple[object, ...]] = {
        "jwk": (jwk, dict(forge.key.public_jwk), {}, None),
        "jku": (f"{forge.url}/jwks.json", f"{forge.url}#/jwks", ""),
        "x5u": (f"{forge.url}/cert.pem", "file:///etc/passwd"),
        "x5c": (["MIIB"], []),
        "x5t": ("AA",),
        "x5t#S256": ("AA",),
        "crit": (["exp"], ["b64"], ["x"], [], "exp", None),
        "b64": (False, True),
        "zip": ("DEF", "none"),
        "cty": ("JWT", "at+jwt"),
        "enc": ("A128GCM",),
        "epk": (jwk,),
        "p2c": (2**31,),
        "url": (f"{forge.url}/",),
        "nonce": ("n",),
        "exp": (0,),
        "x": ("y", None),
        "": ("",),
    }
    for member, values in extras.items():
        for value in values:
            header = {**forge.header, member: value}
            yield Case(f"{member} = {short(value)}", forge.signed(header), MALFORMED)
            message = forge.message({**header, "alg": "ES256", "kid": "attacker"})
            for name, signature in attacker_signatures(message.encode()):
                yield Case(f"{member} = {short(value)} by {name}", f"{message}.{encode(signature)}", MALFORMED)


def short(value: object) -> str:
    return repr(value)[:60]


def framing(forge: Forge) -> Cases:
    """Other texts that a lenient reader would take for the good token."""
    good = forge.good
    header, payload, signature = segments = good.split(".")
    for name, text in {
        "space": " ",
        "tab": "\t",
        "newline": "\n",
        "CRLF": "\r\n",
        "NUL": "\0",
        "BOM": "\ufeff",
    }.items():
        yield Case(f"{name} before", text + good, MALFORMED)
        yield Case(f"{name} after", good + text, MALFORMED)
        for number in range(3):
            middle = list(segments)
            middle[number] = middle[number][:4] + text + middle[number][4:]
            yield Case(f"{name} in segment {number}", ".".join(middle), MALFORMED)
            middle[number] = segments[number] + text
            yield Case(f"{name} after segment {number}", ".".join(middle), MALFORMED)
    for number in range(3):
        for name, text in {"=": "=", "==": "==", "====": "====", "%3D": "%3D"}.items():
            padded = list(segments)
            padded[number] += text
            yield Case(f"{name} after segment {number}", ".".join(padded), MALFORMED)
        emptied = list(segments)
        emptied[number] = ""
        yield Case(f"segment {number} empty", ".".join(emptied), MALFORMED)
    others = {
        "nothing but dots": "..",
        "one dot": ".",
        "three dots": "...",
        "one segment": header,
        "two segments": f"{header}.{payload}",
        "detached payload": f"{header}..{signature}",
        "four segments": f"{good}.{signature}",
        "five segments, as a JWE": f"{header}.{payload}.{signature}.{payload}.{signature}",
        "dot before": f".{good}",
        "dot after": f"{good}.",
        "twice": f"{good}.{good}",
        "quoted": f'"{good}"',
        "a bearer header": f"Bearer {good}",
        "percent-encoded": good.replace(".", "%2E"),
        "full-width dots": good.replace(".", "\uff0e"),
        "ideographic dots": good.replace(".", "\u3002"),
        "one-dot leaders": good.replace(".", "\u2024"),
        "commas": good.replace(".", ","),
        "zero-width space": good.replace(".", ".\u200b"),
        "soft hyphen": good.replace(".", "\u00ad."),
        "cyrillic letter": good.replace("e", "\u0435", 1),
        "kelvin sign": good.replace("e", "\u212a", 1),
        "full-width letter": good.replace("e", "\uff45", 1),
        "arabic digit": good.replace("e", "\u0661", 1),
        "combining mark": good.replace("e", "e\u0301", 1),
        "right-to-left mark": "\u200f" + good,
        "standard alphabet +": f"{header}.{payload[:-2]}+A.{signature}",
        "standard alphabet /": f"{header}.{payload[:-2]}/A.{signature}",
        "both alphabets": f"{header}.{payload}.{signature[:-4]}+/-_",
        "star": f"{header}.{payload}*.{signature}",
        "UTF-7": f"+AGU-{good[1:]}",
        "hexadecimal": ".".join(decode(s).hex() + "=" for s in segments),
        "JSON, flattened": json.dumps({"protected": header, "payload": payload, "signature": signature}),
        "JSON, general": json.dumps(
            {"payload": payload, "signatures": [{"protected": header, "signature": signature}]}
        ),
        "the claims alone": json.dumps(dict(forge.claims)),
        "a word": "token",
        "one letter": "a",
        "blank": " ",
        "only a NUL": "\0",
        "null": "null",
        "emoji": "\U0001f600.\U0001f600.\U0001f600",
        "PASETO": "v4.public.e30",
        "SAML": "PHNhbWw+",
        "API key": "ask_0123456789",
    }
    for name, token in others.items():
        yield Case(name, token, MALFORMED)


def encodings(forge: Forge) -> Cases:
    """Segments that decode to the right bytes but are not the one spelling of them (RFC 4648 §3.5)."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for filler in ("", "1", "12"):  # so that each segment has every length modulo 3
        header = {**forge.header, "kid": forge.key.kid + filler} if filler else forge.header
        token = forge.signed(header, {**forge.claims, "jti": f"id{filler}"})
        for number, segment in enumerate(token.split(".")):
            spare_bits = {2: 4, 3: 2}.get(len(segment) % 4, 0)
            for bits in range(1, 2**spare_bits):
                last = alphabet[alphabet.index(segment[-1]) | bits]
                changed = token.split(".")
                changed[number] = segment[:-1] + last
                yield Case(f"filler {filler!r}, segment {number}, spare bits {bits}", ".".join(changed), MALFORMED)
            cut = token.split(".")
            cut[number] = segment[: len(segment) // 4 * 4 - 3]
            yield Case(f"filler {filler!r}, segment {number} of impossible length", ".".join(cut), MALFORMED)


def bad_json(members: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Texts that are not one strict JSON object, each made of the members of a good one."""
    good = to_bytes(members)
    inner = good[1:-1]
    for name, value in members.items():
        yield f"{name} twice", b"{%b,%b:%b}" % (inner, to_bytes(name), to_bytes(value))
        yield (
            f"{name} twice, escaped once",
            b'{%b,"\\u%04x%b":%b}'
            % (
                inner,
                ord(name[0]),
                name[1:].encode(),
                to_bytes(value),
            ),
        )
        yield f"{name} null first", b"{%b:null,%b}" % (to_bytes(name), inner)
    values = {
        "NaN": b"NaN",
        "Infinity": b"Infinity",
        "-Infinity": b"-Infinity",
        "an integer of 5,000 digits": b"9" * 5000,
        "hexadecimal": b"0x10",
        "octal": b"010",
        "a plus sign": b"+1",
        "no digit after the dot": b"1.",
        "no digit before the dot": b".5",
        "underscores": b"1_000",
        "True": b"True",
        "undefined": b"undefined",
        "nothing": b"",
        "single quotes": b"'y'",
        "an open string": b'"y',
        "a raw newline": b'"\n"',
        "a raw NUL": b'"\0"',
        "a bad escape": b'"\\x41"',
        "a cut escape": b'"\\u12"',
        "a lone high surrogate": b'"\\ud800"',
        "a lone low surrogate": b'"\\udc00"',
        "surrogates in the wrong order": b'"\\udc00\\ud800"',
        "a lone surrogate in a list": b'["\\ud800"]',
        "a lone surrogate as a name": b'{"\\ud800":1}',
        "a member twice, deeper": b'{"a":1,"a":1}',
        "NaN, deeper": b"[[NaN]]",
        "a trailing comma": b"[1,]",
        "a comment": b"1/**/",
        "endless lists": b"[" * 5000,
        "endless objects": b'{"":' * 1200,
        "Latin-1": b'"\xe9"',
        "an overlong NUL": b'"\xc0\x80"',
        "an encoded surrogate": b'"\xed\xa0\x80"',
        "a byte beyond Unicode": b'"\xf5\x80\x80\x80"',
        "a cut sequence": b'"\xe2\x82"',
    }
    for name, raw in values.items():
        yield f"x is {name}", b'{%b,"x":%b}' % (inner, raw)
    texts = {
        "a BOM": b"\xef\xbb\xbf" + good,
        "UTF-16": good.decode().encode("utf-16"),
        "UTF-16 LE": good.decode().encode("utf-16-le"),
        "UTF-16 BE": good.decode().encode("utf-16-be"),
        "UTF-32": good.decode().encode("utf-32"),
        "a second object": good + good,
        "a second object on a line of its own": good + b"\n" + good,
        "text after": good + b"x",
        "NUL after": good + b"\0",
        "NUL before": b"\0" + good,
        "a form feed before": b"\x0c" + good,
        "a no-break space before": b"\xc2\xa0" + good,
        "a comma at the end": b"{%b,}" % inner,
        "a comment": b"{/**/%b}" % inner,
        "no end": good[:-1],
        "no beginning": good[1:],
        "no braces": inner,
        "in a list": b"[%b]" % good,
        "in a string": json.dumps(good.decode()).encode(),
        "single quotes": good.replace(b'"', b"'"),
        "base64 again": base64.b64encode(good),
        "an empty object": b"{}",
        "an empty list": b"[]",
        "a list of pairs": to_bytes([[k, v] for k, v in members.items()]),
        "a string": b'"x"',
        "a number": b"1",
        "true": b"true",
        "null": b"null",
        "NaN": b"NaN",
        "white space": b" ",
        "no JSON": b"alg=none",
        "bytes of all kinds": bytes(range(256)),
        "compressed": b"x\x9c\x03\x00\x00\x00\x00\x01",
    }
    yield from texts.items()


def json_of_headers(forge: Forge) -> Cases:
    for name, text in bad_json(forge.header):
        yield Case(f"header: {name}", forge.signed(header=text), MALFORMED)


def json_of_payloads(forge: Forge) -> Cases:
    for name, text in bad_json(forge.claims):
        yield Case(f"payload: {name}", forge.signed(payload=text), MALFORMED)


def claims_of_wrong_types(forge: Forge) -> Cases:
    """Claims that a loose language would convert to what they must be."""
    for name, good in forge.claims.items():
        yield Case(f"no {name}", forge.signed(payload=without(forge.claims, name)), MALFORMED)
        renamed = {**without(forge.claims, name), name.upper(): good}
        yield Case(f"{name} in upper case", forge.signed(payload=renamed), MALFORMED)
        for value in (None, True, False, 1.5, "", [], [good], [[good]], {}, {"value": good}):
            yield Case(f"{name} is {short(value)}", forge.with_claims(**{name: value}), MALFORMED)
        for value in (float(good), str(good), f" {good}", f"{good:_}", hex(good)) if isinstance(good, int) else (0, 1):
            yield Case(f"{name} is {value!r}, of another type", forge.with_claims(**{name: value}), MALFORMED)
    for value in (None, True, "0", "", 0.0, [0], {}):
        yield Case(f"nbf is {short(value)}", forge.with_claims(nbf=value), MALFORMED)
    for name in ("iat", "exp", "gen", "nbf"):
        number = str(forge.claims.get(name, 0)).encode()
        for form, raw in (("exponent", number + b"e0"), ("fraction", number + b".0"), ("infinite", b"1e400")):
            inner = to_bytes(without(forge.claims, name))[:-1]
            payload = b"%b,%b:%b}" % (inner, to_bytes(name), raw)
            yield Case(f"{name} written with {form}", forge.signed(payload=payload), MALFORMED)


def claims_of_wrong_values(forge: Forge) -> Cases:
    """ASVS-9.2.1, ASVS-9.2.3."""
    iss, aud, iat, exp = (forge.claims[name] for name in ("iss", "aud", "iat", "exp"))
    tomorrow, ever = iat + 86400, 10**30
    lookalike = iss.replace("e", "\u0435", 1)
    for other in ("x", iss.upper(), iss + "/", iss + " ", iss[:-1], iss + "\0", iss.replace("s:", ":", 1), lookalike):
        yield Case(f"iss {other!r}", forge.with_claims(iss=other), WRONG_ISSUER)
    for other in ("x", aud.upper(), f"{aud} ", f"{aud},x", f"{aud} x", aud[:-1], aud + "\0", "*", iss):
        yield Case(f"aud {other!r}", forge.with_claims(aud=other), WRONG_AUDIENCE)
    for others in ([aud, "x"], ["x", aud], [aud, aud]):
        yield Case(f"aud {others}", forge.with_claims(aud=others), MALFORMED)
    table: list[tuple[dict[str, object], InactiveReason]] = [
        ({"sub": "u" * 257}, MALFORMED),
        ({"sub": "\u00e9" * 129}, MALFORMED),
        ({"exp": ever}, MALFORMED),
        ({"exp": 10**400}, MALFORMED),
        ({"exp": 2**31}, MALFORMED),
        ({"exp": 2**63}, MALFORMED),
        ({"exp": 2**64 + exp}, MALFORMED),
        ({"exp": exp * 1000}, MALFORMED),  # milliseconds
        ({"exp": tomorrow + 1}, MALFORMED),
        ({"iat": exp - 86401}, MALFORMED),
        ({"iat": 0}, MALFORMED),
        ({"iat": -ever}, MALFORMED),
        ({"exp": 0}, MALFORMED),
        ({"exp": -1}, MALFORMED),
        ({"exp": -ever}, MALFORMED),
        ({"exp": iat - 1}, MALFORMED),
        ({"iat": -2, "exp": -1}, EXPIRED),
        ({"iat": -ever, "exp": -ever}, EXPIRED),
        ({"iat": 0, "exp": 0}, EXPIRED),
        ({"iat": iat - 900, "exp": iat - 31}, EXPIRED),
        ({"iat": iat - 86400, "exp": iat - 30}, EXPIRED),
        ({"iat": ever, "exp": ever}, NOT_YET_VALID),
        ({"iat": 2**63, "exp": 2**63}, NOT_YET_VALID),
        ({"iat": iat + 31}, NOT_YET_VALID),
        ({"iat": tomorrow, "exp": tomorrow + 900}, NOT_YET_VALID),
        ({"nbf": iat + 31}, NOT_YET_VALID),
        ({"nbf": exp}, NOT_YET_VALID),
        ({"nbf": ever}, NOT_YET_VALID),
    ]
    for changes, reason in table:
        yield Case(short(changes), forge.with_claims(**changes), reason)


def signatures(forge: Forge) -> Cases:
    """ASVS-9.1.1."""
    good = decode(forge.good.rpartition(".")[2])
    for position in range(len(good)):
        for mask in (0x01, 0x80):
            flipped = bytearray(good)
            flipped[position] ^= mask
            yield Case(f"byte {position} ^ {mask:#x}", forge.with_signature(bytes(flipped)), BAD_SIGNATURE)
    step = len(good) // 32
    for length in range(1, len(good), step):
        yield Case(f"the first {length} bytes", forge.with_signature(good[:length]), BAD_SIGNATURE)
        yield Case(f"the last {length} bytes", forge.with_signature(good[-length:]), BAD_SIGNATURE)
    others = {
        "one byte more": good + b"\0",
        "one byte before": b"\0" + good,
        "twice": good + good,
        "zeros": bytes(len(good)),
        "one zero": b"\0",
        "ones": b"\xff" * len(good),
        "reversed": good[::-1],
        "halves swapped": good[len(good) // 2 :] + good[: len(good) // 2],
        "digest of the message": hashlib.sha256(forge.message().encode()).digest(),
        "of the claims alone": sign(forge.key, to_bytes(forge.claims)),
        "of the header alone": sign(forge.key, to_bytes(forge.header)),
        "of nothing": sign(forge.key, b""),
        "of the message with a newline": sign(forge.key, forge.message().encode() + b"\n"),
        "of the message in UTF-16": sign(forge.key, forge.message().encode("utf-16")),
        "of the bytes themselves": sign(forge.key, to_bytes(forge.header) + b"." + to_bytes(forge.claims)),
    }
    for name, signature in others.items():
        yield Case(name, forge.with_signature(signature), BAD_SIGNATURE)
    yield from (ecdsa_signatures if forge.key.alg == "ES256" else rsa_signatures)(forge, good)


def ecdsa_signatures(forge: Forge, good: bytes) -> Cases:
    """CVE-2022-21449, and numbers that are equal modulo the group's order but not in form (SEC 1 §4.1.4)."""
    r, s = int.from_bytes(good[:32]), int.from_bytes(good[32:])
    largest, n = 2**256 - 1, P256_ORDER
    numbers = {"0": 0, "1": 1, "n": n, "n-1": n - 1, "n+1": n + 1, "2^256-1": largest}
    for r_name, odd_r in {**numbers, "r": r}.items():
        for s_name, odd_s in {**numbers, "s": s}.items():
            if (odd_r, odd_s) != (r, s):
                raw = odd_r.to_bytes(32) + odd_s.to_bytes(32)
                yield Case(f"r = {r_name}, s = {s_name}", forge.with_signature(raw), BAD_SIGNATURE)
    der = encode_dss_signature(r, s)
    yield Case("DER", forge.with_signature(der), BAD_SIGNATURE)
    yield Case("DER, filled up to 64 bytes", forge.with_signature(der.rjust(64, b"\0")[:64]), BAD_SIGNATURE)
    for width in (31, 33, 48, 66, 128):
        if width > 32:
            raw = r.to_bytes(width) + s.to_bytes(width)
            yield Case(f"numbers of {width} bytes", forge.with_signature(raw), BAD_SIGNATURE)
    raw = r.to_bytes(33) + (s + n).to_bytes(33)
    yield Case("s + n", forge.with_signature(raw), BAD_SIGNATURE)
    message = forge.message().encode()
    for name, algorithm in {"SHA-384": hashes.SHA384(), "SHA-512": hashes.SHA512(), "SHA-1": hashes.SHA1()}.items():  # noqa: S303
        weak = forge.key.private_key.sign(message, ec.ECDSA(algorithm))
        yield Case(f"over {name}", forge.with_signature(raw_signature(weak)), BAD_SIGNATURE)


def rsa_signatures(forge: Forge, good: bytes) -> Cases:
    message, key, n = forge.message().encode(), forge.key.private_key, forge.key.public_key.public_numbers().n
    size = len(good)
    numbers = {"0": 0, "1": 1, "n-1": n - 1, "n": n, "n - signature": n - int.from_bytes(good)}
    for name, number in numbers.items():
        yield Case(f"the number {name}", forge.with_signature(number.to_bytes(size)), BAD_SIGNATURE)
    plus_n = (int.from_bytes(good) + n).to_bytes(size + 1)
    yield Case("signature + n", forge.with_signature(plus_n), BAD_SIGNATURE)
    yield Case("zeros before", forge.with_signature(bytes(8) + good), BAD_SIGNATURE)
    yield Case("PSS", forge.with_signature(key.sign(message, pss(), hashes.SHA256())), BAD_SIGNATURE)
    for name, algorithm in {"SHA-384": hashes.SHA384(), "SHA-512": hashes.SHA512()}.items():
        other = key.sign(message, padding.PKCS1v15(), algorithm)
        yield Case(f"over {name}", forge.with_signature(other), BAD_SIGNATURE)


def swaps(forge: Forge) -> Cases:
    """Parts of two good tokens."""
    header, payload, signature = forge.good.split(".")
    _, other_payload, other_signature = forge.with_claims(sub="somebody-else").split(".")
    admin = encode(to_bytes({**forge.claims, "role": "admin"}))
    later = encode(to_bytes({**forge.claims, "exp": forge.claims["exp"] + 1}))
    other_header = encode(to_bytes({**forge.header, "kid": forge.other_key.kid}))
    for name, parts in {
        "payload of another": (header, other_payload, signature),
        "signature of another": (header, payload, other_signature),
        "a claim more": (header, admin, signature),
        "later expiry": (header, later, signature),
        "header of another": (other_header, payload, signature),
    }.items():
        yield Case(name, ".".join(parts), BAD_SIGNATURE)
    yield Case("header and payload changed places", f"{payload}.{header}.{signature}", MALFORMED)
    yield Case("header for a payload", f"{header}.{header}.{signature}", BAD_SIGNATURE)


def sizes(forge: Forge) -> Cases:
    """Up to what fits into one message of gRPC."""
    for length in (8_193, 65_536, 1_000_000, 4_194_304 - 16):
        yield Case(f"{length} letters", "a" * length, MALFORMED)
        yield Case(f"{length} dots", "." * length, MALFORMED)
        yield Case(f"{length} NULs", "\0" * length, MALFORMED)
        yield Case(f"a payload of {length}", f"{encode(to_bytes(forge.header))}.{'A' * (length - 300)}.AAAA", MALFORMED)
        signature = "A" * (length - len(forge.message()) - 1)
        yield Case(f"a signature of {length}", f"{forge.message()}.{signature}", MALFORMED)
    yield Case("combining marks", "\u0301\u0323" * 1_000_000, MALFORMED)
    for padding_length in (8 * 1024, 100_000, 2_000_000):
        yield Case(f"signed, {padding_length} and more", forge.with_claims(x="y" * padding_length), MALFORMED)


GROUPS: Mapping[str, Callable[[Forge], Cases]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            algorithms,
            hmacs_of_public_keys,
            foreign_keys,
            kids,
            types,
            header_extras,
            framing,
            encodings,
            json_of_headers,
            json_of_payloads,
            claims_of_wrong_types,
            claims_of_wrong_values,
            signatures,
            swaps,
            sizes,
        )
    }
)
