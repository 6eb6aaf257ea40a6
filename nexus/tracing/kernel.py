"""Spans and traced calls, of the running backend; see ``_kernel_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.tracing._call_py import as_function
    from nexus.tracing._kernel_py import (
        ASYNC_GENERATOR,
        COROUTINE,
        FUNCTION,
        GENERATOR,
        Span,
        State,
        Traced,
        begin,
        enter,
        finish,
        leave,
        start,
        visible_parent,
    )
else:
    from nexus.tracing._call_c import as_function
    from nexus.tracing._kernel_c import (
        ASYNC_GENERATOR,
        COROUTINE,
        FUNCTION,
        GENERATOR,
        Span,
        State,
        Traced,
        begin,
        enter,
        finish,
        leave,
        start,
        visible_parent,
    )

__all__ = [
    "ASYNC_GENERATOR",
    "COROUTINE",
    "FUNCTION",
    "GENERATOR",
    "Span",
    "State",
    "Traced",
    "as_function",
    "begin",
    "enter",
    "finish",
    "leave",
    "start",
    "visible_parent",
]

# A compiled class cannot inherit from a Python one; for the API it is a span all the same.
trace.Span.register(Span)
