"""Sequences for weighted round-robin: built per change of the list, then only indexed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus._speedups._wrr_py import (
        MAX_SEQUENCE,
        build_sequence,
        build_smooth_sequence,
        reduce_weights,
    )
else:
    from nexus._speedups._wrr_c import (
        MAX_SEQUENCE,
        build_sequence,
        build_smooth_sequence,
        reduce_weights,
    )

__all__ = ["MAX_SEQUENCE", "build_sequence", "build_smooth_sequence", "reduce_weights"]
