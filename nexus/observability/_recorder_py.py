# cython: annotation_typing=False
"""Request records: a bounded ring in front of everything that is written about a request.

::

    session ── append(record) ──► ring ── every 50 ms or 64 records ──► sink.consume([...])
                (one list append)                                       access log, spans,
                                                                        telemetry, events

The request path pays for one append. Encoding happens in batches, on the loop, at most 512 records
in one turn; a full ring drops and counts. A batch is small enough that its records are still in
the processor's cache when they are read, and their memory is still there when it is used again.

One source, compiled as ``_recorder_c``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from nexus.observability.record import RequestRecord
    from nexus.observability.registry import LocalMetrics

__all__ = ["BATCH_RECORDS", "INTERVAL_SECONDS", "ManagedSink", "Recorder", "Sink"]

#: Records handed over at once: some 100 KiB of memory.
BATCH_RECORDS: Final = 64

#: Records handed over in one turn of the loop: some milliseconds of encoding.
TURN_RECORDS: Final = 512

#: Longest wait of a record in the ring: below what anybody watching a log notices.
INTERVAL_SECONDS: Final = 0.05

#: Records kept: with 512 in a turn, more than the loop can be behind.
CAPACITY: Final = 65_536

log = logging.getLogger("nexus.recorder")


class Sink(Protocol):
    """Takes batches of records. Must not block; keeps no reference to the list."""

    def consume(self, records: list[RequestRecord]) -> None: ...


@runtime_checkable
class ManagedSink(Protocol):
    """A sink with a life of its own; the recorder starts and stops it."""

    def consume(self, records: list[RequestRecord]) -> None: ...

    async def start(self) -> None: ...

    async def stop(self, deadline_seconds: float) -> None: ...


class Recorder:
    """The ring and its drain. One for each worker, used from its event loop alone."""

    def __init__(
        self, sinks: Sequence[Sink], *, capacity: int = CAPACITY, metrics: LocalMetrics
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, got {capacity}")
        self._sinks = tuple(sinks)
        self._capacity = capacity
        self._ring: list[RequestRecord] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._armed: asyncio.Handle | None = None
        self._urgent = False
        self._dropped = metrics.counter("nexus_records_dropped_total")
        self._errors = {
            sink: metrics.counter("nexus_sink_errors_total", sink=type(sink).__name__)
            for sink in self._sinks
        }
        self._failing: set[Sink] = set()

    async def start(self) -> None:
        """Start the sinks, and draining; records that were appended before are kept."""
        for sink in self._sinks:
            if isinstance(sink, ManagedSink):
                await sink.start()
        self._loop = asyncio.get_running_loop()
        if self._ring:
            self._schedule(True)

    def append(self, record: RequestRecord) -> None:
        """Take ``record``; never raises or blocks. The caller gives it up."""
        ring = self._ring
        waiting = len(ring)
        if waiting >= self._capacity:
            self._dropped.inc(1.0)
            return
        ring.append(record)
        # The two moments at which something must be scheduled; between them nothing is.
        if waiting == 0:
            self._schedule(False)
        elif waiting >= BATCH_RECORDS and not self._urgent:
            self._schedule(True)

    async def stop(self, deadline_seconds: float) -> None:
        """Hand over what is left and stop the sinks, within ``deadline_seconds``.

        A record that comes later is dropped and counted.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_seconds
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        while self._ring and loop.time() < deadline:
            self._hand_over()
            await asyncio.sleep(0)
        if self._ring:
            self._dropped.inc(len(self._ring))
            self._ring.clear()
        self._loop = None
        self._capacity = 0
        stops = [
            sink.stop(max(0.0, deadline - loop.time()))
            for sink in self._sinks
            if isinstance(sink, ManagedSink)
        ]
        for result in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("a sink did not stop", exc_info=result)

    def _schedule(self, urgent: bool) -> None:
        loop = self._loop
        if loop is None:
            return
        if self._armed is not None:
            self._armed.cancel()
        self._urgent = urgent
        if urgent:
            self._armed = loop.call_soon(self._drain)
        else:
            self._armed = loop.call_later(INTERVAL_SECONDS, self._drain)

    def _drain(self) -> None:
        self._armed = None
        self._urgent = False
        handed = self._hand_over()
        while len(self._ring) >= BATCH_RECORDS and handed < TURN_RECORDS:
            handed += self._hand_over()
        if self._ring:
            self._schedule(len(self._ring) >= BATCH_RECORDS)

    def _hand_over(self) -> int:
        """How many records were handed over."""
        batch = self._ring[:BATCH_RECORDS]
        if not batch:
            return 0
        del self._ring[:BATCH_RECORDS]
        for sink in self._sinks:
            try:
                sink.consume(batch)
            except Exception:
                self._errors[sink].inc()
                if sink not in self._failing:
                    self._failing.add(sink)
                    log.exception("sink failed", extra={"sink": type(sink).__name__})
            else:
                self._failing.discard(sink)
        return len(batch)
