"""Refresh tokens: each is good once, and the second use of one ends its whole session.

A session begins with the client's secret and ends ``ttl_seconds`` later, however often it is
renewed. Its refresh tokens are ``<session>.<number>.<mac>``: the MAC, keyed from ``jwt_secret``,
keeps strangers from touching a session, the number says which one is due. Redis holds only the
number, so a copy of Redis is good for nothing. A number that was used before means that two parties
hold the session's tokens, and nobody can tell which is the thief: the session is deleted and put on
the denylist, in one script (RFC 9700 §4.14.2).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from typing import Any, Final, NamedTuple

from nexus.gateway import redisfeed
from nexus.gateway.denylist import CHANNEL, CUTOFF_SECONDS, DENIED_KEY, everything_of

__all__ = ["BadRefreshTokenError", "RefreshTokens", "Renewed", "Sessions"]

_KEY_PREFIX: Final = "nexus:auth:session:"
_LABEL: Final = b"nexus refresh token 1"
_SESSION_BYTES: Final = 16
_MAC_BYTES: Final = 32
_MAX_TOKEN: Final = 128

#: KEYS: session, denylist. ARGV: number shown, entry of the denylist, seconds that it stays there,
#: channel, CUTOFF_SECONDS. A session that began before all of its client was ended is over, even if
#: no worker has heard of that yet.
#: → {"renewed", client, scope, next number, seconds left, begun} | {"reused", client} | {"unknown"}
_RENEW: Final = """
local f = redis.call('HMGET', KEYS[1], 'client', 'scope', 'due', 'begun', 'everything')
if not f[1] then return {'unknown'} end
local ended = f[5] and redis.call('ZSCORE', KEYS[2], f[5])
if ended and tonumber(ended) - ARGV[5] >= tonumber(f[4]) then
  redis.call('DEL', KEYS[1])
  return {'unknown'}
end
if f[3] == ARGV[1] then
  return {'renewed', f[1], f[2], redis.call('HINCRBY', KEYS[1], 'due', 1),
          redis.call('TTL', KEYS[1]), f[4] or '0'}
end
redis.call('DEL', KEYS[1])
redis.call('ZADD', KEYS[2], 'GT', redis.call('TIME')[1] + ARGV[3], ARGV[2])
redis.call('PUBLISH', ARGV[4], ARGV[2])
return {'reused', f[1]}
"""


class BadRefreshTokenError(ValueError):
    """It was not made here."""


class Renewed(NamedTuple):
    """What became of a refresh token: ``outcome`` is ``renewed``, ``reused`` or ``unknown``."""

    outcome: str
    client_id: str = ""
    #: ``None``: all scopes that the client has.
    scopes: frozenset[str] | None = None
    number: int = 0
    #: Seconds until the session ends.
    left: int = 0
    #: Unix time of the session's begin.
    begun: float = 0.0


class RefreshTokens:
    """Makes and reads them; ``keys``: the secret in force, then those before."""

    __slots__ = ("_keys",)

    def __init__(self, *jwt_secrets: str) -> None:
        self._keys: Final = [
            hmac.digest(secret.encode(), _LABEL, hashlib.sha256) for secret in jwt_secrets
        ]

    def make(self, session: str, number: int) -> str:
        """The refresh token of a session that is due as ``number``."""
        signed = f"{session}.{number}"
        mac = hmac.digest(self._keys[0], signed.encode(), hashlib.sha256)
        return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"

    def read(self, token: str) -> tuple[str, int]:
        """Session and number of a token made here; raises :class:`BadRefreshTokenError`."""
        signed, _, text = token.rpartition(".")
        session, _, number = signed.partition(".")
        if len(token) > _MAX_TOKEN or not token.isascii() or not number.isdigit():
            raise BadRefreshTokenError
        try:
            mac = base64.b64decode(text + "=", altchars="-_", validate=True)
        except (binascii.Error, ValueError):
            raise BadRefreshTokenError from None
        for key in self._keys:
            if hmac.compare_digest(hmac.digest(key, signed.encode(), hashlib.sha256), mac):
                return session, int(number)
        raise BadRefreshTokenError


class Sessions:
    """Sessions in Redis; every method raises what a Redis that is away raises."""

    def __init__(self, url: str) -> None:
        self._client: Final[Any] = redisfeed.connect(url)
        self._renew: Final = self._client.register_script(_RENEW)

    async def begin(self, client_id: str, scopes: frozenset[str] | None, seconds: int) -> str:
        """A new session's name; its first refresh token has the number 1."""
        session = secrets.token_hex(_SESSION_BYTES)
        scope = "*" if scopes is None else " ".join(sorted(scopes))
        pipe = self._client.pipeline(transaction=True)
        fields = {
            "client": client_id,
            "scope": scope,
            "due": 1,
            "begun": f"{time.time():.6f}",
            "everything": everything_of("client", client_id),
        }
        pipe.hset(_KEY_PREFIX + session, mapping=fields)
        pipe.expire(_KEY_PREFIX + session, seconds)
        await pipe.execute()
        return session

    async def renew(self, session: str, number: int, deny_seconds: int) -> Renewed:
        """Use a refresh token; of one that was used before nothing of its session survives."""
        found = await self._renew(
            keys=[_KEY_PREFIX + session, DENIED_KEY],
            args=[number, f"sid:{session}", deny_seconds, CHANNEL, CUTOFF_SECONDS],
        )
        outcome = str(found[0])
        if outcome != "renewed":
            return Renewed(outcome, str(found[1]) if len(found) > 1 else "")
        scope = str(found[2])
        scopes = None if scope == "*" else frozenset(scope.split())
        number, left, begun = int(found[3]), int(found[4]), float(found[5])
        return Renewed(outcome, str(found[1]), scopes, number, left, begun)

    async def end(self, session: str) -> None:
        """No refresh token of it is good any more."""
        await self._client.delete(_KEY_PREFIX + session)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()
