"""Metric handles over shared memory: see ``_counters_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus._speedups._counters_py import Counter, Gauge, Histogram, StampedGauge
else:
    from nexus._speedups._counters_c import Counter, Gauge, Histogram, StampedGauge

__all__ = ["Counter", "Gauge", "Histogram", "StampedGauge"]
