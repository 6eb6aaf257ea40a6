"""Lines of the access log, of the backend that runs in this process; see ``_accessline_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.observability._accessline_py import AccessLineEncoder
else:
    from nexus.observability._accessline_c import AccessLineEncoder

__all__ = ["AccessLineEncoder"]
