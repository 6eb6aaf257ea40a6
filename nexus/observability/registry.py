"""Counters that all workers of a service share: one block of memory for each worker slot.

::

    Registry (made by the supervisor, before the first fork)
    ├── block 0 ─ written by worker 0 alone, read by whichever worker is scraped
    ├── block 1 ─ …
    └── block N ─ the supervisor's own

    block:  header │ series table, grows up →          ← slots, grow down │
                     name and label values of a series   its numbers

A block belongs to the slot, not to the process: the replacement of a dead worker opens the same
block, finds the same series and counts on, so totals never fall. Gauges start from zero again,
for what they measured died with the process; those with labels are absent until they are asked
for. Absent is what :meth:`LocalMetrics.retire` makes of a gauge whose subject is gone: its row
stays, its value is NaN, and no reader sees it.

The table only grows. A row is written behind the committed end, with a checksum, and then the end
is moved in one store: a reader sees whole rows only, and a writer that dies in between leaves
nothing behind. A row that fails its checksum is read again at the next scrape, which covers
machines that make stores visible out of order.

Both bounds are kept in one way: a label set that finds no room (too many of its metric, over all
workers, or a full block) is counted under a series whose label values are all ``other``; a part of
each block is kept free for these.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, cast

from nexus._speedups.counters import Counter, Gauge, Histogram, StampedGauge
from nexus.observability.catalogue import CATALOGUE, Metric, find
from nexus.observability.exemplars import ExemplarMemory

__all__ = ["OTHER", "Family", "LocalMetrics", "Registry", "Series"]

#: Label value of everything that found no room.
OTHER: Final = "other"

#: Characters of one label value that are kept; a route or an upstream URL is far below it.
MAX_LABEL_CHARS: Final = 200

#: Value of a gauge that is not to be seen.
_ABSENT: Final = math.nan

_WORD: Final = 8
_HEADER_BYTES: Final = 64
_COMMITTED: Final = 0  # word of the header: bytes of the table that are valid
_ROW: Final = struct.Struct("<III")  # payload bytes, first slot (word of the block), CRC-32

_Key = tuple[str, ...]  # name, then label values in the catalogue's order
_Handle = Counter | Gauge | StampedGauge | Histogram
H = TypeVar("H", Counter, Gauge | StampedGauge, Histogram)


@dataclass(frozen=True, slots=True)
class Series:
    """One series as a reader finds it: whose, which, and where its numbers are."""

    metric: Metric
    values: tuple[str, ...]
    first_slot: int


def _width(metric: Metric) -> int:
    """Slots of one series."""
    if metric.kind == "histogram":
        return len(metric.buckets) + 2
    return 2 if metric.aggregation == "last" else 1


def _row_payload(key: _Key) -> bytes:
    return json.dumps(key, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _cost(metric: Metric, key: _Key) -> int:
    """Bytes that a series takes, table row and slots."""
    return _ROW.size + len(_row_payload(key)) + _width(metric) * _WORD


def _key(metric: Metric, values: tuple[str, ...]) -> _Key:
    return (metric.name, *[value[:MAX_LABEL_CHARS] for value in values])


def _overflow_key(metric: Metric) -> _Key:
    return (metric.name, *(OTHER for _ in metric.labels))


_OVERFLOWS: Final = find("nexus_metrics_overflow_total", "counter")

#: Bytes of each block that are kept for what is bounded by the catalogue itself: series without
#: labels, overflow series, and the count of overflows of each metric.
_RESERVE: Final = sum(
    _cost(m, _overflow_key(m)) + _cost(_OVERFLOWS, (_OVERFLOWS.name, m.name))
    for m in CATALOGUE.values()
)

#: Below this a block holds little but its reserve.
MIN_BLOCK_BYTES: Final = 65_536


class _Block:
    """One slot's memory, and what this process has read of its table so far."""

    def __init__(self, memory: memoryview) -> None:
        self.bytes: Final = memory
        self.header: Final = memory[:_HEADER_BYTES].cast("Q")
        self.slots: Final[memoryview[float]] = memory.cast("d")
        self.series: Final[list[Series]] = []
        #: Where the next row is read or written, and the lowest slot in use.
        self.read_to = _HEADER_BYTES
        self.lowest_slot = len(memory) // _WORD

    def refresh(self) -> list[Series]:
        """Read the rows that were committed since the last call; returns these."""
        end = _HEADER_BYTES + self.header[_COMMITTED]
        seen = len(self.series)
        while self.read_to < end:
            size, slot, checksum = _ROW.unpack_from(self.bytes, self.read_to)
            start = self.read_to + _ROW.size
            payload = bytes(self.bytes[start : start + size])
            if start + size > end or zlib.crc32(payload, slot) != checksum:
                break
            name, *values = json.loads(payload)
            self.series.append(Series(CATALOGUE[name], tuple(values), slot))
            self.read_to = start + size
            self.lowest_slot = min(self.lowest_slot, slot)
        return self.series[seen:]

    def free(self) -> int:
        """Bytes between the table and the slots."""
        return self.lowest_slot * _WORD - self.read_to

    def append(self, metric: Metric, key: _Key) -> int:
        """Commit a new series; returns its first slot. The caller has checked that it fits."""
        payload = _row_payload(key)
        slot = self.lowest_slot - _width(metric)
        start = self.read_to
        # A writer that died before its commit may have left a row's bytes where slots come now.
        for index in range(slot, self.lowest_slot):
            self.slots[index] = 0.0
        _ROW.pack_into(self.bytes, start, len(payload), slot, zlib.crc32(payload, slot))
        end = start + _ROW.size + len(payload)
        self.bytes[start + _ROW.size : end] = payload
        self.header[_COMMITTED] = end - _HEADER_BYTES
        return slot


