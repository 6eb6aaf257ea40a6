"""Request records on their way to what is written about them, of the running backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.observability._recorder_py import (
        BATCH_RECORDS,
        INTERVAL_SECONDS,
        ManagedSink,
        Recorder,
        Sink,
    )
else:
    from nexus.observability._recorder_c import (
        BATCH_RECORDS,
        INTERVAL_SECONDS,
        ManagedSink,
        Recorder,
        Sink,
    )

__all__ = ["BATCH_RECORDS", "INTERVAL_SECONDS", "ManagedSink", "Recorder", "Sink"]
