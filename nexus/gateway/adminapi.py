"""Live state and actions of the gateway on its admin listener: ``/admin/…``.

::

    GET  /admin/state                                   upstreams, breakers, limits, pools, workers
    POST /admin/upstreams/drain    {"url"}              out of rotation; requests under way finish
    POST /admin/upstreams/enable   {"url"}              back, also from an ejection
    POST /admin/upstreams/weight   {"url", "weight"}    0: the weight of the service list again
    POST /admin/breakers/open      {"url"}              refuse all, until closed
    POST /admin/breakers/close     {"url"}              closed, counts empty; decides itself again
    POST /admin/auth/revoke        {"of_client"}        all its tokens up to now, on all gateways

Every action on upstreams lies in shared memory: it holds for all workers within a tick of 50 ms,
outlives a worker, and ends with the gateway. Each is one line in the log, with the peer that asked.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web

from nexus.gateway.authendpoints import end_everything, whose_everything
from nexus.gateway.health import state_of
from nexus.gateway.redisfeed import failures

if TYPE_CHECKING:
    from nexus.gateway.denylist import Denylist
    from nexus.gateway.settings import GatewaySettings
    from nexus.gateway.upstreams import Upstreams
    from nexus.net.admin import Handler
    from nexus.net.service import WorkerContext
    from nexus.policy.balance import Server
    from nexus.policy.breaker import Breaker

__all__ = ["AdminApi"]

log = logging.getLogger("nexus.gateway.admin")

#: Bytes of an action's JSON.
_MAX_BODY: Final = 4096
_MAX_WEIGHT: Final = 65_535


class _RefusedError(Exception):
    """The answer to a request that is not carried out."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status: Final = status


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AdminApi:
    """Of one worker; whichever the kernel hands the connection to."""

    def __init__(
        self,
        context: WorkerContext[Any, Any],
        upstreams: Upstreams,
        denylist: Callable[[], Denylist | None],
    ) -> None:
        self._context: Final = context
        self._upstreams: Final = upstreams
        self._denylist: Final = denylist

    @property
    def pages(self) -> dict[str, Handler]:
        """Path → GET handler."""
        return {"/admin/state": self._guarded(self._state)}

    @property
    def actions(self) -> dict[str, Handler]:
        """Path → POST handler."""
        found: dict[str, Callable[[Server, Mapping[str, Any]], None]] = {
            "upstreams/drain": self._drain,
            "upstreams/enable": self._enable,
            "upstreams/weight": self._weigh,
            "breakers/open": self._open,
            "breakers/close": self._close,
        }
        return {
            f"/admin/{name}": self._guarded(self._action(name, action))
            for name, action in found.items()
        } | {"/admin/auth/revoke": self._guarded(self._revoke)}

    # ------------------------------------------------------------------------------ who may ask

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                self._check(request)
                return await handler(request)
            except _RefusedError as refused:
                return web.json_response({"error": str(refused)}, status=refused.status)

        return guarded

    def _check(self, request: web.Request) -> None:
        settings = cast("GatewaySettings", self._context.settings)
        token = settings.admin.token
        if not token:
            if not is_loopback(settings.admin_host):
                raise _RefusedError(403, "admin_host is no loopback address: set admin.token")
        else:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), b"Bearer " + token.encode()):
                raise _RefusedError(401, "expected Authorization: Bearer <admin.token>")
        # A page in a browser on this machine must not act through it: neither by a form, nor under
        # a name that was bound to 127.0.0.1 anew.
        if "Origin" in request.headers:
            raise _RefusedError(403, "requests of web pages are refused")
        name = request.host.rpartition(":")[0] or request.host
        if not token and not is_loopback(name.strip("[]")):
            raise _RefusedError(403, f"expected a loopback address as Host, got {name!r}")

    # ---------------------------------------------------------------------------------- actions

    def _action(self, name: str, action: Callable[[Server, Mapping[str, Any]], None]) -> Handler:
        async def act(request: web.Request) -> web.StreamResponse:
            server, body = await self._read(request)
            action(server, body)
            self._upstreams.refresh(monotonic_ns())
            extra = {"action": name, "upstream": server.url, "peer": request.remote or "unix"}
            if "weight" in body:
                extra["weight"] = body["weight"]
            log.warning("admin action", extra=extra)
            return web.json_response(self._upstream(server, monotonic_ns()))

        return act

    async def _revoke(self, request: web.Request) -> web.StreamResponse:
        whose = whose_everything(await self._json(request))
        if not isinstance(whose, str):
            raise _RefusedError(whose[0], str(whose[1]["message"]))
        denylist = self._denylist()
        if denylist is None:
            raise _RefusedError(409, "auth.enabled is false: there are no tokens")
        peer = request.remote or "unix"
        try:
            await end_everything(denylist, whose, f"admin {peer}")
        except failures() as error:
            message = f"Redis is away: revoked here, but not yet everywhere: repeat ({error})"
            raise _RefusedError(503, message) from None
        log.warning("admin action", extra={"action": "auth/revoke", "entry": whose, "peer": peer})
        return web.json_response({"revoked": whose})

    async def _read(self, request: web.Request) -> tuple[Server, Mapping[str, Any]]:
        body = await self._json(request)
        if not isinstance(body.get("url"), str):
            raise _RefusedError(400, 'expected {"url": "<upstream>"}')
        servers = self._upstreams.servers
        server = servers.get(body["url"].rstrip("/"))
        if server is None:
            raise _RefusedError(404, f"no upstream {body['url']!r}; known: {', '.join(servers)}")
        return server, body

    async def _json(self, request: web.Request) -> dict[str, Any]:
        if request.content_type != "application/json":
            raise _RefusedError(415, "expected Content-Type: application/json")
        content = await request.content.read(_MAX_BODY + 1)
        if len(content) > _MAX_BODY:
            raise _RefusedError(413, f"expected at most {_MAX_BODY} bytes")
        try:
            body = json.loads(content)
        except ValueError as error:
            raise _RefusedError(400, f"not JSON: {error}") from None
        if not isinstance(body, dict):
            raise _RefusedError(400, "expected a JSON object")
        return body

    def _drain(self, server: Server, _body: Mapping[str, Any]) -> None:
        state_of(server).order(drained=True)

    def _enable(self, server: Server, _body: Mapping[str, Any]) -> None:
        state = state_of(server)
        state.order(drained=False)
        state.restore(monotonic_ns())

    def _weigh(self, server: Server, body: Mapping[str, Any]) -> None:
        weight = body.get("weight")
        if type(weight) is not int or not 0 <= weight <= _MAX_WEIGHT:
            raise _RefusedError(400, f"expected a weight from 0 to {_MAX_WEIGHT}, got {weight!r}")
        state_of(server).order(weight=weight)

    def _open(self, server: Server, _body: Mapping[str, Any]) -> None:
        self._breaker(server).force_open(monotonic_ns())

    def _close(self, server: Server, _body: Mapping[str, Any]) -> None:
        self._breaker(server).force_close(monotonic_ns())

    def _breaker(self, server: Server) -> Breaker:
        if not self._context.settings.breaker.enabled:
            raise _RefusedError(409, "breaker.enabled is false: drain the upstream instead")
        return cast("Breaker", server.breaker)

    # ------------------------------------------------------------------------------------ state

    async def _state(self, _request: web.Request) -> web.StreamResponse:
        settings = cast("GatewaySettings", self._context.settings)
        now = monotonic_ns()
        servers = self._upstreams.servers
        limit = settings.rate_limit
        document = {
            "answeredBy": self._context.index,
            "workers": [
                {"index": index, "state": state, "pid": pid}
                for index, state, pid in self._context.states.all()
            ],
            "balancer": settings.balancer.algorithm,
            "groups": {
                group: {"upstreams": [s.url for s in balancer.servers], "panic": balancer.panicking}
                for group, balancer in self._upstreams.balancers.items()
            },
            "upstreams": [self._upstream(server, now) for server in servers.values()],
            "breakers": self._upstreams.breaker_stats(),
            "limits": {
                "address": {
                    "enabled": limit.enabled,
                    "capacity": limit.capacity,
                    "refillPerSecond": limit.refill_per_second,
                },
                "all": [_limit(rule) for rule in settings.rate_limits],
                "routes": {
                    route.name or route.path: [_limit(rule) for rule in route.rate_limits]
                    for route in settings.routes
                    if route.rate_limits
                },
            },
        }
        return web.json_response(document)

    def _upstream(self, server: Server, now: int) -> dict[str, object]:
        state = state_of(server)
        pool: Any = server.extra
        return {
            "url": server.url,
            "inRotation": server.healthy and not server.draining,
            "drained": state.drained,
            "weight": server.weight,
            "weightOrdered": state.weight or None,
            "health": state.probed,
            "ejectedForMs": max(0, (state.ejected_until - now) // 1_000_000),
            "ejections": state.ejections,
            "share": round(server.ramp, 3),
            # Of the worker that answers.
            "active": server.active,
            "handled": server.handled,
            "pool": {"idle": pool.idle, "busy": pool.busy, "waiting": pool.waiting},
        }


def _limit(rule: Any) -> dict[str, object]:
    return {
        "name": rule.name,
        "key": list(rule.key),
        "capacity": rule.capacity,
        "refillPerSecond": rule.refill_per_second,
        "scope": rule.scope,
        "shadow": rule.shadow,
    }
