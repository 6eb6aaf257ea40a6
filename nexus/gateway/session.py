"""One client connection, of the backend that runs in this process; see ``_session_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._session_py import Session
else:
    from nexus.gateway._session_c import Session

__all__ = ["Session"]
