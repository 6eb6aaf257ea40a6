"""Whether a token proves anything: signature, times, issuer, audience, claims.

::

    header ─ alg ─┬─ HS256 ──────────► our own secrets (and those before)
                  └─ RS, PS, ES, EdDSA ► `iss` ► provider ► its key by `kid` ► claims ► Identity

The header only chooses among what the configuration allows: an algorithm never meets a key of
another kind, ``none`` meets no key at all (RFC 8725 §2.1, §3.1), and keys that a token brings along
(``jwk``, ``jku``, ``x5u``) are not looked at.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nexus.errors import NexusError
from nexus.gateway.denylist import everything_of
from nexus.gateway.identity import Identity

if TYPE_CHECKING:
    from nexus.gateway.providers import Provider
    from nexus.gateway.settings_auth import AuthSettings

__all__ = ["OWN_ALGORITHM", "AuthError", "TokenVerifier"]

#: What our own tokens are signed with (RFC 7518 §3.2).
OWN_ALGORITHM: Final = "HS256"
_MAX_CLIENT_ID: Final = 128
#: Roles or scopes of one token, and characters of one of them.
_MAX_RIGHTS: Final = 256
_MAX_RIGHT: Final = 128
#: Keys that are tried for a token which does not say which one it was signed with.
_MAX_TRIED: Final = 8

_OPTIONS: Final = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}


class AuthError(NexusError):
    """A request that does not prove whose it is: ``reason`` is the machine-readable code,
    ``str(error)`` the message for people, ``status`` 401, or 503 where it could not be looked at.

    Reasons: ``missing_token``, ``bad_scheme``, ``malformed_token``, ``bad_algorithm``,
    ``bad_signature``, ``bad_issuer``, ``bad_audience``, ``unknown_key``, ``missing_claim``,
    ``bad_claim``, ``not_yet_valid``, ``expired``, ``revoked``, ``unknown_client``;
    ``keys_unavailable`` (503).
    """

    def __init__(self, reason: str, message: str, status: int = 401) -> None:
        self.reason: Final = reason
        self.status: Final = status
        #: Whose keys are being looked at again: after that the answer may be another one.
        self.provider: Provider | None = None
        super().__init__(message)

    @property
    def fields(self) -> bytes:
        """Field lines of the reply."""
        if self.status == 503:
            return b"Retry-After: 1\r\n"
        return b"WWW-Authenticate: " + self.challenge + b"\r\n"

    @property
    def challenge(self) -> bytes:
        """Value of ``WWW-Authenticate``; without an error code where nothing was presented
        (RFC 6750 §3.1)."""
        if self.reason in ("missing_token", "bad_scheme"):
            return b'Bearer realm="nexus"'
        return b'Bearer realm="nexus", error="invalid_token"'


#: What is said where there is no ``Authorization``; never raised itself, or it would collect
#: traces.
MISSING: Final = AuthError("missing_token", "the Authorization header is missing")


class TokenVerifier:
    """Checks tokens by configuration; holds no state but the providers' keys."""

    __slots__ = ("_audience", "_clients", "_issuer", "_leeway", "_providers", "_secrets")

    def __init__(self, settings: AuthSettings, providers: Mapping[str, Provider]) -> None:
        # The settings themselves hold the clients' secrets as text: what is needed is taken out.
        self._leeway: Final = settings.leeway_seconds
        self._audience: Final = settings.audience or None
        self._issuer: Final = settings.issuer or None
        self._providers: Final = providers
        self._secrets: Final = (
            (settings.jwt_secret.encode(), *(s.encode() for s in settings.previous_jwt_secrets))
            if settings.jwt_secret
            else ()
        )
        #: Client → its roles and scopes.
        self._clients: Final = {
            c.client_id: (frozenset(c.roles), frozenset(c.scopes)) for c in settings.clients
        }

    def verify(self, token: bytes, now: float) -> Identity:
        """Whose token it is; raises :class:`AuthError`. ``now`` is Unix time in seconds."""
        header = _part(token, 0)
        algorithm = header.get("alg")
        if "crit" in header:
            # RFC 7515 §4.1.11: we know no extension that could be critical.
            raise AuthError("malformed_token", "the token has critical header parameters")
        if algorithm == OWN_ALGORITHM and self._secrets:
            return self._own(token, now)
        if not any(algorithm in p.settings.algorithms for p in self._providers.values()):
            raise AuthError("bad_algorithm", f"the token must be signed with {self._allowed()}")
        return self._foreign(token, header, str(algorithm), now)

    def _allowed(self) -> str:
        known = {a for p in self._providers.values() for a in p.settings.algorithms}
        return ", ".join(([OWN_ALGORITHM] if self._secrets else []) + sorted(known))

    # ---------------------------------------------------------------------------------- our own

    def _own(self, token: bytes, now: float) -> Identity:
        claims = _first_that_fits(
            token,
            self._secrets,
            OWN_ALGORITHM,
            ["exp", "client_id"],
            audience=self._audience,
            issuer=self._issuer,
        )
        end = self._times(claims, now)
        client_id = _client_id(claims["client_id"], "client_id")
        roles, scopes = _rights(claims, "roles"), _rights(claims, "scope")
        if self._clients:
            rights = self._clients.get(client_id)
            if rights is None:
                raise AuthError("unknown_client", "the token's client is not configured here")
            # What was taken from a client is gone with the reload, not when its tokens end.
            roles &= rights[0]
            scopes &= rights[1]
        return Identity(
            client_id,
            end,
            roles=roles,
            scopes=scopes,
            revocable=_revocable(token, claims),
            issued=_issued(claims),
            everything=(everything_of("client", client_id),),
        )

    # ------------------------------------------------------------------------------- of providers

    def _foreign(
        self, token: bytes, header: dict[str, Any], algorithm: str, now: float
    ) -> Identity:
        provider = self._providers.get(str(_part(token, 1).get("iss", "")))
        if provider is None:
            raise AuthError("bad_issuer", "the token's issuer is none that is accepted here")
        settings = provider.settings
        if algorithm not in settings.algorithms:
            raise AuthError("bad_algorithm", "the token's issuer does not sign with this algorithm")
        keys = provider.current
        if keys is None:
            raise AuthError("keys_unavailable", "the keys of the token's issuer are not here", 503)
        kid = header.get("kid")
        found = keys.find(kid if isinstance(kid, str) else None, algorithm)
        if not found:
            error = AuthError("unknown_key", "the token's key is not one of its issuer's")
            if provider.want():
                error.provider = provider
            raise error
        claims = _first_that_fits(
            token,
            [key.public for key in found[:_MAX_TRIED]],
            algorithm,
            ["exp", "iss"],
            audience=settings.audiences or None,
            issuer=settings.issuer,
            any_audience=not settings.audiences,
        )
        end = self._times(claims, now)
        name = settings.client_claim
        client = _claim(claims, name)
        if client is None:
            raise AuthError("missing_claim", f"the token has no claim {name}")
        client_id, subject = _client_id(client, name), claims.get("sub", "")
        everything = [everything_of("client", client_id, settings.issuer)]
        if subject:
            subject = _client_id(subject, "sub", 256)
            everything.append(everything_of("subject", subject, settings.issuer))
        return Identity(
            client_id,
            end,
            subject=subject or "",
            issuer=settings.issuer,
            roles=_rights(claims, settings.roles_claim),
            scopes=_rights(claims, settings.scopes_claim),
            revocable=_revocable(token, claims),
            issued=_issued(claims),
            everything=tuple(everything),
        )

    # --------------------------------------------------------------------------------- the times

    def _times(self, claims: dict[str, Any], now: float) -> float:
        """The second from which the token is refused; raises where it is refused now."""
        leeway = self._leeway
        end = _number(claims, "exp") + leeway
        # "on or after which the JWT MUST NOT be accepted", RFC 7519 §4.1.4
        if now >= end:
            raise AuthError("expired", "the token has expired")
        if "nbf" in claims and now < _number(claims, "nbf") - leeway:
            raise AuthError("not_yet_valid", "the token is not valid yet")
        return end


