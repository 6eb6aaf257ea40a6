"""From the worker's plain counters to the registry; once per tick, never per command.

The registry is memory that all workers share, and totals there survive a worker: ``NEXUS STATS``
reads it, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nexus.cacheproxy.commandgroups import GROUPS
from nexus.cacheproxy.nearmetrics import NearMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from nexus._speedups.counters import Counter
    from nexus.cacheproxy.counts import Stats
    from nexus.cacheproxy.policies import Policies
    from nexus.cacheproxy.pools import Pools
    from nexus.observability.registry import LocalMetrics, Registry

__all__ = ["OUTCOMES", "Publisher", "Totals"]

#: Outcome of each row of the command counts.
OUTCOMES: Final = ("forwarded", "pinned", "local")

#: (metric, label values …) → sum over all workers.
Totals = dict[tuple[str, ...], float]


class Publisher:
    """Adds what changed since the last :meth:`publish` to the worker's metrics."""

    def __init__(
        self,
        registry: Registry,
        metrics: LocalMetrics,
        pools: Pools,
        stats: Stats,
        policies: Policies,
    ) -> None:
        self._registry: Final = registry
        self._pools: Final = pools
        plane = pools.plane
        closed = metrics.counters("nexus_cache_clients_closed_total")
        lost = metrics.counters("nexus_cache_upstream_lost_total")
        passed = metrics.counters("nexus_cache_bytes_total")
        errors = metrics.counters("nexus_cache_errors_total")
        pins = metrics.counters("nexus_cache_pins_total")
        reconnects = metrics.counter("nexus_cache_reconnects_total")
        reloads = metrics.counters("nexus_cache_policy_reloads_total")
        prolonged = metrics.counters("nexus_cache_hot_keys_prolonged_total")
        self._counters: tuple[tuple[Callable[[], int], Counter], ...] = (
            (lambda: stats.accepted, metrics.counter("nexus_cache_clients_total")),
            (lambda: stats.refused, closed.labels("max_clients")),
            (lambda: stats.protocol_errors, closed.labels("protocol_error")),
            (lambda: stats.idle_closed, closed.labels("idle")),
            (lambda: plane.output_limit_kills, closed.labels("output_limit")),
            (lambda: stats.lost["shared"], lost.labels("shared")),
            (lambda: stats.lost["pinned"], lost.labels("pinned")),
            (lambda: stats.reconnects, reconnects),
            (lambda: stats.retired, metrics.counter("nexus_cache_retired_connections_total")),
            (lambda: stats.pins_opened, pins.labels("opened")),
            (lambda: stats.pins_reused, pins.labels("reused")),
            (lambda: stats.pins_refused, pins.labels("refused")),
            (lambda: plane.refused_commands, errors.labels("refused")),
            (lambda: plane.lost_commands, errors.labels("lost")),
            (lambda: stats.tagged, metrics.counter("nexus_cache_tagged_keys_total")),
            (lambda: stats.invalidations, metrics.counter("nexus_cache_invalidations_total")),
            (lambda: stats.invalidated, metrics.counter("nexus_cache_invalidated_keys_total")),
            (lambda: stats.tags_refused, metrics.counter("nexus_cache_tags_refused_total")),
            (lambda: stats.extended, prolonged.labels("prolonged")),
            (lambda: stats.extensions_refused, prolonged.labels("refused")),
            (lambda: policies.applied, reloads.labels("applied")),
            (lambda: policies.refused, reloads.labels("refused")),
            (lambda: plane.client_bytes_in, passed.labels("client_in")),
            (lambda: plane.client_bytes_out, passed.labels("client_out")),
            (lambda: plane.upstream_bytes_in, passed.labels("upstream_in")),
            (lambda: plane.upstream_bytes_out, passed.labels("upstream_out")),
        )
        self._near: Final = NearMetrics(metrics, pools.near)
        leases = pools.near.leases
        counts = leases.counts
        ends = metrics.counters("nexus_cache_leases_total")
        waits = metrics.counters("nexus_cache_lease_waits_total")
        guard = leases.guard
        fills = metrics.counters("nexus_cache_lease_fills_total")
        self._counters += (
            (lambda: counts.granted, ends.labels("granted")),
            (lambda: counts.early, ends.labels("early")),
            (lambda: counts.written, ends.labels("written")),
            (lambda: counts.handed_over, ends.labels("handed_over")),
            (lambda: counts.expired, ends.labels("expired")),
            (lambda: leases.lock_failures, ends.labels("lock_failed")),
            (lambda: counts.waited, waits.labels("held")),
            (lambda: counts.served, waits.labels("served")),
            (lambda: counts.released_late, waits.labels("released_late")),
            (lambda: counts.released_early, waits.labels("released_early")),
            (lambda: counts.not_leased, waits.labels("not_leased")),
            (lambda: leases.stale_served, waits.labels("stale")),
            (lambda: guard.stored, fills.labels("stored")),
            (lambda: guard.refused, fills.labels("refused")),
            (lambda: guard.unguarded, fills.labels("unguarded")),
        )
        self._waiting: Final = metrics.gauge("nexus_cache_lease_waiting")
        self._published: Final = [0] * len(self._counters)
        self._commands: Final = metrics.counters("nexus_cache_commands_total")
        self._counted: Final = [[0] * len(GROUPS) for _ in OUTCOMES]
        links = metrics.gauges("nexus_cache_upstream_connections")
        self._links: Final = {
            kind: links.labels(kind) for kind in ("shared", "shared_down", "pinned", "warm")
        }
        self._policies: Final = policies
        self._rules: Final = metrics.gauge("nexus_cache_policy_rules")
        clients = metrics.gauges("nexus_cache_clients")
        self._shared_clients: Final = clients.labels("shared")
        self._pinned_clients: Final = clients.labels("pinned")
        latency = metrics.histograms("nexus_cache_command_duration_seconds")
        self._forwarded: Final = latency.labels("forwarded")
        self._pinned: Final = latency.labels("pinned")

    def observe_shared(self, seconds: float) -> None:
        """One sampled command on a shared connection: written to Redis → its reply read."""
        self._forwarded.observe(seconds)

    def observe_pinned(self, seconds: float) -> None:
        """The same on a dedicated one; a blocking command's wait is part of it."""
        self._pinned.observe(seconds)

    def publish(self) -> None:
        """Bring the registry up to date."""
        self._near.publish()
        for index, (read, counter) in enumerate(self._counters):
            value = read()
            if value != self._published[index]:
                counter.inc(value - self._published[index])
                self._published[index] = value
        for row, outcome in enumerate(OUTCOMES):
            self._publish_row(outcome, self._pools.plane.table.counts(row), self._counted[row])
        self._waiting.set(self._pools.near.leases.held)
        book = self._policies.current
        self._rules.set(0 if book is None else len(book.rules))
        links = self._pools.links()
        for kind, gauge in self._links.items():
            gauge.set(links[kind])
        pinned = links["pinned"]
        self._pinned_clients.set(pinned)
        self._shared_clients.set(max(len(self._pools.sessions) - pinned, 0))

    def _publish_row(self, outcome: str, now: list[int], before: list[int]) -> None:
        for index, group in enumerate(GROUPS):
            if now[index] != before[index]:
                self._commands.labels(group, outcome).inc(now[index] - before[index])
                before[index] = now[index]

    def totals(self) -> Totals:
        """Counters and gauges summed over all workers; the others' are at most a tick old."""
        self.publish()
        totals: Totals = {}
        for _worker, series, numbers in self._registry.read():
            if series.metric.kind != "histogram":
                key = (series.metric.name, *series.values)
                totals[key] = totals.get(key, 0.0) + numbers[0]
        return totals
