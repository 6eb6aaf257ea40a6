"""The seams of the data path, of the running backend; see ``_ports_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._ports_py import ClientPort
else:
    from nexus.gateway._ports_c import ClientPort

__all__ = ["ClientPort"]
