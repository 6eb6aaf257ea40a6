"""The connection pool of the backend that runs in this process; see ``_pool_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._pool_py import Pool, why_not_connected
else:
    from nexus.gateway._pool_c import Pool, why_not_connected

__all__ = ["Pool", "why_not_connected"]