def signing_input(token: bytes) -> bytes:
    """What the signature is over: names a token whatever its signature's spelling."""
    return token.rpartition(b".")[0]


def _revocable(token: bytes, claims: dict[str, Any]) -> tuple[str, ...]:
    entry = f"tok:{hashlib.sha256(signing_input(token)).hexdigest()[:32]}"
    session = claims.get("sid")
    return (entry, f"sid:{session}") if isinstance(session, str) and session else (entry,)


def _issued(claims: dict[str, Any]) -> float:
    """A token that does not say when it was issued counts as older than any revocation."""
    try:
        return max(0.0, _number(claims, "iat"))
    except (KeyError, AuthError):
        return 0.0


def _part(token: bytes, number: int) -> dict[str, Any]:
    """Header (0) or claims (1), not yet verified: only good for choosing a key."""
    text = token.split(b".")[number]
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4)))
    except (binascii.Error, msgspec.DecodeError, ValueError, RecursionError):
        raise AuthError("malformed_token", "the token is not a JWT") from None
    if not isinstance(found, dict):
        raise AuthError("malformed_token", "the token is not a JWT")
    return found


def _first_that_fits(
    token: bytes,
    keys: Iterable[Any],
    algorithm: str,
    required: list[str],
    *,
    audience: str | Iterable[str] | None,
    issuer: str | None,
    any_audience: bool = False,
) -> dict[str, Any]:
    """The claims by the first key whose signature it is."""
    import jwt

    options: dict[str, Any] = {**_OPTIONS, "require": required, "verify_aud": not any_audience}
    wrong: AuthError | None = None
    for key in keys:
        try:
            # Times are checked against `now` and not against PyJWT's own clock.
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=audience,
                issuer=issuer,
                options=options,  # type: ignore[arg-type]
            )
        except jwt.InvalidSignatureError:
            wrong = AuthError("bad_signature", "the token's signature is wrong")
        except jwt.InvalidAlgorithmError:
            raise AuthError("bad_algorithm", f"the token must be signed with {algorithm}") from None
        except jwt.MissingRequiredClaimError as error:
            raise AuthError("missing_claim", f"the token has no claim {error.claim}") from None
        except jwt.InvalidAudienceError:
            raise AuthError("bad_audience", "the token was made for somebody else") from None
        except jwt.InvalidIssuerError:
            raise AuthError("bad_issuer", "the token's issuer is not accepted here") from None
        except jwt.DecodeError:
            raise AuthError("malformed_token", "the token is not a JWT") from None
        except jwt.PyJWTError:
            raise AuthError("bad_claim", "a claim of the token is not acceptable") from None
        except (RecursionError, ValueError):
            # Python's JSON decoder is recursive, and PyJWT reads a stranger's claims with it.
            # ValueError: a number with more digits than `int` converts.
            raise AuthError("malformed_token", "the token is not a JWT") from None
    raise wrong or AuthError("bad_signature", "the token's signature is wrong")


