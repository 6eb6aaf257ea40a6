"""How many requests of one upstream group may be under way at once; the others wait, or go.

A slow upstream holds its requests longer (Little: concurrency = rate times latency); without a
bound it takes every connection, buffer and retry of the gateway along (Nygard, *Release It!*).
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

__all__ = ["ENTERED", "FULL", "WAITS", "Bulkhead"]

FULL, ENTERED, WAITS = range(3)


class Entrant(Protocol):
    """A request."""

    def on_admitted(self) -> None:
        """Its place is free: it is inside now, and calls :meth:`Bulkhead.leave` in the end."""


class Bulkhead:
    """``limit`` places, ``queue_size`` requests that may wait, for ``wait_ns`` at most.

    The clock is the caller's: whoever has waited long enough calls :meth:`cancel`. One worker's.
    """

    __slots__ = ("_admitting", "_waiting", "active", "limit", "queue_size", "refused", "wait_ns")

    def __init__(self, limit: int, queue_size: int, wait_ns: int) -> None:
        self._waiting: Final[deque[Entrant]] = deque()
        self._admitting = False
        self.active = 0
        #: Requests that found no place, at once or after their wait.
        self.refused = 0
        self.configure(limit, queue_size, wait_ns)

    def configure(self, limit: int, queue_size: int, wait_ns: int) -> None:
        """Other numbers; who is inside stays. A limit of 0 lets everybody in."""
        self.limit = limit
        self.queue_size = queue_size
        self.wait_ns = wait_ns

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    def enter(self, entrant: Entrant) -> int:
        """``ENTERED``; ``WAITS`` for ``on_admitted``, first come first served; or ``FULL``."""
        # Nobody overtakes those that wait.
        if not self.limit or (self.active < self.limit and not self._waiting):
            self.active += 1
            return ENTERED
        if self.wait_ns and len(self._waiting) < self.queue_size:
            self._waiting.append(entrant)
            return WAITS
        self.refused += 1
        return FULL

    def cancel(self, entrant: Entrant) -> None:
        """It waits no longer."""
        try:
            self._waiting.remove(entrant)
        except ValueError:
            return
        self.refused += 1

    def leave(self) -> None:
        """A request that was inside is over."""
        self.active -= 1
        if self._admitting:
            return  # one that was just admitted is over already: the loop below goes on
        self._admitting = True
        try:
            while self._waiting and (not self.limit or self.active < self.limit):
                self.active += 1
                self._waiting.popleft().on_admitted()
        finally:
            self._admitting = False
