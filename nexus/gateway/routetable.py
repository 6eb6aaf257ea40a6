"""From the list of routes in the configuration to the table that requests are looked up in.

Which of several matching routes is the most specific, in this order: the host (a name, then the
longest ``*.`` form, then none), the path segment by segment from the left (text, ``{parameter}``,
end, ``*``), the number of conditions on headers and query, and whether methods are named. Two
routes that are equal in all of that and can both match one request are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from nexus.errors import ConfigError
from nexus.gateway.cors import Cors
from nexus.gateway.guard import Guard
from nexus.gateway.limits import build_limits
from nexus.gateway.patterns import Conditions, PathPattern, check_field_name, check_host
from nexus.gateway.routes import PROXIED_METHODS, Node, Route, Router
from nexus.gateway.transforms import HeaderRules, QueryRules, Rewrite
from nexus.policy.retry import RetryPolicy

if TYPE_CHECKING:
    from nexus.gateway.settings import GatewaySettings
    from nexus.gateway.settings_routes import RouteSettings

__all__ = ["MAX_ROUTES", "build_router", "groups_of"]

#: Each is a few kilobytes in every worker; a reload hands all of them over in one message.
MAX_ROUTES: Final = 1000

#: Never passed on, whatever a route says: they concern the connection or reflect the request.
_REFUSED_METHODS: Final = frozenset(("CONNECT", "TRACE"))


class _Built:
    """A route with what is needed to sort it in."""

    __slots__ = ("conditions", "hosts", "index", "methods", "named", "pattern", "route", "where")

    def __init__(self, settings: RouteSettings, index: int, gateway: GatewaySettings) -> None:
        self.index: Final = index
        self.where: Final = f"routes[{index}]"
        self.pattern: Final = self._at("path", lambda: PathPattern(settings.path))
        self.hosts: Final = [
            self._at(f"hosts[{i}]", lambda host=host: check_host(host))  # type: ignore[misc]
            for i, host in enumerate(settings.hosts)
        ]
        self.named: Final = bool(settings.methods)
        self.methods: Final = (
            frozenset(
                each
                for i, name in enumerate(settings.methods)
                for each in self._at(f"methods[{i}]", lambda name=name: _methods(name))  # type: ignore[misc]
            )
            or PROXIED_METHODS
        )
        self.conditions: Final = self._at(
            "headers", lambda: Conditions(settings.headers, settings.query)
        )
        self.route: Final = self._route(settings, gateway)

    def _at(self, field: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ValueError as error:
            raise ConfigError(str(error), path=f"{self.where}.{field}") from None

    def _route(self, settings: RouteSettings, gateway: GatewaySettings) -> Route:
        pattern, at = self.pattern, self._at
        parameters = pattern.parameters
        request = at("request.headers", lambda: HeaderRules(settings.request.headers, parameters))
        query = at("request.query", lambda: QueryRules(settings.request.query, parameters))
        response = at("response.headers", lambda: HeaderRules(settings.response.headers, None))
        rewrite = None
        if settings.rewrite:
            rewrite = at("rewrite", lambda: Rewrite(settings.rewrite, pattern))
        elif settings.strip_prefix and pattern.rest and not pattern.prefix and pattern.segments:
            # Parameters before /*: how many bytes they have is only known with the path.
            rewrite = Rewrite("/*", pattern)
        cors = None
        if settings.cors.origins:
            cors = at("cors", lambda: Cors(settings.cors, self.methods))
        auth = settings.auth
        if (auth.roles or auth.scopes) and not (auth.enabled and gateway.auth.enabled):
            raise ConfigError(
                "expected auth.enabled, here and for the gateway: who has no token has no roles "
                "and no scopes",
                path=f"{self.where}.auth",
            )
        guard = None
        if auth.roles or auth.scopes:
            guard = at("auth", lambda: Guard(auth.roles, auth.scopes))
        limits = build_limits(
            [
                ("rate_limits", gateway.rate_limits),
                (f"{self.where}.rate_limits", settings.rate_limits),
            ]
        )
        timeouts, retry = settings.timeouts, settings.retry
        response_seconds = timeouts.response or gateway.breaker.timeout_ms / 1000
        body = settings.body_bytes
        attempts = retry.max_attempts or gateway.retry.max_attempts
        delay = gateway.retry.delay_ms if retry.delay_ms is None else retry.delay_ms
        return Route(
            settings.name or f"{settings.hosts[0] if settings.hosts else ''}{settings.path}",
            self.methods,
            index=self.index,
            conditions=self.conditions if len(self.conditions) else None,
            group=settings.upstream,
            prefix=pattern.prefix if settings.strip_prefix and rewrite is None else b"",
            rewrite=rewrite,
            limited=settings.rate_limited,
            limits=limits,
            authenticated=auth.enabled,
            guard=guard,
            cors=cors,
            body_bytes=gateway.limits.body_bytes if body is None else body,
            response_ns=int(response_seconds * 1e9),
            total_ns=int((timeouts.total or gateway.timeouts.total) * 1e9),
            stream_idle_ns=int((timeouts.stream_idle or gateway.timeouts.stream_idle) * 1e9),
            retry_policy=RetryPolicy(attempts, delay * 1_000_000),
            idempotency_key=retry.idempotency_key,
            request_rules=request or None,
            query_rules=query or None,
            response_rules=response or None,
            envelope=settings.envelope,
        )

    @property
    def rank(self) -> tuple[int, bool]:
        """Among routes of one path: less comes first."""
        return -len(self.conditions), not self.named

    def rivals(self, other: _Built) -> bool:
        """Whether a request can match both, and nothing says which is meant."""
        return (
            self.rank == other.rank
            and bool(self.methods & other.methods)
            and not self.conditions.excludes(other.conditions)
        )


def build_router(gateway: GatewaySettings, own: Sequence[tuple[str, Route]]) -> Router:
    """The table of a configuration; ``own`` are paths that the gateway answers itself.

    Raises ``ConfigError``.
    """
    if len(gateway.routes) > MAX_ROUTES:
        raise ConfigError(
            f"expected at most {MAX_ROUTES} routes, got {len(gateway.routes)}", path="routes"
        )
    reserved = {path.encode(): route for path, route in own}
    tables: dict[bytes, Node] = {}
    places: dict[tuple[bytes, tuple[bytes | None, ...]], list[_Built]] = {}
    built = [_Built(settings, i, gateway) for i, settings in enumerate(gateway.routes)]
    for each in built:
        if each.pattern.text.encode() in reserved:
            raise ConfigError(
                f"the gateway itself answers {each.pattern.text}", path=f"{each.where}.path"
            )
        for host in each.hosts or [b""]:
            place = places.setdefault((host, each.pattern.shape), [])
            for other in place:
                if each.rivals(other):
                    raise ConfigError(_conflict(each, other), path=each.where)
            place.append(each)
            place.sort(key=lambda one: one.rank)
            node = _node(tables.setdefault(host, Node()), each.pattern)
            routes = [one.route for one in place]
            if each.pattern.rest:
                node.rest = routes
            else:
                node.exact = routes
    wildcards = [(host[1:], table) for host, table in tables.items() if host.startswith(b"*.")]
    return Router(
        reserved,
        tables.get(b"") or Node(),
        {host: table for host, table in tables.items() if host and not host.startswith(b"*.")},
        sorted(wildcards, key=lambda entry: -len(entry[0])),
        tuple(each.route for each in built),
    )


def groups_of(gateway: GatewaySettings) -> dict[str, str]:
    """Upstream groups that routes lead to → where the first of them says so."""
    found: dict[str, str] = {}
    for i, route in enumerate(gateway.routes):
        found.setdefault(route.upstream, f"routes[{i}].upstream")
    return found


def _node(table: Node, pattern: PathPattern) -> Node:
    node = table
    for segment in pattern.segments:
        node.leaf = False
        if segment is None:
            if node.parameter is None:
                node.parameter = Node()
            node = node.parameter
        else:
            node = node.literals.setdefault(segment, Node())
    return node


def _conflict(each: _Built, other: _Built) -> str:
    methods = b", ".join(sorted(each.methods & other.methods)).decode()
    return (
        f"a request to {each.pattern.text} ({methods}) can match {other.where} "
        f"({other.pattern.text}) as well, and nothing says which is meant: name other methods or "
        "hosts, or give one of them a further condition on headers or query"
    )


def _methods(name: str) -> tuple[bytes, ...]:
    check_field_name(name)  # both are tokens
    if name.upper() in _REFUSED_METHODS:
        raise ValueError(f"{name} is never passed on")
    if name != name.upper():
        raise ValueError(f"expected {name.upper()}: methods are case-sensitive (RFC 9110 §9.1)")
    return (b"GET", b"HEAD") if name == "GET" else (name.encode(),)
