"""The event of a proxied request that ended: its value and its headers, straight from the record.

It is the one event that every request makes, so it has an encoder of its own. This is the pure side
and says what the bytes are; ``_completed_c`` writes the same ones.
"""

from __future__ import annotations

from typing import Final

from nexus.observability.record import RequestRecord
from nexus.observability.redaction import wire_text
from nexus.observability.stamp import Stamps
from nexus.observability.tracecontext import format_traceparent, trace_flags
from nexus.wire import events

__all__ = ["CompletedEncoder", "record_traceparent"]


class CompletedEncoder:
    """Encodes the records of one worker; ``source`` is the CloudEvents source."""

    def __init__(self, worker_id: int, source: bytes) -> None:
        self._worker_id: Final = worker_id
        self._source: Final = source
        self._stamps: Final = Stamps()

    def encode(self, record: RequestRecord, event_id: str) -> tuple[bytes, list[tuple[str, bytes]]]:
        """Value and headers of the Kafka record."""
        emitted_at = self._stamps.iso(record.started_ns + record.duration_ns)
        event = events.RequestCompleted(
            emitted_at=emitted_at,
            id=event_id,
            method=wire_text(record.method, events.MAX_URL_CHARACTERS) or "-",
            url=record.shown() or "-",
            route=record.route,
            status_code=record.status,
            latency_ms=record.duration_ns // 1000 / 1000,
            ip=record.ip,
            client_id=record.client_id or None,
            worker_id=self._worker_id,
        )
        headers = events.cloud_event_headers(
            events.REQUEST_COMPLETED,
            event_id,
            emitted_at,
            self._source,
            record_traceparent(record),
        )
        return events.encode(event), headers


def record_traceparent(record: RequestRecord) -> bytes:
    """The ``traceparent`` of the request's own span; ``b""`` where it has none."""
    if not record.trace_id or not record.span_id:
        return b""
    flags = trace_flags(record.sampled, record.random_id)
    return format_traceparent(record.trace_id, record.span_id, flags)
