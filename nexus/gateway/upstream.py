"""Upstream connections of the backend that runs in this process; see ``_upstream_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._upstream_py import UpstreamConnection
else:
    from nexus.gateway._upstream_c import UpstreamConnection

__all__ = ["UpstreamConnection"]
