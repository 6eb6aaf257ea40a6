"""What all workers know of one upstream beside its breaker: operator's orders, health, ejection.

It lies in the same slot of shared memory as the breaker (:mod:`nexus.policy.breaker`), one word
each, read without a lock; what depends on what was there before is written under the slot's lock,
which the kernel releases when its owner dies. Every change that matters to a balancer raises the
table's version, so that workers look again only then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nexus._speedups._rangelock import RangeLock

__all__ = ["UpstreamState"]

#: Words of a slot's head behind the breaker's; cleared with a new owner of the slot.
ERROR_CAUSE, ERROR_AT, ORDERS, PROBED, EJECTED_UNTIL, EJECTIONS = 6, 7, 8, 9, 10, 11
FAILURES, GATEWAY_FAILURES, SINCE = 12, 13, 14
FIRST, LAST = ERROR_CAUSE, SINCE

#: Word of the table's header: raised with every change.
VERSION_WORD: Final = 3

#: Of PROBED.
UNKNOWN, HEALTHY, UNHEALTHY = range(3)

#: Exponent beyond which ejections do not grow; their own bound comes first.
_MAX_DOUBLINGS: Final = 20


class UpstreamState:
    """One upstream; ``now_ns`` is the monotonic clock everywhere."""

    __slots__ = ("_header", "_lock", "_slot", "_words")

    def __init__(
        self, words: memoryview[int], header: memoryview[int], lock: RangeLock | None, slot: int
    ) -> None:
        self._words = words
        self._header = header
        self._lock = lock
        self._slot = slot

    def _changed(self) -> None:
        # Two workers at once may raise it by one together; both have written before.
        self._header[VERSION_WORD] += 1

    # -------------------------------------------------------------------------------- orders

    @property
    def drained(self) -> bool:
        """An operator took it out of rotation."""
        return bool(self._words[ORDERS] & 1)

    @property
    def weight(self) -> int:
        """An operator's weight; 0: that of the service list holds."""
        return self._words[ORDERS] >> 1

    def order(self, *, drained: bool | None = None, weight: int | None = None) -> None:
        """An operator's order; ``None`` leaves a part as it is."""
        self._acquire()
        try:
            kept = self.drained if drained is None else drained
            self._words[ORDERS] = (self.weight if weight is None else weight) << 1 | kept
        finally:
            self._release()
        self._changed()

    # -------------------------------------------------------------------------------- health

    @property
    def probed(self) -> str:
        """What active checks found: ``unknown``, ``healthy`` or ``unhealthy``."""
        return ("unknown", "healthy", "unhealthy")[self._words[PROBED]]

    def found(self, healthy: bool, now_ns: int) -> bool:
        """The prober's verdict; whether it is another one than before."""
        before = self._words[PROBED]
        after = HEALTHY if healthy else UNHEALTHY
        if before == after:
            return False
        if healthy and before == UNHEALTHY:
            self._words[SINCE] = now_ns
        self._words[PROBED] = after
        self._changed()
        return True

    def forget_probes(self) -> None:
        """Nobody checks any more: what was found holds no longer."""
        if self._words[PROBED] != UNKNOWN:
            self._words[PROBED] = UNKNOWN
            self._changed()

    def joins(self, now_ns: int) -> None:
        """It was added while others were serving."""
        self._words[SINCE] = now_ns
        self._changed()

    def since(self, closed_at_ns: int = 0) -> int:
        """When it last came (back) into rotation; 0: it was there from the start.

        ``closed_at_ns``: when its breaker closed.
        """
        return max(self._words[SINCE], self._words[EJECTED_UNTIL], closed_at_ns)

    # ------------------------------------------------------------------------------ ejection

    def ejected(self, now_ns: int) -> bool:
        """Whether it is out for its failures."""
        return now_ns < self._words[EJECTED_UNTIL]

    @property
    def ejected_until(self) -> int:
        """Monotonic nanoseconds; 0: never ejected."""
        return self._words[EJECTED_UNTIL]

    @property
    def ejections(self) -> int:
        """Ejections in a row, each twice as long as the one before."""
        return self._words[EJECTIONS]

    def succeeded(self) -> None:
        """It answered, below 500. Costs two looks while it is healthy."""
        words = self._words
        if words[FAILURES]:
            words[FAILURES] = 0
        if words[GATEWAY_FAILURES]:
            words[GATEWAY_FAILURES] = 0

    def failed(self, gateway: bool) -> tuple[int, int]:
        """A failure of any kind, or one of reaching it (``gateway``: no response, 502, 503, 504).

        Returns how many came in a row, over all workers: of any kind, of the second kind.
        """
        self._acquire()
        try:
            words = self._words
            words[FAILURES] += 1
            words[GATEWAY_FAILURES] = words[GATEWAY_FAILURES] + 1 if gateway else 0
            return words[FAILURES], words[GATEWAY_FAILURES]
        finally:
            self._release()

    def eject(self, now_ns: int, base_ns: int, longest_ns: int) -> int:
        """Take it out, twice as long as the last time; returns for how long, nanoseconds.

        Who stayed in for ``longest_ns`` since begins anew. The caller holds the table's lock.
        """
        words = self._words
        if now_ns - words[EJECTED_UNTIL] > longest_ns:
            words[EJECTIONS] = 0
        time = min(longest_ns, base_ns << min(words[EJECTIONS], _MAX_DOUBLINGS))
        words[EJECTIONS] += 1
        words[FAILURES] = words[GATEWAY_FAILURES] = 0
        words[EJECTED_UNTIL] = now_ns + time
        self._changed()
        return time

    def restore(self, now_ns: int) -> None:
        """An operator ends the ejection."""
        if self.ejected(now_ns):
            self._words[EJECTED_UNTIL] = now_ns
            self._changed()

    # ------------------------------------------------------------------------------- last error

    def failed_with(self, cause: int, now_ns: int) -> None:
        """The last failure; ``cause`` is a number that the caller knows how to read, not 0."""
        self._words[ERROR_AT] = now_ns
        self._words[ERROR_CAUSE] = cause

    def last_error(self) -> tuple[int, int]:
        """(cause, monotonic nanoseconds); cause 0: none yet."""
        return self._words[ERROR_CAUSE], self._words[ERROR_AT]

    def _acquire(self) -> None:
        if self._lock is not None:
            self._lock.acquire(self._slot)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release(self._slot)
