# cython: annotation_typing=False
"""Deadlines without a timer handle per request: a lazy hashed timing wheel.

One source, compiled as ``_wheel_c``. Whoever has a deadline derives from :class:`Timed` and has at
most one valid entry in the wheel. Moving a deadline *later*, which is what keep-alive connections
do all the time, writes one integer: the entry fires at its old place, sees that it is early and
moves. Only a deadline *earlier* than the entry costs a new entry. (Varghese and Lauck, "Hashed and
Hierarchical Timing Wheels", 1987.)

The wheel holds whoever has an entry: say :meth:`Wheel.drop` of what is over, or it stays in memory
until its old place comes round (25 s of closed connections were 300 MiB).

A deadline fires at most one tick late and never early.
"""

from __future__ import annotations

from typing import Final

__all__ = ["TICK_NS", "Timed", "Wheel"]

#: Resolution, nanoseconds: fine against the shortest timeout in use (a retry's backoff, 200 ms).
TICK_NS: Final = 50_000_000
#: A tick that comes later than this says something of us, not of our peers.
LATE_NS: Final = 4 * TICK_NS
#: Slots: 25.6 s ahead; what is later is put into the last slot and moved on from there.
SLOTS: Final = 512
# The same as C integers in the compiled module.
_TICK = TICK_NS
_SLOTS = SLOTS


class Timed:
    """Something that may have a deadline; ``deadline`` is monotonic nanoseconds, 0 for none."""

    __slots__ = ("deadline", "entry", "since")

    def __init__(self) -> None:
        self.deadline = 0
        #: The tick of its valid entry in the wheel, 0 for none.
        self.entry = 0
        #: What the wheel's ``now`` was when the deadline was set.
        self.since = 0

    def on_deadline(self, now: int) -> None:
        """The deadline has passed (and was reset to 0)."""
        raise NotImplementedError


class Wheel:
    """All deadlines of one worker; ``now`` is the time of the last :meth:`advance`.

    A worker that did not run for a while (suspended, starved of CPU) has deadlines that passed and
    sockets that it has not read: it must say :meth:`late`, read them, and only then advance.
    """

    __slots__ = ("_behind", "_slots", "_tick", "now")

    def __init__(self, now: int) -> None:
        self.now = now
        self._tick = now // _TICK
        self._behind = False
        self._slots: list[set[Timed]] = [set() for _ in range(_SLOTS)]

    def schedule(self, timed: Timed, deadline: int) -> None:
        """Set (or move) the deadline of ``timed``, monotonic nanoseconds."""
        timed.deadline = deadline
        timed.since = self.now
        tick = deadline // _TICK + 1
        if tick <= self._tick:
            tick = self._tick + 1
        elif tick >= self._tick + _SLOTS:
            tick = self._tick + _SLOTS - 1
        entry = timed.entry
        if entry == 0 or tick < entry:
            if entry:
                self._slots[entry % _SLOTS].discard(timed)
            timed.entry = tick
            self._slots[tick % _SLOTS].add(timed)

    def drop(self, timed: Timed) -> None:
        """``timed`` has no deadline any more, and will have none."""
        timed.deadline = 0
        entry = timed.entry
        if entry:
            timed.entry = 0
            self._slots[entry % _SLOTS].discard(timed)

    def late(self, now: int) -> bool:
        """Whether the last advance is so long ago that what came since must be read first.

        If so ``now`` is set, so that what is read gets deadlines from now on, but nothing fires;
        the next call says no. Who woke up may have read sockets before its tick, and set deadlines
        by the old ``now``: whatever was set since the last tick counts from now on, too.
        """
        if self._behind or now - self.now <= LATE_NS:
            self._behind = False
            return False
        self._behind = True
        before = self.now
        for due in self._slots:
            for timed in due:
                if timed.since == before and timed.deadline > before:
                    timed.deadline += now - before  # its entry fires early, and moves
        self.now = now
        return True

    def advance(self, now: int) -> None:
        """Fire every deadline that has passed by ``now``."""
        self.now = now
        last = now // _TICK
        while self._tick < last:
            self._tick += 1
            place = self._tick % _SLOTS
            due = self._slots[place]
            if not due:
                continue
            self._slots[place] = set()
            for timed in due:
                if timed.entry != self._tick:
                    continue  # moved or dropped by one of those before it
                timed.entry = 0
                if timed.deadline == 0:
                    continue
                if timed.deadline > now:
                    since = timed.since
                    self.schedule(timed, timed.deadline)
                    timed.since = since
                else:
                    timed.deadline = 0
                    timed.on_deadline(now)