_Resolve = Callable[[Metric, tuple[str, ...]], tuple[H, bool]]


class Family(Generic[H]):
    """The series of one metric by label values: one dictionary look-up for one that is known.

    For labels that are only known with the request (status code, upstream); where they are known at
    load, keep the handle itself.
    """

    __slots__ = ("_handles", "_metric", "_resolve")

    def __init__(self, metric: Metric, resolve: _Resolve[H]) -> None:
        self._metric: Final = metric
        self._resolve: Final[_Resolve[H]] = resolve
        self._handles: Final[dict[tuple[str, ...], H]] = {}

    def labels(self, *values: str) -> H:
        """The handle of ``values``, in the catalogue's order of labels."""
        handle = self._handles.get(values)
        if handle is None:
            if len(values) != len(self._metric.labels):
                raise LookupError(f"{self._metric.name} has the labels {self._metric.labels}")
            handle, own = self._resolve(self._metric, values)
            # What went to `other` is not remembered, or this would grow with every value.
            if own:
                self._handles[values] = handle
        return handle


class LocalMetrics:
    """What one process counts into. Handles are resolved once and kept by their users.

    Every method raises ``LookupError`` for a name, a kind or labels that are not in the catalogue.
    """

    def __init__(self, registry: Registry, block: _Block) -> None:
        self._registry: Final = registry
        self._block: Final = block
        self._handles: Final[dict[_Key, _Handle]] = {}
        self._bounds: Final[dict[str, memoryview[float]]] = {}
        registry.refresh()
        self._slot_of: Final = {(s.metric.name, *s.values): s.first_slot for s in block.series}
        self._clear_gauges()

    def counter(self, name: str, **labels: str) -> Counter:
        metric = find(name, "counter")
        return cast("Counter", self._resolve(metric, _in_order(metric, labels))[0])

    def gauge(self, name: str, **labels: str) -> Gauge | StampedGauge:
        metric = find(name, "gauge")
        return cast("Gauge | StampedGauge", self._resolve(metric, _in_order(metric, labels))[0])

    def histogram(self, name: str, **labels: str) -> Histogram:
        metric = find(name, "histogram")
        return cast("Histogram", self._resolve(metric, _in_order(metric, labels))[0])

    def retire(self, name: str, *values: str) -> None:
        """The subject of this gauge is gone: no more to be scraped from here.

        The next look-up of the same labels brings it back, at 0; handles that were resolved before
        are void. A gauge that was never looked up, or went to ``other``, is left alone.
        """
        metric = find(name, "gauge")
        handle = self._handles.pop(_key(metric, values), None)
        if handle is not None:
            cast("Gauge | StampedGauge", handle).set(_ABSENT)

    def counters(self, name: str) -> Family[Counter]:
        """A counter's series by label values."""
        return Family(find(name, "counter"), cast("_Resolve[Counter]", self._resolve))

    def gauges(self, name: str) -> Family[Gauge | StampedGauge]:
        """A gauge's series by label values."""
        return Family(find(name, "gauge"), cast("_Resolve[Gauge | StampedGauge]", self._resolve))

    def histograms(self, name: str) -> Family[Histogram]:
        """A histogram's series by label values."""
        return Family(find(name, "histogram"), cast("_Resolve[Histogram]", self._resolve))

    def _resolve(self, metric: Metric, values: tuple[str, ...]) -> tuple[_Handle, bool]:
        """The handle of one series, and whether it is its own (not the overflow series)."""
        key = _key(metric, values)
        handle = self._handles.get(key)
        if handle is not None:
            return handle, True
        if key not in self._slot_of and not self._fits(metric, key):
            self.counter(_OVERFLOWS.name, metric=metric.name).inc()
            return self._keep(metric, _overflow_key(metric)), False
        return self._keep(metric, key), True

    def _keep(self, metric: Metric, key: _Key) -> _Handle:
        handle = self._handles.get(key)
        if handle is None:
            slot = self._slot_of.get(key)
            if slot is None:
                slot = self._slot_of[key] = self._block.append(metric, key)
                self._registry.refresh()
            handle = self._handles[key] = self._make(metric, slot)
        return handle

    def _fits(self, metric: Metric, key: _Key) -> bool:
        if not metric.labels or metric is _OVERFLOWS:
            return True  # in the reserve
        if self._block.free() - _cost(metric, key) < _RESERVE:
            return False
        return self._registry.admits(metric, key)

    def _make(self, metric: Metric, slot: int) -> _Handle:
        slots = self._block.slots
        if metric.kind == "counter":
            return Counter(slots, slot)
        if metric.kind == "gauge":
            if math.isnan(slots[slot]):
                slots[slot] = 0.0
            return (StampedGauge if metric.aggregation == "last" else Gauge)(slots, slot)
        bounds = self._bounds.get(metric.name)
        if bounds is None:
            bounds = self._bounds[metric.name] = memoryview(array("d", metric.buckets))
        return Histogram(slots, slot, bounds)

    def _clear_gauges(self) -> None:
        for series in self._block.series:
            if series.metric.kind == "gauge":
                for index in range(_width(series.metric)):
                    self._block.slots[series.first_slot + index] = 0.0
                if series.metric.labels:
                    self._block.slots[series.first_slot] = _ABSENT


