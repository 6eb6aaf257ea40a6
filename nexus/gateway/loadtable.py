"""What each worker sends to each upstream, where all workers can read it: ``/lb-stats`` adds it up.

One row for each upstream URL in an anonymous map made before the fork, with two words for each
worker, written by that worker alone. A worker publishes once a second and when it is asked; what
the others did in the last second may be missing from a sum. A replacement goes on from its
predecessor's total, so totals never fall.
"""

from __future__ import annotations

import hashlib
import mmap
from typing import Final

from nexus._speedups._rangelock import RangeLock

__all__ = ["LoadTable"]

#: Upstream URLs that are ever counted; more count only in the worker that is asked.
ROWS: Final = 1024
_WORD: Final = 8


class LoadTable:
    """Shared by all workers; make it once, before the fork."""

    def __init__(self, workers: int, rows: int = ROWS) -> None:
        self._rows: Final = rows
        self._stride: Final = 1 + 2 * workers
        self._workers: Final = workers
        self._words: Final = memoryview(mmap.mmap(-1, rows * self._stride * _WORD)).cast("q")
        self._lock: Final = RangeLock("nexus-loads")

    def row(self, url: str) -> int | None:
        """The row of ``url``, the same in every worker; ``None`` where the table is full."""
        digest = hashlib.blake2b(url.encode(), digest_size=8).digest()
        identity = int.from_bytes(digest, "little", signed=True) or 1
        self._lock.acquire(0)
        try:
            for row in range(self._rows):
                found = self._words[row * self._stride]
                if found == identity:
                    return row
                if found == 0:
                    self._words[row * self._stride] = identity
                    return row
        finally:
            self._lock.release(0)
        return None

    def adopt(self, row: int, worker: int) -> int:
        """A worker begins with this upstream: how many requests its predecessor had sent."""
        at = self._at(row, worker)
        self._words[at + 1] = 0
        return self._words[at]

    def publish(self, row: int, worker: int, handled: int, active: int) -> None:
        """``handled``: in all, its predecessors' included; ``active``: now."""
        at = self._at(row, worker)
        self._words[at] = handled
        self._words[at + 1] = active

    def totals(self, row: int) -> tuple[int, int]:
        """Handled and active, over all workers."""
        places = [self._at(row, worker) for worker in range(self._workers)]
        return sum(self._words[at] for at in places), sum(self._words[at + 1] for at in places)

    def _at(self, row: int, worker: int) -> int:
        return row * self._stride + 1 + 2 * worker
