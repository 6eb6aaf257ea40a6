"""Tracing of commands switched on and off: settings → sink and tracer of one worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from nexus.observability.sampling import effective_sampling

if TYPE_CHECKING:
    from nexus.cacheproxy.near import Core
    from nexus.cacheproxy.settings import TracingSettings
    from nexus.cacheproxy.target import Target
    from nexus.observability.registry import LocalMetrics
    from nexus.observability.tracing import SpanSink

__all__ = ["Traces", "check_tracing"]

#: Seconds that the last batches get.
FLUSH_SECONDS: Final = 2.0


def check_tracing(settings: TracingSettings, environ: Mapping[str, str]) -> None:
    """Raises ``ConfigError`` for an endpoint or an ``OTEL_*`` variable that cannot be read."""
    if effective_sampling(settings.enabled, settings.sample_ratio, environ) is not None:
        from nexus.observability.otlp import resolve

        resolve(settings, environ)


class Traces:
    """See the module."""

    def __init__(
        self,
        core: Core,
        target: Target,
        metrics: LocalMetrics,
        index: int,
        environ: Mapping[str, str],
    ) -> None:
        self._core: Final = core
        self._target: Final = target
        self._metrics: Final = metrics
        self._index: Final = index
        self._environ: Final = environ
        self._settings: TracingSettings | None = None
        self._sink: SpanSink | None = None

    async def apply(self, settings: TracingSettings) -> None:
        """These from now on; what was recorded before is sent as it was to be."""
        if settings == self._settings:
            return
        before, self._sink = self._sink, None
        self._settings = settings
        plane = self._core.plane
        plane.tracing = False
        sampling = effective_sampling(settings.enabled, settings.sample_ratio, self._environ)
        if sampling is not None and sampling.ratio > 0:
            # Late: the encoder's protobuf is a seventh of a start's time.
            from nexus.cacheproxy.commandspans import CommandSpanEncoder
            from nexus.cacheproxy.tracer import Tracer
            from nexus.observability.tracing import SpanSink

            sink = self._sink = SpanSink(
                settings,
                self._metrics,
                environ=self._environ,
                worker=self._index,
                encoder=lambda options: CommandSpanEncoder(options.resource, self._target),
                count=lambda _span: 1,
                pick=lambda spans, _errors, _slow_ns: spans,  # of others there are none
            )
            await sink.start()
            plane.tracer = Tracer(self._core, sink, sampling.ratio, settings.record_keys)
            plane.tracing = True
        if before is not None:
            await before.stop(FLUSH_SECONDS)

    async def stop(self) -> None:
        """Send what is recorded, and no more."""
        self._core.plane.tracing = False
        sink, self._sink = self._sink, None
        if sink is not None:
            await sink.stop(FLUSH_SECONDS)
