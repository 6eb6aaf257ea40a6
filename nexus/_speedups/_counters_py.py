"""Metric handles: one array slot each, in memory that all workers of a service share.

One source, compiled as ``_counters_c`` with the C types of ``_counters_c.pxd``. A handle is a view
of the block and an index into it, so counting is one addition in place and nothing else: no lock
(a slot has one writing process, and within it the event loop's thread), no allocation, no lookup.

Slots are IEEE doubles, eight bytes and eight-byte aligned, which the platforms that we support
load and store in one piece: a reader in another process sees the old value or the new one. Whole
numbers are exact up to 2⁵³ (285 years of a million events per second).
"""

from __future__ import annotations

import time

import cython  # type: ignore[import-untyped]

if not cython.compiled:
    from bisect import bisect_left

__all__ = ["Counter", "Gauge", "Histogram", "StampedGauge"]


class Counter:
    """A total that only rises; kept in ``slots[at]``."""

    __slots__ = ("_at", "_slots")

    def __init__(self, slots: memoryview[float], at: int) -> None:
        self._slots = slots
        self._at = at

    def inc(self, n: float = 1.0) -> None:
        """Add ``n``. Raises ``ValueError`` for a negative number or NaN."""
        if not n >= 0.0:
            raise ValueError("a counter only rises")
        self._slots[self._at] += n

    @property
    def value(self) -> float:
        """What this worker has counted."""
        return self._slots[self._at]


class Gauge:
    """A value that goes up and down; kept in ``slots[at]``."""

    __slots__ = ("_at", "_slots")

    def __init__(self, slots: memoryview[float], at: int) -> None:
        self._slots = slots
        self._at = at

    def set(self, value: float) -> None:
        self._slots[self._at] = value

    def inc(self, n: float = 1.0) -> None:
        self._slots[self._at] += n

    def dec(self, n: float = 1.0) -> None:
        self._slots[self._at] -= n

    @property
    def value(self) -> float:
        return self._slots[self._at]


class StampedGauge:
    """A gauge of which, over all workers, the one that was written last counts.

    ``slots[at]`` is the value, ``slots[at + 1]`` when it was written (monotonic seconds; one clock
    for all processes of a machine; 0: never).
    """

    __slots__ = ("_at", "_slots")

    def __init__(self, slots: memoryview[float], at: int) -> None:
        self._slots = slots
        self._at = at

    def set(self, value: float) -> None:
        self._slots[self._at] = value
        self._slots[self._at + 1] = time.monotonic()

    def inc(self, n: float = 1.0) -> None:
        self.set(self._slots[self._at] + n)

    def dec(self, n: float = 1.0) -> None:
        self.set(self._slots[self._at] - n)

    @property
    def value(self) -> float:
        return self._slots[self._at]


class Histogram:
    """Counts per bucket and their sum: ``len(bounds) + 2`` slots from ``slots[at]``.

    Bucket ``i`` holds what is above ``bounds[i - 1]`` and not above ``bounds[i]`` (Prometheus'
    ``le``); the next slot what is above the last bound; the last slot the sum. There is no slot for
    the count: it is the total of the buckets, so a scrape between two stores cannot see a count
    that disagrees with its own buckets.
    """

    __slots__ = ("_at", "_bounds", "_last", "_slots")

    def __init__(self, slots: memoryview[float], at: int, bounds: memoryview[float]) -> None:
        """``bounds``: a view of doubles, rising; the handles of one metric share it."""
        self._slots = slots
        self._at = at
        self._bounds = bounds
        self._last = len(bounds)

    def observe(self, value: float) -> None:
        """Count ``value``, in the unit of the metric's name.

        Raises ``ValueError`` for infinity and NaN, which would spoil the sum for ever.
        """
        if not -1.7976931348623157e308 <= value <= 1.7976931348623157e308:
            raise ValueError("only finite values are observed")
        if cython.compiled:
            bucket = 0
            while bucket < self._last and value > self._bounds[bucket]:
                bucket += 1
        else:
            bucket = bisect_left(self._bounds, value)
        self._slots[self._at + bucket] += 1.0
        self._slots[self._at + self._last + 1] += value

    @property
    def count(self) -> int:
        """How many values this worker has observed."""
        total = 0.0
        bucket: cython.Py_ssize_t
        for bucket in range(self._last + 1):
            total += self._slots[self._at + bucket]
        return int(total)

    @property
    def sum(self) -> float:
        """The sum of the values that this worker has observed."""
        return self._slots[self._at + self._last + 1]
