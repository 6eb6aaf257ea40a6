"""Taking the current span along: into threads and executors, and into other processes.

Tasks of asyncio and ``asyncio.to_thread`` copy the context by themselves. A thread, an executor
and a callback of another library begin with an empty one; another process knows only what is sent.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import Executor, Future
from typing import Any, Final, ParamSpec, TypeVar

from opentelemetry import context as otel
from opentelemetry import trace

from nexus.observability.tracecontext import (
    RANDOM,
    SAMPLED,
    format_traceparent,
    parse_traceparent,
    parse_tracestate,
)

__all__ = ["carry", "continued", "inject", "submit"]

P = ParamSpec("P")
R = TypeVar("R")

_PARENT: Final = "traceparent"
_STATE: Final = "tracestate"


def carry(function: Callable[P, R], /) -> Callable[P, R]:
    """``function`` with today's context variables, wherever and however often it is called."""
    context = contextvars.copy_context()

    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        # A copy: one context cannot be entered twice at once.
        return context.copy().run(function, *args, **kwargs)

    return carried


def submit(
    executor: Executor, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> Future[R]:
    """``executor.submit`` with the current span. For executors of threads: contexts do not pickle;
    give another process the result of :func:`inject`, and :func:`continued` there."""
    return executor.submit(carry(function), *args, **kwargs)


def inject(carrier: MutableMapping[str, str] | None = None) -> MutableMapping[str, str]:
    """Write ``traceparent`` and ``tracestate`` of the current span into ``carrier`` (default: a
    new dictionary), which is returned; without a span it stays as it is."""
    out: MutableMapping[str, str] = {} if carrier is None else carrier
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        out[_PARENT] = format_traceparent(
            f"{context.trace_id:032x}",
            f"{context.span_id:016x}",
            context.trace_flags & (SAMPLED | RANDOM),
        ).decode()
        if context.trace_state:
            out[_STATE] = context.trace_state.to_header()
    return out


@contextlib.contextmanager
def continued(carrier: Mapping[str, str]) -> Iterator[trace.SpanContext | None]:
    """Within the block, spans are children of the one that ``carrier`` names (header names in any
    letter case). What cannot be read is ignored, as W3C Trace Context asks; then it gives ``None``.
    """
    fields = {name.lower(): value for name, value in carrier.items()}
    parent = parse_traceparent(fields.get(_PARENT, "").strip().encode("latin-1", "replace"))
    if parent is None:
        yield None
        return
    trace_id, span_id, flags = parent
    state = parse_tracestate((fields.get(_STATE, "").encode("latin-1", "replace"),))
    context = trace.SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(flags),
        trace_state=trace.TraceState.from_header([state.decode()]) if state else None,
    )
    token: Any = otel.attach(trace.set_span_in_context(trace.NonRecordingSpan(context)))
    try:
        yield context
    finally:
        otel.detach(token)
