"""Exemplars: for each bucket of a latency histogram, the trace of a request that fell into it.

::

    recorder ── sampled records ──► ExemplarSink ── once a second ──► ExemplarMemory (shared)
                                    latest by series and bucket             │
                                                    whichever worker is scraped reads all

The request path has no part in it. https://prometheus.io/docs/specs/om/open_metrics_spec/#exemplars
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import zlib
from bisect import bisect_left
from typing import Final

import msgspec

from nexus.observability.catalogue import LATENCY_MS
from nexus.observability.record import RequestRecord, picked

__all__ = ["Exemplar", "ExemplarKey", "ExemplarMemory", "ExemplarSink"]

#: Metric, label values, index of the bucket.
ExemplarKey = tuple[str, tuple[str, ...], int]

#: Bytes of one worker, and exemplars in them; one takes some 150 bytes.
BLOCK_BYTES: Final = 65_536
MAX_EXEMPLARS: Final = 320

PUBLISH_SECONDS: Final = 1.0

_HEADER: Final = struct.Struct("<II")  # payload bytes, CRC-32


class Exemplar(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One request: its trace and span (hex), its value (milliseconds), when (Unix seconds)."""

    trace_id: str
    span_id: str
    value: float
    at: float


_Rows = list[tuple[str, tuple[str, ...], int, Exemplar]]
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Rows).decode


class ExemplarMemory:
    """One block for each worker, with one writer each; made before the first fork."""

    def __init__(self, workers: int) -> None:
        self._memory: Final = mmap.mmap(-1, workers * BLOCK_BYTES)
        self._workers: Final = workers

    def write(self, worker: int, rows: _Rows) -> None:
        """Replace what ``worker`` has; of too many the last are kept."""
        payload = _encode(rows)
        while len(payload) > BLOCK_BYTES - _HEADER.size:
            rows = rows[len(rows) // 2 :]
            payload = _encode(rows)
        start = worker * BLOCK_BYTES
        body = start + _HEADER.size
        self._memory[body : body + len(payload)] = payload
        _HEADER.pack_into(self._memory, start, len(payload), zlib.crc32(payload))

    def read(self) -> dict[ExemplarKey, Exemplar]:
        """The latest of all workers. A block that is just being written is left out this time."""
        found: dict[ExemplarKey, Exemplar] = {}
        for worker in range(self._workers):
            start = worker * BLOCK_BYTES
            size, checksum = _HEADER.unpack_from(self._memory, start)
            if not 0 < size <= BLOCK_BYTES - _HEADER.size:
                continue
            payload = self._memory[start + _HEADER.size : start + _HEADER.size + size]
            if zlib.crc32(payload) != checksum:
                continue
            for metric, labels, bucket, exemplar in _decode(payload):
                key = (metric, labels, bucket)
                before = found.get(key)
                if before is None or before.at < exemplar.at:
                    found[key] = exemplar
        return found


class ExemplarSink:
    """A recorder sink: remembers sampled requests by bucket, and publishes once a second."""

    def __init__(self, memory: ExemplarMemory, worker: int) -> None:
        self._memory: Final = memory
        self._worker: Final = worker
        self._latest: Final[dict[ExemplarKey, Exemplar]] = {}
        self._changed = False
        self._timer: asyncio.TimerHandle | None = None

    def consume(self, records: list[RequestRecord]) -> None:
        for record in picked(records, False, 0):
            if not record.route:
                continue
            method = record.method.decode("latin-1")
            at = (record.started_ns + record.duration_ns) / 1e9
            self._keep(
                "nexus_http_request_duration_ms",
                (method, record.route, str(record.status)),
                Exemplar(record.trace_id, record.span_id, record.duration_ns / 1e6, at),
            )
            if record.proxied and record.upstream_span_id:
                self._keep(
                    "nexus_upstream_request_duration_ms",
                    (record.upstream, method, str(record.upstream_status)),
                    Exemplar(
                        record.trace_id, record.upstream_span_id, record.upstream_ns / 1e6, at
                    ),
                )

    def _keep(self, metric: str, labels: tuple[str, ...], exemplar: Exemplar) -> None:
        latest = self._latest
        key = (metric, labels, bisect_left(LATENCY_MS, exemplar.value))
        # The newest stand last, and the oldest go first.
        latest.pop(key, None)
        latest[key] = exemplar
        if len(latest) > MAX_EXEMPLARS:
            del latest[next(iter(latest))]
        self._changed = True

    async def start(self) -> None:
        """Publish from now on, once a second where there is something new."""
        self._publish()

    async def stop(self, deadline_seconds: float) -> None:  # noqa: ARG002  (nothing to wait for)
        """Publish a last time."""
        if self._timer is not None:
            self._timer.cancel()
        self._publish()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _publish(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PUBLISH_SECONDS, self._publish)
        if self._changed:
            self._changed = False
            self._memory.write(
                self._worker, [(*key, exemplar) for key, exemplar in self._latest.items()]
            )
