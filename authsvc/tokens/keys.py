"""Signing keys: parsed from a private JWK Set and generated, without I/O.

The set is a private JWK Set (RFC 7517). Each key has, beside the registered members, `status` (`signing`: signs,
`next`: published and signs after the next rotation, `retired`: verifies until `retire_time`), `create_time` and, where
retired, `retire_time`, in Unix seconds.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import Algorithm, ECAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from authsvc.errors import KeyFileError
from authsvc.tokens import base64url

RSA_MIN_BITS = 3072
RSA_NEW_BITS = 3072
MAX_SECOND = 253_402_300_799
"""The last second of the year 9999, the last that datetime can hold."""

_ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "ES256": ECAlgorithm(ECAlgorithm.SHA256, expected_curve=ec.SECP256R1),
        "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    }
)
ALGORITHMS = tuple(_ALGORITHMS)
_PUBLIC_MEMBERS = {"ES256": ("crv", "x", "y"), "RS256": ("e", "n")}


class KeyStatus(StrEnum):
    """What a key is used for."""

    SIGNING = "signing"
    NEXT = "next"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and the one algorithm that it is used with.

    Args:
        kid: Its id: the RFC 7638 thumbprint where authsvc generated the key.
        create_time: Unix seconds.
        retire_time: Unix second from which it verifies nothing; None unless it is retired.
        public_jwk: Its public part.
        private_key: None where the set holds the public part alone.
    """

    kid: str
    alg: str
    status: KeyStatus
    create_time: int
    retire_time: int | None
    public_jwk: Mapping[str, str]
    public_key: Any = field(repr=False, compare=False)
    private_key: Any = field(repr=False, compare=False)

    def is_expired(self, at: float) -> bool:
        """Return whether the retire time has passed at a Unix second."""
        return self.retire_time is not None and self.retire_time <= at

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Return whether a JWS signature (RFC 7518 §3) was made with this key."""
        return _ALGORITHMS[self.alg].verify(message, self.public_key, signature)


class KeyRing:
    """The keys of one key set, immutable.

    Args:
        keys: Exactly one of them has the status signing.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self._by_kid = {key.kid: key for key in keys}
        (self.signing_key,) = (key for key in keys if key.status is KeyStatus.SIGNING)

    def jwks(self, at: float) -> str:
        """Return the public keys that are not expired at a Unix second, as a JWK Set (RFC 7517)."""
        valid = (key for key in self._by_kid.values() if not key.is_expired(at))
        return json.dumps({"keys": [dict(key.public_jwk) for key in valid]})

    def get(self, kid: str, at: int) -> Key | None:
        """Return the key with an id; None where there is none, or where it is expired at a Unix second."""
        key = self._by_kid.get(kid)
        return None if key is None or key.is_expired(at) else key


def parse_keys(text: str) -> list[Key]:
    """Return the keys of a private JWK Set.

    Raises:
        KeyFileError: The text is not a JWK Set, or a key in it cannot be used.
    """
    try:
        jwks = json.loads(text)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise KeyFileError('not a JWK Set: {"keys": […]}') from None
    if not isinstance(jwks, list) or not all(isinstance(jwk, dict) for jwk in jwks):
        raise KeyFileError('"keys" must be a list of keys')
    keys = [_parse_key(jwk, f"key {number}") for number, jwk in enumerate(jwks, start=1)]
    if len({key.kid for key in keys}) != len(keys):
        raise KeyFileError("two keys have the same kid")
    if [key.status for key in keys].count(KeyStatus.SIGNING) != 1:
        raise KeyFileError('exactly one key must have the status "signing"')
    return keys


