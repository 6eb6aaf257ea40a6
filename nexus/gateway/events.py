"""What the gateway reports to Kafka: records of finished requests → events, in batches.

Runs in the recorder's drain, off the request path. Each worker makes ids from a random prefix and
a counter: unique without asking anybody, and an order within the worker for the reader of a log.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final, Protocol

from nexus import clock
from nexus.gateway.completed import CompletedEncoder, record_traceparent
from nexus.observability.record import RequestRecord
from nexus.observability.redaction import redact_url, wire_text
from nexus.observability.stamp import Stamps
from nexus.wire import events

__all__ = ["SOURCE", "EventSink"]

#: CloudEvents source of everything that the gateway emits.
SOURCE: Final = "/nexus/gateway"

#: The reason code of a request that its address's bucket refused.
RATE_LIMITED: Final = "rate_limited"


class Emitter(Protocol):
    """The part of :class:`~nexus.net.producer.EventProducer` that is used here."""

    def emit(self, topic: str, value: bytes, key: bytes | None, headers: events.Headers) -> None:
        """Hand over one event; never raises, never blocks."""


class EventSink:
    """A sink of the recorder: proxied requests and rate-limit hits become events."""

    def __init__(self, producer: Emitter, worker_id: int) -> None:
        self._emit: Final = producer.emit
        self._source: Final = SOURCE.encode()
        self._completed: Final = CompletedEncoder(worker_id, self._source)
        self._prefix: Final = secrets.token_hex(8)
        self._count = 0
        self._stamps: Final = Stamps()

    def consume(self, records: Sequence[RequestRecord]) -> None:
        """Emit the events of one batch of finished requests."""
        for record in records:
            if record.proxied:
                value, headers = self._completed.encode(record, self._next_id())
                key = record.correlation_id
                self._emit(
                    events.REQUEST_COMPLETED,
                    value,
                    events.correlation_key(key) if key else None,
                    headers,
                )
            elif record.reason == RATE_LIMITED:
                self._limited(record)

    def circuit_opened(self, upstream: str, method: str, url: str) -> None:
        """A breaker of this worker tripped open; call once, on the transition."""
        stamp, event_id = self._stamps.iso(clock.wall_ms() * 1_000_000), self._next_id()
        event = events.CircuitOpened(
            emitted_at=stamp,
            id=event_id,
            upstream=upstream,
            method=method,
            url=redact_url(url[: events.MAX_URL_CHARACTERS])[: events.MAX_URL_CHARACTERS],
        )
        self._send(events.CIRCUIT_OPENED, event, None, b"")

    def _limited(self, record: RequestRecord) -> None:
        event = events.RateLimitHit(
            emitted_at=self._ended(record),
            id=self._next_id(),
            ip=record.ip,
            method=wire_text(record.method, events.MAX_URL_CHARACTERS) or "-",
            url=record.shown() or "-",
        )
        # All hits of one address in one partition: whoever counts them sees all of them.
        self._send(events.RATE_LIMIT_HIT, event, record.ip.encode(), record_traceparent(record))

    def _send(self, topic: str, event: events.Event, key: bytes | None, traceparent: bytes) -> None:
        headers = events.cloud_event_headers(
            topic, event.id, event.emitted_at, self._source, traceparent
        )
        self._emit(topic, events.encode(event), key, headers)

    def _next_id(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count:08x}"

    def _ended(self, record: RequestRecord) -> str:
        return self._stamps.iso(record.started_ns + record.duration_ns)
