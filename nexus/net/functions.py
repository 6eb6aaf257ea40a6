"""``tracing.functions`` of a service: functions inside a worker whose calls are spans."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Final

from nexus import tracing
from nexus.observability.otlp import TracingConfig, resolve
from nexus.observability.registry import LocalMetrics
from nexus.observability.sampling import Sampling

__all__ = ["FunctionTraces", "check_functions"]

#: Seconds for the last spans when a worker ends or the setting changes.
_CLOSE_SECONDS: Final = 2.0


def check_functions(names: Sequence[str]) -> None:
    """Raises ``ConfigError`` for a name that is not ``module:pattern``, does not exist or is
    compiled."""
    for name in names:
        tracing.instrument_named(name).undo()


class FunctionTraces:
    """Records the calls of ``names`` from its making on, until :meth:`stop`."""

    def __init__(
        self,
        names: Sequence[str],
        config: TracingConfig,
        sampling: Sampling,
        metrics: LocalMetrics,
        worker: int,
    ) -> None:
        """On the running loop. Raises ``ConfigError`` as :func:`check_functions`."""
        self._loop: Final = asyncio.get_running_loop()
        self._made: Final = metrics.counter("nexus_trace_spans_total")
        self._exported: Final = metrics.counter("nexus_trace_spans_exported_total")
        self._dropped: Final = metrics.counters("nexus_trace_spans_dropped_total")
        self._exports: Final = metrics.counters("nexus_trace_exports_total")
        self._done: Final = [tracing.instrument_named(name) for name in names]
        tracing.enable(
            options=resolve(config, os.environ, worker=worker),
            sampling=sampling,
            report=self._report,
        )

    async def stop(self) -> None:
        """Undo it; what has ended is sent first."""
        for done in self._done:
            done.undo()
        await asyncio.to_thread(tracing.disable, _CLOSE_SECONDS)

    def _report(self, what: str, label: str, count: int) -> None:
        """From the exporter's thread; counters have one writer, the loop."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._count, what, label, count)

    def _count(self, what: str, label: str, count: int) -> None:
        if what == "made":
            self._made.inc(count)
        elif what == "exported":
            self._exported.inc(count)
        elif what == "dropped":
            self._dropped.labels(label).inc(count)
        else:
            self._exports.labels(label).inc(count)
