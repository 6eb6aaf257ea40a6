"""Nexus as OpenTelemetry's tracer provider, for a process in which no SDK is set up.

Code that uses only the API (``opentelemetry.trace.get_tracer(…)``: middlewares, instrumentation
libraries) then makes spans that nest with the decorated functions' and leave by our exporter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context

from nexus.tracing.kernel import Span, State, start

__all__ = ["NexusTracer", "NexusTracerProvider"]


class NexusTracer(trace.Tracer):
    """Makes spans of one instrumentation scope."""

    def __init__(self, state: State, name: str, version: str) -> None:
        self._state: Final = state
        self._scope: Final = (name, version)

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[trace.Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: ARG002  (an exception always is)
        set_status_on_exception: bool = True,  # noqa: ARG002
    ) -> trace.Span:
        """See ``opentelemetry.trace.Tracer``."""
        if not self._state.on:
            return trace.INVALID_SPAN
        span = start(self._state, name, context)
        if span is None:
            # Its parent is not sampled: what it hands on is that.
            return trace.NonRecordingSpan(trace.get_current_span(context).get_span_context())
        assert isinstance(span, Span)  # noqa: S101  (for the type checker)
        span.kind = kind.value
        span.scope = self._scope
        if start_time is not None:
            span.started_ns = start_time
        if attributes:
            span.set_attributes(attributes)
        for link in links or ():
            span.add_link(link.context, link.attributes)
        found: Any = span
        return found  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def start_as_current_span(  # type: ignore[override]
        self,
        name: str,
        context: Context | None = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[trace.Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Iterator[trace.Span]:
        """See ``opentelemetry.trace.Tracer``."""
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with trace.use_span(span, end_on_exit, record_exception, set_status_on_exception) as used:
            yield used


class NexusTracerProvider(trace.TracerProvider):
    """What :func:`nexus.tracing.enable` gives to ``opentelemetry.trace.set_tracer_provider``."""

    def __init__(self, state: State) -> None:
        self._state: Final = state

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,  # noqa: ARG002  (of the interface)
        attributes: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> trace.Tracer:
        return NexusTracer(
            self._state, instrumenting_module_name, instrumenting_library_version or ""
        )
