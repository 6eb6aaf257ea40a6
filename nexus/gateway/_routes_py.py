# cython: annotation_typing=False
"""Which routes exist, and what applies to each: resolved once, found by walking the path.

::

    own paths (/health …) ─► host's table ─► wildcard hosts' tables ─► table of all hosts
                                  │
                                  └─ segment by segment: literal before {parameter} before *
                                     at the end: more conditions first, then named methods

The first route that takes the request's method is it; ``nexus/gateway/routetable.py`` sorts what
is walked here and refuses routes that nobody could tell apart. One source, compiled as
``_routes_c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import cython  # type: ignore[import-untyped]

if not cython.compiled:
    from nexus._speedups._http1_py import RequestHead
    from nexus.gateway.buffers import cut, slash

__all__ = ["PROXIED_METHODS", "Node", "Route", "Router"]

#: Methods that are passed on. TRACE would reflect the credentials of others (RFC 9110 §9.3.8).
PROXIED_METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
)
#: Hosts whose tables are remembered; a client may send any, so they are bounded.
_MAX_HOSTS: Final = 256


class Route:
    """One route; ``template`` is its name in metrics, logs and spans. Never changes."""

    __slots__ = (
        "authenticated",
        "body_bytes",
        "conditions",
        "cors",
        "envelope",
        "group",
        "guard",
        "handler",
        "idempotency_key",
        "index",
        "limited",
        "limits",
        "max_body",
        "methods",
        "prefix",
        "query_rules",
        "reads_cookie",
        "request_rules",
        "response_ns",
        "response_rules",
        "retry_policy",
        "rewrite",
        "stream_idle_ns",
        "template",
        "total_ns",
    )

    def __init__(
        self,
        template: str,
        methods: frozenset[bytes] = PROXIED_METHODS,
        *,
        index: int = -1,
        conditions: Any = None,
        group: str = "default",
        prefix: bytes = b"",
        rewrite: Any = None,
        limited: bool = True,
        limits: Any = None,
        authenticated: bool = True,
        guard: Any = None,
        cors: Any = None,
        body_bytes: int = 0,
        response_ns: int = 0,
        total_ns: int = 0,
        stream_idle_ns: int = 0,
        retry_policy: Any = None,
        idempotency_key: bool = False,
        request_rules: Any = None,
        query_rules: Any = None,
        response_rules: Any = None,
        envelope: bool = True,
        max_body: int = 0,
        reads_cookie: bool = False,
        handler: Callable[[Any, bytes], None] | None = None,
    ) -> None:
        self.template = template
        self.methods = methods
        #: Its place in the list of the configuration; -1: one of our own.
        self.index = index
        #: ``Conditions`` on headers and query, or ``None``.
        self.conditions = conditions
        #: Upstreams that it leads to.
        self.group = group
        #: Taken off the path before the upstream sees it.
        self.prefix = prefix
        #: ``rewrite(path) -> path`` where more than the prefix changes, or ``None``.
        self.rewrite = rewrite
        #: Whether the address limit counts it.
        self.limited = limited
        #: ``LimitSet``: the limits after authentication, or ``None``.
        self.limits = limits
        self.authenticated = authenticated
        #: ``Guard``: the roles and scopes that a token must have, or ``None``.
        self.guard = guard
        #: ``Cors`` or ``None``.
        self.cors = cors
        #: Bytes of request body that are passed on; 0: any number.
        self.body_bytes = body_bytes
        #: Upstream response head, all attempts together, silence within the response body.
        self.response_ns = response_ns
        self.total_ns = total_ns
        self.stream_idle_ns = stream_idle_ns
        self.retry_policy = retry_policy
        #: A non-idempotent request with an ``Idempotency-Key`` may be retried.
        self.idempotency_key = idempotency_key
        #: ``HeaderRules``, ``QueryRules``, ``HeaderRules``, or ``None`` each.
        self.request_rules = request_rules
        self.query_rules = query_rules
        self.response_rules = response_rules
        self.envelope = envelope
        #: Bytes of request body that ``handler`` takes.
        self.max_body = max_body
        #: Whether ``handler`` wants the ``Cookie`` field.
        self.reads_cookie = reads_cookie
        #: Answers in this process: ``handler(exchange, body)``; ``None`` is proxied.
        self.handler = handler

    def __repr__(self) -> str:
        return f"<Route {self.template}>"


class Node:
    """One segment of the paths of a table."""

    __slots__ = ("exact", "leaf", "literals", "parameter", "rest")

    def __init__(self) -> None:
        #: Segment → node below.
        self.literals: dict[bytes, Node] = {}
        #: The node below for any segment.
        self.parameter: Node | None = None
        #: Routes of paths that end here, best first; and of those that go on with ``/*``.
        self.exact: list[Route] = []
        self.rest: list[Route] = []
        #: Whether nothing is below.
        self.leaf = True


class Router:
    """Finds the route of a request. ``own`` are paths of the gateway itself, before all others.

    ``hosts`` maps a host, ``wildcards`` the part behind ``*`` (longest first) to its table;
    ``others`` is the table for every host.
    """

    __slots__ = ("_hosts", "_known", "_others", "_own", "_wildcards", "_wrong", "cors", "routes")

    def __init__(
        self,
        own: dict[bytes, Route],
        others: Node,
        hosts: dict[bytes, Node] | None = None,
        wildcards: list[tuple[bytes, Node]] | None = None,
        routes: tuple[Route, ...] = (),
    ) -> None:
        self._own = own
        self._others = others
        self._hosts = hosts or {}
        self._wildcards = wildcards or []
        #: Host field → tables, so that it is taken apart once.
        self._known: dict[bytes, list[Node]] = {}
        #: Routes that would match but for the method.
        self._wrong: list[Route] = []
        #: All of the configuration, in its order.
        self.routes = routes
        #: Whether any of them answers preflights.
        self.cors = any(route.cors is not None for route in routes)

    def match(self, head: RequestHead) -> Route | None:
        """The request's route; the best one that does not take its method where none does."""
        return self.match_method(head, head.method, False)

    def match_method(self, head: RequestHead, method: bytes, preflight: bool) -> Route | None:
        """:meth:`match` for another method; ``preflight``: conditions on headers are not asked."""
        path = head.path
        if self._wrong:
            self._wrong = []
        found = self._own.get(path)
        if found is not None:
            if method not in found.methods:
                self._wrong.append(found)
            return found
        if not path.startswith(b"/"):
            return None
        if self._hosts or self._wildcards:
            for table in self._tables(head.host):
                found = self._descend(table, path, 1, head, method, preflight)
                if found is not None:
                    return found
        found = self._descend(self._others, path, 1, head, method, preflight)
        if found is None and self._wrong:
            return self._wrong[0]
        return found

    @property
    def allow(self) -> bytes:
        """``Allow`` (RFC 9110 §10.2.1) of the last request that :meth:`match` gave a route which
        does not take its method: the methods of all routes that it matches otherwise."""
        methods: set[bytes] = set()
        for route in self._wrong:
            methods |= route.methods
        return b", ".join(sorted(methods))

    def _descend(
        self, node: Node, path: bytes, at: int, head: RequestHead, method: bytes, preflight: bool
    ) -> Route | None:
        """``at``: where the next segment begins; -1: the path ends at this node."""
        if at >= 0 and not node.leaf:
            end = slash(path, at)
            if end < 0:
                segment = cut(path, at, len(path))
                after = -1
            else:
                segment = cut(path, at, end)
                after = end + 1
            child = node.literals.get(segment)
            if child is not None:
                found = self._descend(child, path, after, head, method, preflight)
                if found is not None:
                    return found
            child = node.parameter
            if child is not None and segment:
                found = self._descend(child, path, after, head, method, preflight)
                if found is not None:
                    return found
        if at < 0 and node.exact:
            found = self._among(node.exact, head, method, preflight)
            if found is not None:
                return found
        if node.rest:
            return self._among(node.rest, head, method, preflight)
        return None

    def _among(
        self, candidates: list[Route], head: RequestHead, method: bytes, preflight: bool
    ) -> Route | None:
        for route in candidates:
            conditions = route.conditions
            if conditions is None or conditions.met(head, preflight):
                if method in route.methods:
                    return route
                self._wrong.append(route)
        return None

    def _tables(self, host: bytes) -> list[Node]:
        tables = self._known.get(host)
        if tables is None:
            name = host.lower()
            if not name.endswith(b"]"):
                before, colon, after = name.rpartition(b":")
                if colon and b"]" not in after:
                    name = before
            name = name.rstrip(b".")
            tables = []
            table = self._hosts.get(name)
            if table is not None:
                tables.append(table)
            tables += [node for suffix, node in self._wildcards if name.endswith(suffix)]
            if len(self._known) >= _MAX_HOSTS:
                self._known.clear()
            self._known[host] = tables
        return tables