def _claim(claims: dict[str, Any], path: str) -> Any:
    """``realm_access.roles`` → the claim of that name, or ``roles`` in ``realm_access``."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return found


def _client_id(value: object, name: str, longest: int = _MAX_CLIENT_ID) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise AuthError("bad_claim", f"{name}: expected text of 1 to {longest} characters")
    if not _fits_a_field(value):
        raise AuthError("bad_claim", f"{name}: expected text without control characters")
    return value


def _rights(claims: dict[str, Any], path: str) -> frozenset[str]:
    """Roles or scopes: a list, or text with spaces (RFC 8693 §4.2)."""
    found = _claim(claims, path)
    if found is None:
        return frozenset()
    listed = found.split() if isinstance(found, str) else found
    if not isinstance(listed, list) or len(listed) > _MAX_RIGHTS:
        raise AuthError("bad_claim", f"{path}: expected a list of at most {_MAX_RIGHTS} texts")
    for right in listed:
        if (
            not isinstance(right, str)
            or not 0 < len(right) <= _MAX_RIGHT
            or "," in right
            or right != right.strip()
            or not _fits_a_field(right)
        ):
            # They travel in a header's list: one must not look like two.
            raise AuthError("bad_claim", f"{path}: expected names without comma or control")
    return frozenset(listed)


def _fits_a_field(text: str) -> bool:
    """Whether it can stand in a header for the upstream, in UTF-8."""
    if any(c < " " or c == "\x7f" for c in text):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


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
