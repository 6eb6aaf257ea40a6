"""What the exchanges of a worker share, of the running backend; see ``_core_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._core_py import Core
else:
    from nexus.gateway._core_c import Core

__all__ = ["Core"]
