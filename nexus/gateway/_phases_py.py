# cython: annotation_typing=False
"""The story of a request, in order. A request that one phase refuses touches nothing behind it.

::

    match the route (pure) ─► networks, block list 403 ─► address limit 429 ─► CORS preflight 204
        ─► authentication 401 ─► limits 429 ─► 404 / 405 ─► authorization 403 ─► body limit 413
            ├──► ours: answered here
            └──► proxied: exchange.forward
                          (balancer ─► breaker ─► upstream ─► retry ─► envelope)

One source, compiled as ``_phases_c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import cython  # type: ignore[import-untyped]

from nexus._speedups.buckets import hash_key
from nexus.gateway.auth import AuthError
from nexus.gateway.clients import UNIX, Clients, canonical, limit_key
from nexus.gateway.tokens import MISSING
from nexus.wire.http1 import field

if not cython.compiled:
    from nexus._speedups._buckets_py import BucketTable
    from nexus._speedups._http1_py import RequestHead
    from nexus.gateway._core_py import Core
    from nexus.gateway._exchange_py import Exchange
    from nexus.gateway._limits_py import Limiter, LimitSet
    from nexus.gateway._routes_py import Route, Router

if TYPE_CHECKING:
    from collections.abc import Callable

    from nexus.gateway.auth import Authenticator
    from nexus.policy.ratelimit import RateLimit

__all__ = ["Phases"]

_AUTHORIZATION: Final = field(b"authorization")
_COOKIE: Final = field(b"cookie")
_FORWARDED_FOR: Final = field(b"x-forwarded-for")
_ORIGIN: Final = field(b"origin")

#: Of what is counted in nanoseconds: the year 2255.
_LAST_SECOND: Final = 9e9

_MISSING_REASON: Final = MISSING.reason
_MISSING_TEXT: Final = str(MISSING)
_MISSING_FIELDS: Final = MISSING.fields

_CORS_REFUSALS: Final = {
    "cors_origin": "This origin may not use the route.",
    "cors_method": "Scripts may not use this method here.",
    "cors_headers": "Scripts may not send one of these headers here.",
}


class Awaiting:
    """A request that waits for a provider's keys."""

    __slots__ = ("exchange", "phases", "request_id")

    def __init__(self, phases: Phases, exchange: Exchange) -> None:
        self.phases = phases
        self.exchange = exchange
        #: An exchange serves one request after the other; this one may be over.
        self.request_id = exchange.request_id

    def go_on(self) -> None:
        """They have been looked at again."""
        exchange = self.exchange
        if not exchange.held or exchange.request_id is not self.request_id:
            return  # the client has gone
        exchange.let_go()
        self.phases.resume(exchange, exchange.held_head)


