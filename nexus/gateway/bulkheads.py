"""The bulkheads of one worker, one for each upstream group; places and queue are all workers'.

A place that becomes free goes to whoever has waited longest in any worker: that one is woken
through an event descriptor, which all workers inherit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from nexus.policy.bulkhead import Bulkhead
from nexus.policy.places import PlaceTable

if TYPE_CHECKING:
    from nexus.gateway.settings import GatewaySettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["BulkheadMemory", "Bulkheads"]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):  # of another user: the number was given anew
        return False
    return True


class BulkheadMemory:
    """What the workers share; make it once, before the fork."""

    def __init__(self, workers: int) -> None:
        self.table: Final = PlaceTable(workers, _runs)
        self.bells: Final = [
            os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(workers)
        ]


class Bulkheads:
    """Made by a worker as it begins."""

    def __init__(self, settings: GatewaySettings, memory: BulkheadMemory, worker: int) -> None:
        self._settings = settings
        self._memory: Final = memory
        self._worker: Final = worker
        self._groups: dict[str, Bulkhead] = {}
        memory.table.adopt(worker, os.getpid())

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear the bell."""
        loop.add_reader(self._memory.bells[self._worker], self._rung)

    def stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear it no more."""
        loop.remove_reader(self._memory.bells[self._worker])

    def of(self, group: str) -> Bulkhead:
        """The group's bulkhead."""
        found = self._groups.get(group)
        if found is None:
            places = self._memory.table.places(group, self._worker)
            if places is None:  # more groups than rows: this one is counted in each worker alone
                places = PlaceTable(1, _runs, 1).places(group, 0)
                assert places is not None  # noqa: S101  (it has one row)
            found = self._groups[group] = Bulkhead(places, *self._numbers(group), self._ring)
        return found

    def configure(self, settings: GatewaySettings) -> None:
        """Apply new settings; who is inside or waits stays."""
        self._settings = settings
        for group, bulkhead in self._groups.items():
            bulkhead.configure(*self._numbers(group))

    def tick(self, now: int) -> None:
        """Look after those who wait: a bell is not heard by who died, or rung too early."""
        for bulkhead in self._groups.values():
            if bulkhead.waiting:
                bulkhead.admit(now)

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

    def _ring(self, worker: int) -> None:
        with contextlib.suppress(BlockingIOError):  # it rings already
            os.eventfd_write(self._memory.bells[worker], 1)

    def _rung(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._memory.bells[self._worker])
        self.tick(monotonic_ns())

    def _numbers(self, group: str) -> tuple[int, int, int]:
        base = self._settings.bulkhead
        own = base.groups.get(group)
        limit, queue, wait = base.max_concurrent, base.queue_size, base.wait_ms
        if own is not None:
            limit = limit if own.max_concurrent is None else own.max_concurrent
            queue = queue if own.queue_size is None else own.queue_size
            wait = wait if own.wait_ms is None else own.wait_ms
        return limit, queue, wait * 1_000_000
