"""Routes and their matching, of the running backend; see ``_routes_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._routes_py import PROXIED_METHODS, Node, Route, Router
else:
    from nexus.gateway._routes_c import PROXIED_METHODS, Node, Route, Router

__all__ = ["PROXIED_METHODS", "Node", "Route", "Router"]