class Phases:
    """The policies of a worker, in the order in which a request meets them."""

    def __init__(self, core: Core, table: BucketTable, seed: int) -> None:
        self.core = core
        self._table: Any = table
        self._seed = seed
        self.clients: Clients = Clients(())
        self.router: Router | Any = None
        #: ``None`` where limits are switched off.
        self.limit: RateLimit | None = None
        #: What requests without a route meet after authentication; ``None``: nothing.
        self.limits: LimitSet | None = None
        self.limiter = Limiter(core, table, seed)
        self.limiter.proceed = self.proceed
        #: Address → whether networks keep it out; ``None`` where none are configured.
        self.denied: Callable[[str], bool] | None = None
        #: ``None`` where authentication is switched off.
        self.authenticator: Authenticator | None = None
        #: Address → whether it is blocked; ``None`` until there is a block list.
        self.blocked: Callable[[str], bool] | None = None
        self._interval = 0
        self._burst = 0
        #: Seconds of the last refusal, and its fields; -1: none yet.
        self._refused_wait = -1
        self._refused_fields = b""

    def set_limit(self, limit: RateLimit | None) -> None:
        """Use this limit from now on."""
        self.limit = limit
        self._refused_wait = -1
        if limit is not None:
            self._interval = limit.interval_ns
            self._burst = limit.burst

    def identify(self, exchange: Exchange, peername: Any) -> None:
        """A connection was accepted: what holds for all its requests."""
        # A unix socket has no address, or the empty one.
        peer = canonical(peername[0]) if isinstance(peername, tuple) else UNIX
        exchange.peer = peer
        exchange.ip = peer
        exchange.trusted = self.clients.is_trusted(peer)
        exchange.limit_key = hash_key(limit_key(peer), self._seed)

    def run(self, exchange: Exchange, head: RequestHead) -> None:
        """Lead one request to its answer, or on its way upstream."""
        core = self.core
        if exchange.trusted:
            self._behind_proxy(exchange, head)
        if core.recorder is not None or core.tracer is not None:
            exchange.note(head)
        preflight = self._find_route(exchange, head)
        if not self._admits(exchange):
            return
        if preflight:
            self._answer_preflight(exchange, head, preflight)
            return
        route = exchange.route
        if self.authenticator is not None and (route is None or route.authenticated):
            if not self._knows(exchange, head, True):
                return
        self._known(exchange, head)

    def resume(self, exchange: Exchange, head: RequestHead) -> None:
        """Go on with a request that was held until keys had been looked at again."""
        # Its route is of the table that it was found in; a reload may have ended authentication.
        if self.authenticator is None or self._knows(exchange, head, False):
            self._known(exchange, head)

    def _known(self, exchange: Exchange, head: RequestHead) -> None:
        """Who asks is clear: limits, and what follows."""
        route = exchange.route
        limits = self.limits if route is None else route.limits
        if limits is not None and self.limiter.check(exchange, head, limits):
            return
        self.proceed(exchange, head)

    def proceed(self, exchange: Exchange, head: RequestHead) -> None:
        """The limits admit the request: what is left of its way to an answer."""
        route = exchange.route
        if route is None:
            exchange.reject(404, "no_route", "Nothing is served at this path.")
        elif head.method not in route.methods:
            self._wrong_method(exchange, head)
        elif route.guard is not None and not self._authorizes(exchange, route):
            return
        elif route.handler is not None:
            if route.reads_cookie:
                exchange.cookie = head.joined(_COOKIE)
            exchange.collect(route.max_body)
        elif route.body_bytes and head.content_length > route.body_bytes:
            exchange.reject(413, "body_too_large", "The request body is too large.")
        else:
            exchange.forward(head)

    def _find_route(self, exchange: Exchange, head: RequestHead) -> bytes:
        """Set the request's route; the method that a preflight asks for, empty for others."""
        router = self.router
        preflight = b""
        if router.cors and head.method == b"OPTIONS" and head.count(_ORIGIN):
            preflight = head.named(b"access-control-request-method") or b""
            if preflight:
                route = router.match_method(head, preflight, True)
                if route is not None and route.cors is not None:
                    exchange.route = route
                    return preflight
        route = router.match(head)
        exchange.route = route
        if route is not None and route.cors is not None:
            exchange.shared = route.cors.fields(head.value(_ORIGIN))
        return b""

    def _admits(self, exchange: Exchange) -> bool:
        """Whether the client's address may ask at all, and now."""
        if self.denied is not None and self.denied(exchange.ip):
            exchange.reject(403, "denied_network", "This network is not served.")
            return False
        if self.blocked is not None and self.blocked(exchange.ip):
            exchange.reject(403, "blocked", "This address is blocked.")
            return False
        route = exchange.route
        if self.limit is not None and (route is None or route.limited):
            if cython.compiled:  # its arguments were checked when the limit was set
                taken = self._table.take_unchecked(
                    exchange.limit_key, exchange.started, self._interval, self._burst
                )
            else:
                taken = self._table.take(
                    exchange.limit_key, exchange.started, self._interval, self._burst
                )
            if taken < 0:
                self._too_many(exchange, taken)
                return False
            if self.limiter.announce:
                self._announce(exchange, taken)
        return True

    def _knows(self, exchange: Exchange, head: RequestHead, patient: bool) -> bool:
        """Whether the request proves whose it is; False also where it is held (``patient``)."""
        identity = exchange.proved
        # Most clients show one token as long as they are connected: nothing is copied or hashed.
        if identity is not None and exchange.wall_ns < exchange.proved_until:
            if head.is_value(_AUTHORIZATION, identity.known_by):
                self.authenticator.count_hit()  # type: ignore[union-attr]
                exchange.identity = identity
                exchange.client_id = identity.client_id
                return True
        authorization = head.value(_AUTHORIZATION)
        if authorization is None:  # without an exception: that costs more than all the rest
            exchange.reject(401, _MISSING_REASON, _MISSING_TEXT, _MISSING_FIELDS)
            return False
        try:
            identity = self.authenticator.verify(  # type: ignore[union-attr]
                authorization, exchange.wall_ns / 1e9
            )
        except AuthError as error:
            if patient and error.provider is not None:
                error.provider.join(Awaiting(self, exchange).go_on)
                exchange.hold()
                return False
            exchange.reject(error.status, error.reason, str(error), error.fields)
            return False
        exchange.identity = identity
        exchange.client_id = identity.client_id
        if identity.known_by is not None:
            exchange.proved = identity
            exchange.proved_until = int(min(identity.end, _LAST_SECOND) * 1e9)
        return True

    def _authorizes(self, exchange: Exchange, route: Route) -> bool:
        """Whether who is known may use the route."""
        refusal = route.guard.refusal(exchange.identity)
        if refusal is None:
            return True
        exchange.reject(403, refusal[0], refusal[1], refusal[2])
        return False

    def _answer_preflight(self, exchange: Exchange, head: RequestHead, method: bytes) -> None:
        """A browser asks whether it may (Fetch standard, CORS-preflight request)."""
        fields, refused = exchange.route.cors.preflight(
            head.value(_ORIGIN), method, head.named(b"access-control-request-headers")
        )
        if refused:
            exchange.reject(403, refused, _CORS_REFUSALS[refused], fields)
        else:
            exchange.answer_empty(fields)

    def _behind_proxy(self, exchange: Exchange, head: RequestHead) -> None:
        chain = head.joined(_FORWARDED_FOR)
        ip = self.clients.behind(exchange.peer, chain) if chain else exchange.peer
        if ip != exchange.ip:
            exchange.ip = ip
            exchange.limit_key = hash_key(limit_key(ip), self._seed)

    def _too_many(self, exchange: Exchange, taken: int) -> None:
        # All who are to wait as many seconds are told the same.
        wait = (999_999_999 - taken) // 1_000_000_000
        if wait != self._refused_wait:
            limit: Any = self.limit
            self._refused_fields = b"".join(
                (
                    b"Retry-After: %d\r\n" % limit.retry_after(taken),
                    b"RateLimit: %b\r\n" % limit.fields(taken),
                    b"RateLimit-Policy: %b\r\n" % limit.policy_field,
                )
            )
            self._refused_wait = wait
        self.core.count("nexus_rate_limit_hits_total", exchange.ip)
        exchange.reject(
            429, "rate_limited", "Rate limit exceeded; retry later.", self._refused_fields
        )

    def _announce(self, exchange: Exchange, taken: int) -> None:
        limit: Any = self.limit
        exchange.shared = exchange.shared + b"RateLimit: %b\r\nRateLimit-Policy: %b\r\n" % (
            limit.fields(taken),
            limit.policy_field,
        )

    def _wrong_method(self, exchange: Exchange, head: RequestHead) -> None:
        # Again, because others may have been matched while this one was held.
        self.router.match(head)
        extra = b"Allow: " + self.router.allow + b"\r\n"
        exchange.reject(405, "method_not_allowed", "This path does not take this method.", extra)
