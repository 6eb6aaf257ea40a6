"""Which paths exist, and what applies to each: resolved once, matched by prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["PROXIED_METHODS", "Route", "Router"]

#: Methods that are passed on. TRACE would reflect the credentials of others (RFC 9110 §9.3.8).
PROXIED_METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
)


@dataclass(frozen=True, slots=True)
class Route:
    """One route; ``template`` is its name in metrics, logs and spans."""

    template: str
    methods: frozenset[bytes] = PROXIED_METHODS
    #: Taken off the path before the upstream sees it.
    prefix: bytes = b""
    limited: bool = True
    authenticated: bool = True
    envelope: bool = True
    #: A non-idempotent request with an ``Idempotency-Key`` may be retried.
    idempotency_key: bool = False
    #: Bytes of request body that ``handler`` takes.
    max_body: int = 0
    #: Answers in this process: ``handler(exchange, body)``; ``None`` is proxied.
    handler: Callable[[Any, bytes], None] | None = None

    @property
    def allow(self) -> bytes:
        """Value of ``Allow`` (RFC 9110 §10.2.1)."""
        return b", ".join(sorted(self.methods))


class Router:
    """Exact paths first, then the longest prefix that ends at a segment."""

    __slots__ = ("_exact", "_prefixes")

    def __init__(self, exact: dict[bytes, Route], proxied: Iterable[Route]) -> None:
        self._exact: Final = exact
        self._prefixes: Final = tuple(
            (route.prefix, route.prefix + b"/", route)
            for route in sorted(proxied, key=lambda r: len(r.prefix), reverse=True)
        )

    def match(self, path: bytes) -> Route | None:
        """The route of a normalised path; O(prefixes)."""
        for prefix, inner, route in self._prefixes:
            if path.startswith(inner) or path == prefix:
                return route
        return self._exact.get(path)
