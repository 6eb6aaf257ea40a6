# cython: annotation_typing=False
"""Which paths exist, and what applies to each: resolved once, matched by prefix.

One source, compiled as ``_routes_c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

__all__ = ["PROXIED_METHODS", "Route", "Router"]

#: Methods that are passed on. TRACE would reflect the credentials of others (RFC 9110 §9.3.8).
PROXIED_METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
)


class Route:
    """One route; ``template`` is its name in metrics, logs and spans. Never changes."""

    __slots__ = (
        "authenticated",
        "envelope",
        "handler",
        "idempotency_key",
        "inner",
        "limited",
        "max_body",
        "methods",
        "prefix",
        "template",
    )

    def __init__(
        self,
        template: str,
        methods: frozenset[bytes] = PROXIED_METHODS,
        *,
        prefix: bytes = b"",
        limited: bool = True,
        authenticated: bool = True,
        envelope: bool = True,
        idempotency_key: bool = False,
        max_body: int = 0,
        handler: Callable[[Any, bytes], None] | None = None,
    ) -> None:
        self.template = template
        self.methods = methods
        #: Taken off the path before the upstream sees it; and the same with the segment's end.
        self.prefix = prefix
        self.inner = prefix + b"/"
        self.limited = limited
        self.authenticated = authenticated
        self.envelope = envelope
        #: A non-idempotent request with an ``Idempotency-Key`` may be retried.
        self.idempotency_key = idempotency_key
        #: Bytes of request body that ``handler`` takes.
        self.max_body = max_body
        #: Answers in this process: ``handler(exchange, body)``; ``None`` is proxied.
        self.handler = handler

    @property
    def allow(self) -> bytes:
        """Value of ``Allow`` (RFC 9110 §10.2.1)."""
        return b", ".join(sorted(self.methods))

    def __repr__(self) -> str:
        return f"<Route {self.template}>"


class Router:
    """Exact paths first, then the longest prefix that ends at a segment."""

    __slots__ = ("_exact", "_proxied")

    def __init__(self, exact: dict[bytes, Route], proxied: Iterable[Route]) -> None:
        self._exact = exact
        self._proxied = sorted(proxied, key=_prefix_length, reverse=True)

    def match(self, path: bytes) -> Route | None:
        """The route of a normalised path; O(prefixes)."""
        for route in self._proxied:
            if path.startswith(route.inner) or path == route.prefix:
                return route
        return self._exact.get(path)


def _prefix_length(route: Route) -> int:
    return len(route.prefix)
