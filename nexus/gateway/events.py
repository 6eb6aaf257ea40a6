"""What the gateway reports to Kafka: records of finished requests → events, in batches.

Runs in the recorder's drain, off the request path. Each worker makes ids from a random prefix and
a counter: unique without asking anybody, and an order within the worker for the reader of a log.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final, Protocol

from nexus import clock
from nexus.observability.record import RequestRecord
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
        self._worker_id: Final = worker_id
        self._source: Final = SOURCE.encode()
        self._prefix: Final = secrets.token_hex(8)
        self._count = 0
        self._second = -1
        self._stamp = ""

    def consume(self, records: Sequence[RequestRecord]) -> None:
        """Emit the events of one batch of finished requests."""
        for record in records:
            if record.proxied:
                self._completed(record)
            elif record.reason == RATE_LIMITED:
                self._limited(record)

    def circuit_opened(self, upstream: str, method: str, url: str) -> None:
        """A breaker of this worker tripped open; call once, on the transition."""
        stamp, event_id = self._instant(clock.wall_ms()), self._next_id()
        event = events.CircuitOpened(
            emitted_at=stamp,
            id=event_id,
            upstream=upstream,
            method=method,
            url=url[: events.MAX_URL_CHARACTERS],
        )
        self._send(events.CIRCUIT_OPENED, event, None, b"")

    def _completed(self, record: RequestRecord) -> None:
        event = events.RequestCompleted(
            emitted_at=self._ended(record),
            id=self._next_id(),
            method=_text(record.method),
            url=_text(record.target),
            route=record.route,
            status_code=record.status,
            latency_ms=record.duration_ns // 1000 / 1000,
            ip=record.ip,
            client_id=record.client_id or None,
            worker_id=self._worker_id,
        )
        key = events.correlation_key(record.correlation_id)
        self._send(events.REQUEST_COMPLETED, event, key, _traceparent(record))

    def _limited(self, record: RequestRecord) -> None:
        event = events.RateLimitHit(
            emitted_at=self._ended(record),
            id=self._next_id(),
            ip=record.ip,
            method=_text(record.method),
            url=_text(record.target),
        )
        # All hits of one address in one partition: whoever counts them sees all of them.
        self._send(events.RATE_LIMIT_HIT, event, record.ip.encode(), _traceparent(record))

    def _send(self, topic: str, event: events.Event, key: bytes | None, traceparent: bytes) -> None:
        headers = events.cloud_event_headers(
            topic, event.id, event.emitted_at, self._source, traceparent
        )
        self._emit(topic, events.encode(event), key, headers)

    def _next_id(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count:08x}"

    def _ended(self, record: RequestRecord) -> str:
        return self._instant((record.started_ns + record.duration_ns) // 1_000_000)

    def _instant(self, unix_ms: int) -> str:
        """:func:`nexus.clock.iso_utc`, with the second kept: a batch falls into one or two."""
        second, rest = divmod(unix_ms, 1000)
        if second != self._second:
            self._second = second
            self._stamp = clock.iso_utc(second * 1000)[:-4]
        return f"{self._stamp}{rest:03d}Z"


def _text(value: bytes) -> str:
    # Wire bytes are read as Latin-1, which cannot fail and loses nothing (RFC 9110 §5.5).
    return value[: events.MAX_URL_CHARACTERS].decode("latin-1") or "-"


def _traceparent(record: RequestRecord) -> bytes:
    if not record.trace_id or not record.span_id:
        return b""
    flags = "01" if record.sampled else "00"
    return f"00-{record.trace_id}-{record.span_id}-{flags}".encode()
