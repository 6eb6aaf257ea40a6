"""Who a request comes from: tokens issued at ``POST /auth/token`` and verified on every request.

::

    {client_id, client_secret} ─► issue ─► JWT (HS256: client_id, iat, exp, jti, …)
    Authorization: Bearer JWT  ─► verify ─► Identity, or AuthError → 401

A verified token is remembered by its bytes until it expires or is revoked, so that its signature is
computed once (RFC 7519, RFC 8725; Bearer: RFC 6750). Where clients are configured a token is good
only as long as its client is one of them: whoever is taken out of the configuration is out with the
reload, not when the token expires. Secrets are kept only as digests and appear in no message, log
line or ``repr``.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from nexus.errors import ConfigError
from nexus.gateway.guard import check_role, check_scope
from nexus.gateway.identity import Identity
from nexus.gateway.providers import check_providers
from nexus.gateway.secrethash import HashedSecret, is_hashed
from nexus.gateway.tokens import MISSING, OWN_ALGORITHM, AuthError, TokenVerifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from nexus.gateway.providers import Provider
    from nexus.gateway.settings_auth import AuthSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["AuthError", "Authenticator", "Credentials", "check_settings", "refusal"]

#: A key as long as the hash's output, RFC 7518 §3.2.
_MIN_SECRET_BYTES: Final = 32
#: Ours are below 500 bytes, those of identity providers a few thousand; the bound keeps what the
#: cache holds small.
_MAX_TOKEN_BYTES: Final = 8192
#: Two names of at most 128 characters and a secret fit many times over.
_MAX_BODY_BYTES: Final = 8192

_PREFIX: Final = b"Bearer "
#: JWS compact serialisation, RFC 7515 §7.1, strictly: Python's base64 skips letters that are not in
#: its alphabet, so one token would have any number of spellings.
_COMPACT: Final = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")

Reply = tuple[int, dict[str, object]]


def check_settings(settings: AuthSettings) -> None:
    """What one field cannot tell: raises ``ConfigError`` and says how to mend it."""
    if not settings.enabled:
        return
    _check_secret(settings)
    seen: set[str] = set()
    for i, client in enumerate(settings.clients):
        path = f"auth.clients[{i}]"
        if client.client_id in seen:
            raise ConfigError(
                f"the client {client.client_id!r} is given twice", path=f"{path}.client_id"
            )
        seen.add(client.client_id)
        if any(c < " " or c == "\x7f" for c in client.client_id):
            raise ConfigError("expected no control characters", path=f"{path}.client_id")
        for field, check, values in (
            ("client_secret", HashedSecret, [client.client_secret]),
            ("roles", check_role, client.roles),
            ("scopes", check_scope, client.scopes),
        ):
            if field == "client_secret" and not is_hashed(client.client_secret):
                continue
            try:
                for value in values:
                    check(value)
            except ValueError as error:
                raise ConfigError(str(error), path=f"{path}.{field}") from None
    check_providers(settings.providers)
    if settings.refresh.enabled and not settings.jwt_secret:
        raise ConfigError("needs auth.jwt_secret", path="auth.refresh.enabled")


def _check_secret(settings: AuthSettings) -> None:
    if settings.providers and not settings.jwt_secret:
        return
    for path, secret in (
        ("auth.jwt_secret", settings.jwt_secret),
        *(
            (f"auth.previous_jwt_secrets[{i}]", secret)
            for i, secret in enumerate(settings.previous_jwt_secrets)
        ),
    ):
        length = len(secret.encode())
        if length < _MIN_SECRET_BYTES:
            found = f"{length} bytes" if length else "nothing"
            raise ConfigError(
                f"expected a secret of at least {_MIN_SECRET_BYTES} bytes, got {found}; make one "
                "with `openssl rand -hex 32` and give it as NEXUS_GATEWAY_AUTH__JWT_SECRET, or set "
                "auth.enabled to false",
                path=path,
            )
        if "-----BEGIN" in secret or secret.startswith(("ssh-", "ecdsa-")):
            # Whoever knows a public key could sign with it (RFC 8725 §2.1).
            raise ConfigError(
                "expected a secret, got a key file's text: keys of others go to auth.providers",
                path=path,
            )


class Credentials(NamedTuple):
    """What a client shows at ``POST /auth/token``; ``scopes`` is ``None`` for all of them."""

    client_id: str
    secret: str
    scopes: frozenset[str] | None


class Denied(Protocol):
    """A denylist."""

    def __contains__(self, entry: object) -> bool: ...

    def cutoff(self, entry: str) -> float:
        """Unix time up to which what was issued is denied; -1 where nothing is."""


class _NothingDenied:
    def __contains__(self, entry: object) -> bool:
        return False

    def cutoff(self, entry: str) -> float:  # noqa: ARG002
        return -1.0


class Authenticator:
    """Issues and verifies tokens for one worker. Raises ``ConfigError`` as :func:`check_settings`.

    A reload makes a new one, which empties the cache.
    """

    __slots__ = (
        "_clients",
        "_count_miss",
        "_denied",
        "_hashed",
        "_key",
        "_max_cached",
        "_named",
        "_pepper",
        "_revokers",
        "_rights",
        "_slow",
        "_ttl",
        "_verified",
        "_verifier",
        "count_hit",
    )

    def __init__(
        self,
        settings: AuthSettings,
        metrics: LocalMetrics | None = None,
        providers: Mapping[str, Provider] | None = None,
        denied: Denied | None = None,
    ) -> None:
        """``metrics``: where look-ups in the cache of verified tokens are counted, if anywhere.
        ``denied``: entries of the denylist; tell :meth:`forget` what is new in it."""
        check_settings(settings)
        #: For whoever remembers an identity and asks nobody while it is ``known_by`` what it sees.
        self.count_hit: Callable[[], None] = _nowhere
        self._count_miss: Callable[[], None] = _nowhere
        if metrics is not None:
            self.count_hit = metrics.counter("nexus_auth_cache_total", result="hit").inc
            self._count_miss = metrics.counter("nexus_auth_cache_total", result="miss").inc
        # The settings themselves hold the clients' secrets as text: what is needed is taken out.
        self._key = settings.jwt_secret.encode()
        self._ttl = settings.token_ttl_seconds
        self._named = {"iss": settings.issuer, "aud": settings.audience}
        self._verifier = TokenVerifier(settings, providers or {})
        self._denied: Denied = denied if denied is not None else _NothingDenied()
        self._max_cached = settings.token_cache_entries
        #: Digests are worthless outside this process.
        self._pepper = os.urandom(32)
        #: Client → keyed digest of its secret; of a hashed one, once it was shown.
        self._clients = {
            c.client_id: self._digest(c.client_secret)
            for c in settings.clients
            if not is_hashed(c.client_secret)
        }
        self._hashed = {
            c.client_id: HashedSecret(c.client_secret)
            for c in settings.clients
            if is_hashed(c.client_secret)
        }
        #: One of the slow ones: whom nobody knows costs as much as whom somebody knows.
        self._slow = next((h for h in self._hashed.values() if h.slow), None)
        self._rights = {c.client_id: (c.roles, c.scopes) for c in settings.clients}
        self._revokers = frozenset(c.client_id for c in settings.clients if c.may_revoke)
        #: Authorization field → whose it is; oldest first.
        self._verified: dict[bytes, Identity] = {}

    # --------------------------------------------------------------------------------- verifying

    def verify(self, authorization: bytes | None, now: float) -> Identity:
        """The client that the ``Authorization`` field proves; raises :class:`AuthError`.

        ``now`` is Unix time in seconds.
        """
        if authorization is None:
            raise AuthError(MISSING.reason, str(MISSING))
        known = self._verified.get(authorization)
        if known is not None:
            self.count_hit()
            if now < known.end:
                return known
            self._drop(authorization)
            raise AuthError("expired", "the token has expired")
        token = _token_of(authorization)
        # Only what could have been a hit: nonsense is no look-up.
        self._count_miss()
        identity = self._verifier.verify(token, now)
        if self._is_denied(identity):
            raise AuthError("revoked", "the token was revoked")
        # One spelling per token: a client must not fill the cache with "bearer", "BEARER", ….
        if len(authorization) == len(_PREFIX) + len(token) and authorization.startswith(_PREFIX):
            self._remember(authorization, identity)
        return identity

    def _is_denied(self, identity: Identity) -> bool:
        denied = self._denied
        return any(entry in denied for entry in identity.revocable) or any(
            denied.cutoff(entry) >= identity.issued for entry in identity.everything
        )

    def verify_token(self, token: str, now: float) -> Identity:
        """The same for a token without ``Authorization``; nothing is remembered."""
        encoded = token.encode(errors="replace")
        return self._verifier.verify(_token_of(_PREFIX + encoded), now)

    def forget(self, entries: Iterable[str]) -> None:
        """These are on the denylist from now on: whoever has one of them is not known any more."""
        new = set(entries)
        gone = [
            field
            for field, identity in self._verified.items()
            if not (new.isdisjoint(identity.revocable) and new.isdisjoint(identity.everything))
        ]
        for field in gone:
            self._drop(field)

    def retire(self) -> None:
        """Another one takes its place: nobody is known by what this one has seen."""
        self._max_cached = 0
        for field in list(self._verified):
            self._drop(field)

    def _remember(self, authorization: bytes, identity: Identity) -> None:
        if not self._max_cached:
            return
        # Only tokens that we can verify come here, so a stranger cannot push others out.
        if len(self._verified) >= self._max_cached:
            self._drop(next(iter(self._verified)))
        self._verified[authorization] = identity
        identity.known_by = authorization

    def _drop(self, authorization: bytes) -> None:
        self._verified.pop(authorization).known_by = None

    # ----------------------------------------------------------------------------------- issuing

    @property
    def issues(self) -> bool:
        """Whether there are tokens of our own to be had."""
        return bool(self._key)

    def issue(self, body: bytes, now: float) -> Reply:
        """Answer ``POST /auth/token``: the status and the JSON object to send.

        ``now`` is Unix time in seconds. 200 with the token, 400 for a body that is no object with
        two texts or asks for scopes that the client has not, 401 for wrong credentials, 413 for a
        body above 8 KiB. Send it with ``Cache-Control: no-store`` (RFC 6749 §5.1).
        """
        asked = self.read(body)
        if not isinstance(asked, Credentials):
            return asked
        if not self.matches(asked):
            return refusal(401, "bad_credentials", "client_id or client_secret is wrong")
        return self.grant(asked.client_id, asked.scopes, now)

    def read(self, body: bytes) -> Credentials | Reply:
        """What a body of ``POST /auth/token`` asks for, or how it is refused."""
        fields = json_object(body)
        if isinstance(fields, tuple):
            return fields
        texts: list[str] = []
        for name in ("client_id", "client_secret"):
            if name not in fields:
                return refusal(400, "missing_field", f"{name} is missing")
            value = fields[name]
            if not isinstance(value, str) or not value:
                return refusal(400, "bad_field", f"{name}: expected text that is not empty")
            texts.append(value)
        scope = fields.get("scope")
        if scope is None:
            return Credentials(texts[0], texts[1], None)
        if not isinstance(scope, str):
            return refusal(400, "bad_field", "scope: expected text, names with spaces between")
        return Credentials(texts[0], texts[1], frozenset(scope.split()))

    def is_slow(self, asked: Credentials) -> bool:
        """Whether :meth:`matches` takes so long that an event loop must not wait for it."""
        known = self._clients.get(asked.client_id)
        if known is not None and hmac.compare_digest(self._digest(asked.secret), known):
            return False
        if asked.client_id in self._hashed:
            return self._hashed[asked.client_id].slow
        return known is None and self._slow is not None

    def matches(self, asked: Credentials) -> bool:
        """Whether id and secret belong together; may run in another thread."""
        # An unknown client costs the same comparison, so that time does not tell which ids exist.
        client_id, secret = asked.client_id, asked.secret
        stored = self._clients.get(client_id)
        digest = self._digest(secret)
        if hmac.compare_digest(digest, stored if stored is not None else self._pepper * 2):
            return stored is not None
        hashed = self._hashed.get(client_id)
        if hashed is None:
            if stored is None and self._slow is not None:
                self._slow.matches(secret)
            return False
        if not hashed.matches(secret):
            return False
        self._clients[client_id] = digest  # from now on it is quick
        return True

    def grant(
        self, client_id: str, scopes: frozenset[str] | None, now: float, session: str = ""
    ) -> Reply:
        """A token for a client that has proved itself: status 200, or why not.

        ``session`` names what is revoked together.
        """
        if client_id not in self._rights:
            return refusal(401, "unknown_client", "the client is not configured here (any more)")
        roles, allowed = self._rights[client_id]
        if scopes is not None and not scopes <= frozenset(allowed):
            wrong = ", ".join(sorted(scopes - frozenset(allowed)))
            return refusal(400, "bad_scope", f"the client does not have the scope {wrong}")
        issued = int(now)
        claims: dict[str, Any] = {
            "client_id": client_id,
            "iat": issued,
            "exp": issued + self._ttl,
            # Two tokens of one second are two tokens: one can be revoked without the other.
            "jti": secrets.token_hex(8),
        }
        claims.update({name: value for name, value in self._named.items() if value})
        if session:
            claims["sid"] = session
        if roles:
            claims["roles"] = list(roles)
        granted = [s for s in allowed if scopes is None or s in scopes]
        if granted:
            claims["scope"] = " ".join(granted)
        import jwt

        token = jwt.encode(claims, self._key, algorithm=OWN_ALGORITHM)
        reply: dict[str, object] = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": self._ttl,
        }
        if scopes is not None:
            reply["scope"] = " ".join(granted)
        return 200, reply

    def may_revoke(self, client_id: str) -> bool:
        """Whether a client may end the tokens of others."""
        return client_id in self._revokers

    def _digest(self, secret: str) -> bytes:
        return hashlib.blake2b(secret.encode(errors="surrogatepass"), key=self._pepper).digest()

    def __repr__(self) -> str:
        return f"<Authenticator clients={len(self._rights)} cached={len(self._verified)}>"


def _nowhere() -> None:
    """Where nobody counts."""


def json_object(body: bytes) -> dict[str, Any] | Reply:
    """The JSON object of a request to ``/auth/…``, or how it is refused."""
    if len(body) > _MAX_BODY_BYTES:
        return refusal(413, "body_too_large", f"expected at most {_MAX_BODY_BYTES} bytes")
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return refusal(400, "bad_json", "expected a JSON object")
    if not isinstance(fields, dict):
        return refusal(400, "bad_json", "expected a JSON object")
    return fields


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


_TITLES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    413: "Content Too Large",
    503: "Service Unavailable",
}


def refusal(status: int, reason: str, message: str) -> Reply:
    """A reply of ``/auth/…`` that is none of what was asked for."""
    return status, {"error": _TITLES[status], "message": message, "reason": reason}
