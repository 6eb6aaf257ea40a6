"""The effects that people and other systems see: log lines, alerts, audit, webhook.

At least once: a worker that dies between a line and its commit writes it again, with the same id.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from nexus import clock
from nexus.wire.actions import Action
from nexus.wire.events import CircuitOpened, Event, Headers, RateLimitHit, RequestCompleted

if TYPE_CHECKING:
    from nexus.consumer.settings import ConsumerSettings
    from nexus.consumer.state import Answer
    from nexus.observability.registry import LocalMetrics

__all__ = ["Handlers", "action_of", "traceparent_of"]

log = logging.getLogger("nexus.consumer.events")
alerts = logging.getLogger("nexus.consumer.alerts")
audit = logging.getLogger("nexus.consumer.audit")

_TRACEPARENT_BYTES: Final = 55


def traceparent_of(headers: Headers) -> bytes:
    """The W3C trace context among the headers of a record; empty without one."""
    for name, value in headers:
        if name == "traceparent" and len(value) == _TRACEPARENT_BYTES:
            return value
    return b""


def action_of(event: Event, answer: Answer, subject: str, traceparent: bytes) -> Action:
    """The action that ``answer`` calls for; the same again for the same event and answer."""
    trace_id = traceparent[3:35].decode("ascii", "replace")
    decided_at = clock.iso_utc(int(answer.decided_ms))
    common = {
        "event_id": event.id,
        "emitted_at": event.emitted_at,
        "decided_at": decided_at,
        "trace_id": trace_id,
        "method": event.method,
        "url": event.url,
    }
    if isinstance(event, RateLimitHit):
        return Action(
            id=f"{event.id}:block",
            type="address.blocked",
            subject=subject,
            ip=event.ip,
            hits=int(answer.first),
            ttl_ms=int(answer.second),
            **common,  # type: ignore[arg-type]
        )
    if isinstance(event, CircuitOpened):
        return Action(
            id=f"{event.id}:circuit",
            type="circuit.opened",
            subject=event.upstream,
            **common,  # type: ignore[arg-type]
        )
    return Action(
        id=f"{event.id}:spike",
        type="latency.spike",
        subject=event.route,
        ip=event.ip,
        latency_ms=event.latency_ms,
        mean_ms=float(answer.first),
        samples=int(answer.second),
        **common,  # type: ignore[arg-type]
    )


class Handlers:
    """Writes the lines and counts."""

    def __init__(self, settings: ConsumerSettings, metrics: LocalMetrics) -> None:
        self._alerts: Final = metrics.counters("nexus_consumer_alerts_total")
        self._blocks: Final = metrics.counter("nexus_consumer_blocks_total")
        self.apply(settings)

    def apply(self, settings: ConsumerSettings) -> None:
        """Take over settings."""
        #: Whether every event gets a line.
        self.log_events = settings.log_events

    def event(self, event: Event, trace_id: str) -> None:
        """The line of one event."""
        common = {"event_id": event.id, "emitted_at": event.emitted_at}
        if trace_id:
            common["trace_id"] = trace_id
        if isinstance(event, RequestCompleted):
            log.info(
                "%s %s -> %d in %.1f ms",
                event.method,
                event.url,
                event.status_code,
                event.latency_ms,
                extra={
                    "event": "gateway.request.completed",
                    **common,
                    "route": event.route,
                    "ip": event.ip,
                    "client_id": event.client_id,
                    "gateway_worker": event.worker_id,
                },
            )
        elif isinstance(event, RateLimitHit):
            log.info(
                "rate limit hit by %s: %s %s",
                event.ip,
                event.method,
                event.url,
                extra={"event": "gateway.rate_limit.hit", **common, "ip": event.ip},
            )

    def action(self, action: Action) -> None:
        """The line of one action."""
        common = {
            "action_id": action.id,
            "event_id": action.event_id,
            "emitted_at": action.emitted_at,
        }
        if action.trace_id:
            common["trace_id"] = action.trace_id
        if action.type == "address.blocked":
            self._blocks.inc()
            audit.warning(
                "address %s blocked for %.0f s after %d rate-limit hits",
                action.subject,
                action.ttl_ms / 1000,
                action.hits,
                extra={
                    "audit": "block",
                    "actor": "auto",
                    **common,
                    "subject": action.subject,
                    "ip": action.ip,
                    "ttl_ms": action.ttl_ms,
                    "hits": action.hits,
                },
            )
        elif action.type == "circuit.opened":
            self._alerts.labels("circuit_opened").inc()
            alerts.error(
                "circuit breaker of %s opened, at %s %s",
                action.subject,
                action.method,
                action.url,
                extra={
                    "alert": "circuit_opened",
                    "event": "gateway.circuit.opened",
                    **common,
                    "upstream": action.subject,
                },
            )
        else:
            self._alerts.labels("latency_spike").inc()
            alerts.warning(
                "latency spike: %s %s took %.1f ms, %.1f x the mean of the last %d on %s",
                action.method,
                action.url,
                action.latency_ms,
                # A mean of zero is a route whose requests took no measurable time.
                action.latency_ms / max(action.mean_ms, 0.001),
                action.samples,
                action.subject,
                extra={
                    "alert": "latency_spike",
                    **common,
                    "route": action.subject,
                    "latency_ms": action.latency_ms,
                    "mean_ms": round(action.mean_ms, 3),
                    "samples": action.samples,
                    "ip": action.ip,
                },
            )
