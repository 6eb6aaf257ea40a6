"""The bulkheads of one worker, one for each upstream group that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus.policy.bulkhead import Bulkhead

if TYPE_CHECKING:
    from nexus.gateway.settings import GatewaySettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["Bulkheads"]


class Bulkheads:
    """Each worker has its part of a group's places, rounded up."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._groups: dict[str, Bulkhead] = {}

    def of(self, group: str) -> Bulkhead:
        """The group's bulkhead."""
        found = self._groups.get(group)
        if found is None:
            found = self._groups[group] = Bulkhead(*self._numbers(group))
        return found

    def configure(self, settings: GatewaySettings) -> None:
        """Apply new settings; who is inside or waits stays."""
        self._settings = settings
        for group, bulkhead in self._groups.items():
            bulkhead.configure(*self._numbers(group))

    @property
    def needed(self) -> bool:
        """Whether any group is limited."""
        settings = self._settings.bulkhead
        return bool(settings.max_concurrent) or any(
            one.max_concurrent for one in settings.groups.values()
        )

    def report(self, metrics: LocalMetrics) -> None:
        """Renew the gauges."""
        for group, bulkhead in self._groups.items():
            metrics.gauge("nexus_bulkhead_active", group=group).set(bulkhead.active)
            metrics.gauge("nexus_bulkhead_waiting", group=group).set(bulkhead.waiting)

    def _numbers(self, group: str) -> tuple[int, int, int]:
        base = self._settings.bulkhead
        own = base.groups.get(group)
        limit, queue, wait = base.max_concurrent, base.queue_size, base.wait_ms
        if own is not None:
            limit = limit if own.max_concurrent is None else own.max_concurrent
            queue = queue if own.queue_size is None else own.queue_size
            wait = wait if own.wait_ms is None else own.wait_ms
        workers = self._settings.workers
        return -(-limit // workers), -(-queue // workers), wait * 1_000_000
