"""How many requests of each upstream group are under way, over all workers: the bulkheads' counts.

One row for each group in an anonymous map made before the fork, with three words for each worker,
written by that worker alone: requests inside, requests that wait, and since when the first of those
waits. A place is taken under the row's lock, so never more are inside than there are places; the
kernel lets the lock go when its holder dies. What a dead worker had counts until its replacement
begins (its requests are over by then, its words are set to 0), and nobody waits behind its queue.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable
from typing import Final

from nexus._speedups._rangelock import RangeLock

__all__ = ["PlaceTable", "Places"]

#: Groups that are ever counted over all workers.
ROWS: Final = 256
_WORD: Final = 8
_INSIDE, _WAITING, _SINCE = range(3)
_WORDS: Final = 3


class PlaceTable:
    """Shared by all workers; make it once, before the fork."""

    def __init__(self, workers: int, runs: Callable[[int], bool], rows: int = ROWS) -> None:
        """``runs``: whether there is a process of that number."""
        self.workers: Final = workers
        self._runs: Final = runs
        self._rows: Final = rows
        self._stride: Final = 1 + _WORDS * workers
        size = workers + rows * self._stride
        self._words: Final = memoryview(mmap.mmap(-1, size * _WORD)).cast("q")
        self._lock: Final = RangeLock("nexus-places")

    def adopt(self, worker: int, process: int) -> None:
        """A process begins as this worker: nothing of its predecessor's is under way any more."""
        self._words[worker] = process
        for row in range(self._rows):
            at = self.at(row) + _WORDS * worker
            for word in range(at, at + _WORDS):
                self._words[word] = 0

    def places(self, group: str, worker: int) -> Places | None:
        """Those of a group, for one worker; ``None`` where the table is full."""
        digest = hashlib.blake2b(group.encode(), digest_size=8).digest()
        identity = int.from_bytes(digest, "little", signed=True) or 1
        self._lock.acquire(0)
        try:
            for row in range(self._rows):
                at = self.at(row) - 1
                if self._words[at] in (0, identity):
                    self._words[at] = identity
                    return Places(self, self._words, self._lock, row, worker)
        finally:
            self._lock.release(0)
        return None

    def at(self, row: int) -> int:
        """Where the row's first worker begins."""
        return self.workers + row * self._stride + 1

    def is_alive(self, worker: int) -> bool:
        """Whether the worker's process is there; one that is about to begin is not yet."""
        process = self._words[worker]
        return bool(process) and self._runs(process)


class Places:
    """One group's, as one worker sees them. Times are those of the monotonic clock, which all
    processes of a machine share."""

    __slots__ = ("_first", "_last", "_lock", "_mine", "_row", "_table", "_words", "worker")

    def __init__(
        self, table: PlaceTable, words: memoryview[int], lock: RangeLock, row: int, worker: int
    ) -> None:
        self._table: Final = table
        self._words: Final = words
        self._lock: Final = lock
        self._row: Final = row
        self.worker: Final = worker
        self._first: Final = table.at(row)
        self._last: Final = self._first + _WORDS * table.workers
        self._mine: Final = self._first + _WORDS * worker

    @property
    def inside(self) -> int:
        """Requests inside, over all workers."""
        return sum(self._words[self._first + _INSIDE : self._last : _WORDS])

    @property
    def waiting(self) -> int:
        """Requests that wait, over all workers."""
        return sum(self._words[self._first + _WAITING : self._last : _WORDS])

    def take(self, limit: int, since: int, oldest: int) -> bool:
        """A place for a request that waits since then; False where none is free, or where one of
        another worker waits longer. Those from before ``oldest`` should be gone and count no more.
        """
        words = self._words
        if not limit:
            words[self._mine + _INSIDE] += 1
            return True
        self._lock.acquire(self._row)
        try:
            if self.inside >= limit or self._earlier(since, oldest) >= 0:
                return False
            words[self._mine + _INSIDE] += 1
            return True
        finally:
            self._lock.release(self._row)

    def give(self) -> None:
        """A request that was inside is over."""
        self._words[self._mine + _INSIDE] -= 1

    def announce(self, waiting: int, since: int) -> None:
        """So many of this worker's wait, the first since then."""
        self._words[self._mine + _WAITING] = waiting
        self._words[self._mine + _SINCE] = since if waiting else 0

    def next_elsewhere(self, limit: int, since: int, oldest: int) -> int:
        """The other worker whose turn it is, while a place is free; -1: none.

        ``since``: when the first of this worker's came; 0: none waits.
        """
        if limit and self.inside >= limit:
            return -1
        return self._earlier(since or 1 << 62, oldest)

    def _earlier(self, since: int, oldest: int) -> int:
        """The living worker whose first waits longest, and longer than ``since``."""
        words = self._words
        found, best = -1, (since, self.worker)
        for other in range(self._table.workers):
            came = words[self._first + _WORDS * other + _SINCE]
            if (
                came > oldest
                and (came, other) < best
                and other != self.worker
                and self._table.is_alive(other)
            ):
                found, best = other, (came, other)
        return found
