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
import secrets
from typing import Any

import cython  # type: ignore[import-untyped]

from nexus.observability.sampling import Sampling
from nexus.observability.tracecontext import (
    RANDOM,
    SAMPLED,
    Sampler,
    format_traceparent,
    parse_traceparent,
    parse_tracestate,
)

if not cython.compiled:
    from nexus.gateway._request_py import ServedRequest

    def drawn(dice: random.Random, digits: int) -> str:
        """See ``_primitives.pxd``."""
        return dice.randbytes(digits // 2).hex()

    def low_bits(trace_id: str) -> int:
        """See ``_primitives.pxd``."""
        return int(trace_id[16:], 16)

    def traceparent_line(trace_id: str, span_id: str, flags: int) -> bytes:
        """See ``_primitives.pxd``."""
        return b"traceparent: %b\r\n" % format_traceparent(trace_id, span_id, flags)


__all__ = ["Tracer"]

# The same as C integers in the compiled module.
_SAMPLED = SAMPLED
_RANDOM = RANDOM


class Tracer:
    """Decides sampling before anything is allocated for a span."""

    __slots__ = ("_always", "_bound", "_dice", "_never", "_recording", "_sampler")

    def __init__(self, sampling: Sampling | None) -> None:
        """``sampling``: which traces are sampled; ``None``: there are no spans."""
        self._recording = sampling is not None
        chosen = sampling or Sampling(0.0)
        self._sampler = Sampler(chosen.ratio, chosen.parent_based)
        self._always = chosen.ratio >= 1.0
        self._never = chosen.ratio <= 0.0
        #: What ``_sampler`` compares with; it decides where the client has decided, too.
        self._bound = 0 if self._always else self._sampler.bound
        # Made in the worker, so no two workers draw alike. Not for secrets.
        if not cython.compiled:
            self._dice: Any = random.Random()
        else:
            for index in range(4):
                self._dice[index] = secrets.randbits(64)

    def open(
        self, request: ServedRequest, traceparent: bytes | None, tracestate: bytes | None
    ) -> None:
        """Give the request its ids; a ``traceparent`` that is malformed is ignored.

        All digits zero, which W3C calls invalid, is one draw in 2⁶⁴ or fewer, and then an upstream
        begins a trace of its own.
        """
        parent = parse_traceparent(traceparent) if traceparent is not None else None
        if parent is None:
            request.trace_id = drawn(self._dice, 32)
            request.random_id = True
            request.sampled = self._sampled(request.trace_id, None)
        else:
            trace_id, span_id, flags = parent
            request.trace_id = trace_id
            request.parent_span_id = span_id
            request.random_id = flags & _RANDOM != 0
            request.sampled = self._sampled(request.trace_id, flags & _SAMPLED != 0)
            if tracestate:
                request.tracestate = parse_tracestate((tracestate,))
        request.span_id = drawn(self._dice, 16)

    def _sampled(self, trace_id: str, parent: bool | None) -> bool:
        if parent is None:
            if self._always or self._never:
                return self._always
            return low_bits(trace_id) < self._bound
        return bool(self._sampler.decide(trace_id, parent))

    def _flags(self, request: ServedRequest) -> int:
        return (_SAMPLED if request.sampled else 0) | (_RANDOM if request.random_id else 0)

    def outgoing(self, request: ServedRequest) -> bytes:
        """The field lines for the upstream; its parent is our client span where we have one."""
        if self._recording:
            span_id = request.upstream_span_id = drawn(self._dice, 16)
        else:
            span_id = request.parent_span_id or request.span_id
        line = traceparent_line(request.trace_id, span_id, self._flags(request))
        if request.tracestate:
            return line + b"tracestate: " + request.tracestate + b"\r\n"
        return line

    def renew(self, request: ServedRequest, fields: bytes) -> bytes:
        """``fields`` of another attempt: a span of its own, by which its upstream knows it."""
        if not self._recording:
            return fields
        flags = self._flags(request)
        before = format_traceparent(request.trace_id, request.upstream_span_id, flags)
        span_id = request.upstream_span_id = drawn(self._dice, 16)
        # Nobody outside knew that id, so it stands in our own field alone.
        return fields.replace(before, format_traceparent(request.trace_id, span_id, flags))
