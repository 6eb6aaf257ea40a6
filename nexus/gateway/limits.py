"""The limits beside the address limit, of the running backend; see ``_limits_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._limits_py import (
        PENDING,
        UNAVAILABLE,
        Limit,
        Limiter,
        LimitSet,
        build_limits,
    )
else:
    from nexus.gateway._limits_c import (
        PENDING,
        UNAVAILABLE,
        Limit,
        Limiter,
        LimitSet,
        build_limits,
    )

__all__ = ["PENDING", "UNAVAILABLE", "Limit", "LimitSet", "Limiter", "build_limits"]
