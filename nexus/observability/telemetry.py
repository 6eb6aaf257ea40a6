"""``/telemetry``: the last requests of the whole service, whichever worker is asked.

Each worker writes into its own ring of fixed cells in shared memory; the page reads all rings. A
cell carries a checksum, so a reader that meets one being overwritten leaves it out.

Most entries of a busy worker are pushed out before anybody sees them. So on a running loop entries
are written at most every 250 ms, and only the last ones, which are all that the ring can hold.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import zlib
from collections import deque
from typing import Any, Final

import msgspec

from nexus.observability.record import RequestRecord
from nexus.observability.redaction import redact_target, wire_text
from nexus.observability.stamp import Stamps

__all__ = ["Telemetry", "TelemetryMemory"]

#: Bytes of one cell; the request target is cut to fit.
CELL_BYTES: Final = 1024
_HEAD: Final = struct.Struct("<QII")  # start, nanoseconds since the epoch; length; CRC-32
_MAX_TARGET: Final = 256

#: Seconds between two writes.
INTERVAL_SECONDS: Final = 0.25


class TelemetryMemory:
    """Rings of ``entries`` cells for each of ``workers``; made before the fork."""

    def __init__(self, entries: int, workers: int = 1) -> None:
        if entries < 0 or workers < 1:
            raise ValueError(f"expected entries >= 0 and workers >= 1, got {entries}, {workers}")
        self.entries: Final = entries
        self.workers: Final = workers
        self._map: Final = mmap.mmap(-1, max(CELL_BYTES * entries * workers, mmap.PAGESIZE))

    def write(self, worker: int, cell: int, started_ns: int, payload: bytes) -> None:
        """Overwrite one cell."""
        at = (worker * self.entries + cell) * CELL_BYTES
        _HEAD.pack_into(self._map, at, started_ns, len(payload), zlib.crc32(payload))
        at += _HEAD.size
        self._map[at : at + len(payload)] = payload

    def newest(self) -> list[bytes]:
        """The payloads of the ``entries`` latest requests, newest first."""
        found: list[tuple[int, bytes]] = []
        for cell in range(self.entries * self.workers):
            at = cell * CELL_BYTES
            started_ns, size, checksum = _HEAD.unpack_from(self._map, at)
            if not 0 < size <= CELL_BYTES - _HEAD.size:
                continue
            at += _HEAD.size
            payload = self._map[at : at + size]
            if zlib.crc32(payload) == checksum:
                found.append((started_ns, payload))
        found.sort(reverse=True)
        return [payload for _, payload in found[: self.entries]]


class Telemetry:
    """A recorder sink; one worker's writer, and a reader over all workers.

    With several workers they share ``memory``; without, the ring is this worker's own.
    """

    def __init__(
        self, entries: int, *, memory: TelemetryMemory | None = None, worker: int = 0
    ) -> None:
        self._memory: Final = memory if memory is not None else TelemetryMemory(entries)
        self._worker: Final = worker
        self._next = 0
        self._fresh: Final[deque[RequestRecord]] = deque(maxlen=self._memory.entries)
        self._armed: asyncio.TimerHandle | None = None
        self._stamps: Final = Stamps()
        self._encode: Final = msgspec.json.Encoder().encode

    def consume(self, records: list[RequestRecord]) -> None:
        self._fresh.extend(records)
        if self._armed is None:
            self._write()
            self._arm()

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self, deadline_seconds: float) -> None:  # noqa: ARG002  (it takes no time)
        """Write what waits."""
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        self._write()

    def _arm(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # none: every batch is written at once
        self._armed = loop.call_later(INTERVAL_SECONDS, self._write_more)

    def _write_more(self) -> None:
        self._armed = None
        if self._fresh:
            self._write()
            self._arm()

    def _write(self) -> None:
        fresh = self._fresh
        while fresh:
            record = fresh.popleft()
            entry = _entry(record, self._stamps.iso(record.started_ns))
            payload = self._encode(entry)
            if len(payload) > CELL_BYTES - _HEAD.size:
                payload = self._encode({**entry, "url": "", "method": "", "clientId": ""})
            self._memory.write(self._worker, self._next, record.started_ns, payload)
            self._next = (self._next + 1) % self._memory.entries

    def recent(self) -> list[dict[str, Any]]:
        """The last requests, newest first; fields as in the contract, latency in milliseconds."""
        return [msgspec.json.decode(payload) for payload in self._memory.newest()]


def _entry(record: RequestRecord, timestamp: str) -> dict[str, Any]:
    return {
        "timestamp": timestamp,
        "method": wire_text(record.method, 32),
        "url": redact_target(record.target, _MAX_TARGET),
        "statusCode": record.status,
        "latencyMs": round(record.duration_ns / 1e6, 3),
        "ip": record.ip,
        "clientId": record.client_id[:128] or None,
    }
