"""Who a request comes from: tokens issued at ``POST /auth/token`` and verified on every request.

::

    {client_id, client_secret} ─► issue ─► JWT (HS256: client_id, iat, exp)
    Authorization: Bearer JWT  ─► verify ─► client id, or AuthError → 401

A verified token is remembered by its bytes until it expires, so that its signature is computed
once (RFC 7519, RFC 8725; Bearer: RFC 6750). Where clients are configured a token is good only as
long as its client is one of them: whoever is taken out of the configuration is out with the reload,
not when the token expires. Secrets are kept only as keyed digests and appear in no message, log
line or ``repr``.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
from typing import TYPE_CHECKING, Any, Final

import jwt
import msgspec

from nexus.errors import ConfigError, NexusError
from nexus.gateway.identity import Identity
from nexus.gateway.settings import AuthSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from nexus.observability.registry import LocalMetrics

__all__ = ["AuthError", "Authenticator", "check_settings"]

#: What is accepted, whatever a token's header asks for (RFC 8725 §3.1).
_ALGORITHMS: Final = ["HS256"]
#: A key as long as the hash's output, RFC 7518 §3.2.
_MIN_SECRET_BYTES: Final = 32
#: Ours are below 300 bytes; the bound keeps what the cache holds small.
_MAX_TOKEN_BYTES: Final = 4096
#: Two names of at most 128 characters and a secret fit many times over.
_MAX_BODY_BYTES: Final = 8192
_MAX_CLIENT_ID: Final = 128

_PREFIX: Final = b"Bearer "
#: JWS compact serialisation, RFC 7515 §7.1, strictly: Python's base64 skips letters that are not in
#: its alphabet, so one token would have any number of spellings.
_COMPACT: Final = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


class AuthError(NexusError):
    """401: ``reason`` is the machine-readable code, ``str(error)`` the message for people.

    Reasons: ``missing_token``, ``bad_scheme``, ``malformed_token``, ``bad_algorithm``,
    ``bad_signature``, ``missing_claim``, ``bad_claim``, ``not_yet_valid``, ``expired``,
    ``unknown_client``.
    """

    status: Final = 401

    def __init__(self, reason: str, message: str) -> None:
        self.reason: Final = reason
        super().__init__(message)

    @property
    def fields(self) -> bytes:
        """Field lines of the reply."""
        return b"WWW-Authenticate: " + self.challenge + b"\r\n"

    @property
    def challenge(self) -> bytes:
        """Value of ``WWW-Authenticate``; without an error code where nothing was presented
        (RFC 6750 §3.1)."""
        if self.reason in ("missing_token", "bad_scheme"):
            return b'Bearer realm="nexus"'
        return b'Bearer realm="nexus", error="invalid_token"'


def check_settings(settings: AuthSettings) -> None:
    """What one field cannot tell: raises ``ConfigError`` and says how to mend it."""
    if not settings.enabled:
        return
    length = len(settings.jwt_secret.encode())
    if length < _MIN_SECRET_BYTES:
        found = f"{length} bytes" if length else "nothing"
        raise ConfigError(
            f"expected a secret of at least {_MIN_SECRET_BYTES} bytes, got {found}; make one with "
            "`openssl rand -hex 32` and give it as NEXUS_GATEWAY_AUTH__JWT_SECRET, or set "
            "auth.enabled to false",
            path="auth.jwt_secret",
        )
    seen: set[str] = set()
    for i, client in enumerate(settings.clients):
        if client.client_id in seen:
            raise ConfigError(
                f"the client {client.client_id!r} is given twice",
                path=f"auth.clients[{i}].client_id",
            )
        seen.add(client.client_id)


class Authenticator:
    """Issues and verifies tokens for one worker. Raises ``ConfigError`` as :func:`check_settings`.

    A reload makes a new one, which empties the cache.
    """

    __slots__ = (
        "_clients",
        "_count_hit",
        "_count_miss",
        "_jwt_secret",
        "_leeway",
        "_max_cached",
        "_pepper",
        "_ttl",
        "_verified",
    )

    def __init__(self, settings: AuthSettings, metrics: LocalMetrics | None = None) -> None:
        """``metrics``: where look-ups in the cache of verified tokens are counted, if anywhere."""
        check_settings(settings)
        self._count_hit: Callable[[], None] = _nowhere
        self._count_miss: Callable[[], None] = _nowhere
        if metrics is not None:
            self._count_hit = metrics.counter("nexus_auth_cache_total", result="hit").inc
            self._count_miss = metrics.counter("nexus_auth_cache_total", result="miss").inc
        self._jwt_secret = settings.jwt_secret.encode()
        self._ttl = settings.token_ttl_seconds
        self._leeway = settings.leeway_seconds
        self._max_cached = settings.token_cache_entries
        #: Digests are worthless outside this process.
        self._pepper = os.urandom(32)
        self._clients = {c.client_id: self._digest(c.client_secret) for c in settings.clients}
        #: Authorization field → whose it is; oldest first.
        self._verified: dict[bytes, Identity] = {}

    def issue(self, body: bytes, now: float) -> tuple[int, dict[str, object]]:
        """Answer ``POST /auth/token``: the status and the JSON object to send.

        ``now`` is Unix time in seconds. 200 with the token, 400 for a body that is no object with
        two texts, 401 for wrong credentials, 413 for a body above 8 KiB. Send it with
        ``Cache-Control: no-store`` (RFC 6749 §5.1).
        """
        if len(body) > _MAX_BODY_BYTES:
            return _refusal(413, "body_too_large", f"expected at most {_MAX_BODY_BYTES} bytes")
        try:
            fields = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _refusal(400, "bad_json", "expected a JSON object")
        if not isinstance(fields, dict):
            return _refusal(400, "bad_json", "expected a JSON object")
        texts: list[str] = []
        for name in ("client_id", "client_secret"):
            if name not in fields:
                return _refusal(400, "missing_field", f"{name} is missing")
            value = fields[name]
            if not isinstance(value, str) or not value:
                return _refusal(400, "bad_field", f"{name}: expected text that is not empty")
            texts.append(value)
        client_id, secret = texts
        if not self._matches(client_id, secret):
            return _refusal(401, "bad_credentials", "client_id or client_secret is wrong")
        issued = int(now)
        claims = {"client_id": client_id, "iat": issued, "exp": issued + self._ttl}
        token = jwt.encode(claims, self._jwt_secret, algorithm="HS256")
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": self._ttl}

    def verify(self, authorization: bytes | None, now: float) -> Identity:
        """The client that the ``Authorization`` field proves; raises :class:`AuthError`.

        ``now`` is Unix time in seconds.
        """
        if authorization is None:
            raise AuthError("missing_token", "the Authorization header is missing")
        known = self._verified.get(authorization)
        if known is not None:
            self._count_hit()
            if now < known.end:
                return known
            del self._verified[authorization]
            raise AuthError("expired", "the token has expired")
        token = _token_of(authorization)
        # Only what could have been a hit: nonsense is no look-up.
        self._count_miss()
        identity = self._check(token, now)
        # One spelling per token: a client must not fill the cache with "bearer", "BEARER", ….
        if len(authorization) == len(_PREFIX) + len(token) and authorization.startswith(_PREFIX):
            self._remember(authorization, identity)
        return identity

    def _check(self, token: bytes, now: float) -> Identity:
        claims = self._decode(token)
        end = _number(claims, "exp") + self._leeway
        # "on or after which the JWT MUST NOT be accepted", RFC 7519 §4.1.4
        if now >= end:
            raise AuthError("expired", "the token has expired")
        if "nbf" in claims and now < _number(claims, "nbf") - self._leeway:
            raise AuthError("not_yet_valid", "the token is not valid yet")
        client_id = claims["client_id"]
        if not isinstance(client_id, str) or not 0 < len(client_id) <= _MAX_CLIENT_ID:
            raise AuthError(
                "bad_claim", f"client_id: expected text of 1 to {_MAX_CLIENT_ID} characters"
            )
        if any(c < " " or c == "\x7f" for c in client_id):
            # It goes into a header field for the upstream.
            raise AuthError("bad_claim", "client_id: expected text without control characters")
        if self._clients and client_id not in self._clients:
            raise AuthError("unknown_client", "the token's client is not configured here")
        return Identity(client_id, end)

    def _decode(self, token: bytes) -> dict[str, Any]:
        try:
            # Times are checked against `now` here and not against PyJWT's own clock.
            return jwt.decode(
                token,
                self._jwt_secret,
                algorithms=_ALGORITHMS,
                options={
                    "require": ["exp", "client_id"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidAlgorithmError:
            raise AuthError("bad_algorithm", "the token must be signed with HS256") from None
        except jwt.InvalidSignatureError:
            raise AuthError("bad_signature", "the token's signature is wrong") from None
        except jwt.MissingRequiredClaimError as error:
            raise AuthError("missing_claim", f"the token has no claim {error.claim}") from None
        except jwt.DecodeError:
            raise AuthError("malformed_token", "the token is not a JWT") from None
        except jwt.InvalidTokenError:
            raise AuthError("bad_claim", "a claim of the token is not acceptable") from None
        except (RecursionError, ValueError):
            # Python's JSON decoder is recursive, and PyJWT (2.10) reads a stranger's header with it
            # before any signature is checked: 4 KiB of "[" are nested too deep. ValueError: a
            # number with more digits than `int` converts.
            raise AuthError("malformed_token", "the token is not a JWT") from None

    def _remember(self, authorization: bytes, identity: Identity) -> None:
        if not self._max_cached:
            return
        # Only tokens that we can verify come here, so a stranger cannot push others out.
        if len(self._verified) >= self._max_cached:
            del self._verified[next(iter(self._verified))]
        self._verified[authorization] = identity

    def _digest(self, secret: str) -> bytes:
        return hashlib.blake2b(secret.encode(errors="surrogatepass"), key=self._pepper).digest()

    def _matches(self, client_id: str, secret: str) -> bool:
        # An unknown client costs the same comparison, so that time does not tell which ids exist.
        stored = self._clients.get(client_id)
        expected = self._pepper * 2 if stored is None else stored
        return hmac.compare_digest(self._digest(secret), expected) and stored is not None

    def __repr__(self) -> str:
        return f"<Authenticator clients={len(self._clients)} cached={len(self._verified)}>"


def _nowhere() -> None:
    """Where nobody counts."""


def _token_of(authorization: bytes) -> bytes:
    """``credentials = auth-scheme 1*SP token68``, the scheme in any case (RFC 9110 §11.4)."""
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer":
        raise AuthError("bad_scheme", "expected the scheme Bearer in Authorization")
    token = token.strip(b" ")
    if len(token) > _MAX_TOKEN_BYTES:
        raise AuthError("malformed_token", f"the token is longer than {_MAX_TOKEN_BYTES} bytes")
    if not _COMPACT.fullmatch(token):
        raise AuthError("malformed_token", "the token is not a JWT")
    return token


def _number(claims: dict[str, Any], name: str) -> float:
    """A NumericDate (RFC 7519 §2)."""
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise AuthError("bad_claim", f"{name}: expected a number of seconds")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


_TITLES: Final = {400: "Bad Request", 401: "Unauthorized", 413: "Content Too Large"}


def _refusal(status: int, reason: str, message: str) -> tuple[int, dict[str, object]]:
    return status, {"error": _TITLES[status], "message": message, "reason": reason}
