"""The near-cache's counters, in the registry and in ``NEXUS STATS``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nexus.cacheproxy.commandgroups import GROUPS
from nexus.cacheproxy.near import AGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from nexus._speedups.counters import Counter
    from nexus.cacheproxy.nearcache import NearCache
    from nexus.observability.registry import LocalMetrics

__all__ = ["LINES", "NearMetrics"]

_READS: Final = "nexus_cache_near_reads_total"
_FILLS: Final = "nexus_cache_near_fills_total"
_DROPPED: Final = "nexus_cache_near_dropped_total"
_STALENESS: Final = "nexus_cache_near_staleness_total"
_WAITS: Final = "nexus_cache_near_waits_total"

#: Why replies that were asked for were not kept.
DISCARDS: Final = ("changed", "absent", "expired", "error", "too_big", "lost")
#: Rows of the command counts → outcome.
_ROWS: Final = {4: "hit", 5: "coalesced"}

#: Line of ``NEXUS STATS`` → metric and label values, summed over all workers.
LINES: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("near_hits", (_READS, "hit")),
    ("near_coalesced", (_READS, "coalesced")),
    ("near_misses", (_READS, "miss")),
    ("near_bypassed", (_READS, "bypassed")),
    ("near_fills", (_FILLS, "asked")),
    ("near_fills_kept", (_FILLS, "kept")),
    *((f"near_fills_{reason}", (_FILLS, reason)) for reason in DISCARDS),
    ("near_dropped_push", (_DROPPED, "push")),
    ("near_dropped_flush", (_DROPPED, "flush")),
    ("near_dropped_write", (_DROPPED, "write")),
    ("near_dropped_lost", (_DROPPED, "lost")),
    ("near_dropped_expired", (_DROPPED, "expired")),
    ("near_evictions", (_DROPPED, "evicted")),
    ("near_waits", (_WAITS, "held")),
    ("near_waits_late", (_WAITS, "late")),
    ("near_shadow_compared", ("nexus_cache_near_shadow_total", "compared")),
    ("near_shadow_differed", ("nexus_cache_near_shadow_total", "differed")),
    ("near_fences", ("nexus_cache_near_fences_total",)),
    ("near_touched", ("nexus_cache_near_touched_total",)),
    ("near_entries", ("nexus_cache_near_entries",)),
    ("near_bytes", ("nexus_cache_near_bytes",)),
    ("near_connections", ("nexus_cache_near_connections", "tracked")),
    ("near_connections_refused", ("nexus_cache_near_connections", "refused")),
    ("near_connections_lost", ("nexus_cache_near_lost_total", "lost")),
    ("near_connections_stalled", ("nexus_cache_near_lost_total", "stalled")),
)


class NearMetrics:
    """Adds what changed since the last :meth:`publish` to the worker's metrics."""

    def __init__(self, metrics: LocalMetrics, near: NearCache) -> None:
        self._near: Final = near
        core, table = near.core, near.core.table
        reads = metrics.counters(_READS)
        fills = metrics.counters(_FILLS)
        dropped = metrics.counters(_DROPPED)
        waits = metrics.counters(_WAITS)
        lost = metrics.counters("nexus_cache_near_lost_total")
        compared = metrics.counters("nexus_cache_near_shadow_total")
        staleness = metrics.counters(_STALENESS)
        self._counters: Final[tuple[tuple[Callable[[], int], Counter], ...]] = (
            (lambda: core.hits, reads.labels("hit")),
            (lambda: core.joined, reads.labels("coalesced")),
            (lambda: core.misses, reads.labels("miss")),
            (lambda: core.bypassed, reads.labels("bypassed")),
            (lambda: core.fills, fills.labels("asked")),
            (lambda: core.committed, fills.labels("kept")),
            *((_reader(near, reason), fills.labels(reason)) for reason in DISCARDS),
            (lambda: core.dropped_push, dropped.labels("push")),
            (lambda: core.dropped_null, dropped.labels("flush")),
            (lambda: core.dropped_write, dropped.labels("write")),
            (lambda: core.dropped_lost, dropped.labels("lost")),
            (lambda: table.expired, dropped.labels("expired")),
            (lambda: table.evictions, dropped.labels("evicted")),
            (lambda: core.waited, waits.labels("held")),
            (lambda: core.late, waits.labels("late")),
            (lambda: core.fences, metrics.counter("nexus_cache_near_fences_total")),
            (lambda: core.touches, metrics.counter("nexus_cache_near_touched_total")),
            (lambda: core.compared, compared.labels("compared")),
            (lambda: core.differed, compared.labels("differed")),
            (lambda: near.lost, lost.labels("lost")),
            (lambda: near.stalls, lost.labels("stalled")),
            *(
                (_bucket(near, index), staleness.labels(bound))
                for index, bound in enumerate([*(f"{age * 1000:g}" for age in AGES), "+Inf"])
            ),
        )
        self._published: Final = [0] * len(self._counters)
        self._commands: Final = metrics.counters("nexus_cache_commands_total")
        self._counted: Final = {row: [0] * len(GROUPS) for row in _ROWS}
        self._entries: Final = metrics.gauge("nexus_cache_near_entries")
        self._bytes: Final = metrics.gauge("nexus_cache_near_bytes")
        connections = metrics.gauges("nexus_cache_near_connections")
        self._tracked: Final = connections.labels("tracked")
        self._refused: Final = connections.labels("refused")
        fence = metrics.histogram("nexus_cache_near_fence_duration_seconds")
        core.observe_fence = fence.observe

    def publish(self) -> None:
        """Bring the registry up to date."""
        for index, (read, counter) in enumerate(self._counters):
            value = read()
            if value != self._published[index]:
                counter.inc(value - self._published[index])
                self._published[index] = value
        core = self._near.core
        for row, outcome in _ROWS.items():
            before = self._counted[row]
            counts = core.commands.counts(row)
            for index, group in enumerate(GROUPS):
                if counts[index] != before[index]:
                    self._commands.labels(group, outcome).inc(counts[index] - before[index])
                    before[index] = counts[index]
        self._entries.set(core.table.entries)
        self._bytes.set(core.table.bytes)
        trackers = self._near.trackers.values()
        self._tracked.set(sum(tracker.source.up for tracker in trackers))
        self._refused.set(sum(bool(tracker.refusal) for tracker in trackers))


def _reader(near: NearCache, reason: str) -> Callable[[], int]:
    return lambda: near.core.discarded.get(reason, 0)


def _bucket(near: NearCache, index: int) -> Callable[[], int]:
    return lambda: int(near.core.ages[index])