def _in_order(metric: Metric, labels: Mapping[str, str]) -> tuple[str, ...]:
    if len(labels) != len(metric.labels) or not all(name in labels for name in metric.labels):
        raise LookupError(f"{metric.name} has the labels {metric.labels}, not {tuple(labels)}")
    return tuple([labels[name] for name in metric.labels])


class Registry:
    """The blocks of one service's workers and of its supervisor.

    Made in the supervisor over anonymous shared memory, inherited by every fork. Pages that nothing
    was counted into cost no memory.
    """

    def __init__(
        self,
        workers: int,
        bytes_per_worker: int = 1 << 20,
        *,
        max_series: Mapping[str, int] | None = None,
    ) -> None:
        """``max_series``: metric name → distinct label sets, where the catalogue's bound is not
        wanted (``metrics.max_address_labels``)."""
        if workers < 1:
            raise ValueError(f"workers: expected at least 1, got {workers}")
        if bytes_per_worker < MIN_BLOCK_BYTES:
            raise ValueError(
                f"bytes_per_worker: expected at least {MIN_BLOCK_BYTES}, got {bytes_per_worker}"
            )
        # Whole pages, so that no cache line has two writers.
        size = -(-bytes_per_worker // mmap.PAGESIZE) * mmap.PAGESIZE
        self.workers: Final = workers
        self._memory: Final = mmap.mmap(-1, size * (workers + 1))
        #: Traces of requests beside the histograms; filled by an ``ExemplarSink``.
        self.exemplars: Final = ExemplarMemory(workers)
        view = memoryview(self._memory)
        self._blocks: Final = [_Block(view[i * size : (i + 1) * size]) for i in range(workers + 1)]
        self._known: Final[dict[str, set[tuple[str, ...]]]] = {name: set() for name in CATALOGUE}
        self._max_series: Final = dict(max_series or {})
        for name in self._max_series:
            if name not in CATALOGUE:
                raise LookupError(f"{name} is not in nexus/observability/catalogue.py")

    def open(self, index: int) -> LocalMetrics:
        """The block of worker ``index``, for writing; at most one process at a time may hold it."""
        if not 0 <= index < self.workers:
            raise IndexError(f"worker index: expected 0 to {self.workers - 1}, got {index}")
        return LocalMetrics(self, self._blocks[index])

    def open_supervisor(self) -> LocalMetrics:
        """The supervisor's own block, for writing."""
        return LocalMetrics(self, self._blocks[self.workers])

    def admits(self, metric: Metric, key: tuple[str, ...]) -> bool:
        """Whether one more label set of ``metric`` is within its bound, over all workers.

        A set that another worker has already is always admitted. Two workers that race may exceed
        the bound, by at most one set for each worker.
        """
        self.refresh()
        known = self._known[metric.name]
        bound = self._max_series.get(metric.name, metric.max_series)
        return len(known) < bound or key[1:] in known

    def refresh(self) -> None:
        """Take in the series that other processes have added; costs little when there are none."""
        for block in self._blocks:
            for series in block.refresh():
                if series.values != _overflow_key(series.metric)[1:]:
                    self._known[series.metric.name].add(series.values)

    def read(self) -> Iterator[tuple[str, Series, list[float]]]:
        """Every series of every block: worker ("0", "1", …, "supervisor"), series, its numbers."""
        self.refresh()
        for index, block in enumerate(self._blocks):
            worker = str(index) if index < self.workers else "supervisor"
            slots = block.slots
            for series in block.series:
                first = series.first_slot
                if math.isnan(slots[first]) and series.metric.kind == "gauge":
                    continue
                numbers = slots[first : first + _width(series.metric)]
                # typeshed knows no views of doubles here
                yield worker, series, numbers.tolist()  # type: ignore[misc]
