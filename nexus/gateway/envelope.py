"""The JSON envelope, of the backend that runs in this process; see ``_envelope_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._envelope_py import PREFIX, is_wrappable, suffix
else:
    from nexus.gateway._envelope_c import PREFIX, is_wrappable, suffix

__all__ = ["PREFIX", "is_wrappable", "suffix"]
