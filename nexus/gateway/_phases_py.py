# cython: annotation_typing=False
"""The story of a request, in order. A request that one phase refuses touches nothing behind it.

::

    match the route (pure) ─► block list 403 ─► address limit 429 ─► authentication 401
        ─► 404 / 405 ─► body limit 413 ─► ours: answered here
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
from nexus.wire.http1 import field

if not cython.compiled:
    from nexus._speedups._buckets_py import BucketTable
    from nexus._speedups._http1_py import RequestHead
    from nexus.gateway._core_py import Core
    from nexus.gateway._exchange_py import Exchange
    from nexus.gateway._routes_py import Route, Router

if TYPE_CHECKING:
    from collections.abc import Callable

    from nexus.gateway.auth import Authenticator
    from nexus.policy.ratelimit import RateLimit

__all__ = ["Phases"]

_AUTHORIZATION: Final = field(b"authorization")
_FORWARDED_FOR: Final = field(b"x-forwarded-for")


class Phases:
    """The policies of a worker, in the order in which a request meets them."""

    def __init__(self, core: Core, table: BucketTable, seed: int) -> None:
        self.core = core
        self._table: Any = table
        self._seed = seed
        self.clients: Clients = Clients(())
        self.router: Router | None = None
        #: ``None`` where limits are switched off.
        self.limit: RateLimit | None = None
        #: ``None`` where authentication is switched off.
        self.authenticator: Authenticator | None = None
        #: Address → whether it is blocked; ``None`` until there is a block list.
        self.blocked: Callable[[str], bool] | None = None
        self._interval = 0
        self._burst = 0

    def set_limit(self, limit: RateLimit | None) -> None:
        """Use this limit from now on."""
        self.limit = limit
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
        route = self.router.match(head.path)  # type: ignore[union-attr]
        exchange.route = route
        if self.blocked is not None and self.blocked(exchange.ip):
            exchange.reject(403, "blocked", "This address is blocked.")
            return
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
                return
        if self.authenticator is not None and (route is None or route.authenticated):
            try:
                exchange.client_id = self.authenticator.verify(
                    head.value(_AUTHORIZATION), exchange.wall_ns / 1e9
                )
            except AuthError as error:
                extra = b"WWW-Authenticate: " + error.challenge + b"\r\n"
                exchange.reject(401, error.reason, str(error), extra)
                return
        if route is None:
            exchange.reject(404, "no_route", "Nothing is served at this path.")
        elif head.method not in route.methods:
            self._wrong_method(exchange, route)
        elif core.max_body and head.content_length > core.max_body:
            exchange.reject(413, "body_too_large", "The request body is too large.")
        elif route.handler is not None:
            exchange.collect(route.max_body)
        else:
            exchange.forward(head)

    def _behind_proxy(self, exchange: Exchange, head: RequestHead) -> None:
        chain = head.joined(_FORWARDED_FOR)
        ip = self.clients.behind(exchange.peer, chain) if chain else exchange.peer
        if ip != exchange.ip:
            exchange.ip = ip
            exchange.limit_key = hash_key(limit_key(ip), self._seed)

    def _too_many(self, exchange: Exchange, taken: int) -> None:
        limit: Any = self.limit
        extra = b"Retry-After: %d\r\nRateLimit: %b\r\nRateLimit-Policy: %b\r\n" % (
            limit.retry_after(taken),
            limit.fields(taken),
            limit.policy_field,
        )
        core = self.core
        core.count("nexus_rate_limit_hits_total", exchange.ip)
        exchange.reject(429, "rate_limited", "Rate limit exceeded; retry later.", extra)

    def _wrong_method(self, exchange: Exchange, route: Route) -> None:
        extra = b"Allow: " + route.allow + b"\r\n"
        exchange.reject(405, "method_not_allowed", "This path does not take this method.", extra)
