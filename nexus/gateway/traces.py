"""Trace context of proxied requests: taken from the client, or begun here, and passed on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nexus.observability.tracecontext import (
    Sampler,
    format_traceparent,
    new_span_id,
    new_trace_id,
    parse_traceparent,
    parse_tracestate,
)

if TYPE_CHECKING:
    from nexus.gateway._exchange_py import Exchange

__all__ = ["Tracer"]


class Tracer:
    """Decides sampling before anything is allocated for a span."""

    __slots__ = ("_sampler",)

    def __init__(self, ratio: float) -> None:
        self._sampler: Final = Sampler(ratio)

    def open(self, exchange: Exchange, traceparent: bytes | None, tracestate: bytes | None) -> None:
        """Give the request its ids; a ``traceparent`` that is malformed is ignored."""
        parent = parse_traceparent(traceparent) if traceparent is not None else None
        if parent is None:
            exchange.trace_id = new_trace_id()
            exchange.sampled = self._sampler.decide(exchange.trace_id, None)
        else:
            exchange.trace_id, exchange.parent_span_id, sampled = parent
            exchange.sampled = self._sampler.decide(exchange.trace_id, sampled)
            if tracestate:
                exchange.tracestate = parse_tracestate((tracestate,))
        exchange.span_id = new_span_id()

    def outgoing(self, exchange: Exchange) -> bytes:
        """The field lines for the upstream; its parent is our client span."""
        exchange.upstream_span_id = new_span_id()
        parent = format_traceparent(exchange.trace_id, exchange.upstream_span_id, exchange.sampled)
        if exchange.tracestate:
            return b"traceparent: " + parent + b"\r\ntracestate: " + exchange.tracestate + b"\r\n"
        return b"traceparent: " + parent + b"\r\n"
