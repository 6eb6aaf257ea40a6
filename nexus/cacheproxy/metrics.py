"""From the plane's plain counters to the registry; once per tick, never per command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from nexus._speedups.counters import Counter
    from nexus.cacheproxy.local import LocalCommands
    from nexus.cacheproxy.pools import Pools
    from nexus.observability.registry import LocalMetrics

__all__ = ["Publisher"]


class Publisher:
    """Adds what changed since the last :meth:`publish` to the worker's metrics."""

    def __init__(self, metrics: LocalMetrics, pools: Pools, local: LocalCommands) -> None:
        self._pools: Final = pools
        self._local: Final = local
        commands = metrics.counters("nexus_cache_commands_total")
        closed = metrics.counters("nexus_cache_clients_closed_total")
        lost = metrics.counters("nexus_cache_upstream_lost_total")
        passed = metrics.counters("nexus_cache_bytes_total")
        self._counters: Final[tuple[tuple[Callable[[], int], Counter], ...]] = (
            (lambda: pools.plane.shared_commands, commands.labels("all", "forwarded")),
            (lambda: pools.plane.pinned_commands, commands.labels("all", "pinned")),
            (lambda: pools.plane.local_commands, commands.labels("all", "local")),
            (lambda: pools.plane.failed_commands, commands.labels("all", "error")),
            (lambda: local.stats.accepted, metrics.counter("nexus_cache_clients_total")),
            (lambda: local.stats.refused, closed.labels("max_clients")),
            (lambda: local.stats.protocol_errors, closed.labels("protocol_error")),
            (lambda: local.stats.idle_closed, closed.labels("idle")),
            (lambda: pools.plane.output_limit_kills, closed.labels("output_limit")),
            (lambda: local.stats.lost_shared, lost.labels("shared")),
            (lambda: local.stats.lost_pinned, lost.labels("pinned")),
            (
                lambda: local.stats.pins,
                metrics.counter("nexus_cache_pins_total", reason="command"),
            ),
            (lambda: pools.plane.client_bytes_in, passed.labels("client_in")),
            (lambda: pools.plane.client_bytes_out, passed.labels("client_out")),
            (lambda: pools.plane.upstream_bytes_in, passed.labels("upstream_in")),
            (lambda: pools.plane.upstream_bytes_out, passed.labels("upstream_out")),
        )
        self._published: Final = [0] * len(self._counters)
        links = metrics.gauges("nexus_cache_upstream_connections")
        self._links: Final = {
            kind: links.labels(kind) for kind in ("shared", "shared_down", "pinned", "warm")
        }
        clients = metrics.gauges("nexus_cache_clients")
        self._shared_clients: Final = clients.labels("shared")
        self._pinned_clients: Final = clients.labels("pinned")
        self._latency: Final = metrics.histogram(
            "nexus_cache_command_duration_ms", outcome="forwarded"
        )

    def observe(self, seconds: float) -> None:
        """One sampled command: written to Redis → its reply read."""
        self._latency.observe(seconds * 1000)

    def publish(self) -> None:
        """Bring the registry up to date."""
        for index, (read, counter) in enumerate(self._counters):
            value = read()
            if value != self._published[index]:
                counter.inc(value - self._published[index])
                self._published[index] = value
        links = self._pools.stats()
        for kind, gauge in self._links.items():
            gauge.set(links[kind])
        pinned = links["pinned"]
        self._pinned_clients.set(pinned)
        self._shared_clients.set(max(len(self._pools.sessions) - pinned, 0))
