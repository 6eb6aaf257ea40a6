"""Events of proxied requests, of the backend that runs in this process; see ``_completed_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND
from nexus.gateway._completed_py import record_traceparent

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._completed_py import CompletedEncoder
else:
    from nexus.gateway._completed_c import CompletedEncoder

__all__ = ["CompletedEncoder", "record_traceparent"]
