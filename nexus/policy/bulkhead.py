"""How many requests of one upstream group may be under way at once; the others wait, or go.

A slow upstream holds its requests longer (Little: concurrency = rate times latency); without a
bound it takes every connection, buffer and retry of the gateway along (Nygard, *Release It!*).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from nexus.policy.places import Places

__all__ = ["ENTERED", "FULL", "WAITS", "Bulkhead"]

FULL, ENTERED, WAITS = range(3)

#: Nanoseconds after the longest wait in which a request leaves the queue at the latest. A worker
#: whose first one stands there longer does not come round to it: others go on.
_GRACE: Final = 200_000_000


class Entrant(Protocol):
    """A request."""

    def on_admitted(self) -> None:
        """Its place is free: it is inside now, and calls :meth:`Bulkhead.leave` in the end."""


class Bulkhead:
    """``limit`` places, ``queue_size`` requests that may wait, for ``wait_ns`` at most.

    One worker's view of what all share: places, queue and order. The clock is the caller's:
    ``now`` is monotonic nanoseconds, and whoever has waited long enough calls :meth:`cancel`.
    """

    __slots__ = (
        "_admitting",
        "_places",
        "_waiting",
        "_wake",
        "active",
        "limit",
        "queue_size",
        "refused",
        "wait_ns",
    )

    def __init__(
        self,
        places: Places,
        limit: int,
        queue_size: int,
        wait_ns: int,
        wake: Callable[[int], None],
    ) -> None:
        """``wake(worker)``: it is to call :meth:`admit`, because it is the turn of one of its."""
        self._places: Final = places
        self._wake: Final = wake
        #: Who waits here → since when; first come first.
        self._waiting: Final[OrderedDict[Entrant, int]] = OrderedDict()
        self._admitting = False
        #: Requests of this worker that are inside.
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
        """Requests of this worker that wait for a place."""
        return len(self._waiting)

    def enter(self, entrant: Entrant, now: int) -> int:
        """``ENTERED``; ``WAITS`` for ``on_admitted``, first come first served; or ``FULL``."""
        # Nobody overtakes those that wait, here or elsewhere.
        if not self._waiting and self._places.take(self.limit, now, self._oldest(now)):
            self.active += 1
            return ENTERED
        if self.wait_ns and self._places.waiting < self.queue_size:
            self._waiting[entrant] = now
            self._announce()
            return WAITS
        self.refused += 1
        return FULL

    def cancel(self, entrant: Entrant, now: int) -> None:
        """It waits no longer."""
        if self._waiting.pop(entrant, None) is None:
            return
        self.refused += 1
        self._announce()
        self._pass_on(now)

    def leave(self, now: int) -> None:
        """A request that was inside is over."""
        self.active -= 1
        self._places.give()
        self.admit(now)

    def admit(self, now: int) -> None:
        """Let in who may; call it when woken, and now and then (a worker may have died)."""
        if self._admitting:
            return  # one that was just admitted is over already: the loop below goes on
        self._admitting = True
        try:
            while self._waiting:
                entrant, since = next(iter(self._waiting.items()))
                if not self._places.take(self.limit, since, self._oldest(now)):
                    break
                del self._waiting[entrant]
                self._announce()
                self.active += 1
                entrant.on_admitted()
        finally:
            self._admitting = False
        self._pass_on(now)

    def _pass_on(self, now: int) -> None:
        """Wake the worker whose turn it is."""
        first = next(iter(self._waiting.values()), 0)
        other = self._places.next_elsewhere(self.limit, first, self._oldest(now))
        if other >= 0:
            self._wake(other)

    def _announce(self) -> None:
        self._places.announce(len(self._waiting), next(iter(self._waiting.values()), 0))

    def _oldest(self, now: int) -> int:
        return max(0, now - self.wait_ns - _GRACE)
