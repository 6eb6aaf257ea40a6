"""The near-cache's hot path, compiled where that is built.

``_near_py.py`` is what a client's commands pass through, ``_tracking_py.py`` the connection that
fills the table and keeps it true, ``_core_py.py`` what they share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.cacheproxy._core_py import AGES, Core
    from nexus.cacheproxy._near_py import Partition
    from nexus.cacheproxy._tracking_py import Flight, Reading, Source, release
else:
    from nexus.cacheproxy._core_c import AGES, Core
    from nexus.cacheproxy._near_c import Partition
    from nexus.cacheproxy._tracking_c import Flight, Reading, Source, release

__all__ = ["AGES", "Core", "Flight", "Partition", "Reading", "Source", "release"]
