"""``POST /auth/token``, ``/auth/refresh`` and ``/auth/revoke``.

What waits for Redis or for a slow hash answers later, from a task: the event loop goes on, and a
client that has gone in between gets nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nexus.gateway.auth import Authenticator, AuthError, Credentials, json_object, refusal
from nexus.gateway.denylist import CUTOFF_SECONDS, everything_of
from nexus.gateway.redisfeed import failures
from nexus.gateway.sessions import BadRefreshTokenError, RefreshTokens, Sessions

if TYPE_CHECKING:
    from nexus.gateway._exchange_py import Exchange
    from nexus.gateway.auth import Reply
    from nexus.gateway.denylist import Denylist
    from nexus.gateway.settings_auth import AuthSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["AuthEndpoints", "end_everything", "whose_everything"]

log = logging.getLogger("nexus.gateway.auth")

#: Answers under way at once; more are told to come back. A hash takes a tenth of a second of CPU.
MAX_PENDING: Final = 64
#: Hashes computed at once, each with 16 MiB.
_THREADS: Final = 2

_JSON: Final = b"application/json"
_NO_STORE: Final = b"Cache-Control: no-store\r\n"
#: "A server generating a 401 response MUST send a WWW-Authenticate" (RFC 9110 §15.5.2).
_CHALLENGE: Final = b'WWW-Authenticate: Bearer realm="nexus"\r\n'
_RETRY: Final = b"Retry-After: 1\r\n"
_COOKIE_PATH: Final = "/auth"


_WRONG: Final = refusal(401, "bad_credentials", "client_id or client_secret is wrong")


def whose_everything(fields: dict[str, Any], default: str = "") -> str | Reply:
    """The entry of the denylist that JSON names: ``of_client`` or ``of_subject``, ``issuer``.

    ``default`` is the client that is meant where neither is there.
    """
    texts: dict[str, str] = {}
    for name in ("of_client", "of_subject", "issuer"):
        value = fields.get(name, "")
        if not isinstance(value, str) or (name in fields and not value):
            return refusal(400, "bad_field", f"{name}: expected text that is not empty")
        texts[name] = value
    client, subject, issuer = texts.values()
    if client and subject:
        return refusal(400, "bad_field", "expected of_client or of_subject, got both")
    if subject and not issuer:
        return refusal(400, "missing_field", "issuer is missing: subjects are those of providers")
    if issuer and not (client or subject):
        return refusal(400, "missing_field", "of_client or of_subject is missing")
    if subject:
        return everything_of("subject", subject, issuer)
    if not client and not default:
        return refusal(400, "missing_field", "of_client or of_subject is missing")
    return everything_of("client", client or default, issuer)


async def end_everything(denylist: Denylist, whose: str, by: str) -> None:
    """All tokens and sessions up to now; raises what a Redis that is away raises."""
    await denylist.deny((whose,), time.time() + CUTOFF_SECONDS)
    log.warning("all tokens were revoked", extra={"entry": whose, "by": by})


class AuthEndpoints:
    """Handlers ``(exchange, body)``; settings come with :meth:`apply`."""

    def __init__(self, metrics: LocalMetrics) -> None:
        self._metrics: Final = metrics
        self._encode: Final = msgspec.json.Encoder().encode
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._hashing: Final = asyncio.Semaphore(_THREADS)
        self.authenticator: Authenticator | None = None
        self._settings: AuthSettings | None = None
        self._tokens = RefreshTokens()
        self.sessions: Sessions | None = None
        self.denylist: Denylist | None = None

    def apply(self, settings: AuthSettings, authenticator: Authenticator | None) -> None:
        """Use these from now on; ``None``: authentication is off."""
        self._settings = settings
        self.authenticator = authenticator
        self._tokens = RefreshTokens(settings.jwt_secret, *settings.previous_jwt_secrets)

    async def close(self) -> None:
        """Whoever still waits has been answered or is gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------------------------- token

    def token(self, exchange: Exchange, body: bytes) -> None:
        """Client credentials for a bearer token, and a refresh token where they are on."""
        authenticator = self._issuing(exchange)
        if authenticator is None:
            return
        asked = authenticator.read(body)
        if not isinstance(asked, Credentials):
            self._answer(exchange, *asked)
        elif (
            authenticator.is_slow(asked)
            or self.sessions is not None
            or self._barred_until(asked.client_id) > exchange.wall_ns / 1e9
        ):
            self._later(exchange, self._token(authenticator, asked, exchange.wall_ns / 1e9))
        else:
            self._answer(exchange, *authenticator.issue(body, exchange.wall_ns / 1e9))

    async def _token(
        self, authenticator: Authenticator, asked: Credentials, now: float
    ) -> tuple[Reply, bytes]:
        if not await self._proves(authenticator, asked):
            return _WRONG, b""
        now = await self._counted_from(asked.client_id, now)
        status, document = authenticator.grant(asked.client_id, asked.scopes, now)
        settings = self._settings
        if status != 200 or self.sessions is None or settings is None:
            return (status, document), b""
        ttl = settings.refresh.ttl_seconds
        try:
            session = await self.sessions.begin(asked.client_id, asked.scopes, ttl)
        except failures() as error:
            # The access token is good without: a client that gets no other asks again later.
            log.warning("no refresh token, Redis is away: %s", error)
            return (status, document), b""
        reply = authenticator.grant(asked.client_id, asked.scopes, now, session)
        return self._with_refresh(reply, self._tokens.make(session, 1), ttl)

    async def _proves(self, authenticator: Authenticator, asked: Credentials) -> bool:
        if not authenticator.is_slow(asked):
            return authenticator.matches(asked)
        async with self._hashing:
            return await asyncio.to_thread(authenticator.matches, asked)

    def _barred_until(self, client_id: str) -> float:
        """Unix time from which new tokens of a client are told from those that were ended."""
        if self.denylist is None:
            return 0.0
        cutoff = self.denylist.cutoff(everything_of("client", client_id))
        return math.floor(cutoff) + 1.0

    async def _counted_from(self, client_id: str, now: float) -> float:
        """``iat`` is in whole seconds: a token of the second in which all were ended would be dead.

        So whoever asks in that second waits for the next one; returns the time then.
        """
        wait = self._barred_until(client_id) - now
        if wait <= 0:
            return now
        # More than a second only where the gateways' clocks disagree.
        await asyncio.sleep(min(wait, 2.0))
        return max(time.time(), now + min(wait, 2.0))

    def _with_refresh(self, reply: Reply, token: str, seconds: int) -> tuple[Reply, bytes]:
        """The token in the JSON, or in its cookie."""
        name = self._settings.refresh.cookie if self._settings is not None else ""
        if not name:
            reply[1]["refresh_token"] = token
            return reply, b""
        cookie = (
            f"Set-Cookie: {name}={token}; Path={_COOKIE_PATH}; Max-Age={seconds}; HttpOnly; "
            "Secure; SameSite=Strict\r\n"
        )
        return reply, cookie.encode()

    # ----------------------------------------------------------------------------------- refresh

    def refresh(self, exchange: Exchange, body: bytes) -> None:
        """A refresh token for a new access token and the next refresh token."""
        authenticator = self._issuing(exchange)
        if authenticator is None:
            return
        if self.sessions is None:
            exchange.reject(404, "refresh_disabled", "There are no refresh tokens here.")
            return
        token = self._shown(exchange.cookie, body, "refresh_token")
        if not isinstance(token, str):
            self._answer(exchange, *token)
            return
        try:
            session, number = self._tokens.read(token)
        except BadRefreshTokenError:
            wrong = refusal(401, "bad_refresh_token", "the refresh token was not made here")
            self._answer(exchange, *wrong)
            return
        work = self._refresh(authenticator, session, number, exchange.wall_ns / 1e9)
        self._later(exchange, work)

    async def _refresh(
        self, authenticator: Authenticator, session: str, number: int, now: float
    ) -> tuple[Reply, bytes]:
        settings, sessions = self._settings, self.sessions
        if settings is None or sessions is None:
            return refusal(404, "auth_disabled", "Authentication is switched off."), b""
        keep = settings.token_ttl_seconds + settings.leeway_seconds + 1
        try:
            found = await sessions.renew(session, number, keep)
        except failures() as error:
            log.warning("no refresh, Redis is away: %s", error)
            return refusal(503, "sessions_unavailable", "sessions cannot be looked up now"), b""
        if found.outcome == "reused":
            log.warning(
                "a refresh token was used twice, its session is revoked",
                extra={"client_id": found.client_id, "session": session},
            )
            return refusal(401, "refresh_reused", "it was used before: the session is over"), b""
        if found.outcome == "unknown":
            return refusal(401, "session_ended", "the session is over: ask for a token anew"), b""
        denylist = self.denylist
        entry = everything_of("client", found.client_id)
        if denylist is not None and denylist.cutoff(entry) >= found.begun:
            # Known here, and lost by Redis.
            await self._end(session)
            return refusal(401, "session_ended", "the session is over: ask for a token anew"), b""
        now = await self._counted_from(found.client_id, now)
        reply = authenticator.grant(found.client_id, found.scopes, now, session)
        if reply[0] != 200:  # the client, or a scope of it, is not configured any more
            await self._end(session)
            return refusal(401, "session_ended", "the client's rights have changed"), b""
        return self._with_refresh(reply, self._tokens.make(session, found.number), found.left)

    async def _end(self, session: str) -> None:
        try:
            if self.sessions is not None:
                await self.sessions.end(session)
        except failures():
            log.warning("a session could not be ended, it ends by itself")

    # ------------------------------------------------------------------------------------ revoke

    def revoke(self, exchange: Exchange, body: bytes) -> None:
        """End a token before its time (RFC 7009): whoever holds it may.

        An access token ends alone; a refresh token ends its session with all that came of it. 200
        also for what is no token (any more); 503 where only this worker knows of it yet. With
        ``all`` and a client's secret everything ends that was issued before: :meth:`_revoke_all`.
        """
        authenticator, denylist = self.authenticator, self.denylist
        if authenticator is None or denylist is None:
            exchange.reject(404, "auth_disabled", "There are no tokens to revoke here.")
            return
        fields = json_object(body) if b'"all"' in body else {}
        if isinstance(fields, dict) and fields.get("all") is True:
            self._revoke_all(exchange, authenticator, denylist, body, fields)
            return
        token = self._shown(exchange.cookie, body, "token")
        if not isinstance(token, str):
            self._answer(exchange, *token)
            return
        now = exchange.wall_ns / 1e9
        settings = self._settings
        keep = settings.token_ttl_seconds + settings.leeway_seconds + 1 if settings else 1
        try:
            session, _ = self._tokens.read(token)
            work = self._revoke(denylist, (f"sid:{session}",), now + keep, session)
        except BadRefreshTokenError:
            try:
                identity = authenticator.verify_token(token, now)
            except AuthError as error:
                if error.status == 503:
                    self._answer(exchange, *refusal(503, error.reason, str(error)))
                else:
                    self._answer(exchange, 200, {})
                return
            work = self._revoke(denylist, identity.revocable[:1], identity.end + 1, "")
        self._later(exchange, work)

    async def _revoke(
        self, denylist: Denylist, entries: tuple[str, ...], end: float, session: str
    ) -> tuple[Reply, bytes]:
        try:
            if session and self.sessions is not None:
                await self.sessions.end(session)
            await denylist.deny(entries, end)
        except failures() as error:
            log.warning("a token is revoked here, but not elsewhere: Redis is away: %s", error)
            return refusal(503, "sessions_unavailable", "not yet revoked everywhere: repeat"), b""
        log.info("a token was revoked", extra={"entries": list(entries)})
        return (200, {}), b""

    def _revoke_all(
        self,
        exchange: Exchange,
        authenticator: Authenticator,
        denylist: Denylist,
        body: bytes,
        fields: dict[str, Any],
    ) -> None:
        """All tokens that were issued up to now: the client's own, or with ``may_revoke`` others'.

        ``{client_id, client_secret, all: true}``, and perhaps ``of_client`` or ``of_subject``, with
        ``issuer`` for those of a provider.
        """
        asked = authenticator.read(body)
        if not isinstance(asked, Credentials):
            self._answer(exchange, *asked)
            return
        whose = whose_everything(fields, asked.client_id)
        if not isinstance(whose, str):
            self._answer(exchange, *whose)
            return
        own = whose == everything_of("client", asked.client_id)
        work = self._end_everything(authenticator, denylist, asked, whose, own)
        self._later(exchange, work)

    async def _end_everything(
        self,
        authenticator: Authenticator,
        denylist: Denylist,
        asked: Credentials,
        whose: str,
        own: bool,
    ) -> tuple[Reply, bytes]:
        if not await self._proves(authenticator, asked):
            return _WRONG, b""
        if not own and not authenticator.may_revoke(asked.client_id):
            return refusal(403, "may_not_revoke", "the client may end only its own tokens"), b""
        try:
            await end_everything(denylist, whose, f"client {asked.client_id}")
        except failures() as error:
            log.warning("tokens are revoked here, but not elsewhere: Redis is away: %s", error)
            return refusal(503, "sessions_unavailable", "not yet revoked everywhere: repeat"), b""
        return (200, {}), b""

    # ----------------------------------------------------------------------------------- helpers

    def _issuing(self, exchange: Exchange) -> Authenticator | None:
        authenticator = self.authenticator
        if authenticator is None or not authenticator.issues:
            exchange.reject(404, "auth_disabled", "There are no tokens to be had here.")
            return None
        return authenticator

    def _shown(self, cookie: bytes, body: bytes, name: str) -> str | Reply:
        """The token that a request shows: in its JSON, or in our cookie where it has no body."""
        settings = self._settings
        if not body and settings is not None and settings.refresh.cookie:
            try:
                jar = SimpleCookie(cookie.decode("latin-1"))
            except CookieError:
                jar = SimpleCookie()
            if settings.refresh.cookie in jar:
                return jar[settings.refresh.cookie].value
        fields = json_object(body)
        if isinstance(fields, tuple):
            return fields
        value = fields.get(name)
        if value is None:
            return refusal(400, "missing_field", f"{name} is missing")
        if not isinstance(value, str) or not value:
            return refusal(400, "bad_field", f"{name}: expected text that is not empty")
        return value

    def _later(self, exchange: Exchange, work: Coroutine[Any, Any, tuple[Reply, bytes]]) -> None:
        """Answer when ``work`` is done, if the request is still there then."""
        if len(self._tasks) >= MAX_PENDING:
            work.close()
            self._answer(exchange, *refusal(503, "auth_busy", "too many ask at once; retry"))
            return
        request_id = exchange.request_id

        async def answer() -> None:
            try:
                reply, fields = await work
            except Exception:
                log.exception("an answer of /auth failed")
                reply, fields = refusal(503, "auth_busy", "it failed; retry"), b""
            if exchange.active and exchange.request_id == request_id:
                self._answer(exchange, *reply, fields)

        task = asyncio.get_running_loop().create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answer(
        self, exchange: Exchange, status: int, document: dict[str, object], fields: bytes = b""
    ) -> None:
        reason = str(document.get("reason", ""))
        path = exchange.route.template
        done = "issued" if path == "/auth/token" else path.rpartition("/")[2] + "ed"
        self._metrics.counter("nexus_auth_tokens_total", result=reason or done).inc()
        if reason:
            exchange.reason = reason
        extra = _NO_STORE + fields
        if status == 401:
            extra += _CHALLENGE
        elif status == 503:
            extra += _RETRY
        exchange.answer(status, self._encode(document), _JSON, extra)
