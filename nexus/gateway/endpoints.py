"""The paths that the gateway answers itself, as handlers ``(exchange, body)`` of routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nexus import clock
from nexus.gateway.routes import Route, Router
from nexus.observability import exposition, health

if TYPE_CHECKING:
    from nexus.gateway._exchange_py import Exchange
    from nexus.gateway.auth import Authenticator
    from nexus.gateway.upstreams import Upstreams
    from nexus.net.service import WorkerContext
    from nexus.observability.telemetry import Telemetry

__all__ = ["API_PREFIX", "Endpoints"]

API_PREFIX: Final = b"/api"
#: Bytes of a token request; two short texts.
MAX_TOKEN_REQUEST: Final = 8192

_JSON: Final = b"application/json"
_NO_STORE: Final = b"Cache-Control: no-store\r\n"
#: "A server generating a 401 response MUST send a WWW-Authenticate" (RFC 9110 §15.5.2).
_CHALLENGE: Final = b'WWW-Authenticate: Bearer realm="nexus"\r\n'
_READ: Final = frozenset((b"GET", b"HEAD"))

Handler = Callable[["Exchange", bytes], None]


class Endpoints:
    """What the handlers need; ``authenticator`` is ``None`` while authentication is off."""

    def __init__(
        self, context: WorkerContext[Any, Any], upstreams: Upstreams, telemetry: Telemetry | None
    ) -> None:
        self._context: Final = context
        self._upstreams: Final = upstreams
        self._telemetry: Final = telemetry
        self._encode: Final = msgspec.json.Encoder().encode
        self.authenticator: Authenticator | None = None

    def router(self) -> Router:
        """All routes of the gateway."""

        def open_to_all(path: str, handler: Handler) -> Route:
            return Route(path, _READ, limited=False, authenticated=False, handler=handler)

        def guarded(path: str, handler: Handler) -> Route:
            return Route(path, _READ, handler=handler)

        token = Route(
            "/auth/token",
            frozenset((b"POST",)),
            authenticated=False,
            handler=self.token,
            max_body=MAX_TOKEN_REQUEST,
        )
        own = [
            token,
            open_to_all("/health", self.health),
            open_to_all("/ready", self.ready),
            open_to_all("/metrics", self.metrics),
            guarded("/telemetry", self.telemetry),
            guarded("/lb-stats", self.lb_stats),
            guarded("/cb-stats", self.cb_stats),
        ]
        return Router(
            {route.template.encode(): route for route in own}, [Route("/api/*", prefix=API_PREFIX)]
        )

    def token(self, exchange: Exchange, body: bytes) -> None:
        """``POST /auth/token``: client credentials for a bearer token."""
        if self.authenticator is None:
            exchange.reject(404, "auth_disabled", "Authentication is switched off.")
            return
        status, document = self.authenticator.issue(body, exchange.wall_ns / 1e9)
        result = "issued" if status == 200 else str(document.get("reason", "refused"))
        self._context.metrics.counter("nexus_auth_tokens_total", result=result).inc()
        if status != 200:
            exchange.reason = result
        extra = _NO_STORE + _CHALLENGE if status == 401 else _NO_STORE
        exchange.answer(status, self._encode(document), _JSON, extra)

    def health(self, exchange: Exchange, _body: bytes) -> None:
        """Liveness, exactly as the contract has it; the admin listener tells more."""
        document = {"status": "gateway-ok", "timestamp": clock.iso_utc(clock.wall_ms())}
        exchange.answer(200, self._encode(document), _JSON, _NO_STORE)

    def ready(self, exchange: Exchange, _body: bytes) -> None:
        """Readiness: 503 before the start is over and while draining."""
        states = self._context.states
        serving = states.serving()
        document = health.ready_payload(self._context.service, serving, states.all())
        exchange.answer(200 if serving else 503, self._encode(document), _JSON, _NO_STORE)

    def metrics(self, exchange: Exchange, _body: bytes) -> None:
        """Prometheus exposition, summed over all workers."""
        body = exposition.render(self._context.registry)
        exchange.answer(200, body, exposition.CONTENT_TYPE.encode())

    def telemetry(self, exchange: Exchange, _body: bytes) -> None:
        """The last requests, newest first."""
        recent = self._telemetry.recent() if self._telemetry is not None else []
        exchange.answer(200, self._encode(recent), _JSON, _NO_STORE)

    def lb_stats(self, exchange: Exchange, _body: bytes) -> None:
        """The servers in rotation, as this worker sees them."""
        exchange.answer(200, self._encode(self._upstreams.balance_stats()), _JSON, _NO_STORE)

    def cb_stats(self, exchange: Exchange, _body: bytes) -> None:
        """The breakers, as all workers see them."""
        exchange.answer(200, self._encode(self._upstreams.breaker_stats()), _JSON, _NO_STORE)
