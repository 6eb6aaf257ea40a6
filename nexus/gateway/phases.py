"""The story of a request, of the backend that runs in this process; see ``_phases_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._phases_py import Phases
else:
    from nexus.gateway._phases_c import Phases

__all__ = ["Phases"]
