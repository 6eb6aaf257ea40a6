"""Client secrets: kept hashed, compared in constant time.

``scrypt:<log2 N>:<r>:<p>:<salt>:<hash>`` (RFC 7914; salt and hash in base64url) for secrets that
people chose, ``sha256:<64 hex digits>`` for long random ones, which nobody can guess anyway.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from typing import Final

__all__ = ["HashedSecret", "hash_secret", "is_hashed"]

#: 16 MiB, five times: of equal strength to OWASP's first choice, in less memory.
_LOG_N: Final = 14
_R: Final = 8
_P: Final = 5
#: A hash asks for 128·N·r bytes of memory; more is no setting but an attack.
_MAX_BYTES: Final = 1 << 28
_MAX_P: Final = 64
_SIZE: Final = 32

_SCRYPT: Final = re.compile(
    r"scrypt:([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2}):([A-Za-z0-9_-]+):([A-Za-z0-9_-]+)"
)
_SHA256: Final = re.compile(r"sha256:([0-9a-f]{64})")


def is_hashed(text: str) -> bool:
    """Whether a configured secret says that it is a hash."""
    return text.startswith(("scrypt:", "sha256:"))


def hash_secret(secret: str, *, scrypt: bool = True) -> str:
    """What goes into the configuration in place of ``secret``."""
    if not scrypt:
        return f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
    salt = os.urandom(16)
    found = _scrypt(secret, salt, _LOG_N, _R, _P)
    return f"scrypt:{_LOG_N}:{_R}:{_P}:{_text(salt)}:{_text(found)}"


class HashedSecret:
    """A hash from the configuration; raises ``ValueError``, without showing it."""

    __slots__ = ("_digest", "_parameters", "_salt")

    def __init__(self, text: str) -> None:
        #: log2 N, r, p of scrypt; ``None``: SHA-256.
        self._parameters: tuple[int, int, int] | None = None
        self._salt = b""
        match = _SHA256.fullmatch(text)
        if match is not None:
            self._digest = bytes.fromhex(match[1])
            return
        match = _SCRYPT.fullmatch(text)
        if match is None:
            raise ValueError("expected a hash as `nexus hash-secret` prints it")
        log_n, r, p = (int(match[i]) for i in (1, 2, 3))
        try:
            self._salt, self._digest = _bytes(match[4]), _bytes(match[5])
        except binascii.Error:
            raise ValueError("expected salt and hash in base64url") from None
        if not 1 <= p <= _MAX_P or not r >= 1 or not log_n >= 1 or (128 * r << log_n) > _MAX_BYTES:
            raise ValueError(
                "expected scrypt parameters that take at most 256 MiB and "
                f"{_MAX_P} passes, got log2 N {log_n}, r {r}, p {p}"
            )
        if len(self._digest) != _SIZE or len(self._salt) < 8:
            raise ValueError(f"expected a salt of 8 bytes or more and a hash of {_SIZE}")
        self._parameters = log_n, r, p

    @property
    def slow(self) -> bool:
        """Whether a comparison takes so long that an event loop must not wait for it."""
        return self._parameters is not None

    def matches(self, secret: str) -> bool:
        """Whether ``secret`` is it; takes tens of milliseconds with scrypt."""
        if self._parameters is None:
            found = hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
        else:
            found = _scrypt(secret, self._salt, *self._parameters)
        return hmac.compare_digest(found, self._digest)

    def __repr__(self) -> str:
        return f"<HashedSecret {'scrypt' if self._parameters else 'sha256'}>"


def _scrypt(secret: str, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        secret.encode(errors="surrogatepass"),
        salt=salt,
        n=1 << log_n,
        r=r,
        p=p,
        maxmem=2 * _MAX_BYTES,
        dklen=_SIZE,
    )


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
