"""What a finished request leaves behind, of the running backend; see ``_record_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.observability._record_py import RequestRecord, picked
else:
    from nexus.observability._record_c import RequestRecord, picked

__all__ = ["RequestRecord", "picked"]
