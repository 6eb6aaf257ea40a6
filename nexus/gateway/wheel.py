"""The timing wheel of the backend that runs in this process; see ``_wheel_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._wheel_py import TICK_NS, Timed, Wheel
else:
    from nexus.gateway._wheel_c import TICK_NS, Timed, Wheel

__all__ = ["TICK_NS", "Timed", "Wheel"]
