"""One request on its way, of the backend that runs in this process; see ``_exchange_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.gateway._exchange_py import Exchange
else:
    from nexus.gateway._exchange_c import Exchange

__all__ = ["Exchange"]
