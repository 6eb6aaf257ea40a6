"""The effects: what is done about each kind of event.

A handler is called once for every event that is new. It may raise: :class:`UpstreamError` when
something that it needs is away (tried again for as long as it takes), ``EventError`` when the event
makes no sense (dead letter at once), anything else is a fault of its own (a few attempts, then dead
letter).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from nexus.consumer.spikes import LatencySpikes
from nexus.wire.events import CircuitOpened, Event, RateLimitHit, RequestCompleted

if TYPE_CHECKING:
    from nexus.consumer.settings import ConsumerSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["Handlers"]

log = logging.getLogger("nexus.consumer.events")
alerts = logging.getLogger("nexus.consumer.alerts")


class Handlers:
    """Logs every event, raises the alerts."""

    def __init__(self, settings: ConsumerSettings, metrics: LocalMetrics) -> None:
        self._alerts: Final = metrics.counters("nexus_consumer_alerts_total")
        self.apply(settings)

    def apply(self, settings: ConsumerSettings) -> None:
        """Take over settings; changed spike settings begin with empty windows."""
        self._log_events = settings.log_events
        spike = settings.spike
        if getattr(self, "_spike_settings", None) != spike:
            self._spike_settings = spike
            self._spikes = LatencySpikes(spike.factor, spike.window, spike.min_samples)

    async def handle(self, event: Event) -> None:
        """The effect of one event."""
        if isinstance(event, RequestCompleted):
            self._completed(event)
        elif isinstance(event, RateLimitHit):
            self._rate_limited(event)
        else:
            self._circuit_opened(event)

    def _completed(self, event: RequestCompleted) -> None:
        if self._log_events:
            log.info(
                "%s %s -> %d in %.1f ms",
                event.method,
                event.url,
                event.status_code,
                event.latency_ms,
                extra={
                    "event": "gateway.request.completed",
                    "event_id": event.id,
                    "emitted_at": event.emitted_at,
                    "route": event.route,
                    "ip": event.ip,
                    "client_id": event.client_id,
                    "gateway_worker": event.worker_id,
                },
            )
        spike = self._spikes.observe(event.route, event.latency_ms)
        if spike is not None:
            self._alerts.labels("latency_spike").inc()
            alerts.warning(
                "latency spike: %s %s took %.1f ms, %.1f x the mean of the last %d on %s",
                event.method,
                event.url,
                spike.latency_ms,
                # A mean of zero is a route whose requests took no measurable time.
                spike.latency_ms / max(spike.mean_ms, 0.001),
                spike.samples,
                spike.route,
                extra={
                    "alert": "latency_spike",
                    "event_id": event.id,
                    "emitted_at": event.emitted_at,
                    "route": spike.route,
                    "latency_ms": spike.latency_ms,
                    "mean_ms": round(spike.mean_ms, 3),
                    "samples": spike.samples,
                    "status_code": event.status_code,
                    "ip": event.ip,
                },
            )

    def _rate_limited(self, event: RateLimitHit) -> None:
        if self._log_events:
            log.info(
                "rate limit hit by %s: %s %s",
                event.ip,
                event.method,
                event.url,
                extra={
                    "event": "gateway.rate_limit.hit",
                    "event_id": event.id,
                    "emitted_at": event.emitted_at,
                    "ip": event.ip,
                },
            )

    def _circuit_opened(self, event: CircuitOpened) -> None:
        self._alerts.labels("circuit_opened").inc()
        alerts.error(
            "circuit breaker of %s opened, at %s %s",
            event.upstream,
            event.method,
            event.url,
            extra={
                "alert": "circuit_opened",
                "event": "gateway.circuit.opened",
                "event_id": event.id,
                "emitted_at": event.emitted_at,
                "upstream": event.upstream,
            },
        )
