"""Numbers that a limit over all workers needs at once, in memory that all workers share."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import Final

from nexus.cacheproxy.hotkeys import HotBoard
from nexus.cacheproxy.policies import PolicyBoard

__all__ = ["SharedCounts", "Stats", "Tally"]


class Tally:
    """One number for each worker. A worker writes its own slot only, so nothing is ever lost.

    Two workers that race may exceed a limit, by at most one for each worker.
    """

    def __init__(self, workers: int) -> None:
        self._workers: Final = workers
        self._map: Final = mmap.mmap(-1, max(workers * 8, mmap.PAGESIZE))
        self._slots: Final = memoryview(self._map).cast("q")

    def set(self, worker: int, count: int) -> None:
        self._slots[worker] = count

    def total(self) -> int:
        return sum(self._slots[: self._workers])


class SharedCounts:
    """What the workers of a cacheproxy share: what limits count, and the policy's state."""

    def __init__(self, workers: int) -> None:
        self.workers: Final = workers
        self.clients: Final = Tally(workers)
        #: Dedicated connections to Redis, warm ones and those being opened included.
        self.dedicated: Final = Tally(workers)
        self.policy: Final = PolicyBoard(workers)
        self.hot: Final = HotBoard(workers)

    def reset(self, worker: int) -> None:
        """Forget what a crashed predecessor left in a worker's slots."""
        self.clients.set(worker, 0)
        self.dedicated.set(worker, 0)


@dataclass(slots=True)
class Stats:
    """Rare events of one worker; the frequent ones are counted in ``flow.Plane``."""

    accepted: int = 0
    refused: int = 0
    protocol_errors: int = 0
    idle_closed: int = 0
    pins_opened: int = 0
    pins_reused: int = 0
    pins_refused: int = 0
    lost: dict[str, int] = field(default_factory=lambda: {"shared": 0, "pinned": 0})
    reconnects: int = 0
    #: Keys given to NEXUS TAG; tags given to NEXUS INVALIDATE, and keys that it deleted.
    tagged: int = 0
    invalidations: int = 0
    invalidated: int = 0
    #: Commands that tag written keys and that Redis refused.
    tags_refused: int = 0
    #: Hot keys whose life was prolonged, and scripts that Redis refused.
    extended: int = 0
    extensions_refused: int = 0
    retired: int = 0
