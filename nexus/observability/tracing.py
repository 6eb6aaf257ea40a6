"""Tracing: which requests become spans, and the way of the spans to the collector.

::

    recorder ── batch of records ──► SpanSink.consume ──► queue (2048 spans) ──► tasks
                                     keeps sampled ones,                          every 500 ms or
                                     errors, slow ones                            512 spans: encode,
                                                                                  POST, retry

Everything here runs behind the recorder, off the request path. Up to four batches are on their way
at once: what one can carry is 512 spans in the time of one exchange with the collector, which on a
busy loop, or to a collector that is far away, is too few (OTLP asks for concurrent requests there:
https://opentelemetry.io/docs/specs/otlp/#otlpgrpc-concurrent-requests, and the same over HTTP).
Every span that is made is accounted for: ``nexus_trace_spans_total`` = exported + dropped (by
reason) + queued + on their way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from nexus._speedups import BACKEND
from nexus.observability.otlp import (
    EXPORTS,
    ExportOptions,
    ExportResult,
    OtlpClient,
    TracingConfig,
    resolve,
)
from nexus.observability.record import picked
from nexus.observability.registry import LocalMetrics
from nexus.observability.spans import SpanEncoder, span_count
from nexus.observability.tracecontext import (
    Sampler,
    format_traceparent,
    new_span_id,
    new_trace_id,
    parse_traceparent,
    parse_tracestate,
)

__all__ = [
    "Sampler",
    "SpanSink",
    "TracingConfig",
    "format_traceparent",
    "new_span_id",
    "new_trace_id",
    "parse_traceparent",
    "parse_tracestate",
]

#: Records encoded in one turn of the loop, about a millisecond.
_ENCODE_RECORDS: Final = 32 if BACKEND == "pure" else 256

#: Unsampled requests that took longer are traced all the same; nanoseconds.
SLOW_NS: Final = 1_000_000_000

log = logging.getLogger("nexus.tracing")


class Encoder(Protocol):
    """Turns records into an ``ExportTraceServiceRequest``."""

    def encode(self, records: list[Any], /) -> bytes: ...


def _of_requests(options: ExportOptions) -> Encoder:
    encoder: Encoder = SpanEncoder(options.resource, semconv=options.semconv)
    return encoder


class SpanSink:
    """A recorder sink that exports spans over OTLP/HTTP.

    Of requests, or of whatever ``encoder`` encodes, of which each is ``count`` spans.
    """

    def __init__(
        self,
        settings: TracingConfig,
        metrics: LocalMetrics,
        *,
        environ: Mapping[str, str] = os.environ,
        worker: int | None = None,
        keep_errors: bool = True,
        slow_ns: int = SLOW_NS,
        encoder: Callable[[ExportOptions], Encoder] = _of_requests,
        count: Callable[[Any], int] = span_count,
        pick: Callable[[list[Any], bool, int], list[Any]] = picked,
    ) -> None:
        """``pick``: which records become spans, given the next two. ``keep_errors``: requests that
        ended in 5xx, or without an answer, are traced although they were not sampled; ``slow_ns``:
        so are those that took at least this (0: none).

        Raises ``ConfigError`` for an endpoint or an ``OTEL_*`` variable that cannot be read.
        """
        self._options: Final = resolve(settings, environ, worker=worker)
        self._encoder: Final = encoder(self._options)
        self._count: Final = count
        self._pick: Final = pick
        self._keep_errors: Final = keep_errors
        self._slow_ns: Final = slow_ns
        self._queue: Final[deque[Any]] = deque()
        self._queued = 0  # spans
        self._wake: Final = asyncio.Event()
        self._stopping: Final = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: Batches on their way, and how many spans are in each.
        self._sending: Final[dict[asyncio.Task[None], int]] = {}
        self._reachable = True
        self._lost_since = 0
        self._made: Final = metrics.counter("nexus_trace_spans_total")
        self._exported: Final = metrics.counter("nexus_trace_spans_exported_total")
        self._dropped: Final = metrics.counters("nexus_trace_spans_dropped_total")
        self._exports: Final = metrics.counters("nexus_trace_exports_total")

    def consume(self, records: list[Any]) -> None:
        waiting = self._queued
        for record in self._pick(records, self._keep_errors, self._slow_ns):
            spans = self._count(record)
            self._made.inc(spans)
            if self._stopping.is_set():
                self._drop("shutdown", spans)
            elif self._queued + spans > self._options.queue_spans:
                self._drop("queue_full", spans)
            else:
                self._queue.append(record)
                self._queued += spans
        # The two that whoever gathers waits for; a batch of records that is neither wakes nobody.
        if self._queued and (waiting == 0 or self._queued >= self._options.batch_spans):
            self._wake.set()

    async def start(self) -> None:
        """Start exporting; a collector that is down is no error."""
        self._task = asyncio.create_task(self._run(), name="nexus-span-export")

    async def stop(self, deadline_seconds: float) -> None:
        """Export what is queued, within ``deadline_seconds``; what is not is dropped, counted."""
        self._stopping.set()
        self._wake.set()
        task, self._task = self._task, None
        if task is not None:
            _, pending = await asyncio.wait((task,), timeout=deadline_seconds)
            if pending:
                task.cancel()
                await asyncio.wait((task,))
            if not task.cancelled() and task.exception() is not None:
                log.error("span export died", exc_info=task.exception())
        if self._queued:
            self._drop("shutdown", self._queued)
            self._queue.clear()
            self._queued = 0

    def _drop(self, reason: str, spans: int) -> None:
        if not spans:
            return
        self._dropped.labels(reason).inc(spans)
        self._lost_since += spans

    async def _run(self) -> None:
        client = OtlpClient(self._options)
        try:
            while not (self._stopping.is_set() and not self._queue):
                await self._gather()
                while len(self._sending) >= EXPORTS:
                    await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
                records, spans = self._take()
                if records:
                    task = asyncio.create_task(self._export(client, records, spans))
                    self._sending[task] = spans
                    task.add_done_callback(self._sent)
            if self._sending:
                await asyncio.wait(self._sending)
        finally:
            for task in self._sending:
                task.cancel()
            if self._sending:
                await asyncio.wait(self._sending)
            await client.close()

    def _sent(self, task: asyncio.Task[None]) -> None:
        """What was not settled by the export itself is lost, and counted."""
        spans = self._sending.pop(task)
        if task.cancelled():
            self._drop("shutdown", spans)
        elif task.exception() is not None:
            self._drop("export_failed", spans)
            log.error("span export died", exc_info=task.exception())

    async def _gather(self) -> None:
        """Wait for spans, then for a batch of them or the delay, whichever is first."""
        while not self._queue and not self._stopping.is_set():
            self._wake.clear()
            await self._wake.wait()
        deadline = asyncio.get_running_loop().time() + self._options.delay_seconds
        while self._queued < self._options.batch_spans and not self._stopping.is_set():
            self._wake.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._wake.wait()
            except TimeoutError:
                return

    def _take(self) -> tuple[list[Any], int]:
        """Records of at most one batch of spans, one at least, and how many spans they are."""
        records: list[Any] = []
        spans = 0
        while self._queue:
            more = self._count(self._queue[0])
            if records and spans + more > self._options.batch_spans:
                break
            records.append(self._queue.popleft())
            spans += more
        self._queued -= spans
        return records, spans

    async def _export(self, client: OtlpClient, records: list[Any], spans: int) -> None:
        body, encoded = await self._encode(records)
        result = await client.send(body, self._stopping)
        # In one piece, or a task that is cancelled would be half accounted for.
        self._drop("encoding", spans - encoded)
        self._account(result, encoded)

    async def _encode(self, records: list[Any]) -> tuple[bytes, int]:
        """The batch, and how many spans are in it; a record that cannot be encoded is left out."""
        parts: list[bytes] = []
        spans = 0
        for first in range(0, len(records), _ENCODE_RECORDS):
            part = records[first : first + _ENCODE_RECORDS]
            try:
                parts.append(self._encoder.encode(part))
            except Exception:
                log.exception("spans could not be encoded")
                part = self._encode_singly(part, parts)
            spans += sum(self._count(record) for record in part)
            await asyncio.sleep(0)
        return b"".join(parts), spans

    def _encode_singly(self, records: list[Any], parts: list[bytes]) -> list[Any]:
        """Add what can be encoded to ``parts``; the records that could be."""
        encoded = []
        for record in records:
            with contextlib.suppress(Exception):
                parts.append(self._encoder.encode([record]))
                encoded.append(record)
        return encoded

    def _account(self, result: ExportResult, spans: int) -> None:
        self._exports.labels("ok" if result.accepted else result.reason).inc()
        if not result.accepted:
            self._drop(result.reason, spans)
        else:
            rejected = min(result.rejected, spans)
            self._exported.inc(spans - rejected)
            if rejected:
                self._drop("rejected", rejected)
        # One line when the state changes: a collector that is down must not fill the log.
        if result.accepted and not self._reachable:
            log.info(
                "trace collector takes spans again",
                extra={"endpoint": self._options.url, "spans_lost": self._lost_since},
            )
        elif not result.accepted and self._reachable:
            log.warning(
                "trace collector takes no spans; they are dropped and counted until it does",
                extra={"endpoint": self._options.url, "cause": result.error},
            )
        if result.accepted:
            self._lost_since = 0
        self._reachable = result.accepted