def _parse_key(jwk: Mapping[str, Any], name: str) -> Key:
    kid = jwk.get("kid")
    if not isinstance(kid, str) or not kid:
        raise KeyFileError(f"{name}: kid is missing")
    name = f"key {kid}"
    alg, status = _parse_use(jwk, name)
    private_key, public_key = _load_key(jwk, alg, name)
    if private_key is None and status is not KeyStatus.RETIRED:
        raise KeyFileError(f"{name}: has no private part, so it cannot sign")
    retire_time = _parse_seconds(jwk, "retire_time", name)
    if (retire_time is not None) != (status is KeyStatus.RETIRED):
        raise KeyFileError(f"{name}: retired keys have a retire_time, others have none")
    return Key(
        kid=kid,
        alg=alg,
        status=status,
        create_time=_parse_seconds(jwk, "create_time", name) or 0,
        retire_time=retire_time,
        public_jwk=_public_jwk(public_key, alg, kid),
        public_key=public_key,
        private_key=private_key,
    )


def _parse_use(jwk: Mapping[str, Any], name: str) -> tuple[str, KeyStatus]:
    """Return the algorithm that a key is used with, and its status."""
    alg = jwk.get("alg")
    if jwk.get("kty") == "oct":
        raise KeyFileError(f"{name}: symmetric keys are refused")
    if not isinstance(alg, str) or alg not in _ALGORITHMS:
        raise KeyFileError(f"{name}: alg must be {' or '.join(ALGORITHMS)}")
    if jwk.get("use", "sig") != "sig":
        raise KeyFileError(f"{name}: use must be sig")
    if jwk.get("status") not in tuple(KeyStatus):
        raise KeyFileError(f"{name}: status must be {', '.join(KeyStatus)}")
    return alg, KeyStatus(jwk["status"])


def _load_key(jwk: Mapping[str, Any], alg: str, name: str) -> tuple[Any, Any]:
    """Return the private part, None where the JWK has none, and the public part."""
    algorithm = _ALGORITHMS[alg]
    try:
        key: Any = algorithm.prepare_key(algorithm.from_jwk(dict(jwk)))
    except (InvalidKeyError, ValueError, KeyError, TypeError):
        raise KeyFileError(f"{name}: is not a key for {alg}") from None
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey) and key.key_size < RSA_MIN_BITS:
        raise KeyFileError(f"{name}: has {key.key_size} bits; RSA needs {RSA_MIN_BITS}")
    is_private = isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    return (key, key.public_key()) if is_private else (None, key)


def _parse_seconds(jwk: Mapping[str, Any], member: str, name: str) -> int | None:
    seconds = jwk.get(member)
    if seconds is not None and (type(seconds) is not int or not 0 <= seconds <= MAX_SECOND):
        raise KeyFileError(f"{name}: {member} must be Unix seconds, a whole number")
    return seconds


def _public_jwk(public_key: object, alg: str, kid: str) -> Mapping[str, str]:
    jwk = _ALGORITHMS[alg].to_jwk(public_key, as_dict=True)
    numbers = {member: str(jwk[member]) for member in _PUBLIC_MEMBERS[alg]}
    return {"kty": str(jwk["kty"]), "kid": kid, "use": "sig", "alg": alg, **numbers}


def new_jwk(alg: str, status: KeyStatus, now: datetime) -> dict[str, Any]:
    """Return a new private JWK, with its status and creation time.

    Args:
        alg: One of ALGORITHMS.
        status: Its status.
        now: Its creation time.
    """
    while True:
        jwk = _new_private_jwk(alg)
        kid = _thumbprint({member: jwk[member] for member in ("kty", *_PUBLIC_MEMBERS[alg])})
        if not kid.startswith("-"):  # the command line would take such an id for an option
            break
    return {
        **jwk,
        "kid": kid,
        "alg": alg,
        "use": "sig",
        "status": status.value,
        "create_time": int(now.timestamp()),
    }


def _new_private_jwk(alg: str) -> dict[str, Any]:
    private_key = (
        ec.generate_private_key(ec.SECP256R1())
        if alg == "ES256"
        else rsa.generate_private_key(public_exponent=65537, key_size=RSA_NEW_BITS)
    )
    return dict(_ALGORITHMS[alg].to_jwk(private_key, as_dict=True))


def _thumbprint(required_members: Mapping[str, str]) -> str:
    """Return the SHA-256 thumbprint of a public key (RFC 7638 §3)."""
    text = json.dumps(required_members, sort_keys=True, separators=(",", ":"))
    return base64url.encode(hashlib.sha256(text.encode()).digest())
