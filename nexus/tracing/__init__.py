"""Tracing of your own functions: selective, cheap, and together with OpenTelemetry.

::

    from nexus import tracing

    @tracing.traced(args=["order_id"])
    async def book(order_id: str, card_token: str) -> None:
        with tracing.span("reserve", warehouse="north"):
            ...

    tracing.instrument(warehouse, include="get_*")      # code that is not yours
    tracing.enable(service_name="shop")                 # until then nothing is measured

Where the spans go: to the OpenTelemetry SDK if the process has set one up, else over OTLP/HTTP to
the collector that the ``OTEL_*`` variables name (default ``http://127.0.0.1:4318``). The current
span is OpenTelemetry's: its API finds it, SDK spans become its children, and these theirs.
``docs/tracing.md`` has the rest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace

from nexus.observability import logs
from nexus.observability.otlp import ExportOptions, resolve
from nexus.observability.sampling import Sampling, sampling_from
from nexus.tracing.carry import carry, continued, inject, submit
from nexus.tracing.decorate import Instrumentation, instrument, instrument_named, traced
from nexus.tracing.export import Exporter, Report
from nexus.tracing.kernel import Span, enter, leave, start
from nexus.tracing.provider import NexusTracerProvider
from nexus.tracing.state import STATE

__all__ = [
    "Instrumentation",
    "Span",
    "carry",
    "continued",
    "counts",
    "current_span",
    "disable",
    "enable",
    "enabled",
    "flush",
    "inject",
    "instrument",
    "instrument_named",
    "span",
    "submit",
    "traced",
]


@dataclass(frozen=True, slots=True)
class _Config:
    otlp_endpoint: str
    service_name: str


class _Running:
    exporter: Exporter | None = None


def enable(
    *,
    service_name: str = "unknown_service:python",
    otlp_endpoint: str = "http://127.0.0.1:4318",
    sample_ratio: float = 1.0,
    provide: bool = True,
    environ: Mapping[str, str] = os.environ,
    options: ExportOptions | None = None,
    sampling: Sampling | None = None,
    report: Report | None = None,
) -> bool:
    """Begin to record; returns whether it does (``OTEL_SDK_DISABLED=true``: it does not).

    If an OpenTelemetry SDK is set up, its tracer makes the spans and the other arguments do not
    matter. Else they are ours: ``sample_ratio`` is the share of new traces, ``OTEL_*`` variables
    beat the arguments, and with ``provide`` the process gets Nexus as its tracer provider, so that
    code using only OpenTelemetry's API adds to the same traces. ``options``, ``sampling`` and
    ``report`` are for services that have resolved them already.

    Raises ``ConfigError`` for an ``OTEL_*`` variable that cannot be read.
    """
    disable()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    found = trace.get_tracer_provider()
    ours = isinstance(found, NexusTracerProvider)
    if not ours and not isinstance(found, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        STATE.sdk = trace.get_tracer("nexus.tracing")
    else:
        if options is None:
            options = resolve(_Config(otlp_endpoint, service_name), environ)
        chosen = sampling or sampling_from(environ, sample_ratio)
        STATE.sdk = None
        STATE.sample(chosen.ratio, chosen.parent_based)
        _Running.exporter = Exporter(STATE, options, report)
        _Running.exporter.start()
        if provide and not ours:
            trace.set_tracer_provider(NexusTracerProvider(STATE))
    STATE.on = True
    logs.add_fields(_log_fields)
    return True


def disable(seconds: float = 5.0) -> None:
    """Record no more; what has ended is sent within ``seconds``, the rest dropped and counted."""
    STATE.on = False
    STATE.sdk = None
    exporter = _Running.exporter
    if exporter is not None:
        exporter.close(seconds)


def enabled() -> bool:
    """Whether calls are recorded."""
    return bool(STATE.on)


def flush(seconds: float = 5.0) -> bool:
    """Send what has ended so far; whether that was done within ``seconds``.

    An SDK flushes itself.
    """
    return _Running.exporter is None or _Running.exporter.flush(seconds)


def counts() -> dict[str, int]:
    """Spans of our exporter since :func:`enable`: ``made`` = ``exported`` + ``… dropped`` +
    ``queued``."""
    return {} if _Running.exporter is None else _Running.exporter.counts()


def current_span() -> trace.Span:
    """The span that is open here; one that records nothing where there is none."""
    return trace.get_current_span()


@contextlib.contextmanager
def span(name: str, /, **attributes: Any) -> Iterator[trace.Span]:
    """A span for a block: ``with span("reserve", warehouse="north") as s:``."""
    if not STATE.on:
        yield trace.INVALID_SPAN
        return
    if STATE.sdk is not None:
        with STATE.sdk.start_as_current_span(name, attributes=attributes) as made:
            yield made
        return
    ours = start(STATE, name)
    if ours is None:
        yield trace.get_current_span()
        return
    if ours.sampled:
        for key, value in attributes.items():
            ours.set_attribute(key, value)
    token = enter(ours)
    try:
        yield ours
    except BaseException as error:
        ours.failed(error)
        raise
    finally:
        leave(token)
        ours.end()


def _log_fields() -> dict[str, str]:
    """What a log line says of the span that it was written under."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
