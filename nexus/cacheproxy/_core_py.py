# cython: annotation_typing=False, wraparound=True
"""What all of a worker's near-cache shares: table, settings, counters. One source, two backends."""

from __future__ import annotations

from array import array
from typing import Any

import cython  # type: ignore[import-untyped]

if not cython.compiled:
    from nexus._speedups._nearcache_py import NearTable
    from nexus._speedups._respscan_py import CommandTable
    from nexus.cacheproxy._link_py import Plane

__all__ = ["AGES", "Core"]

#: Bounds of the staleness histogram, seconds.
AGES = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
AGES_BOUNDS = len(AGES)
_AGES = array("d", AGES)


class Core:
    """What all partitions of a worker share: the table, the settings, the counters."""

    def __init__(self, plane: Plane, commands: CommandTable, table: NearTable) -> None:
        self.plane = plane
        self.commands = commands
        self.table = table
        #: Seconds; see the settings of the near-cache.
        self.staleness = 0.01
        self.max_ttl = 300.0
        self.singleflight = True
        #: Whether replies are kept at all, or only shared.
        self.keeping = True
        #: Miss leases (:mod:`nexus.cacheproxy.leases`), or None.
        self.leases: Any = None
        #: What keeps late fills out (a FillGuard); None: no rule asks for it.
        self.guard: Any = None
        #: The policy in force: rules by the command's number; None: there is none.
        self.matchers: Any = None
        #: Told of hot keys (a HotKeys), and what tags written ones (a Tagger); None: nobody.
        self.hot: Any = None
        self.tagger: Any = None
        #: One hit in so many is compared with Redis; 0: none.
        self.shadow_every = 0
        self.shadow_hits = 0
        self.compared = 0
        self.differed = 0
        #: Flights of keys that are not admitted, left in this second; see :meth:`spare`.
        self.spares = 0
        self.spare_tick = -1
        self.spare_limit = 1000
        self.observe_fence: Any = None
        self.hits = 0
        self.joined = 0
        self.misses = 0
        self.bypassed = 0
        self.waited = 0
        self.late = 0
        self.fills = 0
        self.committed = 0
        self.fences = 0
        self.touches = 0
        self.dropped_push = 0
        self.dropped_write = 0
        self.dropped_null = 0
        self.dropped_lost = 0
        self.pushes = 0
        #: Why replies that were asked for were not kept.
        self.discarded: dict[str, int] = {}
        #: Requests whose replies are too big to keep → until when nobody asks again.
        self.refused: dict[tuple[int, int, bytes], float] = {}
        #: Hits by age of the fence; bounds in AGES, seconds.
        self.ages = [0] * (len(AGES) + 1)

    def spare(self) -> bool:
        """Whether one more read may fly for its waiters only.

        Redis remembers every key that a tracking connection reads, and such a read costs it twice
        as much; so there are so many in a second, and under load reads of cold keys go as they
        come.
        """
        if self.spare_tick != self.plane.tick:
            self.spare_tick = self.plane.tick
            self.spares = self.spare_limit
        self.spares -= 1
        return self.spares >= 0

    def discard(self, reason: str) -> None:
        self.discarded[reason] = self.discarded.get(reason, 0) + 1

    def refuse(self, name: tuple[int, int, bytes], until: float) -> None:
        if len(self.refused) >= 16_384:
            self.refused.clear()
        self.refused[name] = until

    def aged(self, age: float, hits: int) -> None:
        """``hits`` were answered by a fence sent ``age`` seconds before."""
        index = 0
        while index < AGES_BOUNDS and age > _AGES[index]:
            index += 1
        self.ages[index] += hits
