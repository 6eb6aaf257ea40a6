"""``/telemetry``: the last requests of the whole service, whichever worker is asked.

Each worker writes into its own ring of fixed cells in shared memory; the page reads all rings. A
cell carries a checksum, so a reader that meets one being overwritten leaves it out.
"""

from __future__ import annotations

import mmap
import struct
import zlib
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
        self._stamps: Final = Stamps()
        self._encode: Final = msgspec.json.Encoder().encode

    def consume(self, records: list[RequestRecord]) -> None:
        entries = self._memory.entries
        # Of a batch larger than the ring only the end can survive.
        for record in records[-entries:] if entries else ():
            entry = _entry(record, self._stamps.iso(record.started_ns))
            payload = self._encode(entry)
            if len(payload) > CELL_BYTES - _HEAD.size:
                payload = self._encode({**entry, "url": "", "method": "", "clientId": ""})
            self._memory.write(self._worker, self._next, record.started_ns, payload)
            self._next = (self._next + 1) % entries

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
