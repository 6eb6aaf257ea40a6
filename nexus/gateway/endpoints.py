"""The paths that the gateway answers itself, as handlers ``(exchange, body)`` of routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nexus import clock
from nexus.gateway.routes import Route
from nexus.observability import exposition, health

if TYPE_CHECKING:
    from nexus.gateway._exchange_py import Exchange
    from nexus.gateway.authendpoints import AuthEndpoints
    from nexus.gateway.upstreams import Upstreams
    from nexus.net.service import WorkerContext
    from nexus.observability.telemetry import Telemetry

__all__ = ["Endpoints", "own_routes"]

#: Bytes of a request to /auth/…: two short texts, or a token of an identity provider.
MAX_TOKEN_REQUEST: Final = 16_384

_JSON: Final = b"application/json"
_NO_STORE: Final = b"Cache-Control: no-store\r\n"
_READ: Final = frozenset((b"GET", b"HEAD"))

_POST: Final = frozenset((b"POST",))

Handler = Callable[["Exchange", bytes], None]


def own_routes(handler: Callable[[str], Handler] | None = None) -> list[tuple[str, Route]]:
    """The paths that the gateway answers itself, on every host and before all configured routes.

    ``handler`` finds a handler by its name; without it the routes are only there to be matched.
    """
    find = handler or (lambda _name: _unanswered)

    def open_to_all(path: str, name: str) -> Route:
        return Route(path, _READ, limited=False, authenticated=False, handler=find(name))

    def guarded(path: str, name: str) -> Route:
        return Route(path, _READ, handler=find(name))

    def credentials(path: str, name: str) -> Route:
        return Route(
            path,
            _POST,
            authenticated=False,
            handler=find(name),
            max_body=MAX_TOKEN_REQUEST,
            reads_cookie=True,
        )

    own = [
        credentials("/auth/token", "token"),
        credentials("/auth/refresh", "refresh"),
        credentials("/auth/revoke", "revoke"),
        open_to_all("/health", "health"),
        open_to_all("/ready", "ready"),
        open_to_all("/metrics", "metrics"),
        guarded("/telemetry", "telemetry"),
        guarded("/lb-stats", "lb_stats"),
        guarded("/cb-stats", "cb_stats"),
    ]
    return [(route.template, route) for route in own]


def _unanswered(_exchange: Exchange, _body: bytes) -> None:
    raise NotImplementedError


class Endpoints:
    """What the handlers need; those of ``/auth/…`` are in ``auth``."""

    def __init__(
        self,
        context: WorkerContext[Any, Any],
        upstreams: Upstreams,
        telemetry: Telemetry | None,
        auth: AuthEndpoints,
    ) -> None:
        self._context: Final = context
        self._upstreams: Final = upstreams
        self._telemetry: Final = telemetry
        self._auth: Final = auth
        self._encode: Final = msgspec.json.Encoder().encode

    def routes(self) -> list[tuple[str, Route]]:
        """The paths of the gateway itself."""
        return own_routes(lambda name: getattr(self if hasattr(self, name) else self._auth, name))

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
        """Prometheus exposition, summed over all workers; ``?format=openmetrics`` with exemplars
        (the admin listener goes by ``Accept``)."""
        render, content_type = exposition.render, exposition.CONTENT_TYPE
        if b"?format=openmetrics" in exchange.target:
            render, content_type = exposition.render_openmetrics, exposition.OPENMETRICS_TYPE
        request_id = exchange.request_id

        def answer(rendered: asyncio.Future[bytes]) -> None:
            # Or whoever asked is gone, and the object serves another request.
            if exchange.active and exchange.request_id == request_id:
                exchange.answer(200, rendered.result(), content_type.encode())

        # In a thread, so that no request waits for a scrape of thousands of series.
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, render, self._context.registry).add_done_callback(answer)

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
