"""Public keys of a token provider: a JSON Web Key Set (RFC 7517) or PEM, and which key may verify
what.

A key serves only the algorithms of its own kind: an RSA key never becomes the secret of an HMAC,
and symmetric keys in a key set are passed over (RFC 8725 §2.1, §3.1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["Key", "KeySet"]

#: Providers have two or three; the bound keeps a search short.
MAX_KEYS: Final = 64
MAX_DOCUMENT_BYTES: Final = 1 << 20
#: NIST SP 800-131A: less is not acceptable.
_MIN_RSA_BITS: Final = 2048

_RSA: Final = frozenset(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_PEM: Final = re.compile(
    rb"-----BEGIN (?:RSA )?PUBLIC KEY-----.+?-----END (?:RSA )?PUBLIC KEY-----", re.DOTALL
)


class Key:
    """One key, with the algorithms that it may verify."""

    __slots__ = ("algorithms", "kid", "public")

    def __init__(self, kid: str | None, public: Any, algorithms: frozenset[str]) -> None:
        self.kid: Final = kid
        self.public: Final = public
        self.algorithms: Final = algorithms


class KeySet:
    """The keys of one document; ``passed_over`` says why others in it are not used."""

    __slots__ = ("document", "keys", "passed_over")

    def __init__(self, keys: Iterable[Key], passed_over: Iterable[str] = ()) -> None:
        #: What it was read from.
        self.document = b""
        self.keys: Final = tuple(keys)
        self.passed_over: Final = tuple(passed_over)

    @classmethod
    def parse(cls, document: bytes) -> KeySet:
        """A key set in JSON, or public keys in PEM. Raises ``ValueError`` for one without a key
        that could be used."""
        if len(document) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"expected a key set of at most {MAX_DOCUMENT_BYTES} bytes")
        found = cls._of_pem(document) if b"-----BEGIN" in document else cls._of_json(document)
        if not found.keys:
            why = "; ".join(found.passed_over) or "it is empty"
            raise ValueError(f"expected a key set with a key to verify with: {why}")
        found.document = document
        return found

    @classmethod
    def _of_json(cls, document: bytes) -> KeySet:
        try:
            tree = json.loads(document)
        except (ValueError, RecursionError):
            raise ValueError("expected a key set in JSON (RFC 7517) or PEM") from None
        listed = tree.get("keys") if isinstance(tree, dict) else None
        if not isinstance(listed, list):
            raise ValueError('expected {"keys": [...]} (RFC 7517 §5)')  # noqa: TRY004
        if len(listed) > MAX_KEYS:
            raise ValueError(f"expected at most {MAX_KEYS} keys, got {len(listed)}")
        keys, passed_over = [], []
        for number, entry in enumerate(listed):
            try:
                keys.append(_key_of(entry))
            except ValueError as error:
                passed_over.append(f"key {number}: {error}")
        return cls(keys, passed_over)

    @classmethod
    def _of_pem(cls, document: bytes) -> KeySet:
        if b"PRIVATE KEY" in document:
            raise ValueError("expected public keys, got a private one: it belongs to the provider")
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        keys, passed_over = [], []
        for number, block in enumerate(_PEM.findall(document)):
            try:
                public = load_pem_public_key(block)
                keys.append(Key(None, public, _algorithms_of(public)))
            except ValueError as error:
                passed_over.append(f"key {number}: {error}")
        return cls(keys, passed_over)

    def find(self, kid: str | None, algorithm: str) -> list[Key]:
        """Keys that may have signed such a token; none: the ``kid`` is not known (any more)."""
        return [
            key
            for key in self.keys
            if algorithm in key.algorithms and (kid is None or key.kid is None or key.kid == kid)
        ]

    def __repr__(self) -> str:
        return f"<KeySet {[key.kid for key in self.keys]}>"


def _key_of(entry: object) -> Key:
    if not isinstance(entry, dict):
        raise ValueError("not an object")  # noqa: TRY004
    if entry.get("kty") == "oct":
        raise ValueError("a symmetric key has no place in a key set that is public")
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ["verify"]):
        raise ValueError("not for signatures")
    import jwt

    try:
        public = jwt.PyJWK(entry).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    if hasattr(public, "public_key"):
        public = public.public_key()
    algorithms = _algorithms_of(public)
    stated = entry.get("alg")
    if stated is not None:
        algorithms &= {stated}
        if not algorithms:
            raise ValueError(f"its algorithm {stated!r} is not one of its kind")
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise ValueError("its kid is no text")
    return Key(kid, public, algorithms)


def _algorithms_of(public: Any) -> frozenset[str]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(public, rsa.RSAPublicKey):
        if public.key_size < _MIN_RSA_BITS:
            raise ValueError(f"an RSA key of {public.key_size} bits; expected {_MIN_RSA_BITS}")
        return _RSA
    if isinstance(public, ec.EllipticCurvePublicKey):
        name = _CURVES.get(public.curve.name)
        if name is None:
            raise ValueError(f"the curve {public.curve.name} has no algorithm here")
        return frozenset((name,))
    if isinstance(public, ed25519.Ed25519PublicKey):
        return frozenset(("EdDSA",))
    raise ValueError("expected an RSA, an elliptic curve or an Ed25519 key")
