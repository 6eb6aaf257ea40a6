"""Time, in one place: which clock is read for what.

Decisions (limits, deadlines, windows) use the monotonic clock; only stamps that people or other
systems read use the wall clock. Layers 1 and 2 read no clock: `now` is an argument there.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["iso_utc", "monotonic", "monotonic_ns", "wall_ms", "wall_ns"]

monotonic = time.monotonic
monotonic_ns = time.monotonic_ns
wall_ns = time.time_ns


def wall_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def iso_utc(unix_ms: int) -> str:
    """``2026-11-21T10:00:00.123Z``: ISO 8601, UTC, milliseconds."""
    moment = datetime.fromtimestamp(unix_ms / 1000, tz=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{unix_ms % 1000:03d}Z"
