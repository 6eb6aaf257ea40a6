# cython: annotation_typing=False
"""Trace context of requests: taken from the client, or begun here, and passed on.

Every request has its ids, for its log lines and for the upstream; settings decide only whether
there are spans. Without spans of our own we are no hop of the trace (W3C Trace Context, §4.3): the
client's ``traceparent`` goes on with its parent and flag, or the upstream's spans would hang under
one that nobody records; a trace that begins here goes on with the request's id, not sampled.

One source, compiled as ``_traces_c``.
"""

from __future__ import annotations

import random
from typing import Final

import cython  # type: ignore[import-untyped]

from nexus.observability.sampling import Sampling
from nexus.observability.tracecontext import (
    Sampler,
    format_traceparent,
    parse_traceparent,
    parse_tracestate,
)

if not cython.compiled:
    from nexus.gateway._request_py import ServedRequest

__all__ = ["Tracer"]

#: Random bytes drawn at once: the ids of some thirty requests.
_DRAWN: Final = 1024


class Tracer:
    """Decides sampling before anything is allocated for a span."""

    __slots__ = ("_always", "_at", "_digits", "_random", "_recording", "_sampler")

    def __init__(self, sampling: Sampling | None) -> None:
        """``sampling``: which traces are sampled; ``None``: there are no spans."""
        self._recording = sampling is not None
        chosen = sampling or Sampling(0.0)
        self._always = chosen.ratio >= 1.0
        self._sampler = Sampler(chosen.ratio, chosen.parent_based)
        # Made in the worker, so no two workers draw alike. Not for secrets.
        self._random = random.Random()
        self._digits = ""
        self._at = 0

    def open(
        self, request: ServedRequest, traceparent: bytes | None, tracestate: bytes | None
    ) -> None:
        """Give the request its ids; a ``traceparent`` that is malformed is ignored."""
        parent = parse_traceparent(traceparent) if traceparent is not None else None
        if parent is None:
            request.trace_id = self._draw(32)
            request.sampled = self._sampled(request.trace_id, None)
        else:
            trace_id, span_id, sampled = parent
            request.trace_id = trace_id
            request.parent_span_id = span_id
            request.sampled = self._sampled(request.trace_id, sampled)
            if tracestate:
                request.tracestate = parse_tracestate((tracestate,))
        request.span_id = self._draw(16)

    def _sampled(self, trace_id: str, parent: bool | None) -> bool:
        if self._always and parent is None:
            return True
        return bool(self._sampler.decide(trace_id, parent))

    def outgoing(self, request: ServedRequest) -> bytes:
        """The field lines for the upstream; its parent is our client span where we have one."""
        if self._recording:
            span_id = request.upstream_span_id = self._draw(16)
        else:
            span_id = request.parent_span_id or request.span_id
        parent = format_traceparent(request.trace_id, span_id, request.sampled)
        if request.tracestate:
            return b"traceparent: " + parent + b"\r\ntracestate: " + request.tracestate + b"\r\n"
        return b"traceparent: " + parent + b"\r\n"

    def renew(self, request: ServedRequest, fields: bytes) -> bytes:
        """``fields`` of another attempt: a span of its own, by which its upstream knows it."""
        if not self._recording:
            return fields
        before = format_traceparent(request.trace_id, request.upstream_span_id, request.sampled)
        span_id = request.upstream_span_id = self._draw(16)
        # Nobody outside knew that id, so it stands in our own field alone.
        return fields.replace(
            before, format_traceparent(request.trace_id, span_id, request.sampled)
        )

    def _draw(self, digits: int) -> str:
        """So many lower-case hex digits. All of them zero, which W3C calls invalid, is one draw in
        2⁶⁴ or fewer, and then an upstream begins a trace of its own."""
        at = self._at
        if at + digits > len(self._digits):
            self._digits = self._random.randbytes(_DRAWN).hex()
            at = 0
        self._at = at + digits
        return self._digits[at : at + digits]
