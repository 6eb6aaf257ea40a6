"""How the process itself is doing: loop lag, memory, collector pauses, descriptors, CPU.

One timer per worker, four times a second; the costly readings every few seconds. Nothing here is
touched by requests. A loop that was held up is warned of with the function that did it
(:mod:`nexus.observability.watchdog`).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import platform
import resource
import time
from pathlib import Path
from typing import Any, Final, Literal

from nexus._speedups import BACKEND
from nexus._version import __version__
from nexus.observability.registry import LocalMetrics
from nexus.observability.watchdog import Watchdog

__all__ = ["RuntimeSampler"]

#: Seconds between probes of the loop, and between readings of the process.
_PROBE_SECONDS: Final = 0.25
_SAMPLE_SECONDS: Final = 5.0

#: Milliseconds of lag that a log line is worth, and seconds between two such lines.
WARN_LAG_MS: Final = 250.0
_WARN_EVERY_SECONDS: Final = 10.0

#: Probes that the gauge of the worst lag looks back: 15 s, Prometheus' usual scrape interval.
_WINDOW_PROBES: Final = 60

log = logging.getLogger("nexus.runtime")


class RuntimeSampler:
    """Samples one worker's process into its metrics; lives on the worker's event loop."""

    def __init__(self, metrics: LocalMetrics) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._next_sample = 0.0
        self._quiet_until = 0.0
        self._cpu_seconds = 0.0
        self._gc_started_ns = 0
        #: The longest collection since the last probe: milliseconds, generation.
        self._gc_longest = (0.0, 0)
        self._watchdog: Final = Watchdog()
        self._recent: Final = [0.0] * _WINDOW_PROBES
        self._probe_count = 0
        self._lag: Final = metrics.histogram("nexus_event_loop_lag_seconds")
        self._lag_max: Final = metrics.gauge("nexus_event_loop_lag_max_seconds")
        self._rss: Final = metrics.gauge("nexus_process_resident_memory_bytes")
        self._fds: Final = metrics.gauge("nexus_process_open_fds")
        self._max_fds: Final = metrics.gauge("nexus_process_max_fds")
        self._cpu: Final = metrics.counter("nexus_process_cpu_seconds_total")
        self._gc_pause: Final = [
            metrics.histogram("nexus_gc_pause_seconds", generation=str(g)) for g in range(3)
        ]
        self._gc_freed: Final = [
            metrics.counter("nexus_gc_collected_objects_total", generation=str(g)) for g in range(3)
        ]
        metrics.gauge("nexus_worker_start_time_seconds").set(time.time())
        metrics.gauge(
            "nexus_build_info",
            version=__version__,
            backend=BACKEND,
            python=platform.python_version(),
        ).set(1)

    def start(self) -> None:
        """Begin sampling on the running loop."""
        self._loop = asyncio.get_running_loop()
        gc.callbacks.append(self._on_gc)
        self._watchdog.start()
        self._sample()
        self._arm()

    def stop(self) -> None:
        """Take a last sample and end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._on_gc in gc.callbacks:
            gc.callbacks.remove(self._on_gc)
        self._watchdog.stop()
        self._sample()

    def _arm(self) -> None:
        assert self._loop is not None  # noqa: S101  (set by start, the only way here)
        self._due = self._loop.time() + _PROBE_SECONDS
        self._timer = self._loop.call_at(self._due, self._probe)
        self._watchdog.expect(_PROBE_SECONDS)
        self._gc_longest = (0.0, 0)

    def _probe(self) -> None:
        assert self._loop is not None  # noqa: S101
        now = self._loop.time()
        lag_ms = max(0.0, (now - self._due) * 1000)
        self._lag.observe(lag_ms / 1000)
        self._recent[self._probe_count % _WINDOW_PROBES] = lag_ms
        self._probe_count += 1
        self._lag_max.set(max(self._recent) / 1000)
        if lag_ms >= WARN_LAG_MS and now >= self._quiet_until:
            self._quiet_until = now + _WARN_EVERY_SECONDS
            log.warning(
                "the event loop was held up",
                extra={"lag_ms": round(lag_ms, 1), **self._who_held_it(lag_ms)},
            )
        if now >= self._next_sample:
            self._next_sample = now + _SAMPLE_SECONDS
            self._sample()
        self._arm()

    def _who_held_it(self, lag_ms: float) -> dict[str, Any]:
        pause_ms, generation = self._gc_longest
        if pause_ms >= lag_ms / 2:
            return {
                "culprit": f"garbage collector, generation {generation}",
                "gc_pause_ms": round(pause_ms, 1),
            }
        seen = self._watchdog.culprit()
        if seen is None:
            return {"culprit": "unknown: no Python code ran (busy machine, compiled code)"}
        return {"culprit": seen.where, "stack": list(seen.stack)}

    def _sample(self) -> None:
        cpu_seconds = time.process_time()
        self._cpu.inc(max(0.0, cpu_seconds - self._cpu_seconds))
        self._cpu_seconds = cpu_seconds
        self._rss.set(_resident_bytes())
        self._fds.set(_open_fds())
        self._max_fds.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def _on_gc(self, phase: Literal["start", "stop"], info: dict[str, Any]) -> None:
        if phase == "start":
            self._gc_started_ns = time.perf_counter_ns()
            return
        generation = info["generation"]
        pause_ns = time.perf_counter_ns() - self._gc_started_ns
        self._gc_pause[generation].observe(pause_ns / 1e9)
        self._gc_longest = max(self._gc_longest, (pause_ns / 1e6, generation))
        self._gc_freed[generation].inc(info["collected"])


_STATM: Final = Path("/proc/self/statm")
_FDS: Final = Path("/proc/self/fd")


def _resident_bytes() -> int:
    try:
        return int(_STATM.read_bytes().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


def _open_fds() -> int:
    """Open descriptors. Linux 6.2 and later say so in one ``stat``; before, they are listed."""
    try:
        return _FDS.stat().st_size or sum(1 for _ in _FDS.iterdir())
    except OSError:
        return 0
