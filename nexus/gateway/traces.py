"""Trace context of requests, of the backend that runs in this process; see ``_traces_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._traces_py import Tracer
else:
    from nexus.gateway._traces_c import Tracer

__all__ = ["Tracer"]
