"""Records → spans, of the backend that runs in this process; see ``_spans_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND
from nexus.observability.record import RequestRecord

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.observability._spans_py import SpanEncoder
else:
    from nexus.observability._spans_c import SpanEncoder

__all__ = ["SpanEncoder", "span_count"]


def span_count(record: RequestRecord) -> int:
    """How many spans ``record`` makes: its own, and one for each attempt at an upstream."""
    if not record.proxied or not record.attempts:
        return 1
    earlier = record.earlier
    return 2 if earlier is None else 2 + len(earlier)
